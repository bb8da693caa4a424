"""The NULL rules of fundamentals, one figure at a time, on a firm whose ratios are known. The whole range of figures is in ORACLES."""

import polars as pl
import pytest

from featurestore_dagster.indicators import fundamentals
from featurestore_dagster.model.indicator import Indicator

FIRM = {
    "raw_close": 104.0,
    "daily_volume": 50_000.0,
    "shares_outstanding": 10_000_000.0,
    "net_income_ttm": 52e6,
    "net_income_ttm_year_ago": 40e6,
    "revenue_ttm": 552e6,
    "revenue_ttm_year_ago": 460e6,
    "eps_ttm": 5.2,
    "eps_ttm_year_ago": 4.0,
    "equity": 240e6,
    "equity_year_ago": 200e6,
    "total_assets": 560e6,
    "total_assets_year_ago": 480e6,
    "debt": 120e6,
}

VALUES = (
    (fundamentals.market_cap, 1040e6),
    (fundamentals.pe_ratio, 20.0),
    (fundamentals.pb_ratio, 1040 / 240),
    (fundamentals.roe, 52 / 220),
    (fundamentals.roa, 0.1),
    (fundamentals.debt_to_equity, 0.5),
    (fundamentals.debt_to_assets, 120 / 560),
    (fundamentals.revenue_growth_yoy, 0.2),
    (fundamentals.eps_growth_yoy, 0.3),
    (fundamentals.net_income_growth_yoy, 0.3),
    (fundamentals.turnover_ratio, 0.005),
)

AT_A_LIMIT = (
    (fundamentals.market_cap, {"shares_outstanding": 0.0}, None),
    (fundamentals.pe_ratio, {"eps_ttm": 0.0}, None),
    (fundamentals.pe_ratio, {"eps_ttm": -1.0}, None),
    (fundamentals.pb_ratio, {"equity": 0.0}, None),
    (fundamentals.pb_ratio, {"equity": -240e6}, None),
    (fundamentals.pb_ratio, {"equity_year_ago": None}, 1040 / 240),
    (fundamentals.roe, {"equity": -200e6}, None),
    (fundamentals.roe, {"equity": -199e6}, 52 / 0.5),
    (fundamentals.roe, {"net_income_ttm": -22e6}, -0.1),
    (fundamentals.roa, {"total_assets": -480e6}, None),
    (fundamentals.debt_to_equity, {"debt": 0.0}, 0.0),
    (fundamentals.debt_to_equity, {"equity": 0.0}, None),
    (fundamentals.debt_to_assets, {"total_assets": 0.0}, None),
    (fundamentals.revenue_growth_yoy, {"revenue_ttm_year_ago": 0.0}, None),
    (fundamentals.net_income_growth_yoy, {"net_income_ttm_year_ago": -1.0}, None),
    (fundamentals.net_income_growth_yoy, {"net_income_ttm": -40e6}, -2.0),
    (fundamentals.eps_growth_yoy, {"eps_ttm_year_ago": -4.0}, 2.3),
    (fundamentals.eps_growth_yoy, {"eps_ttm_year_ago": 0.01}, 519.0),
    (fundamentals.eps_growth_yoy, {"eps_ttm_year_ago": 0.0099}, None),
    (fundamentals.eps_growth_yoy, {"eps_ttm_year_ago": -0.0099}, None),
    (fundamentals.turnover_ratio, {"daily_volume": 0.0}, 0.0),
    (fundamentals.turnover_ratio, {"shares_outstanding": 0.0}, None),
)


def _value(indicator: Indicator, **other: float | None) -> float | None:
    frame = pl.DataFrame([FIRM | other], schema=dict.fromkeys(FIRM, pl.Float64))
    value: float | None = frame.select(indicator.feature().expression()).item()
    return value


def _ids(value: object) -> str | None:
    return value.name if isinstance(value, Indicator) else str(value) if isinstance(value, dict) else None


@pytest.mark.parametrize(("indicator", "expected"), VALUES, ids=_ids)
def test_value_on_a_known_firm(indicator: Indicator, expected: float) -> None:
    assert _value(indicator) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(("indicator", "changed", "expected"), AT_A_LIMIT, ids=_ids)
def test_value_at_a_limit(indicator: Indicator, changed: dict[str, float | None], expected: float | None) -> None:
    assert _value(indicator, **changed) == (expected if expected is None else pytest.approx(expected, rel=1e-12))


@pytest.mark.parametrize("indicator", [found for found, _ in VALUES], ids=_ids)
def test_each_figure_it_reads_is_needed_and_no_other(indicator: Indicator) -> None:
    read = {*indicator.inputs, *(part.name for part in indicator.components())}
    for name in FIRM:
        assert (_value(indicator, **{name: None}) is None) == (name in read), name
