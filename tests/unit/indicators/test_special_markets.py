"""Indicators on markets whose answer is known without an oracle: constant, strictly rising, reflected, without trade."""

import math

import numpy as np
import polars as pl
import pytest

from featurestore_dagster.indicators import averages, bars, liquidity, macro, momentum, trend, volatility, volume
from featurestore_dagster.model.indicator import Feature
from tests.strategies import random_bars, with_adjustment
from tests.unit.indicators.series import bar_series

ROWS = 300


def _market(close: pl.Series, spread: float = 0.0, traded: pl.Series | None = None) -> pl.DataFrame:
    """Bars around a path of closes."""
    columns = {"open": close, "high": close + spread, "low": close - spread, "close": close}
    volumes = traded if traded is not None else pl.Series([1000.0] * close.len())
    frame = pl.DataFrame({**columns, "volume": volumes})
    return frame.with_columns(pl.all().name.prefix("raw_"), adjustment_factor=pl.lit(1.0), sessions_per_year=pl.lit(365.0))


def _last(frame: pl.DataFrame, feature: Feature) -> float | None:
    value: float | None = frame.select(feature.expression()).to_series()[-1]
    return value


CONSTANT = _market(pl.Series([0.3] * ROWS))
RISING = _market(pl.Series([100.0 + i for i in range(ROWS)]), spread=1.0)


@pytest.mark.parametrize(
    ("feature", "expected"),
    [
        (momentum.ret.feature(k=5), 0.0),
        (momentum.log_ret.feature(k=5), 0.0),
        (momentum.rsi.feature(n=14), 50.0),
        (momentum.macd_hist.feature(), 0.0),
        (momentum.high_52w_position.feature(), 0.0),
        (momentum.range_52w_position.feature(), None),
        (trend.plus_di.feature(n=14), 0.0),
        (trend.adx.feature(n=14), 0.0),
        (trend.trend_strength.feature(), 0.0),
        (volatility.vol.feature(n=20), 0.0),
        (volatility.volatility_20d.feature(), 0.0),
        (volatility.atr.feature(n=14), 0.0),
        (volatility.bollinger_bands_position.feature(), None),
        (volume.volume_sma_ratio.feature(), 1.0),
        (liquidity.amihud_illiquidity.feature(), 0.0),
        (liquidity.amihud_percentile.feature(), 0.5),
        (liquidity.liquidity_regime.feature(), 1.0),
        (liquidity.spread_cs_20_est_bps.feature(), 0.0),
        (liquidity.spread_roll_20_est_bps.feature(), None),
        (macro.zscore.feature(n=20, column="close"), None),
    ],
    ids=lambda value: value.name if isinstance(value, Feature) else "",
)
def test_constant_price(feature: Feature, expected: float | None) -> None:
    assert _last(CONSTANT, feature) == (expected if expected is None else pytest.approx(expected, abs=1e-15))


@pytest.mark.parametrize(
    ("feature", "expected"),
    [
        (momentum.rsi.feature(n=14), 100.0),
        (trend.minus_di.feature(n=14), 0.0),
        (trend.adx.feature(n=14), 100.0),
        (trend.trend_strength.feature(), 1.0),
        (volatility.atr.feature(n=14), 2.0),
    ],
    ids=lambda value: value.name if isinstance(value, Feature) else "",
)
def test_strictly_rising_price(feature: Feature, expected: float) -> None:
    assert _last(RISING, feature) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["AAPL", "EURUSD"])
def test_reflection(name: str) -> None:
    frame = bar_series()[name].frame
    about = 2 * float(frame["high"].max())  # type: ignore[arg-type]
    mirrored = frame.with_columns(high=about - pl.col("low"), low=about - pl.col("high"), close=about - pl.col("close"))

    def values(source: pl.DataFrame, feature: Feature) -> pl.Series:
        return source.select(feature.expression().drop_nulls().alias("value")).to_series()

    def largest(difference: pl.Series) -> float:
        return float(difference.abs().max())  # type: ignore[arg-type]

    rsi, atr = momentum.rsi.feature(n=14), volatility.atr.feature(n=14)
    plus, minus, adx = trend.plus_di.feature(n=14), trend.minus_di.feature(n=14), trend.adx.feature(n=14)
    position = volatility.bollinger_bands_position.feature()
    assert largest(values(mirrored, rsi) + values(frame, rsi) - 100) < 1e-7
    assert largest(values(mirrored, position) + values(frame, position) - 1) < 1e-7
    assert largest(values(mirrored, atr) - values(frame, atr)) < 1e-9
    # The tie tolerance is a fraction of the close, which reflection changes; no move of these series lies between the two tolerances.
    assert largest(values(mirrored, plus) - values(frame, minus)) < 1e-9
    assert largest(values(mirrored, adx) - values(frame, adx)) < 1e-9


def test_decimal_ties_do_not_move_adx_when_prices_are_rescaled() -> None:
    frame = with_adjustment(random_bars(ROWS, seed=5, step=4), seed=5, split_share=0.0)
    third = frame.with_columns(pl.col("high", "low", "close") / 3)
    expression = trend.adx.expression(n=14)
    difference = frame.select(expression).to_series() - third.select(expression).to_series()
    assert float(difference.abs().max()) < 1e-10  # type: ignore[arg-type]


def test_volume_that_stops_gives_null_not_a_residue() -> None:
    generator = np.random.Generator(np.random.PCG64(0))
    for _ in range(100):  # a sliding mean fails in about 15
        traded = pl.Series([*np.exp(5 * generator.standard_normal(60)), *[0.0] * 20])
        frame = _market(RISING["close"][:80], traded=traded)
        assert _last(frame, volume.volume_sma_ratio.feature()) is None
        assert _last(frame, liquidity.amihud_illiquidity.feature()) is None


@pytest.mark.parametrize(("idle", "defined"), [(5, True), (6, False)])
def test_amihud_skips_bars_without_trade_and_needs_fifteen_others(idle: int, defined: bool) -> None:
    closes = pl.Series([100.0 * 1.01**i for i in range(21)])
    traded = pl.Series([1000.0] * (21 - idle) + [0.0] * idle)
    frame = _market(closes, traded=traded)
    expected = 1e6 * sum(0.01 / (closes[i] * 1000) for i in range(1, 21 - idle)) / (20 - idle)
    found = _last(frame, liquidity.amihud_illiquidity.feature())
    assert found == (pytest.approx(expected, rel=1e-9) if defined else None)


def test_first_bar_without_trade_does_not_bring_amihud_forward() -> None:
    frame = _market(RISING["close"][:21], traded=pl.Series([0.0] + [1000.0] * 20))
    assert frame.select(liquidity.amihud_illiquidity.expression()).to_series().is_not_null().arg_max() == 20


def test_roll_finds_the_spread_of_a_pure_bounce() -> None:
    closes = pl.Series([100.0 * (1 + 0.001 * (i % 2)) for i in range(60)])
    # Returns alternate +-ln(1.001): their covariance with the previous one is -ln(1.001)**2 * 20/19, the spread 2 sqrt of it.
    expected = 2e4 * math.log(1.001) * math.sqrt(20 / 19)
    assert _last(_market(closes), liquidity.spread_roll_20_est_bps.feature()) == pytest.approx(expected, rel=1e-9)


def test_adjusted_close_follows_the_factor_and_raw_columns_do_not() -> None:
    frame = pl.DataFrame({"raw_close": [100.0, 50.0], "raw_volume": [10, 20], "adjustment_factor": [1.0, 2.0]})
    found = frame.select(
        bars.adjusted_close.feature().expression(),
        bars.raw_price.feature("close", column="raw_close").expression(),
        bars.raw_volume.feature("volume").expression(),
    )
    assert found.rows() == [(100.0, 100.0, 10.0), (100.0, 50.0, 20.0)]


def test_zscore_is_invariant_to_an_affine_map() -> None:
    frame = bar_series()["EURUSD"].frame.with_columns(mapped=3 + 7.3 * pl.col("close"))
    found = frame.select(a=macro.zscore.expression(n=252, column="close"), b=macro.zscore.expression(n=252, column="mapped"))
    assert float((found["a"] - found["b"]).abs().max()) < 1e-9  # type: ignore[arg-type]


def test_change_of_a_level_that_is_not_positive_is_undefined() -> None:
    frame = pl.DataFrame({"wti": [18.27, -36.98, 10.01, 20.02, 0.0]})
    found = frame.select(macro.change.expression(column="wti")).to_series().to_list()
    assert found == [None, None, None, 1.0, None]


@pytest.mark.parametrize(
    ("close", "vix", "expected"),
    [
        (101.0, 19.9, 0.0),
        (101.0, 20.0, 1.0),
        (101.0, 29.9, 1.0),
        (101.0, 30.0, 3.0),
        (100.0, 10.0, 2.0),
        (99.0, 24.9, 2.0),
        (99.0, 25.0, 3.0),
        (101.0, None, None),
        (None, 35.0, None),
    ],
)
def test_market_regime_table(close: float | None, vix: float | None, expected: float | None) -> None:
    frame = pl.DataFrame({"spy_close": [100.0] * 199 + [close], "vix": [15.0] * 199 + [vix]})
    assert _last(frame, macro.market_regime.feature()) == expected


def test_roll_is_undefined_when_returns_trend() -> None:
    closes = pl.Series([100.0 * math.exp(0.0001 * i * i) for i in range(60)])
    assert _last(_market(closes), liquidity.spread_roll_20_est_bps.feature()) is None


def test_no_history_gives_no_value() -> None:
    assert CONSTANT.clear().select(averages.ema.expression(n=20)).height == 0
