"""Moving averages and the seeded recursion behind them; nothing that compares an average with a price."""

from collections.abc import Callable

import polars as pl

from featurestore_dagster.indicators.binding import bind
from featurestore_dagster.model.indicator import indicator
from featurestore_dagster.model.units import Unit

EMA_CONVERGENCE, WILDER_CONVERGENCE = 12, 24
"""Bars per n after which a fresh EMA or Wilder mean equals the one over full history within 1e-9."""


def window_sum(values: pl.Expr, n: int) -> pl.Expr:
    """Sum of the last n values; NULL when one of them is NULL.

    Added up in the same order in every window, from sums of half the length. Polars' own sums slide, and so keep a residue of either
    sign of values that have left: equal windows would get unequal sums, and sums of zeros could be negative.
    """
    if n == 1:
        return values
    if n % 2:
        return bind(lambda values: window_sum(values, n - 1) + values.shift(n - 1), values=values)
    return bind(lambda half: half + half.shift(n // 2), half=window_sum(values, n // 2))


def window_mean(values: pl.Expr, n: int) -> pl.Expr:
    """Mean of the last n values; NULL when one of them is NULL. The same window gives the same bits, whatever came before."""
    return window_sum(values, n) / n


def window_percentile(values: pl.Expr, n: int) -> pl.Expr:
    """Mid-rank of the current value among the last n: (number below + half the number equal) / n. NULL when one of them is NULL."""
    return (values.rolling_rank(n, method="average") - 0.5) / n


def recursive_mean(values: pl.Expr, alpha: float, seed: Callable[[pl.Expr], pl.Expr]) -> pl.Expr:
    """State e += alpha * (x - e), started with `seed(values)` at the seed's first non-NULL row, as TA-Lib does.

    NULL wherever the seed is NULL: before the warm-up, and while a NULL lies in the window that the seed looks at. The
    state is carried over NULL values unchanged.
    """

    def smoothed(values: pl.Expr, seed: pl.Expr, seeds_so_far: pl.Expr) -> pl.Expr:
        at_seed = (seeds_so_far == 1) & seed.is_not_null()
        started = pl.when(at_seed).then(seed).when(seeds_so_far > 0).then(values)
        return pl.when(seed.is_not_null()).then(started.ewm_mean(alpha=alpha, adjust=False, ignore_nulls=True))

    return bind(
        lambda values: bind(
            lambda values, seed: bind(smoothed, values=values, seed=seed, seeds_so_far=seed.cum_count()),
            values=values,
            seed=seed(values),
        ),
        values=values,
    )


def exponential_mean(values: pl.Expr, n: int) -> pl.Expr:
    """EMA with alpha 2/(n+1), seeded with the mean of the first n values."""
    return recursive_mean(values, 2 / (n + 1), lambda values: values.rolling_mean(n))


def wilder_mean(values: pl.Expr, n: int) -> pl.Expr:
    """Wilder smoothing, alpha 1/n, seeded with the mean of the first n values."""
    return recursive_mean(values, 1 / n, lambda values: values.rolling_mean(n))


@indicator(
    unit=Unit.PRICE,
    formula="mean(close, n)",
    inputs=("close",),
    oracle="TA-Lib SMA",
    first=lambda n: n - 1,
    minimum=0,
    price_exponent=1,
)
def sma(n: int) -> pl.Expr:
    """Simple moving average of the last n closes."""
    return window_mean(pl.col("close"), n)


@indicator(
    unit=Unit.PRICE,
    formula="EMA(close, n): alpha = 2/(n+1), seeded at bar n-1 with mean(close, n)",
    inputs=("close",),
    oracle="TA-Lib EMA",
    first=lambda n: n - 1,
    convergence=lambda n: EMA_CONVERGENCE * n,
    minimum=0,
    price_exponent=1,
)
def ema(n: int) -> pl.Expr:
    """Exponential moving average of the closes."""
    return exponential_mean(pl.col("close"), n)
