"""References of fundamentals, in plain Python over one row of figures at a time. How filings become figures does not belong here."""

from collections.abc import Callable, Mapping

import numpy as np

from featurestore_dagster.indicators import fundamentals
from tests.unit.indicators.oracle import Oracle
from tests.unit.indicators.series import RealSeries, Values

Row = Mapping[str, float | None]


def _market_cap(row: Row) -> float | None:
    price, shares = row["raw_close"], row["shares_outstanding"]
    return None if price is None or not shares else price * shares


def _over(numerator: float | None, denominator: float | None) -> float | None:
    """NULL rules of most ratios: both are there and the denominator is above 0."""
    return None if numerator is None or denominator is None or denominator <= 0 else numerator / denominator


def _return_on(figure: str) -> Callable[[Row], float | None]:
    def reference(row: Row) -> float | None:
        now, year_ago = row[figure], row[f"{figure}_year_ago"]
        return None if now is None or year_ago is None else _over(row["net_income_ttm"], (now + year_ago) / 2)

    return reference


def _growth(figure: str) -> Callable[[Row], float | None]:
    def reference(row: Row) -> float | None:
        quotient = _over(row[figure], row[f"{figure}_year_ago"])
        return None if quotient is None else quotient - 1

    return reference


def _eps_growth(row: Row) -> float | None:
    now, earlier = row["eps_ttm"], row["eps_ttm_year_ago"]
    return None if now is None or earlier is None or abs(earlier) < 0.01 else (now - earlier) / abs(earlier)


def _by_row(reference: Callable[[Row], float | None]) -> Callable[[RealSeries], Values]:
    return lambda series: np.array([np.nan if (value := reference(row)) is None else value for row in series.frame.iter_rows(named=True)])


FUNDAMENTAL_ORACLES = (
    Oracle(fundamentals.daily_volume.feature(), lambda series: series.column("volume")),
    *(
        Oracle(indicator.feature(), _by_row(reference), series=("firms",))
        for indicator, reference in (
            (fundamentals.market_cap, _market_cap),
            (fundamentals.pe_ratio, lambda row: _over(row["raw_close"], row["eps_ttm"])),
            (fundamentals.pb_ratio, lambda row: _over(_market_cap(row), row["equity"])),
            (fundamentals.roe, _return_on("equity")),
            (fundamentals.roa, _return_on("total_assets")),
            (fundamentals.debt_to_equity, lambda row: _over(row["debt"], row["equity"])),
            (fundamentals.debt_to_assets, lambda row: _over(row["debt"], row["total_assets"])),
            (fundamentals.revenue_growth_yoy, _growth("revenue_ttm")),
            (fundamentals.eps_growth_yoy, _eps_growth),
            (fundamentals.net_income_growth_yoy, _growth("net_income_ttm")),
            (fundamentals.turnover_ratio, lambda row: _over(row["daily_volume"], row["shares_outstanding"])),
        )
    ),
)
