"""Which rows the calendar and the listings owe by now. What is wrong with the rows that came does not belong here."""

from collections.abc import Iterable
from datetime import datetime, timedelta

import polars as pl

from featurestore_dagster.calendars import calendar
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS, Dataset
from featurestore_dagster.model.source import Listing
from featurestore_dagster.model.time import Timeframe

GRACE = {
    Timeframe.ONE_MINUTE: timedelta(seconds=30),
    Timeframe.FIVE_MINUTES: timedelta(seconds=60),
    Timeframe.FIFTEEN_MINUTES: timedelta(minutes=2),
    Timeframe.ONE_HOUR: timedelta(minutes=5),
    Timeframe.FOUR_HOURS: timedelta(minutes=5),
    Timeframe.ONE_DAY: timedelta(hours=2),
}
"""How long after bar end and latency a bar may be absent before it counts as missing."""


def due_bar_ends(calendar_name: str, timeframe: Timeframe, latency: timedelta, start: datetime, end: datetime, now: datetime) -> pl.Series:
    """Bar ends, start < bar end <= end, whose rows must have arrived by now; ascending Datetime(us, UTC)."""
    latest = now - latency - GRACE[timeframe]
    return calendar(calendar_name).bar_ends(timeframe, start, min(end, max(latest, start)))


def expected_rows(calendar_name: str, ends: pl.Series, listings: Iterable[Listing]) -> pl.DataFrame:
    """One row per bar end and symbol that is listed in its session.

    Returns:
        partition_key String, symbol String, event_timestamp Datetime(us, UTC); no NULLs, unsorted.
    """
    listed = pl.DataFrame(
        [(listing.symbol, listing.first, listing.last) for listing in listings],
        schema={"symbol": pl.String, "first": pl.Date, "last": pl.Date},
        orient="row",
    )
    due = pl.DataFrame({"session": calendar(calendar_name).session_of(ends), "event_timestamp": ends})
    covers = (pl.col("first") <= pl.col("session")) & (pl.col("session") <= pl.col("last")).fill_null(value=True)
    return (
        due.join(listed, how="cross")
        .filter(covers)
        .select(pl.col("session").cast(pl.String).alias("partition_key"), "symbol", pl.col("event_timestamp").cast(UTC_MICROSECONDS))
    )


def missing_bars(
    bars: pl.DataFrame, dataset: Dataset, listings: Iterable[Listing], start: datetime, end: datetime, now: datetime
) -> pl.DataFrame:
    """Expected bars of `dataset` with start < bar end <= end that are due and not among `bars` (columns symbol, event_timestamp).

    Returns:
        partition_key String, symbol String, event_timestamp Datetime(us, UTC), known_at Datetime(us, UTC): the instant from which the bar
        counted as missing. Sorted by symbol and event time.
    """
    ends = due_bar_ends(dataset.calendar, dataset.timeframe, dataset.latency, start, end, now)
    absent = expected_rows(dataset.calendar, ends, listings).join(bars, on=["symbol", "event_timestamp"], how="anti")
    known_at = pl.col("event_timestamp") + (dataset.latency + GRACE[dataset.timeframe])
    return absent.with_columns(known_at.alias("known_at")).sort("symbol", "event_timestamp")
