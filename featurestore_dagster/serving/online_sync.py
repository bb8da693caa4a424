"""Bring Redis up to the ledger: apply what was published after the last publication that Redis itself remembers."""

from datetime import datetime

from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.stores.postgres import PostgresStore
from featurestore_dagster.stores.redis import OnlineWrite, RedisStore


def sync_view(view: FeatureView, store: PostgresStore, online: RedisStore, now: datetime) -> OnlineWrite:
    """Apply one view's changes.

    Redis lost, flushed or restored from an old snapshot remembers no publication or an older one, so the same call heals it.

    Raises:
        StoreUnavailableError: A store does not answer; nothing is forgotten, call again.
    """
    changes = store.online_changes(view, online.publication_id(view), now)
    return online.write(view, changes.rows, changes.last_publication_id, retracted=changes.retracted, now=now)
