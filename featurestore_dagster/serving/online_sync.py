"""Bring Redis up to the ledger: apply what was published after the last publication that Redis itself remembers."""

import time
from collections.abc import Sequence
from datetime import datetime

import polars as pl

from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.projections.relation import stream_relation
from featurestore_dagster.serving.delisting import delisted
from featurestore_dagster.stores.postgres import Ledger, PostgresStore, durations
from featurestore_dagster.stores.postgres.connection import connect
from featurestore_dagster.stores.redis import Change, OnlineWrite, RedisStore


def sync_view(
    view: FeatureView, store: PostgresStore, online: RedisStore, now: datetime, catalogue: Catalogue | None = None
) -> OnlineWrite:
    """Apply one view's changes; with a catalogue, symbols whose listing has ended leave Redis and do not come back, and epochs advance.

    Redis lost, flushed or restored from an old snapshot remembers no publication or an older one, so the same call heals it.
    So does a Redis with rows of another version of the view: it remembers no publication of this one.

    Raises:
        StoreUnavailableError: A store does not answer; nothing is forgotten, call again.
    """
    return sync_views([view], store, online, now, catalogue)[0]


def sync_views(
    views: Sequence[FeatureView], store: PostgresStore, online: RedisStore, now: datetime, catalogue: Catalogue | None = None
) -> list[OnlineWrite]:
    """As `sync_view` for each of these views; an empty Redis is filled several times as fast as by one after the other."""
    started = time.perf_counter()
    changes = [_change(view, store, online, now, catalogue) for view in views]
    written = online.write_together(changes, now)
    for change in changes:
        visible = change.rows.filter(pl.col("event_timestamp") <= now)
        for stream, newest in visible.group_by("stream").agg(pl.col("event_timestamp").max()).iter_rows():
            online.advance_watermark(change.view, stream, newest)
        if catalogue is not None:
            _advance_epochs(change.view, Ledger(store.settings), online, catalogue)
    seconds = (time.perf_counter() - started) / len(views)
    with connect(store.settings) as connection:
        for view in views:
            durations.record(connection, durations.WriteKind.SYNC, view.label, seconds)
    return written


def _change(view: FeatureView, store: PostgresStore, online: RedisStore, now: datetime, catalogue: Catalogue | None) -> Change:
    remembered = online.publication_id(view)
    changes = store.online_changes(view, remembered, now)
    # What Redis holds may be another version's, or another database's, known later than the row that must replace it.
    replaces = remembered is None or changes.last_publication_id < remembered
    if replaces:
        online.forget(view)
    ended = delisted(catalogue, view, now) if catalogue is not None else ()
    gone = pl.DataFrame(sorted(ended), schema=dict.fromkeys(view.join_keys, pl.String), orient="row")
    rows = changes.rows.join(gone, on=list(view.join_keys), how="anti")
    return Change(view, rows, changes.last_publication_id, pl.concat([changes.retracted, gone]).unique(), replaces)


def _advance_epochs(view: FeatureView, ledger: Ledger, online: RedisStore, catalogue: Catalogue) -> None:
    """A stream's epoch is the newest bar up to which every online view of the stream is in Redis: the view synced last advances it."""
    for stream in view.streams:
        newest = [
            ledger.newest_event(stream_relation(other, part).name, online.publication_id(other) or 0)
            for other in catalogue.views
            for part in other.streams
            if other.online and part.name == stream.name
        ]
        if written := [event for event in newest if event is not None]:  # a view that never had a row holds up no other
            online.advance_epoch(stream.name, min(written))
