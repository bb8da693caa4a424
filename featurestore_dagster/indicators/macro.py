"""Macro series and the market as a whole; a row is one released observation or one session, never a filled day.

The index made of several of them is in `sentiment_index`.
"""

import polars as pl

from featurestore_dagster.indicators.averages import window_mean
from featurestore_dagster.indicators.binding import bind, ratio
from featurestore_dagster.indicators.momentum import simple_return
from featurestore_dagster.indicators.volatility import VOLATILITY_BARS, annualised_volatility
from featurestore_dagster.model.indicator import Grain, indicator
from featurestore_dagster.model.units import Unit

SESSIONS_PER_YEAR = 252
REGIME_BARS = 200
VIX_ELEVATED, VIX_HIGH, VIX_CRISIS = 20, 25, 30


@indicator(
    unit=Unit.INDEX_POINTS,
    formula="the newest observation",
    inputs=("column",),
    oracle="identity",
    first=0,
    minimum=0,
    adjusted=False,
    grain=Grain.OBSERVATIONS,
)
def index_level(column: str) -> pl.Expr:
    """Level of an index such as VIX."""
    return pl.col(column)


@indicator(
    unit=Unit.PER_CENT,
    formula="the newest observation",
    inputs=("column",),
    oracle="identity",
    first=0,
    adjusted=False,
    grain=Grain.OBSERVATIONS,
)
def yield_level(column: str) -> pl.Expr:
    """Level of a yield or rate in per cent a year."""
    return pl.col(column)


@indicator(
    unit=Unit.PERCENTAGE_POINTS,
    formula="the newest observation",
    inputs=("column",),
    oracle="identity",
    first=0,
    adjusted=False,
    grain=Grain.OBSERVATIONS,
)
def spread_level(column: str) -> pl.Expr:
    """Level of a series that its publisher already quotes as a difference of two rates."""
    return pl.col(column)


@indicator(
    unit=Unit.PERCENTAGE_POINTS,
    formula="minuend - subtrahend, on the same observation date",
    inputs=("minuend", "subtrahend"),
    oracle="numpy",
    first=0,
    adjusted=False,
    grain=Grain.OBSERVATIONS,
)
def spread(minuend: str, subtrahend: str) -> pl.Expr:
    """Difference of two rates."""
    return pl.col(minuend) - pl.col(subtrahend)


@indicator(
    unit=Unit.PERCENTAGE_POINTS,
    formula="local_yield - treasury_10y, the newest observation of each",
    inputs=("local_yield", "treasury_10y"),
    oracle="numpy",
    first=0,
    adjusted=False,
    grain=Grain.ROW,
)
def rate_spread() -> pl.Expr:
    """Ten-year yield of the quote currency's country over that of the dollar; NULL for a symbol without a local yield."""
    return pl.col("local_yield") - pl.col("treasury_10y")


@indicator(
    unit=Unit.STANDARD_DEVIATIONS,
    formula="(x - mean(x, n)) / std(x, n, ddof 1), the current observation included; NULL when the deviation is 0",
    inputs=("column",),
    oracle="numpy",
    first=lambda n, **_: n - 1,
    adjusted=False,
    grain=Grain.OBSERVATIONS,
)
def zscore(n: int, column: str) -> pl.Expr:
    """Distance from the mean of the last n observations, unclipped."""
    return bind(lambda x: ratio(x - window_mean(x, n), x.rolling_std(n)), x=pl.col(column))


@indicator(
    unit=Unit.FRACTION,
    formula="x(i) / x(i-1) - 1 between the last two observations; NULL unless both are positive",
    inputs=("column",),
    oracle="numpy",
    first=1,
    minimum=-1,
    adjusted=False,
    grain=Grain.OBSERVATIONS,
)
def change(column: str) -> pl.Expr:
    """Relative change between the last two observations. A negative level (oil in April 2020) has none."""
    return bind(
        lambda current, previous: pl.when((current > 0) & (previous > 0)).then(current / previous - 1),
        current=pl.col(column),
        previous=pl.col(column).shift(1),
    )


@indicator(
    unit=Unit.FRACTION,
    formula="spy_close(t) / spy_close(t-k) - 1 over sessions",
    inputs=("spy_close",),
    oracle="TA-Lib ROCP",
    first=lambda k: k,
    minimum=-1,
    adjusted=False,
    grain=Grain.BENCHMARK,
)
def spy_return(k: int) -> pl.Expr:
    """Return of the market over k sessions."""
    return simple_return(pl.col("spy_close"), k)


@indicator(
    unit=Unit.FRACTION,
    formula="std(log_ret_1 of spy_close, 20, ddof 1) * sqrt(252)",
    inputs=("spy_close",),
    oracle="numpy",
    first=VOLATILITY_BARS,
    minimum=0,
    adjusted=False,
    grain=Grain.BENCHMARK,
)
def spy_volatility_20d() -> pl.Expr:
    """Annualised volatility of the market over 20 sessions."""
    return annualised_volatility(pl.col("spy_close"), SESSIONS_PER_YEAR)


@indicator(
    unit=Unit.CODE,
    formula=(
        "U = spy_close > mean(spy_close, 200); 3 crisis: vix >= 30, or vix >= 25 and not U; 2 bear: not U; "
        "1 volatile bull: vix >= 20; 0 calm bull"
    ),
    inputs=("spy_close", "vix"),
    oracle="numpy",
    first=REGIME_BARS - 1,
    minimum=0,
    maximum=3,
    adjusted=False,
    grain=Grain.BENCHMARK,
)
def market_regime() -> pl.Expr:
    """Regime code of the market."""

    def regime(bull: pl.Expr, vix: pl.Expr) -> pl.Expr:
        return (
            pl.when(bull.is_null() | vix.is_null())
            .then(None)
            .when((vix >= VIX_CRISIS) | (~bull & (vix >= VIX_HIGH)))
            .then(3.0)
            .when(~bull)
            .then(2.0)
            .when(vix >= VIX_ELEVATED)
            .then(1.0)
            .otherwise(0.0)
        )

    return bind(regime, bull=pl.col("spy_close") > window_mean(pl.col("spy_close"), REGIME_BARS), vix=pl.col("vix"))
