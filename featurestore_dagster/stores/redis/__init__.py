"""The online store: what was published, newest version per entity, in Feast's layout and in one piece for each view beside it.

How the layout looks stands in `layout` and `packed`. Deciding what is fresh enough to serve does not belong here (see `serving.online`).
"""

from featurestore_dagster.stores.redis.packed import ABSENT, StoredRow, Value
from featurestore_dagster.stores.redis.reading import OnlineRead
from featurestore_dagster.stores.redis.store import RedisStore
from featurestore_dagster.stores.redis.whole import Heads, WholeRow
from featurestore_dagster.stores.redis.writing import Change, OnlineWrite

__all__ = ["ABSENT", "Change", "Heads", "OnlineRead", "OnlineWrite", "RedisStore", "StoredRow", "Value", "WholeRow"]
