"""What every indicator of the package must keep: its declaration is true, and its value is causal and well defined.

Features are grouped by the grain of their indicator: those of a series have windows over rows, those of a row see it alone, aggregates
give one value per group of rows (see `tests.unit.indicators.grains`).
"""

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
from featurestore_dagster.model.indicator import Feature, Grain, Indicator, indicator
from featurestore_dagster.model.units import Unit
from tests.strategies import PRICES, indicator_inputs
from tests.unit.indicators.golden import GOLDEN
from tests.unit.indicators.grains import AGGREGATES, SERIES, columns_of, evaluated, exponents_of, random_frame, with_columns_of
from tests.unit.indicators.oracles import ORACLES
from tests.unit.indicators.series import bar_series


def _declared() -> list[Indicator]:
    modules = [importlib.import_module(f"{indicators.__name__}.{found.name}") for found in pkgutil.iter_modules(indicators.__path__)]
    return [value for module in modules for value in vars(module).values() if isinstance(value, Indicator)]


DECLARED = _declared()
FEATURES = list({feature.name: feature for feature in (*(o.feature for o in ORACLES), *(case[2] for case in GOLDEN))}.values())
ONE_EACH = list({id(feature.indicator): feature for feature in FEATURES}.values())
"""One feature of each indicator, where many frames are tried."""


def _of(grains: Iterable[Grain], features: Iterable[Feature] = FEATURES) -> list[Feature]:
    allowed = set(grains)
    return [feature for feature in features if feature.indicator.grain in allowed]


def _each(features: Iterable[Feature]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("feature", [pytest.param(feature, id=feature.name) for feature in features])


ROWWISE = (*SERIES, Grain.ROW)
GRAINS = pytest.mark.parametrize("grain", [grain for grain in Grain if _of([grain])])


def _unproven(declared: Iterable[Indicator]) -> list[str]:
    """Indicators that neither an oracle nor a golden value tests."""
    proven = {id(feature.indicator) for feature in FEATURES}
    return sorted(found.name for found in declared if id(found) not in proven)


def _frame(feature: Feature, rows: int = 420) -> pl.DataFrame:
    return random_frame(feature.indicator.grain, [feature], rows=rows)


def _atol(values: pl.Series) -> float:
    """Absolute tolerance for values that cross zero: relative to the largest of their column."""
    return 1e-12 * float(values.abs().max() or 0.0)  # type: ignore[arg-type]


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


@_each(FEATURES)
def test_reads_exactly_the_declared_inputs(feature: Feature) -> None:
    assert set(feature.expression().meta.root_names()) == columns_of([feature])


@_each(FEATURES)
def test_is_float64_and_pure_polars(feature: Feature) -> None:
    frame = _frame(feature, rows=3)
    assert evaluated(frame, [feature]).schema == {feature.name: pl.Float64}
    assert evaluated(frame.clear(), [feature]).schema == {feature.name: pl.Float64}
    assert not re.search("python_udf|rolling_map", str(feature.expression()))


@_each(_of(ROWWISE))
def test_first_value_is_where_declared(feature: Feature) -> None:
    found = evaluated(_frame(feature), [feature]).to_series()
    assert found.is_not_null().arg_max() == feature.warm_up_bars
    assert found[feature.warm_up_bars :].null_count() <= (found.len() // 4 if feature.indicator.name == "spread_roll_20_est_bps" else 0)


@_each(_of(ROWWISE))
def test_a_missing_row_blanks_its_windows_and_nothing_else(feature: Feature) -> None:
    frame, gap = _frame(feature, rows=700), 300
    last = gap + feature.warm_up_bars
    blank = pl.int_range(pl.len()) == gap
    broken = frame.with_columns(pl.when(~blank).then(pl.col(name)).alias(name) for name in columns_of([feature]))
    whole, found = evaluated(frame, [feature]).to_series(), evaluated(broken, [feature]).to_series()

    assert_series_equal(found[:gap], whole[:gap], check_exact=True)
    assert found[last] is None
    assert feature.indicator.name == "official_close" or found[gap] is None
    assert_series_equal(found[last + 1 :].is_null(), whole[last + 1 :].is_null())


@_each(_of(AGGREGATES))
def test_no_rows_give_no_value_unless_they_are_counted(feature: Feature) -> None:
    frame = _frame(feature, rows=1).with_columns(pl.lit(None).alias(name) for name in columns_of([feature]))
    nothing = frame.cast(dict(_frame(feature, rows=1).schema)).clear().select(feature.expression()).item()
    assert nothing in ((0.0, None) if feature.indicator.unit is Unit.COUNT else (None,))


def _require_finite_and_in_range(found: pl.DataFrame, features: Iterable[Feature]) -> None:
    for feature in features:
        values = found[feature.name].drop_nulls()
        assert values.is_finite().all(), feature.name
        least, most = feature.indicator.minimum, feature.indicator.maximum
        assert least is None or (values >= least).all(), (feature.name, values.min())
        assert most is None or (values <= most).all(), (feature.name, values.max())


@settings(max_examples=25, deadline=None)
@given(bars=indicator_inputs(1, 420), seed=st.integers(0, 99))
def test_values_are_finite_and_in_range(bars: pl.DataFrame, seed: int) -> None:
    features = _of(ROWWISE, ONE_EACH)
    _require_finite_and_in_range(evaluated(with_columns_of(bars, features, seed), features), features)


@GRAINS
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**16), zeros=st.sampled_from([0.0, 0.3, 1.0]))
def test_values_are_finite_and_in_range_where_inputs_are_zero(grain: Grain, seed: int, zeros: float) -> None:
    features = _of([grain], ONE_EACH)
    frame = random_frame(grain, features, seed=seed, rows=40)
    hit = pl.Series(np.random.Generator(np.random.PCG64(seed)).random(frame.height) < zeros)
    numbers = [name for name in columns_of(features) & set(frame.columns) if frame.schema[name] == pl.Float64 and "volume" in name]
    _require_finite_and_in_range(
        evaluated(frame.with_columns(pl.when(hit).then(0.0).otherwise(pl.col(name)).alias(name) for name in numbers), features), features
    )


@settings(max_examples=25, deadline=None)
@given(bars=indicator_inputs(2, 420), seed=st.integers(0, 99), share=st.floats(0, 1), shock=st.sampled_from([None, 0.0, 1e6]))
def test_the_future_changes_no_bit(bars: pl.DataFrame, seed: int, share: float, shock: float | None) -> None:
    features = _of(ROWWISE, ONE_EACH)
    frame = with_columns_of(bars, features, seed)
    kept = max(1, int(share * frame.height))
    future = pl.int_range(pl.len()) >= kept
    numbers = [name for name in columns_of(features) if frame.schema[name] == pl.Float64]
    shocked = frame.with_columns(pl.when(future).then(pl.lit(shock, pl.Float64)).otherwise(pl.col(name)).alias(name) for name in numbers)
    known = evaluated(frame[:kept], features)
    assert known.equals(evaluated(frame, features)[:kept])
    assert known.equals(evaluated(shocked, features)[:kept])


@_each(_of([Grain.ROW]))
def test_a_row_is_seen_alone(feature: Feature) -> None:
    frame = _frame(feature, rows=60).with_row_index("place")
    shuffled = frame.sample(fraction=1, shuffle=True, seed=7)
    found = shuffled.with_columns(feature.expression().alias("found")).sort("place")["found"]
    assert found.equals(evaluated(frame, [feature]).to_series().rename("found"))
    assert feature.look_back_bars == 0


def test_a_panel_gives_each_symbol_what_it_has_alone_in_any_row_order() -> None:
    features = _of(ROWWISE)
    alone = {symbol: random_frame(Grain.BARS, features, seed=seed, symbol=symbol) for seed, symbol in enumerate(("AAA", "BBB", "CCC"))}
    panel = pl.concat(alone.values())
    names = [feature.name for feature in features]
    renamed = [feature.expression().alias(f"found_{feature.name}") for feature in features]
    interleaved = panel.sort("event_timestamp", "symbol").with_columns(expression.over("symbol") for expression in renamed)
    shuffled = panel.sample(fraction=1, shuffle=True, seed=7).with_columns(
        expression.over("symbol", order_by="event_timestamp") for expression in renamed
    )
    for symbol, frame in alone.items():
        expected = evaluated(frame, features)
        for found in (interleaved, shuffled):
            values = found.filter(pl.col("symbol") == symbol).sort("event_timestamp").select(f"found_{name}" for name in names)
            assert values.rename(lambda name: name.removeprefix("found_")).equals(expected), symbol


@pytest.mark.parametrize("grain", [grain for grain in AGGREGATES if _of([grain])])
def test_a_panel_of_groups_gives_each_group_what_it_has_alone(grain: Grain) -> None:
    features = _of([grain])
    frames = [random_frame(grain, features, seed=seed, rows=30, symbol=symbol) for seed, symbol in enumerate(("AAA", "BBB"))]
    panel = pl.concat(frames).with_row_index("place").sort(pl.col("place").rank("ordinal").over("symbol", "row"), "symbol", "row")
    grouped = panel.group_by("symbol", "row").agg(feature.expression() for feature in features).sort("symbol", "row")
    expected = pl.concat([evaluated(frame, features) for frame in frames])
    assert grouped.drop("symbol", "row").equals(expected)
    assert evaluated(frames[0].filter(pl.col("row") == 7), features).equals(evaluated(frames[0], features)[7:8])


@pytest.mark.parametrize("name", ["AAPL", "IBM", "NASDAQ", "EURUSD"])
def test_a_chunk_with_its_look_back_equals_the_whole(name: str) -> None:
    features = _of(SERIES)
    frame = with_columns_of(bar_series()[name].frame, features, seed=3)
    whole = evaluated(frame, features)
    for feature in features:
        overlap = feature.look_back_bars
        for start in range(overlap, frame.height - 40, 397):
            chunk = evaluated(frame[start - overlap : start + 40], [feature]).to_series()[overlap:]
            expected = whole[feature.name][start : start + 40]
            assert chunk.is_null().equals(expected.is_null()), (feature.name, start)
            np.testing.assert_allclose(
                chunk.to_numpy(), expected.to_numpy(), rtol=1e-9, atol=_atol(whole[feature.name]), err_msg=f"{feature.name} from {start}"
            )


SCALES = [
    # What is scaled, and the exponent of the factor on the value. The caller undoes the adjustment by the same exponent, so adjusted
    # prices are also scaled alone: only an indicator declared `adjusted` may follow them.
    pytest.param("prices", lambda declared: declared.price_exponent, id="prices"),
    pytest.param("adjusted prices", lambda declared: declared.price_exponent if declared.adjusted else 0, id="adjusted-prices"),
    pytest.param("volumes", lambda declared: declared.volume_exponent, id="volumes"),
]


def _scaled(frame: pl.DataFrame, features: Iterable[Feature], scaled: str, factor: float) -> pl.DataFrame:
    exponents = {name: powers for name, powers in exponents_of(features).items() if name in frame.columns}
    if scaled == "adjusted prices":
        return frame.with_columns(pl.col(name) * factor for name in PRICES if name in frame.columns)
    which = 0 if scaled == "prices" else 1
    return frame.with_columns(pl.col(name) * factor ** powers[which] for name, powers in exponents.items())


def _require_scaling(
    frame: pl.DataFrame, features: list[Feature], scaled: str, exponent: Callable[[Indicator], int], factor: float, rtol: float
) -> None:
    before, after = evaluated(frame, features), evaluated(_scaled(frame, features, scaled, factor), features)
    for feature in features:
        expected = before[feature.name] * factor ** exponent(feature.indicator)
        found = after[feature.name]
        assert found.is_null().equals(expected.is_null()), feature.name
        # Roll takes the root of a difference, which may be near zero.
        tolerance = 10 * _atol(expected) if rtol else 0.0
        np.testing.assert_allclose(found.to_numpy(), expected.to_numpy(), rtol=rtol, atol=tolerance, err_msg=feature.name)


@pytest.mark.parametrize(("scaled", "exponent"), SCALES)
@pytest.mark.parametrize(("factor", "rtol"), [(8.0, 0.0), (7.3, 1e-10)])
@pytest.mark.parametrize("name", ["GOOG", "IBM", "EURUSD"])
def test_scaling_follows_the_declared_exponents(
    name: str, scaled: str, exponent: Callable[[Indicator], int], factor: float, rtol: float
) -> None:
    features = _of(SERIES)
    _require_scaling(with_columns_of(bar_series()[name].frame, features, seed=3), features, scaled, exponent, factor, rtol)


@pytest.mark.parametrize("grain", [grain for grain in (Grain.ROW, *AGGREGATES) if _of([grain])])
@pytest.mark.parametrize(("scaled", "exponent"), [SCALES[0], SCALES[2]])
@pytest.mark.parametrize(("factor", "rtol"), [(8.0, 0.0), (7.3, 1e-10)])
def test_scaling_of_rows_and_groups_follows_the_declared_exponents(
    grain: Grain, scaled: str, exponent: Callable[[Indicator], int], factor: float, rtol: float
) -> None:
    features = _of([grain])
    _require_scaling(random_frame(grain, features, rows=200), features, scaled, exponent, factor, rtol)
