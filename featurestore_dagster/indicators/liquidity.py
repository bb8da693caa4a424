"""The price of trading as daily bars tell it; measures that need quotes or a book are in `quotes`."""

import math

import polars as pl

from featurestore_dagster.indicators.averages import window_mean, window_percentile, window_sum
from featurestore_dagster.indicators.binding import bind, log_ratio
from featurestore_dagster.indicators.momentum import log_return, simple_return
from featurestore_dagster.model.indicator import Grain, indicator
from featurestore_dagster.model.units import Unit

WINDOW_BARS = 20
AMIHUD_LEAST_BARS = 15
AMIHUD_SCALE = 1e6
PERCENTILE_BARS = 252
ADV_SHARE = 0.01
"""Order size of the impact estimate, as a fraction of average daily dollar volume."""

REGIME_CUT = 0.3
"""Distance of the percentile from 0.5 at which liquidity stops being normal: 0.2 and 0.8."""

BASIS_POINTS = 1e4


def dollar_volume() -> pl.Expr:
    """Close times volume, both as traded."""
    return pl.col("raw_close") * pl.col("raw_volume")


def _amihud() -> pl.Expr:
    """Mean of absolute return per quote currency, 20 bars, those without trade skipped; NULL with fewer than 15 others."""

    def terms(move: pl.Expr, dollars: pl.Expr) -> pl.Expr:
        return pl.when((move + dollars).is_null()).then(None).when(dollars == 0).then(0.0).otherwise(move / dollars)

    total = bind(terms, move=simple_return(pl.col("close"), 1).abs(), dollars=dollar_volume())
    traded = (dollar_volume() != 0).cast(pl.Float64).rolling_sum(WINDOW_BARS)
    return bind(
        lambda total, traded: pl.when(traded >= AMIHUD_LEAST_BARS).then(total / traded),
        total=window_sum(total, WINDOW_BARS),
        traded=traded,
    )


def _percentile() -> pl.Expr:
    """Mid-rank of the current Amihud value among its last 252."""
    return window_percentile(_amihud(), PERCENTILE_BARS)


@indicator(
    unit=Unit.PER_MILLION_QUOTE,
    formula=("1e6 * mean(abs(ret_1) / (raw close * raw volume), 20); bars without trade are skipped, NULL with fewer than 15 others"),
    inputs=("close", "raw_close", "raw_volume"),
    oracle="numpy",
    first=WINDOW_BARS,
    minimum=0,
    price_exponent=-1,
    volume_exponent=-1,
    adjusted=False,
    grain=Grain.COMPLETED_DAYS,
)
def amihud_illiquidity() -> pl.Expr:
    """Amihud's illiquidity."""
    return AMIHUD_SCALE * _amihud()


@indicator(
    unit=Unit.FRACTION,
    formula="(number below + half the number equal) / 252 of amihud_illiquidity among its last 252 values",
    inputs=("close", "raw_close", "raw_volume"),
    oracle="numpy",
    first=WINDOW_BARS + PERCENTILE_BARS - 1,
    minimum=0,
    maximum=1,
    adjusted=False,
    grain=Grain.COMPLETED_DAYS,
)
def amihud_percentile() -> pl.Expr:
    """Where today's illiquidity stands in the last year."""
    return _percentile()


@indicator(
    unit=Unit.CODE,
    formula="0 illiquid: amihud_percentile >= 0.8; 2 liquid: <= 0.2; else 1",
    inputs=("close", "raw_close", "raw_volume"),
    oracle="numpy",
    first=WINDOW_BARS + PERCENTILE_BARS - 1,
    minimum=0,
    maximum=2,
    adjusted=False,
    grain=Grain.COMPLETED_DAYS,
)
def liquidity_regime() -> pl.Expr:
    """Regime code. No percentile (a multiple of 1/504) lies on a threshold, so rounding cannot decide."""
    return 1.0 - ((_percentile() - 0.5) / REGIME_CUT).cast(pl.Int64)


@indicator(
    unit=Unit.BASIS_POINTS,
    formula=(
        "1e4 * amihud_illiquidity / 1e6 * 0.01 * mean(raw close * raw volume, 20): an order of 1 % of average volume. ESTIMATE from bars"
    ),
    inputs=("close", "raw_close", "raw_volume"),
    oracle="numpy",
    first=WINDOW_BARS,
    minimum=0,
    adjusted=False,
    grain=Grain.COMPLETED_DAYS,
)
def price_impact_1pct_est_bps() -> pl.Expr:
    """Estimated price impact of 1 % of average daily volume."""
    return BASIS_POINTS * ADV_SHARE * _amihud() * window_mean(dollar_volume(), WINDOW_BARS)


@indicator(
    unit=Unit.BASIS_POINTS,
    formula=(
        "1e4 * mean of the last 20 Corwin-Schultz spreads of two bars, the second moved by the overnight gap, negative "
        "ones 0. ESTIMATE from bars"
    ),
    inputs=("high", "low", "close"),
    oracle="numpy",
    first=WINDOW_BARS,
    minimum=0,
    maximum=2 * BASIS_POINTS,
    grain=Grain.COMPLETED_DAYS,
)
def spread_cs_20_est_bps() -> pl.Expr:
    """Spread estimated from highs and lows (Corwin and Schultz 2012)."""
    k = 3 - 2 * math.sqrt(2)
    close = pl.col("close").shift(1)
    gap = close - close.clip(pl.col("low"), pl.col("high"))

    def pair(high: pl.Expr, low: pl.Expr, high_before: pl.Expr, low_before: pl.Expr) -> pl.Expr:
        highest, lowest = pl.max_horizontal(high, high_before), pl.min_horizontal(low, low_before)
        return bind(
            lambda beta, gamma: ((2 * beta).sqrt() - beta.sqrt()) / k - (gamma / k).sqrt(),
            beta=log_ratio(high_before, low_before) ** 2 + log_ratio(high, low) ** 2,
            gamma=log_ratio(highest, lowest) ** 2,
        )

    alpha = bind(
        pair,
        high=pl.col("high") + gap,
        low=pl.col("low") + gap,
        high_before=pl.col("high").shift(1),
        low_before=pl.col("low").shift(1),
    )
    spread = bind(lambda power: (2 * (power - 1) / (1 + power)).clip(lower_bound=0), power=alpha.exp())
    return BASIS_POINTS * window_mean(spread, WINDOW_BARS)


@indicator(
    unit=Unit.BASIS_POINTS,
    formula=(
        "2e4 * sqrt(-C), C = cov(log_ret_1(t), log_ret_1(t-1)) over 20 pairs, ddof 1; NULL (undefined) when C >= 0. ESTIMATE from bars"
    ),
    inputs=("close",),
    oracle="numpy",
    first=WINDOW_BARS + 1,
    minimum=0,
    grain=Grain.COMPLETED_DAYS,
)
def spread_roll_20_est_bps() -> pl.Expr:
    """Spread estimated from the bounce of closes (Roll 1984)."""
    # cov(x, y) = (var(x + y) - var(x - y)) / 4: unlike a mean of products, the rolling variance is stable and exactly 0
    # on constants.
    covariance = bind(
        lambda x, y: ((x + y).rolling_var(WINDOW_BARS) - (x - y).rolling_var(WINDOW_BARS)) / 4,
        x=log_return(pl.col("close"), 1),
        y=log_return(pl.col("close"), 1).shift(1),
    )
    return bind(lambda covariance: pl.when(covariance < 0).then(2 * BASIS_POINTS * (-covariance).sqrt()), covariance=covariance)


@indicator(
    unit=Unit.QUOTE_CURRENCY,
    formula="mean(raw close * raw volume, 20) over daily bars",
    inputs=("raw_close", "raw_volume"),
    oracle="numpy",
    first=WINDOW_BARS - 1,
    minimum=0,
    price_exponent=1,
    volume_exponent=1,
    adjusted=False,
    grain=Grain.COMPLETED_DAYS,
)
def average_dollar_volume() -> pl.Expr:
    """Average daily dollar volume over 20 sessions."""
    return window_mean(dollar_volume(), WINDOW_BARS)
