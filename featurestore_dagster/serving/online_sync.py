"""Bring Redis up to the ledger: apply what was published after the last publication that Redis itself remembers."""

from datetime import datetime

import polars as pl

from featurestore_dagster.calendars import calendar
from featurestore_dagster.features.universe import listings_of
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS
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
    gone = _delisted(view, now, catalogue) if catalogue is not None else changes.retracted.clear()
    rows = changes.rows.join(gone, on=list(view.join_keys), how="anti")
    return online.write(view, rows, changes.last_publication_id, retracted=pl.concat([changes.retracted, gone]).unique(), now=now)


def _delisted(view: FeatureView, now: datetime, catalogue: Catalogue) -> pl.DataFrame:
    """Join keys of the entities of symbols that no stream's listing covers any more; empty for a view of no symbols."""
    ended: set[tuple[str, ...]] = set()
    listed: set[tuple[str, ...]] = set()
    for stream in view.streams:
        session = calendar(stream.calendar).session_of(pl.Series([now], dtype=UTC_MICROSECONDS))[0]
        for symbol, listing in listings_of(catalogue, view, stream).items():
            entity = {"symbol": symbol, "timeframe": stream.timeframe.value}
            key = tuple(entity.get(name, symbol) for name in view.join_keys)
            (ended if listing.last is not None and listing.last < session else listed).add(key)
    return pl.DataFrame(sorted(ended - listed), schema=dict.fromkeys(view.join_keys, pl.String), orient="row")
