"""Calendars by name: lays out the sessions and windows of each market once. What is asked of them belongs in `market_calendar`."""

from datetime import date
from functools import cache

import polars as pl

from featurestore_dagster.calendars.exchange_hours import (
    ALWAYS_OPEN,
    COLOMBIAN_EXCHANGE,
    COLOMBIAN_PESO,
    FIRST_DAY,
    FOREIGN_EXCHANGE,
    LAST_DAY,
    ExchangeHours,
    exchange_hours,
)
from featurestore_dagster.calendars.market_calendar import MarketCalendar
from featurestore_dagster.errors import ConfigurationError
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS

PESO_OPENS, PESO_CLOSES = 13, 18
"""Hours, UTC: Bogota has no clock changes, so its days and schedules are told in UTC."""


@cache
def calendar(name: str) -> MarketCalendar:
    """The calendar of this name: "24/7" (UTC days), "FX" (24/5), "COP", or an exchange's code in exchange_calendars, such as "XNYS".

    FX trades from Sunday 17:00 to Friday 17:00 America/New_York, less the sessions that end on 25 December and 1 January. Its session
    is labelled with the New York date on which it *starts* (Sunday 17:00 to Monday 17:00 is Sunday's), as Dagster labels a daily
    partition with an hour offset. COP is the local market of the Colombian peso: 13:00 to 18:00 UTC on the days of Colombia's exchange.

    Raises:
        UnknownNameError: No calendar has this name.
        ConfigurationError: Its sessions open before their own local day (overnight futures), so days cannot partition them.
    """
    if name == ALWAYS_OPEN:
        return _day_calendar(ALWAYS_OPEN, "UTC", hour_offset=0, traded=pl.lit(value=True))
    if name == FOREIGN_EXCHANGE:
        last_day = pl.col("session").dt.offset_by("1d")
        holiday = last_day.dt.strftime("%m-%d").is_in(["12-25", "01-01"])
        return _day_calendar(FOREIGN_EXCHANGE, "America/New_York", hour_offset=17, traded=(last_day.dt.weekday() < 6) & ~holiday)
    if name == COLOMBIAN_PESO:
        return _exchange_calendar(name, _peso_hours(exchange_hours(COLOMBIAN_EXCHANGE)))
    return _exchange_calendar(name, exchange_hours(name))


def _day_calendar(name: str, time_zone: str, hour_offset: int, traded: pl.Expr) -> MarketCalendar:
    """Sessions of a whole day from `hour_offset` to `hour_offset`, local time, on the days that `traded` selects by `session`."""
    days = pl.date_range(FIRST_DAY, LAST_DAY, eager=True).alias("session").to_frame().filter(traded)
    hours = days.select(
        "session",
        opens=_local_instant(pl.col("session"), hour_offset, time_zone),
        closes=_local_instant(pl.col("session").dt.offset_by("1d"), hour_offset, time_zone),
        break_start=pl.lit(None, UTC_MICROSECONDS),
        break_end=pl.lit(None, UTC_MICROSECONDS),
    )
    table = _with_windows(hours, FIRST_DAY, hour_offset, time_zone)
    return MarketCalendar(name, time_zone, hour_offset, grid_from_midnight=True, first_day=FIRST_DAY, last_day=LAST_DAY, table=table)


def _peso_hours(exchange: ExchangeHours) -> ExchangeHours:
    def at(hour: int) -> pl.Expr:
        return pl.col("session").cast(pl.Datetime("us")).dt.offset_by(f"{hour}h").dt.replace_time_zone("UTC")

    table = exchange.table.with_columns(opens=at(PESO_OPENS), closes=at(PESO_CLOSES))
    return ExchangeHours("UTC", exchange.first_day, exchange.last_day, table)


def _exchange_calendar(name: str, exchange: ExchangeHours) -> MarketCalendar:
    overnight = exchange.table.filter(pl.col("opens") < _local_instant(pl.col("session"), 0, exchange.time_zone))
    if overnight.height:
        raise ConfigurationError(
            f"calendar {name} opens session {overnight['session'][0]} at {overnight['opens'][0]}, the evening before in "
            f"{exchange.time_zone}; allowed: calendars whose sessions open within their own local day, {ALWAYS_OPEN} or {FOREIGN_EXCHANGE}"
        )
    return MarketCalendar(
        name,
        exchange.time_zone,
        hour_offset=0,
        grid_from_midnight=False,
        first_day=exchange.first_day,
        last_day=exchange.last_day,
        table=_with_windows(exchange.table, exchange.first_day, 0, exchange.time_zone),
    )


def _with_windows(hours: pl.DataFrame, first_day: date, hour_offset: int, time_zone: str) -> pl.DataFrame:
    """Add window_end, the local boundary after the session's day, and window_start, the previous window_end or `first_day`'s boundary."""
    window_end = _local_instant(pl.col("session").dt.offset_by("1d"), hour_offset, time_zone)
    first = _local_instant(pl.lit(first_day), hour_offset, time_zone)
    return hours.with_columns(window_end=window_end).with_columns(window_start=pl.col("window_end").shift(1).fill_null(first))


def _local_instant(day: pl.Expr, hour: int, time_zone: str) -> pl.Expr:
    """UTC instant of `hour` o'clock local time. A midnight that a clock change skips is the hour after it: the day's first instant."""
    local = day.cast(pl.Datetime("us"))
    hours = [
        local.dt.offset_by(f"{wall_hour}h").dt.replace_time_zone(time_zone, ambiguous="earliest", non_existent="null")
        for wall_hour in (hour, hour + 1)
    ]
    return pl.coalesce(hours).dt.convert_time_zone("UTC")
