"""Fear and greed: five measures of the market's mood, each ranked within its last year, and their mean. Sentiment of news is not here."""

import polars as pl

from featurestore_dagster.indicators.averages import window_mean, window_percentile
from featurestore_dagster.indicators.binding import bind, ratio
from featurestore_dagster.indicators.momentum import simple_return
from featurestore_dagster.indicators.volatility import VOLATILITY_BARS, annualised_volatility
from featurestore_dagster.model.indicator import Feature, Grain, indicator
from featurestore_dagster.model.units import Unit

YEAR = 252
"""Observations among which a measure is ranked, and sessions of a year."""

TREND_BARS = 125
VIX_MEAN_OBSERVATIONS = 50
HAVEN_OBSERVATIONS = 20
BOND_PERIODS = 20
"""Half-years until a ten-year bond is repaid."""

LEAST_COMPONENTS = 3
RANKED = "100 * (number below + half the number equal) / 252 among the last 252 of"


def _score(values: pl.Expr) -> pl.Expr:
    return 100 * window_percentile(values, YEAR)


def _over_mean(values: pl.Expr, n: int) -> pl.Expr:
    return bind(lambda values: ratio(values, window_mean(values, n)) - 1, values=values)


def par_bond_return(yields: pl.Expr, k: int) -> pl.Expr:
    """Price that a ten-year bond issued at par k rows before has at today's yield (per cent a year), less 1; NULL when the yield is 0."""

    def repriced(coupon: pl.Expr, rate: pl.Expr) -> pl.Expr:
        discount = (1 + rate / 200) ** -BOND_PERIODS
        return (ratio(coupon, rate) - 1) * (1 - discount)

    return bind(repriced, coupon=yields.shift(k), rate=yields)


@indicator(
    unit=Unit.OSCILLATOR,
    formula=f"{RANKED} spy_close / mean(spy_close, 125) - 1",
    inputs=("spy_close",),
    oracle="numpy",
    first=TREND_BARS + YEAR - 2,
    minimum=0,
    maximum=100,
    adjusted=False,
    grain=Grain.BENCHMARK,
)
def market_trend_score() -> pl.Expr:
    """Greed: the market above its trend."""
    return _score(_over_mean(pl.col("spy_close"), TREND_BARS))


@indicator(
    unit=Unit.OSCILLATOR,
    formula=f"{RANKED} -(vix / mean(vix, 50) - 1)",
    inputs=("vix",),
    oracle="numpy",
    first=VIX_MEAN_OBSERVATIONS + YEAR - 2,
    minimum=0,
    maximum=100,
    adjusted=False,
    grain=Grain.OBSERVATIONS,
)
def low_vix_score() -> pl.Expr:
    """Greed: expected volatility below its mean."""
    return _score(-_over_mean(pl.col("vix"), VIX_MEAN_OBSERVATIONS))


@indicator(
    unit=Unit.OSCILLATOR,
    formula=f"{RANKED} -credit_spread",
    inputs=("credit_spread",),
    oracle="numpy",
    first=YEAR - 1,
    minimum=0,
    maximum=100,
    adjusted=False,
    grain=Grain.OBSERVATIONS,
)
def tight_credit_score() -> pl.Expr:
    """Greed: little pay for credit risk."""
    return _score(-pl.col("credit_spread"))


@indicator(
    unit=Unit.OSCILLATOR,
    formula=f"{RANKED} -spy_volatility_20d",
    inputs=("spy_close",),
    oracle="numpy",
    first=VOLATILITY_BARS + YEAR - 1,
    minimum=0,
    maximum=100,
    adjusted=False,
    grain=Grain.BENCHMARK,
)
def calm_market_score() -> pl.Expr:
    """Greed: little realised volatility."""
    return _score(-annualised_volatility(pl.col("spy_close"), YEAR))


@indicator(
    unit=Unit.OSCILLATOR,
    formula=(
        f"{RANKED} ret_20(spy_close) - ret_20(bond), on days that have both; bond: a ten-year bond at par 20 observations ago, repriced at "
        "treasury_10y, semi-annual, coupons left out"
    ),
    inputs=("spy_close", "treasury_10y"),
    oracle="numpy",
    first=HAVEN_OBSERVATIONS + YEAR - 1,
    minimum=0,
    maximum=100,
    adjusted=False,
    grain=Grain.OBSERVATIONS,
)
def shares_over_bonds_score() -> pl.Expr:
    """Greed: shares preferred to the safe haven."""
    bonds = par_bond_return(pl.col("treasury_10y"), HAVEN_OBSERVATIONS)
    return _score(simple_return(pl.col("spy_close"), HAVEN_OBSERVATIONS) - bonds)


COMPONENTS: tuple[Feature, ...] = tuple(
    component.feature() for component in (market_trend_score, low_vix_score, tight_credit_score, calm_market_score, shares_over_bonds_score)
)


@indicator(
    unit=Unit.OSCILLATOR,
    formula=(
        "is_crypto = 1: provider_fear_greed; else the mean of those of its components that have a value: "
        f"{', '.join(component.name for component in COMPONENTS)}; NULL with fewer than 3"
    ),
    inputs=("is_crypto", "provider_fear_greed"),
    oracle="numpy",
    first=0,
    minimum=0,
    maximum=100,
    adjusted=False,
    grain=Grain.ROW,
    components=lambda: COMPONENTS,
)
def fear_greed_index() -> pl.Expr:
    """0 extreme fear to 100 extreme greed."""
    scores = [pl.col(component.name) for component in COMPONENTS]
    present = pl.sum_horizontal(score.is_not_null() for score in scores)
    market = pl.when(present >= LEAST_COMPONENTS).then(pl.mean_horizontal(scores))
    return pl.when(pl.col("is_crypto") == 1).then(pl.col("provider_fear_greed")).otherwise(market)
