"""Released series: what each must go on delivering and when, which stand behind the columns of macro indicators, when a value is stale."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

import polars as pl

from featurestore_dagster.errors import DeclarationError
from featurestore_dagster.features.raw_tables import US_EQUITY_CANDLES_1D
from featurestore_dagster.features.release_calendar import Period, ReleaseRule
from featurestore_dagster.features.universe import CRYPTO, INSTRUMENTS, instruments
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.model.indicator import Grain

MAXIMUM_AGE_DAYS = {"daily": 7, "monthly": 75}
"""Age of the newest observation, from the day that it describes, beyond which it is stale."""

FEAR_GREED_INDEX = "FNG"

DAYS_BETWEEN_OBSERVATIONS = {"daily": (1, 4), "monthly": (28, 31)}
"""Least and greatest median distance of a series' observation dates; a weekend or holiday is no change of frequency."""

NEXT_MORNING = ReleaseRule(Period.DAY, time(13, 15), "UTC")
NEXT_AFTERNOON = ReleaseRule(Period.DAY, time(16, 15), "America/New_York")
NEXT_WEEK = ReleaseRule(Period.WEEK, time(16, 15), "America/New_York")
NEXT_MONTH = ReleaseRule(Period.MONTH, time(13, 15), "UTC")
MID_MONTH = ReleaseRule(Period.MONTH, time(15), "America/New_York", lag_days=14)
FIFTEENTH = ReleaseRule(Period.MONTH, time(8, 30), "America/New_York", lag_days=15, lag_business_days=0, is_exact=True)
AT_ONCE = ReleaseRule(Period.DAY, time(1), "UTC", lag_business_days=0, is_exact=True, calendar="24/7")


@dataclass(frozen=True)
class ReleasedSeries:
    """What a provider delivers under a series' name for as long as it is the same series.

    `unit` is contained in the provider's own words for the unit, whatever their case; `lowest` and `highest` bound what is plausible in
    it. `embargo` delays the known-at of every vintage in the mart. `is_revised`: the first print of a value is provisional.
    """

    series_id: str
    frequency: Literal["daily", "monthly"]
    unit: str
    lowest: float
    highest: float
    release: ReleaseRule
    embargo: timedelta = timedelta(0)
    is_revised: bool = False

    def __post_init__(self) -> None:
        """Refuse bounds and delays that could not hold."""
        if self.lowest >= self.highest:
            raise DeclarationError(f"series {self.series_id}: lowest {self.lowest:g} is not below highest {self.highest:g}")
        if self.embargo < timedelta(0):
            raise DeclarationError(f"series {self.series_id}: embargo {self.embargo} is negative; nothing is known before its release")
        if (self.release.period is Period.MONTH) != (self.frequency == "monthly"):
            raise DeclarationError(f"series {self.series_id}: {self.frequency} values are not released by the {self.release.period}")

    @property
    def maximum_age_days(self) -> int:
        """Age in days beyond which the newest observation is stale; a week more for what is released once a week."""
        return MAXIMUM_AGE_DAYS[self.frequency] + (7 if self.release.period is Period.WEEK else 0)

    @property
    def release_time(self) -> time:
        """Wall time in `release_zone` from which a vintage counts on the day of its release."""
        return self.release.at if self.release.is_exact else time(23, 59, 59)

    @property
    def release_zone(self) -> str:
        """Time zone of the release's day."""
        return self.release.time_zone if self.release.is_exact else "America/Chicago"

    def due_instants(self, business_days: pl.Series) -> pl.Series:
        """When each observation must be usable: its release plus the embargo. Datetime(us, UTC), ascending, each instant once.

        Args:
            business_days: Date, ascending: sessions of the calendar `release.calendar`. They are the observation dates, or their months;
                what is released after the last of them is left out.
        """
        observed = business_days if self.frequency == "daily" else business_days.dt.month_start().unique()
        released = self.release.release_instants(observed, business_days).drop_nulls()
        return (released + self.embargo).unique().sort()

    def released_at(self, day: date) -> datetime:
        """Instant from which a vintage of this day counts, UTC."""
        return datetime.combine(day, self.release_time, ZoneInfo(self.release_zone)).astimezone(UTC)

    def complaint(self, observation_dates: pl.Series, values: pl.Series) -> str | None:
        """Why these observations are of another unit or frequency; None when they are not.

        Args:
            observation_dates: Date, any order, repeated for each vintage; no NULL.
            values: Float64, in the same order; NaN is implausible.
        """
        implausible = values.filter(~values.is_between(self.lowest, self.highest))
        if not implausible.is_empty():
            return f"value {implausible[0]:g} is outside {self.lowest:g} to {self.highest:g} {self.unit}: another unit"
        days = observation_dates.unique().sort().diff().drop_nulls().dt.total_days()
        least, most = DAYS_BETWEEN_OBSERVATIONS[self.frequency]
        middle = days.median()
        if len(days) > 1 and isinstance(middle, float) and not least <= middle <= most:
            return f"observations are {middle:g} days apart, {least} to {most} are {self.frequency}: another frequency"
        return None


RELEASED_SERIES = {
    series.series_id: series
    for series in (
        ReleasedSeries("VIXCLS", "daily", "index", 5, 200, NEXT_MORNING),
        ReleasedSeries("DTWEXBGS", "daily", "index jan 2006=100", 50, 250, NEXT_WEEK, is_revised=True),
        ReleasedSeries("DGS2", "daily", "percent", -5, 25, NEXT_AFTERNOON),
        ReleasedSeries("DGS10", "daily", "percent", -5, 25, NEXT_AFTERNOON),
        ReleasedSeries("T10Y2Y", "daily", "percent", -10, 10, NEXT_AFTERNOON),
        ReleasedSeries("BAA10Y", "daily", "percent", -5, 25, NEXT_MORNING),
        ReleasedSeries("DCOILBRENTEU", "daily", "dollars per barrel", -100, 500, NEXT_MORNING),
        ReleasedSeries("DCOILWTICO", "daily", "dollars per barrel", -100, 500, NEXT_MORNING),
        ReleasedSeries("DEXMXUS", "daily", "pesos", 1, 100, NEXT_WEEK),
        ReleasedSeries("BAMLEMCBPIOAS", "daily", "percent", 0, 50, NEXT_MORNING),
        ReleasedSeries("COLIRLTLT01STM", "monthly", "percent", -5, 40, MID_MONTH, is_revised=True),
        ReleasedSeries("CPILFESL", "monthly", "index 1982-1984=100", 10, 2000, FIFTEENTH, is_revised=True),
        ReleasedSeries("AAA", "monthly", "percent", -5, 30, NEXT_MONTH),
        ReleasedSeries("BAA", "monthly", "percent", -5, 30, NEXT_MONTH),
        ReleasedSeries(FEAR_GREED_INDEX, "daily", "index", 0, 100, AT_ONCE),
    )
}
"""By series_id. The fear and greed index is alternative.me's, which states its own times; the others are FRED's."""


@dataclass(frozen=True)
class MacroSeries:
    """An input column of indicators and the series that fills it, for the named symbols or (None) for every row."""

    column: str
    series_id: str
    description: str
    symbols: tuple[str, ...] | None = None

    @property
    def released(self) -> ReleasedSeries:
        """The series behind the column."""
        return RELEASED_SERIES[self.series_id]

    @property
    def maximum_age_days(self) -> int:
        """Age in days beyond which the newest observation is stale."""
        return self.released.maximum_age_days


MACRO_SERIES = (
    MacroSeries("vix", "VIXCLS", "CBOE volatility index, close"),
    MacroSeries("treasury_2y", "DGS2", "2-year Treasury yield, per cent"),
    MacroSeries("treasury_10y", "DGS10", "10-year Treasury yield, per cent"),
    MacroSeries("credit_spread", "BAA10Y", "Moody's Baa corporate yield less 10-year Treasury, percentage points"),
    MacroSeries("dxy", "DTWEXBGS", "broad dollar index of the Federal Reserve; not the dollar index of ICE"),
    MacroSeries("embi", "BAMLEMCBPIOAS", "spread of emerging markets' corporate bonds, in place of the licensed EMBI, percentage points"),
    MacroSeries("brent", "DCOILBRENTEU", "Brent crude oil, dollars per barrel"),
    MacroSeries("usdmxn", "DEXMXUS", "Mexican pesos per dollar"),
    *(
        MacroSeries("local_yield", found.local_yield, f"10-year yield in {found.currency}, per cent", symbols=(found.symbol,))
        for found in INSTRUMENTS
        if found.local_yield is not None
    ),
    MacroSeries(
        "provider_fear_greed",
        "FNG",
        "fear and greed index of the crypto market, as its provider computes it",
        symbols=tuple(found.symbol for found in instruments(CRYPTO)),
    ),
)

BENCHMARK_BARS = US_EQUITY_CANDLES_1D
BENCHMARKS = ("SPY", "SPX")
"""Symbols whose daily closes are `spy_close`, best first; any but the first is a substitute and is flagged FALLBACK_SOURCE."""


def series_of(view: FeatureView) -> tuple[MacroSeries, ...]:
    """The series that the features of a view and their components read, sorted by column.

    Raises:
        DeclarationError: An input column of a feature over observations or the benchmark is neither a series nor a benchmark column.
    """
    known = {series.column for series in MACRO_SERIES}
    wanted = {name for grain in (Grain.OBSERVATIONS, Grain.BENCHMARK) for f in view.by_grain[grain] for name in f.input_columns}
    if missing := sorted(name for name in wanted - known if not name.startswith("spy_")):
        raise DeclarationError(f"view {view.name} reads {missing}, which no MacroSeries declares; declared: {sorted(known)}")
    wanted |= {name for feature in view.by_grain[Grain.ROW] for name in feature.input_columns}
    return tuple(
        sorted((series for series in MACRO_SERIES if series.column in wanted), key=lambda series: (series.column, series.series_id))
    )


def series_inputs(view: FeatureView) -> pl.DataFrame:
    """The series of a view as a frame to join observations to (left: a series without observations keeps its row).

    Returns:
        column, symbol (NULL: every row), series_id (String); maximum_age_days (Int64); is_revised (Boolean).
    """
    rows = [
        (series.column, symbol, series.series_id, series.maximum_age_days, series.released.is_revised)
        for series in series_of(view)
        for symbol in (series.symbols if series.symbols is not None else (None,))
    ]
    schema = {"column": pl.String, "symbol": pl.String, "series_id": pl.String, "maximum_age_days": pl.Int64, "is_revised": pl.Boolean}
    return pl.DataFrame(rows, schema=schema, orient="row")
