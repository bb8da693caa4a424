"""Dispersion of returns and ranges, and the close against its Bollinger bands."""

import polars as pl

from featurestore_dagster.indicators.averages import WILDER_CONVERGENCE, wilder_mean
from featurestore_dagster.indicators.binding import bind, ratio
from featurestore_dagster.indicators.momentum import log_return, simple_return
from featurestore_dagster.model.indicator import Grain, indicator
from featurestore_dagster.model.units import Unit

VOLATILITY_BARS = 20
ATR_PCT_BARS = 14
BOLLINGER_BARS, BOLLINGER_WIDTH = 20, 2


def true_range() -> pl.Expr:
    """max(high, previous close) - min(low, previous close); NULL on the first bar and when one of the three is NULL."""
    high, low, previous = pl.col("high"), pl.col("low"), pl.col("close").shift(1)
    # The horizontal functions skip NULL, the sum does not.
    complete = (high + low + previous).is_not_null()
    return pl.when(complete).then(pl.max_horizontal(high, previous) - pl.min_horizontal(low, previous))


def annualised_volatility(prices: pl.Expr, sessions_per_year: pl.Expr | int) -> pl.Expr:
    """Sample standard deviation of the last 20 log returns, per year."""
    return log_return(prices, 1).rolling_std(VOLATILITY_BARS) * sessions_per_year**0.5


@indicator(
    unit=Unit.FRACTION,
    formula="std(ret_1, n, ddof 1), per bar, not annualised",
    inputs=("close",),
    oracle="numpy (TA-Lib STDDEV cancels)",
    first=lambda n: n,
    minimum=0,
)
def vol(n: int) -> pl.Expr:
    """Standard deviation of the last n simple returns."""
    return bind(lambda move: move.rolling_std(n), move=simple_return(pl.col("close"), 1))


@indicator(
    unit=Unit.FRACTION,
    formula="std(log_ret_1, 20, ddof 1) * sqrt(sessions_per_year); 252 for exchanges and FX, 365 for 24/7 markets",
    inputs=("close", "sessions_per_year"),
    oracle="numpy",
    first=VOLATILITY_BARS,
    minimum=0,
    grain=Grain.COMPLETED_DAYS,
)
def volatility_20d() -> pl.Expr:
    """Annualised volatility over 20 completed daily bars."""
    return annualised_volatility(pl.col("close"), pl.col("sessions_per_year"))


@indicator(
    unit=Unit.PRICE,
    formula="Wilder mean over n of max(high, close(t-1)) - min(low, close(t-1)), seeded at bar n with the mean of 1..n",
    inputs=("high", "low", "close"),
    oracle="TA-Lib ATR",
    first=lambda n: n,
    convergence=lambda n: WILDER_CONVERGENCE * n,
    minimum=0,
    price_exponent=1,
)
def atr(n: int) -> pl.Expr:
    """Average true range."""
    return wilder_mean(true_range(), n)


@indicator(
    unit=Unit.PER_CENT,
    formula="100 * atr(14) / close",
    inputs=("high", "low", "close"),
    oracle="TA-Lib ATR",
    first=ATR_PCT_BARS,
    convergence=WILDER_CONVERGENCE * ATR_PCT_BARS,
    minimum=0,
)
def atr_pct() -> pl.Expr:
    """Average true range in per cent of the close."""
    return 100 * ratio(wilder_mean(true_range(), ATR_PCT_BARS), pl.col("close"))


@indicator(
    unit=Unit.RATIO,
    formula="(close - lower) / (upper - lower), bands mean(close, 20) -/+ 2 std(close, 20, ddof 0); NULL when equal",
    inputs=("close",),
    oracle="TA-Lib BBANDS(20, 2, 2); numpy, which cancels less",
    first=BOLLINGER_BARS - 1,
)
def bollinger_bands_position() -> pl.Expr:
    """%B: 0 on the lower band, 1 on the upper, unbounded."""

    def position(close: pl.Expr, middle: pl.Expr, half_width: pl.Expr) -> pl.Expr:
        lower = middle - half_width
        return ratio(close - lower, middle + half_width - lower)

    return bind(
        position,
        close=pl.col("close"),
        middle=pl.col("close").rolling_mean(BOLLINGER_BARS),
        half_width=BOLLINGER_WIDTH * pl.col("close").rolling_std(BOLLINGER_BARS, ddof=0),
    )
