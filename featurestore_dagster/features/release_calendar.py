"""Release calendar: when a publisher brings out the value of a day, week or month. Which series follows which rule is in `macro_series`."""

from dataclasses import dataclass
from datetime import time
from enum import StrEnum

import polars as pl

from featurestore_dagster.model.raw_table import UTC_MICROSECONDS


class Period(StrEnum):
    """What one release covers: it is counted from the end of the period that an observation lies in."""

    DAY = "day"
    WEEK = "week"
    MONTH = "month"


@dataclass(frozen=True)
class ReleaseRule:
    """The publisher's habit: at a local time, so many days and then business days after the period's last day.

    With `lag_business_days` 0 the release keeps its day, whatever day that is. `is_exact`: the publisher keeps the minute; otherwise the
    time is an assumption, and an archive that tells only the day of a release is believed from the end of that day. `calendar` names the
    calendar whose sessions are business days; for observations of days, also the days that have one.
    """

    period: Period
    at: time
    time_zone: str
    lag_days: int = 0
    lag_business_days: int = 1
    is_exact: bool = False
    calendar: str = "XNYS"

    def earliest_day(self, observation_date: pl.Expr) -> pl.Expr:
        """First day, business day or not, on which the value of an observation date (Date) could be released; Date."""
        ends = {
            Period.DAY: observation_date,
            Period.WEEK: observation_date + pl.duration(days=7 - observation_date.dt.weekday()),
            Period.MONTH: observation_date.dt.month_end(),
        }
        return ends[self.period] + pl.duration(days=self.lag_days + min(self.lag_business_days, 1))

    def release_instants(self, observation_dates: pl.Series, business_days: pl.Series) -> pl.Series:
        """When the value of each observation date is released.

        Args:
            observation_dates: Date, any order; no NULL.
            business_days: Date, ascending: sessions of `calendar`.

        Returns:
            Datetime(us, UTC), same length and order; NULL where the business days end before the release.
        """
        days = observation_dates.to_frame("day").select(self.earliest_day(pl.col("day"))).to_series()
        if self.lag_business_days:
            position = business_days.search_sorted(days, side="left").cast(pl.Int64) + self.lag_business_days - 1
            days = business_days.gather(pl.select(pl.when(position < business_days.len()).then(position)).to_series())
        local = days.to_frame("day").select(pl.col("day").dt.combine(self.at).dt.replace_time_zone(self.time_zone))
        return local.to_series().dt.convert_time_zone("UTC").cast(UTC_MICROSECONDS).rename(observation_dates.name)
