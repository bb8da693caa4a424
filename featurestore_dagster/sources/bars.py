"""What providers of market prices share: whom to ask for, which bars are closed, and when they were known. No provider belongs here."""

from collections.abc import Sequence
from datetime import datetime, timedelta

import polars as pl

from featurestore_dagster.calendars import calendar
from featurestore_dagster.errors import MalformedDataError
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS, Dataset
from featurestore_dagster.model.source import Source
from featurestore_dagster.sources.http import Payload
from featurestore_dagster.sources.payloads import canonical


def listed_symbols(source: Source, dataset: Dataset, start: datetime, end: datetime) -> list[str]:
    """Symbols that the source declares for any day from `start` to `end`, in declared order."""
    first, last = start.date(), end.date()
    listings = source.listings.get(dataset.name, ())
    return [found.symbol for found in listings if found.first <= last and (found.last is None or first <= found.last)]


def instants(numbers: Sequence[int], units: dict[str, int], payload: Payload) -> pl.Series:
    """Unix times as Datetime(us, UTC); the unit is that in which every one of them lies between 2001 and 2100.

    Args:
        numbers: Whole numbers of one unknown unit.
        units: Allowed units by name, each in microseconds.
        payload: Where they came from, for the message.

    Raises:
        MalformedDataError: They fit none of the allowed units, or not the same one.
    """
    low, high = 978_307_200_000_000, 4_102_444_800_000_000
    for factor in units.values():
        if all(low <= number * factor < high for number in numbers):
            return pl.Series([number * factor for number in numbers], dtype=pl.Int64).cast(UTC_MICROSECONDS)
    raise MalformedDataError(
        f"{payload.url}: times from {min(numbers)} to {max(numbers)} are not in the documented {' or '.join(units)}: nothing was taken"
    )


def within_session(rows: pl.DataFrame, dataset: Dataset) -> pl.DataFrame:
    """Bars that lie wholly inside a session of the dataset's calendar, with that session's `opens` and `closes`, in time order."""
    hours = calendar(dataset.calendar).table.select("opens", "closes").sort("opens")
    return (
        rows.with_columns(bar_start=pl.col("event_timestamp") - dataset.timeframe.duration)
        .sort("bar_start", maintain_order=True)
        .join_asof(hours, left_on="bar_start", right_on="opens", strategy="backward")
        .filter(pl.col("event_timestamp") <= pl.col("closes"))
    )


def arrived(rows: pl.DataFrame, dataset: Dataset, source: Source, payload: Payload, live_for: timedelta) -> pl.DataFrame:
    """Canonical rows of what had happened when the payload was made, with known-at.

    A row that came before `due` or within `live_for` after it is live: it was observed to be known on arrival. An older one is a backfill:
    it is assumed to have been known at `due`, for its own arrival would hide the past from as-of reads.

    Args:
        rows: event_timestamp, `due` (when the provider usually has the row) and the table's own columns; nullable ones may be absent.
        dataset: What the rows belong to.
        source: What they came from.
        payload: When they came.
        live_for: Until about the time when the next row is due.

    Returns:
        The canonical columns but `ingested_at`, sorted by identity.
    """
    received_at = pl.lit(payload.received_at, UTC_MICROSECONDS)
    live = pl.col("due") + live_for > received_at
    absent = {column.name: pl.lit(None) for column in dataset.table.columns if column.name not in rows.columns}
    if "timeframe" in absent:
        absent["timeframe"] = pl.lit(dataset.timeframe.value)
    happened = rows.filter(pl.col("event_timestamp") <= pl.lit(payload.asked_at, UTC_MICROSECONDS)).with_columns(
        known_at=pl.when(live).then(received_at).otherwise("due"),
        known_at_basis=pl.when(live).then(pl.lit("observed")).otherwise(pl.lit("assumed")),
        **absent,
    )
    return canonical(happened, dataset, source)


def in_range(pages: Sequence[pl.DataFrame], dataset: Dataset, start: datetime, end: datetime) -> pl.DataFrame:
    """All pages together, only start < event_timestamp <= end, sorted by identity."""
    schema = {name: dtype for name, dtype in dataset.table.schema.items() if name != "ingested_at"}
    rows = pl.concat([pl.DataFrame(schema=schema), *pages])
    return rows.filter(pl.col("event_timestamp") > start, pl.col("event_timestamp") <= end).sort(
        dataset.table.identity, maintain_order=True
    )
