"""What every indicator of the package must keep: its declaration is true, and its value is causal and well defined."""

import importlib
import pkgutil
import re
from collections.abc import Callable, Iterable

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_series_equal

from featurestore_dagster import indicators
from featurestore_dagster.model.indicator import Feature, Indicator, indicator
from featurestore_dagster.model.units import Unit
from tests.strategies import indicator_inputs, random_bars, with_adjustment, with_series
from tests.unit.indicators.golden import GOLDEN
from tests.unit.indicators.oracles import ORACLES
from tests.unit.indicators.series import bar_series

ADJUSTED_PRICES = ("open", "high", "low", "close")
RAW_PRICES = ("raw_open", "raw_high", "raw_low", "raw_close")
BAR_INPUTS = {*ADJUSTED_PRICES, *RAW_PRICES, "volume", "raw_volume", "adjustment_factor"}


def _declared() -> list[Indicator]:
    modules = [importlib.import_module(f"{indicators.__name__}.{found.name}") for found in pkgutil.iter_modules(indicators.__path__)]
    return [value for module in modules for value in vars(module).values() if isinstance(value, Indicator)]


DECLARED = _declared()
FEATURES = list({feature.name: feature for feature in (*(o.feature for o in ORACLES), *(case[2] for case in GOLDEN))}.values())
ONE_EACH = list({id(feature.indicator): feature for feature in FEATURES}.values())
"""One feature of each indicator, where many frames are tried."""

each_feature = pytest.mark.parametrize("feature", [pytest.param(feature, id=feature.name) for feature in FEATURES])


def _unproven(declared: Iterable[Indicator]) -> list[str]:
    """Indicators that neither an oracle nor a golden value tests."""
    proven = {id(feature.indicator) for feature in FEATURES}
    return sorted(found.name for found in declared if id(found) not in proven)


SERIES_INPUTS = sorted(set().union(*(feature.input_columns for feature in FEATURES)) - BAR_INPUTS)


def _evaluated(frame: pl.DataFrame, features: Iterable[Feature] = FEATURES) -> pl.DataFrame:
    return frame.select(feature.expression() for feature in features)


def _gapless(seed: int = 1, rows: int = 420, *, symbol: str = "AAA") -> pl.DataFrame:
    """Bars that all trade and always move, whose closes bounce (so that Roll's covariance is negative), with splits and macro series."""
    bars = with_adjustment(random_bars(rows, seed, symbol=symbol), seed)
    bounce = 1 + 0.02 * (pl.int_range(pl.len()) % 2) + 0.001 * (pl.int_range(pl.len()) % 7)
    prices = [*ADJUSTED_PRICES, *RAW_PRICES]
    return with_series(bars.with_columns(pl.col(prices) * bounce), SERIES_INPUTS, seed)


def _scaled(frame: pl.DataFrame, columns: Iterable[str], factor: float) -> pl.DataFrame:
    return frame.with_columns(pl.col(name) * factor for name in columns)


def _atol(values: pl.Series) -> float:
    """Absolute tolerance for values that cross zero: relative to the largest of their column."""
    return 1e-12 * float(values.abs().max())  # type: ignore[arg-type]


def test_names_are_unique() -> None:
    assert len({found.name for found in {id(found): found for found in DECLARED}.values()}) == len({id(found) for found in DECLARED})
    assert len(DECLARED) > 30


def test_every_indicator_has_an_oracle_or_a_golden_value() -> None:
    assert _unproven(DECLARED) == [], "add a line to ORACLES in tests/unit/indicators/oracles.py or to GOLDEN in golden.py"


def test_an_indicator_without_oracle_and_golden_value_is_found() -> None:
    @indicator(unit=Unit.PRICE, formula="close", inputs=("close",), oracle="nobody", first=0)
    def untested() -> pl.Expr:
        return pl.col("close")

    assert _unproven([*DECLARED, untested]) == ["untested"]


@each_feature
def test_reads_exactly_the_declared_inputs(feature: Feature) -> None:
    assert set(feature.expression().meta.root_names()) == set(feature.input_columns)


@each_feature
def test_is_float64_and_pure_polars(feature: Feature) -> None:
    frame = _gapless(rows=3)
    assert _evaluated(frame, [feature]).schema == {feature.name: pl.Float64}
    assert _evaluated(frame.clear(), [feature]).schema == {feature.name: pl.Float64}
    assert not re.search("python_udf|rolling_map", str(feature.expression()))


@each_feature
def test_first_value_is_where_declared(feature: Feature) -> None:
    found = _evaluated(_gapless(), [feature]).to_series()
    assert found.is_not_null().arg_max() == feature.warm_up_bars
    assert found[feature.warm_up_bars :].null_count() <= (found.len() // 4 if feature.indicator.name == "spread_roll_20_est_bps" else 0)


@each_feature
def test_a_missing_bar_blanks_its_windows_and_nothing_else(feature: Feature) -> None:
    frame, gap = _gapless(rows=700), 300
    last = gap + feature.warm_up_bars
    blank = pl.int_range(pl.len()) == gap
    broken = frame.with_columns(pl.when(~blank).then(pl.col(name)).alias(name) for name in [*BAR_INPUTS, *SERIES_INPUTS])
    whole, found = _evaluated(frame, [feature]).to_series(), _evaluated(broken, [feature]).to_series()

    assert_series_equal(found[:gap], whole[:gap], check_exact=True)
    assert found[gap] is None
    assert found[last] is None
    assert_series_equal(found[last + 1 :].is_null(), whole[last + 1 :].is_null())


@settings(max_examples=25, deadline=None)
@given(bars=indicator_inputs(1, 420), seed=st.integers(0, 99))
def test_values_are_finite_and_in_range(bars: pl.DataFrame, seed: int) -> None:
    found = _evaluated(with_series(bars, SERIES_INPUTS, seed), ONE_EACH)
    for feature in ONE_EACH:
        values = found[feature.name].drop_nulls()
        assert values.is_finite().all(), feature.name
        least, most = feature.indicator.minimum, feature.indicator.maximum
        assert least is None or (values >= least).all(), (feature.name, values.min())
        assert most is None or (values <= most).all(), (feature.name, values.max())


@settings(max_examples=25, deadline=None)
@given(bars=indicator_inputs(2, 420), seed=st.integers(0, 99), share=st.floats(0, 1), shock=st.sampled_from([None, 0.0, 1e6]))
def test_the_future_changes_no_bit(bars: pl.DataFrame, seed: int, share: float, shock: float | None) -> None:
    frame = with_series(bars, SERIES_INPUTS, seed)
    kept = max(1, int(share * frame.height))
    future = pl.int_range(pl.len()) >= kept
    shocked = frame.with_columns(
        pl.when(future).then(pl.lit(shock, pl.Float64)).otherwise(pl.col(name)).alias(name) for name in [*BAR_INPUTS, *SERIES_INPUTS]
    )
    known = _evaluated(frame[:kept], ONE_EACH)
    assert known.equals(_evaluated(frame, ONE_EACH)[:kept])
    assert known.equals(_evaluated(shocked, ONE_EACH)[:kept])


def test_a_panel_gives_each_symbol_what_it_has_alone_in_any_row_order() -> None:
    alone = {symbol: _gapless(seed, symbol=symbol) for seed, symbol in enumerate(("AAA", "BBB", "CCC"))}
    panel = pl.concat(alone.values())
    names = [feature.name for feature in FEATURES]
    renamed = [feature.expression().alias(f"found_{feature.name}") for feature in FEATURES]
    interleaved = panel.sort("event_timestamp", "symbol").with_columns(expression.over("symbol") for expression in renamed)
    shuffled = panel.sample(fraction=1, shuffle=True, seed=7).with_columns(
        expression.over("symbol", order_by="event_timestamp") for expression in renamed
    )
    for symbol, frame in alone.items():
        expected = _evaluated(frame)
        for found in (interleaved, shuffled):
            values = found.filter(pl.col("symbol") == symbol).sort("event_timestamp").select(f"found_{name}" for name in names)
            assert values.rename(lambda name: name.removeprefix("found_")).equals(expected), symbol


@pytest.mark.parametrize("name", ["AAPL", "IBM", "NASDAQ", "EURUSD"])
def test_a_chunk_with_its_look_back_equals_the_whole(name: str) -> None:
    frame = with_series(bar_series()[name].frame, SERIES_INPUTS, seed=3)
    whole = _evaluated(frame)
    for feature in FEATURES:
        overlap = feature.look_back_bars
        for start in range(overlap, frame.height - 40, 397):
            chunk = _evaluated(frame[start - overlap : start + 40], [feature]).to_series()[overlap:]
            expected = whole[feature.name][start : start + 40]
            assert chunk.is_null().equals(expected.is_null()), (feature.name, start)
            np.testing.assert_allclose(
                chunk.to_numpy(), expected.to_numpy(), rtol=1e-9, atol=_atol(whole[feature.name]), err_msg=f"{feature.name} from {start}"
            )


SCALES = [
    # Columns, and the exponent of a factor on them. The caller undoes the adjustment by the same exponent, so adjusted prices are also
    # scaled alone: only an indicator declared `adjusted` may follow them.
    pytest.param((*ADJUSTED_PRICES, *RAW_PRICES, "spy_close"), lambda declared: declared.price_exponent, id="prices"),
    pytest.param(ADJUSTED_PRICES, lambda declared: declared.price_exponent if declared.adjusted else 0, id="adjusted-prices"),
    pytest.param(("volume", "raw_volume"), lambda declared: declared.volume_exponent, id="volumes"),
]


@pytest.mark.parametrize(("columns", "exponent"), SCALES)
@pytest.mark.parametrize(("factor", "rtol"), [(8.0, 0.0), (7.3, 1e-10)])
@pytest.mark.parametrize("name", ["GOOG", "IBM", "EURUSD"])
def test_scaling_follows_the_declared_exponents(
    name: str, columns: tuple[str, ...], exponent: Callable[[Indicator], int], factor: float, rtol: float
) -> None:
    frame = with_series(bar_series()[name].frame, SERIES_INPUTS, seed=3)
    before, after = _evaluated(frame), _evaluated(_scaled(frame, columns, factor))
    for feature in FEATURES:
        expected = before[feature.name] * factor ** exponent(feature.indicator)
        found = after[feature.name]
        assert found.is_null().equals(expected.is_null()), feature.name
        # Roll takes the root of a difference, which may be near zero.
        tolerance = 10 * _atol(expected) if rtol else 0.0
        np.testing.assert_allclose(found.to_numpy(), expected.to_numpy(), rtol=rtol, atol=tolerance, err_msg=feature.name)
