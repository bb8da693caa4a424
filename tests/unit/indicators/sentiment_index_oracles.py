"""References of the fear and greed index and its components, by loops over windows; no Polars expression belongs here."""

import math
from collections.abc import Callable

import numpy as np

from featurestore_dagster.indicators import macro, sentiment_index
from tests.unit.indicators.oracle import Oracle
from tests.unit.indicators.series import RealSeries, Values

YEAR = 252


def _score(measure: Callable[[RealSeries, int], float], first: int) -> Callable[[RealSeries], Values]:
    """Rank of each row's measure among those of its last 252 rows, in per cent; `measure` has its first value on row `first`."""

    def reference(series: RealSeries) -> Values:
        rows = series.frame.height
        values = [measure(series, row) for row in range(first, rows)]
        scores = [math.nan] * (first + YEAR - 1)
        for last in range(YEAR - 1, len(values)):
            window, newest = values[last - YEAR + 1 : last + 1], values[last]
            below = sum(value < newest for value in window) + sum(value == newest for value in window) / 2
            scores.append(100 * below / YEAR)
        return np.array(scores[:rows])

    return reference


def _over_mean(name: str, n: int, sign: int) -> Callable[[RealSeries, int], float]:
    def measure(series: RealSeries, row: int) -> float:
        window = series.frame[name][row - n + 1 : row + 1].to_list()
        return float(sign * (window[-1] / (math.fsum(window) / n) - 1))

    return measure


def _calm(series: RealSeries, row: int) -> float:
    closes = series.frame["spy_close"][row - 20 : row + 1].to_numpy()
    return -float(np.std(np.log(closes[1:] / closes[:-1]), ddof=1))


def _bond_price(coupon: float, rate: float) -> float:
    """Price of a bond of ten years that pays half its coupon (per cent of par) twice a year."""
    payments = [coupon / 200 + (1 if half_year == 20 else 0) for half_year in range(1, 21)]
    return math.fsum(payment / (1 + rate / 200) ** half_year for half_year, payment in enumerate(payments, start=1))


def _shares_over_bonds(series: RealSeries, row: int) -> float:
    closes, yields = series.frame["spy_close"], series.frame["treasury_10y"]
    return float(closes[row] / closes[row - 20] - _bond_price(yields[row - 20], yields[row]))


def _index(series: RealSeries) -> Values:
    found = []
    for row in series.frame.rows(named=True):
        scores = [row[component.name] for component in sentiment_index.COMPONENTS if row[component.name] is not None]
        value = row["provider_fear_greed"] if row["is_crypto"] == 1 else sum(scores) / len(scores) if len(scores) >= 3 else None
        found.append(math.nan if value is None else value)
    return np.array(found)


SENTIMENT_INDEX_ORACLES = (
    Oracle(
        sentiment_index.market_trend_score.feature(), _score(_over_mean("spy_close", 125, 1), 124), atol=1e-12, series=("SP500", "GOOG")
    ),
    Oracle(sentiment_index.low_vix_score.feature(), _score(_over_mean("vix", 50, -1), 49), atol=1e-12, series=("vix",)),
    Oracle(
        sentiment_index.tight_credit_score.feature(),
        _score(lambda series, row: -float(series.frame["credit_spread"][row]), 0),
        atol=1e-12,
        series=("credit",),
    ),
    Oracle(sentiment_index.calm_market_score.feature(), _score(_calm, 20), atol=1e-12, series=("SP500", "GOOG")),
    Oracle(sentiment_index.shares_over_bonds_score.feature(), _score(_shares_over_bonds, 20), atol=1e-12, series=("shares and bonds",)),
    Oracle(sentiment_index.fear_greed_index.feature(), _index, atol=1e-12, series=("moods",)),
    Oracle(
        macro.rate_spread.feature(),
        lambda series: series.column("local_yield") - series.column("treasury_10y"),
        series=("two yields",),
    ),
)
