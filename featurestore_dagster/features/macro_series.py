"""Which released series stand behind the input columns of the macro indicators, and how old a value may be before it is stale."""

from dataclasses import dataclass

from featurestore_dagster.errors import DeclarationError
from featurestore_dagster.model.feature_view import FeatureView

DAILY_MAXIMUM_AGE_DAYS = 7
MONTHLY_MAXIMUM_AGE_DAYS = 75


@dataclass(frozen=True)
class MacroSeries:
    """An input column of macro indicators and the series that fills it."""

    column: str
    series_id: str
    description: str
    maximum_age_days: int = DAILY_MAXIMUM_AGE_DAYS


MACRO_SERIES = (
    MacroSeries("vix", "VIXCLS", "CBOE volatility index, close"),
    MacroSeries("treasury_2y", "DGS2", "2-year Treasury yield, per cent"),
    MacroSeries("treasury_10y", "DGS10", "10-year Treasury yield, per cent"),
    MacroSeries("credit_spread", "BAA10Y", "Moody's Baa corporate yield less 10-year Treasury, percentage points"),
)

BENCHMARKS = ("SPY", "SPX")
"""Symbols whose daily closes are `spy_close`, best first; any but the first is a substitute and is flagged FALLBACK_SOURCE."""


def series_of(view: FeatureView) -> tuple[MacroSeries, ...]:
    """The series that a view reads.

    Raises:
        DeclarationError: An input column of a feature is neither a series nor a benchmark column.
    """
    known = {series.column: series for series in MACRO_SERIES}
    wanted = {name for feature in view.features for name in feature.input_columns if not name.startswith("spy_")}
    if missing := sorted(wanted - set(known)):
        raise DeclarationError(f"view {view.name} reads {missing}, which no MacroSeries declares; declared: {sorted(known)}")
    return tuple(known[name] for name in sorted(wanted))
