"""Bring Redis up to the ledger: apply what was published after the last publication that Redis itself remembers."""

from datetime import datetime

import polars as pl

from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.serving.delisting import delisted
from featurestore_dagster.stores.postgres import PostgresStore
from featurestore_dagster.stores.redis import OnlineWrite, RedisStore


def sync_view(
    view: FeatureView, store: PostgresStore, online: RedisStore, now: datetime, catalogue: Catalogue | None = None
) -> OnlineWrite:
    """Apply one view's changes; with a catalogue, symbols whose listing has ended leave Redis and do not come back.

    Redis lost, flushed or restored from an old snapshot remembers no publication or an older one, so the same call heals it.
    So does a Redis with rows of another version of the view: it remembers no publication of this one.

    Raises:
        StoreUnavailableError: A store does not answer; nothing is forgotten, call again.
    """
    remembered = online.publication_id(view)
    changes = store.online_changes(view, remembered, now)
    if remembered is None:
        # What Redis holds may be another version's, known later than the row that must replace it.
        held = pl.concat([changes.rows.select(view.join_keys), changes.retracted])
        online.write(view, changes.rows.clear(), 0, retracted=held, now=now)
    ended = delisted(catalogue, view, now) if catalogue is not None else ()
    gone = pl.DataFrame(sorted(ended), schema=dict.fromkeys(view.join_keys, pl.String), orient="row")
    rows = changes.rows.join(gone, on=list(view.join_keys), how="anti")
    return online.write(view, rows, changes.last_publication_id, retracted=pl.concat([changes.retracted, gone]).unique(), now=now)
