"""The online store: what was published, newest version per entity, in Feast's layout. How the layout looks stands in `layout`.

Deciding what is fresh enough to serve does not belong here (see `serving.online`).
"""

from featurestore_dagster.stores.redis.store import OnlineWrite, RedisStore, StoredRow

__all__ = ["OnlineWrite", "RedisStore", "StoredRow"]
