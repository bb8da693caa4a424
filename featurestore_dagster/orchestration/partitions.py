"""Calendars as Dagster partition definitions: one partition per session, holidays excluded, keys equal to the ledger's."""

from datetime import date, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo

import dagster as dg
import polars as pl
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

from featurestore_dagster.calendars import calendar
from featurestore_dagster.features.universe import instruments
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS
from featurestore_dagster.model.time import Clock

CRON_WEEKDAYS = ("1", "2", "3", "4", "5", "6", "0")
"""Monday first, as Python counts; cron's Sunday is 0."""

EXCLUSIONS_BEYOND = timedelta(days=2 * 365)
"""Holidays are excluded this far ahead of the clock: a code location that is never reloaded stays right until then."""


def first_session(catalogue: Catalogue, calendar_name: str) -> date:
    """First session for which any dataset of this calendar lists a symbol with bars; where no source does, its market's first session."""
    datasets = [dataset for dataset in catalogue.datasets if dataset.calendar == calendar_name and dataset.bars]
    firsts = [listing.first for dataset in datasets for listing in catalogue.listings(dataset).values()]
    earliest = min(firsts or [found.first for dataset in datasets for found in instruments(dataset.market)])
    sessions: list[date] = calendar(calendar_name).sessions(earliest, earliest + timedelta(days=10))["session"].to_list()
    return sessions[0]


@cache
def session_partitions(calendar_name: str, first: date, clock: Clock) -> dg.TimeWindowPartitionsDefinition:
    """Partitions of a calendar from `first` on; the running session's partition exists while the session runs.

    On a replay clock the partitions end with the replayed day, so that the UI offers none of its future.
    """
    market = calendar(calendar_name)
    now = clock.now()
    hour, zone = market.hour_offset, ZoneInfo(market.time_zone)
    holidays = [
        datetime(day.year, day.month, day.day, hour, tzinfo=zone) for day in market.closed_days(first, (now + EXCLUSIONS_BEYOND).date())
    ]
    weekend = ",".join(CRON_WEEKDAYS[weekday] for weekday in market.closed_weekdays)
    running = market.session(market.session_of(pl.Series([now], dtype=UTC_MICROSECONDS))[0])
    return dg.DailyPartitionsDefinition(
        start_date=first.isoformat(),
        end_date=running.window_end.astimezone(zone) if clock.replayed else None,
        hour_offset=hour,
        timezone=market.time_zone,
        end_offset=1,
        exclusions=[*([f"0 {hour} * * {weekend}"] if weekend else []), *holidays],
    )


def range_tags(first: str, last: str) -> dict[str, str]:
    """Tags of a run over several partitions; none for a single one, which is the run's partition key."""
    return {} if first == last else {ASSET_PARTITION_RANGE_START_TAG: first, ASSET_PARTITION_RANGE_END_TAG: last}
