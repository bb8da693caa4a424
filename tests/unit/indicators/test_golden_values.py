"""Golden values of the feature dictionary, on whole columns of real data, and the anchored adjustment around splits and dividends."""

from datetime import date, datetime

import polars as pl
import pytest

from featurestore_dagster.indicators import averages, macro, momentum
from featurestore_dagster.model.indicator import Feature
from tests.unit.indicators.golden import GOLDEN
from tests.unit.indicators.series import bar_series, every_series, macro_series

TOLERANCE = 1e-9
DIVIDEND_2012 = 2.65


def _values(frame: pl.DataFrame, feature: Feature, times: list[str]) -> list[float | None]:
    found = frame.select("time", feature.expression())
    return [found.filter(pl.col("time") == datetime.fromisoformat(time))[feature.name].item() for time in times]


@pytest.mark.parametrize(("name", "times", "feature", "expected"), [pytest.param(*case, id=f"{case[2].name}-{case[0]}") for case in GOLDEN])
def test_golden_value(name: str, times: tuple[str, str], feature: Feature, expected: tuple[float | None, float | None]) -> None:
    series = every_series()[name]
    found = _values(series.frame, feature, list(times))
    assert found == [value if value is None else pytest.approx(value, rel=TOLERANCE) for value in expected]


def test_first_value_of_vix_z() -> None:
    frame = macro_series()["vix"].frame
    found = frame.select("time", macro.zscore.expression(n=252, column="vix").alias("z")).drop_nulls()
    assert found["time"][0].date() == date(2015, 1, 2)


def test_market_regime_on_christmas_eve_2018() -> None:
    frame = macro_series()["sp500_vix"].frame
    day = frame.with_columns(averages.sma.feature("sma_200", n=200).expression(), macro.market_regime.feature().expression()).filter(
        pl.col("time").dt.date() == date(2018, 12, 24)
    )
    assert day.select("spy_close", "sma_200", "vix", "market_regime").row(0) == pytest.approx(
        (2351.100098, 2751.482450, 36.07, 3.0), rel=1e-9
    )


def _aapl_adjusted(factor: pl.Expr) -> pl.DataFrame:
    """AAPL with the cumulative factor that makes the adjusted close raw close * factor."""
    from bokeh_sampledata import stocks

    frame = bar_series()["AAPL"].frame.with_columns(pl.Series("adj_close", stocks.AAPL["adj_close"], dtype=pl.Float64))
    return frame.with_columns(factor.alias("adjustment_factor")).with_columns(
        pl.col(name) * pl.col("adjustment_factor") for name in ("open", "high", "low", "close")
    )


VENDOR_FACTOR = pl.col("adj_close") / pl.col("close")


@pytest.mark.parametrize(
    ("day", "expected"),
    [("2005-02-28", 0.008203168895), ("2012-08-09", 0.005678701642)],
)
def test_return_over_a_corporate_action(day: str, expected: float) -> None:
    found = _values(_aapl_adjusted(VENDOR_FACTOR), momentum.ret.feature(k=1), [day])
    assert found == [pytest.approx(expected, rel=TOLERANCE)]


def test_return_over_a_dividend_with_the_dictionary_factor() -> None:
    ex_date = "2012-08-09"
    on_or_after = pl.col("time") >= datetime.fromisoformat(ex_date)
    before = pl.col("raw_close").filter(~on_or_after).last()
    factor = pl.when(on_or_after).then(1 / (1 - DIVIDEND_2012 / before)).otherwise(1.0)
    assert _values(_aapl_adjusted(factor), momentum.ret.feature(k=1), [ex_date]) == [pytest.approx(0.005703083229, rel=TOLERANCE)]


def test_anchored_values_after_the_split_of_2005() -> None:
    frame = _aapl_adjusted(VENDOR_FACTOR)
    day = "2005-03-10"
    (ema,) = _values(frame, averages.ema.feature(n=20), [day])
    (factor,) = frame.filter(pl.col("time") == datetime.fromisoformat(day))["adjustment_factor"]
    assert ema is not None
    assert ema / factor**averages.ema.price_exponent == pytest.approx(41.65700575, rel=TOLERANCE)
    assert _values(frame, momentum.rsi.feature(n=14), [day]) == [pytest.approx(44.28989529, rel=TOLERANCE)]
    assert _values(bar_series()["AAPL"].frame, momentum.rsi.feature(n=14), [day]) == [pytest.approx(21.69889731, rel=TOLERANCE)]
