"""SLO state of a stream: its watermarks in Postgres against its calendar, with the symbols that are furthest behind.

The rule itself is `serving.freshness`; this reads what it needs.
"""

from dataclasses import dataclass
from datetime import datetime

import polars as pl

from featurestore_dagster.calendars import calendar
from featurestore_dagster.features.universe import listings_of
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.feature_view import FeatureView, Stream
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS
from featurestore_dagster.model.time import instant
from featurestore_dagster.projections.relation import stream_relation
from featurestore_dagster.serving.freshness import Freshness, evaluate_entities, expectation, freshness
from featurestore_dagster.stores.postgres import PostgresStore

WORST = 10


@dataclass(frozen=True)
class StreamState:
    """Freshness of a stream as a whole, and its overdue entities, worst first, as text."""

    view: str
    stream: str
    freshness: Freshness
    worst: tuple[str, ...]

    def as_dict(self) -> dict[str, object]:
        """For JSON: durations in seconds."""
        found = self.freshness
        return {
            "view": self.view,
            "stream": self.stream,
            "state": found.state,
            "watermark": found.watermark,
            "expected_event_timestamp": found.expected_event_timestamp,
            "due_at": found.due_at,
            "next_due_at": found.next_due_at,
            "lag_seconds": None if found.lag is None else found.lag.total_seconds(),
            "age_open_seconds": None if found.age_open is None else found.age_open.total_seconds(),
            "worst": self.worst,
        }


def stream_state(catalogue: Catalogue, store: PostgresStore, view: FeatureView, stream: Stream, now: datetime) -> StreamState:
    """State of one stream at `now`; entities that are not listed on the session in question owe nothing and are left out."""
    relation = stream_relation(view, stream)
    watermarks = store.watermarks(relation)
    newest = watermarks["watermark"].max()
    watermark = newest if isinstance(newest, datetime) else None
    result = freshness(catalogue, view, stream, watermark, now)
    listings = listings_of(catalogue, view, stream)
    session = calendar(stream.calendar).session_of(pl.Series([result.expected_event_timestamp], dtype=UTC_MICROSECONDS))[0]
    if "symbol" in relation.keys:
        active = pl.DataFrame(
            {"symbol": [name for name, listing in listings.items() if listing.covers(session)]}, schema={"symbol": pl.String}
        )
        watermarks = active.join(watermarks.group_by("symbol").agg(pl.col("watermark").max()), on="symbol", how="left")
    behind = evaluate_entities(expectation(catalogue, view, stream), watermarks, now).filter(
        pl.col("state").cast(pl.String).is_in(["LATE", "STALE", "NEVER"])
    )
    key = relation.keys[0]
    worst = tuple(
        f"{row[key]}: {row['state']}, newest {instant(row['watermark']) if row['watermark'] else 'never'}"
        for row in behind.head(WORST).iter_rows(named=True)
    )
    return StreamState(view.label, stream.name, result, worst)


def all_states(catalogue: Catalogue, store: PostgresStore, now: datetime) -> list[StreamState]:
    """State of every stream that a source is switched on for, in declared order."""
    fed = [(view, stream) for view in catalogue.views for stream in view.streams if catalogue.is_fed(stream)]
    return [stream_state(catalogue, store, view, stream, now) for view, stream in fed]
