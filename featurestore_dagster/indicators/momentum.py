"""Returns, RSI, MACD and the place in the 52-week range; the strength of a trend is in `trend`."""

import polars as pl

from featurestore_dagster.indicators.averages import WILDER_CONVERGENCE, exponential_mean, recursive_mean, wilder_mean
from featurestore_dagster.indicators.binding import bind, log_ratio, ratio
from featurestore_dagster.model.indicator import indicator
from featurestore_dagster.model.units import Unit

YEAR_BARS = 252
"""Daily bars of the 52-week range."""

MACD_FAST, MACD_SLOW, MACD_SIGNAL = 12, 26, 9
MACD_FIRST = MACD_SLOW + MACD_SIGNAL - 2
MACD_CONVERGENCE = 400
"""Bars after which fresh MACD lines equal those over full history within 1e-9."""


def simple_return(prices: pl.Expr, k: int) -> pl.Expr:
    """Price over the price k rows before, less 1."""
    return ratio(prices, prices.shift(k)) - 1


def log_return(prices: pl.Expr, k: int) -> pl.Expr:
    """Logarithm of the price over the price k rows before."""
    return log_ratio(prices, prices.shift(k))


@indicator(
    unit=Unit.FRACTION,
    formula="close(t) / close(t-k) - 1",
    inputs=("close",),
    oracle="TA-Lib ROCP",
    first=lambda k: k,
    minimum=-1,
)
def ret(k: int) -> pl.Expr:
    """Simple return over k bars."""
    return simple_return(pl.col("close"), k)


@indicator(
    unit=Unit.FRACTION,
    formula="ln(close(t) / close(t-k))",
    inputs=("close",),
    oracle="numpy",
    first=lambda k: k,
)
def log_ret(k: int) -> pl.Expr:
    """Logarithmic return over k bars."""
    return log_return(pl.col("close"), k)


@indicator(
    unit=Unit.OSCILLATOR,
    formula="100 * G / (G + L), G and L Wilder means over n of the rises and falls of the close; 50 when G + L = 0",
    inputs=("close",),
    oracle="TA-Lib RSI, but for rows with G + L = 0, where it answers 0",
    first=lambda n: n,
    convergence=lambda n: WILDER_CONVERGENCE * n,
    minimum=0,
    maximum=100,
)
def rsi(n: int) -> pl.Expr:
    """Wilder's relative strength index."""
    change = pl.col("close").diff()
    return bind(
        lambda gain, loss: pl.when(gain + loss == 0).then(50.0).otherwise(100 * (gain / (gain + loss))),
        gain=wilder_mean(change.clip(lower_bound=0), n),
        loss=wilder_mean((-change).clip(lower_bound=0), n),
    )


def _macd_line() -> pl.Expr:
    """Fast less slow EMA, both seeded on the slow one's first bar, as TA-Lib does."""
    fast = recursive_mean(
        pl.col("close"),
        2 / (MACD_FAST + 1),
        lambda values: bind(
            lambda slow, fast: pl.when(slow.is_not_null()).then(fast),
            slow=values.rolling_mean(MACD_SLOW),
            fast=values.rolling_mean(MACD_FAST),
        ),
    )
    return fast - exponential_mean(pl.col("close"), MACD_SLOW)


@indicator(
    unit=Unit.PRICE,
    formula=("EMA(close, 12) - EMA(close, 26), the fast EMA seeded at bar 25 with mean(close(14..25)); NULL until macd_signal has a value"),
    inputs=("close",),
    oracle="TA-Lib MACD(12, 26, 9), first output",
    first=MACD_FIRST,
    convergence=MACD_CONVERGENCE,
    price_exponent=1,
)
def macd() -> pl.Expr:
    """MACD line."""
    return bind(
        lambda line: bind(lambda line, seed: pl.when(seed.is_not_null()).then(line), line=line, seed=line.rolling_mean(MACD_SIGNAL)),
        line=_macd_line(),
    )


@indicator(
    unit=Unit.PRICE,
    formula="EMA(macd line, 9), seeded at bar 33 with the mean of the line over bars 25..33",
    inputs=("close",),
    oracle="TA-Lib MACD(12, 26, 9), second output",
    first=MACD_FIRST,
    convergence=MACD_CONVERGENCE,
    price_exponent=1,
)
def macd_signal() -> pl.Expr:
    """Signal line of the MACD."""
    return exponential_mean(_macd_line(), MACD_SIGNAL)


@indicator(
    unit=Unit.PRICE,
    formula="macd - macd_signal",
    inputs=("close",),
    oracle="TA-Lib MACD(12, 26, 9), third output",
    first=MACD_FIRST,
    convergence=MACD_CONVERGENCE,
    price_exponent=1,
)
def macd_hist() -> pl.Expr:
    """Histogram of the MACD."""
    return bind(lambda line: line - exponential_mean(line, MACD_SIGNAL), line=_macd_line())


@indicator(
    unit=Unit.FRACTION,
    formula="close / max(high, 252) - 1",
    inputs=("close", "high"),
    oracle="TA-Lib MAX",
    first=YEAR_BARS - 1,
    minimum=-1,
    maximum=0,
)
def high_52w_position() -> pl.Expr:
    """Distance of the close below the 52-week high."""
    return ratio(pl.col("close"), pl.col("high").rolling_max(YEAR_BARS)) - 1


@indicator(
    unit=Unit.FRACTION,
    formula="close / min(low, 252) - 1",
    inputs=("close", "low"),
    oracle="TA-Lib MIN",
    first=YEAR_BARS - 1,
    minimum=0,
)
def low_52w_position() -> pl.Expr:
    """Distance of the close above the 52-week low."""
    return ratio(pl.col("close"), pl.col("low").rolling_min(YEAR_BARS)) - 1


@indicator(
    unit=Unit.FRACTION,
    formula="(close - min(low, 252)) / (max(high, 252) - min(low, 252)); NULL when the range is 0",
    inputs=("close", "high", "low"),
    oracle="numpy",
    first=YEAR_BARS - 1,
    minimum=0,
    maximum=1,
)
def range_52w_position() -> pl.Expr:
    """Place of the close in the 52-week range."""
    return bind(
        lambda close, highest, lowest: ratio(close - lowest, highest - lowest),
        close=pl.col("close"),
        highest=pl.col("high").rolling_max(YEAR_BARS),
        lowest=pl.col("low").rolling_min(YEAR_BARS),
    )
