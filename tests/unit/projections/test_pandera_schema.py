"""What a frame's schema refuses: structure as a whole, values row by row."""

from typing import Any

import polars as pl
import pytest

from featurestore_dagster.features.equity_views import MOMENTUM_FEATURES, US_EQUITY_1D
from featurestore_dagster.features.macro_views import PORTFOLIO_MACRO_FEATURES
from featurestore_dagster.features.raw_tables import US_EQUITY_CORPORATE_ACTIONS, US_MACRO
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.projections.pandera_schema import dataset_schema, stream_schema, structure, violations
from featurestore_dagster.projections.postgres_table import feature_schema
from tests.unit.pipeline.frames import EQUITIES, MONDAY, bar, close_of, frame, split

CANDLES = dataset_schema(EQUITIES)


def _rows(view: FeatureView, *values: dict[str, Any]) -> pl.DataFrame:
    schema = feature_schema(view)
    base = dict.fromkeys(schema) | {
        "symbol": "AAA", "portfolio": "GLOBAL", "event_timestamp": close_of(MONDAY), "created_timestamp": close_of(MONDAY), "flags": 0,
        "feature_set_version": 1, "stream": view.streams[0].name,
    }  # fmt: skip
    return pl.DataFrame([{name: (base | value)[name] for name in schema} for value in values], schema=schema)


def _reasons(found: pl.DataFrame) -> list[tuple[int, str]]:
    return sorted(found.select("row", "reason").iter_rows())


def test_a_good_frame_has_nothing_wrong() -> None:
    rows = frame([bar(MONDAY), bar(MONDAY, "BBB", volume=None, adjusted_close=None)])
    assert structure(CANDLES, rows) == []
    assert violations(CANDLES, rows).is_empty()
    assert violations(CANDLES, rows.clear()).is_empty()


def test_d8_pandera_makes_no_frames() -> None:
    """Why `tests.strategies` does; when this fails, it need not."""
    with pytest.raises(NotImplementedError):
        CANDLES.strategy()


def test_structure_names_each_column() -> None:
    rows = frame([bar(MONDAY)]).drop("open").with_columns(pl.col("flags").cast(pl.Int32), extra=pl.lit(1))
    assert structure(CANDLES, rows) == [
        "column open is missing",
        "column extra is not declared",
        "column flags is Int32, declared Int64",
    ]


@pytest.mark.parametrize("zone", [None, "America/New_York"])
def test_times_are_utc_microseconds(zone: str | None) -> None:
    rows = frame([bar(MONDAY)]).with_columns(pl.col("known_at").dt.replace_time_zone(zone))
    assert len(structure(CANDLES, rows)) == 1
    milliseconds = frame([bar(MONDAY)]).with_columns(pl.col("known_at").dt.cast_time_unit("ms"))
    assert len(structure(CANDLES, milliseconds)) == 1


def test_every_bad_value_of_several_columns_is_found_with_its_row() -> None:
    rows = frame([bar(MONDAY), bar(MONDAY, "BBB", close=float("nan"), volume=-1.0), bar(MONDAY, None, open=0.0)])
    assert _reasons(violations(CANDLES, rows)) == [
        (1, "close: finite"),
        (1, "close: not_nullable"),  # pandera counts NaN as missing too
        (1, "volume: not_negative"),
        (2, "open: positive"),
        (2, "symbol: not_nullable"),
    ]


def test_features_are_null_or_finite_and_in_range() -> None:
    schema = stream_schema(MOMENTUM_FEATURES, US_EQUITY_1D)
    rows = _rows(
        MOMENTUM_FEATURES,
        {"rsi_14": 0.0, "range_52w_position": 1.0 + 1e-12, "momentum_1m": -1.0},
        {"rsi_14": 100.1},
        {"rsi_14": -0.1, "trend_strength": 1.1},
        {"macd": float("inf")},
        {"high_52w_position": 0.01},
    )
    assert _reasons(violations(schema, rows)) == [
        (1, "rsi_14: at_most_100"),
        (2, "rsi_14: at_least_0"),
        (2, "trend_strength: at_most_1"),
        (3, "macd: finite"),
        (4, "high_52w_position: at_most_0"),
    ]


def test_codes_are_integers_in_their_range() -> None:
    view = PORTFOLIO_MACRO_FEATURES
    schema = stream_schema(view, view.streams[0])
    rows = _rows(view, {"market_regime": 0}, {"market_regime": 4}, {"market_regime": None})
    assert _reasons(violations(schema, rows)) == [(1, "market_regime: at_most_3")]


def test_keys_and_times_of_features_are_never_null() -> None:
    schema = stream_schema(MOMENTUM_FEATURES, US_EQUITY_1D)
    rows = _rows(MOMENTUM_FEATURES, {"symbol": None}, {"created_timestamp": None}, {"flags": None})
    assert _reasons(violations(schema, rows)) == [
        (0, "symbol: not_nullable"), (1, "created_timestamp: not_nullable"), (2, "flags: not_nullable"),
    ]  # fmt: skip


def test_actions_and_macro_values() -> None:
    actions = frame([split(MONDAY, "AAA", 2.0), split(MONDAY, "BBB", 0.0), split(MONDAY, "CCC", float("inf"))], US_EQUITY_CORPORATE_ACTIONS)
    found = {row for row, _ in _reasons(violations(dataset_schema(US_EQUITY_CORPORATE_ACTIONS), actions))}
    assert found == {1, 2}
    row = {
        "dataset": US_MACRO.name, "series_id": "X", "observation_date": close_of(MONDAY).date(), "event_timestamp": close_of(MONDAY),
        "source": "files", "known_at": close_of(MONDAY), "known_at_basis": "observed", "flags": 0,
    }  # fmt: skip
    macro = frame([{**row, "value": value} for value in (-0.5, 0.0, float("inf"))], US_MACRO)
    assert structure(dataset_schema(US_MACRO), macro) == []
    assert _reasons(violations(dataset_schema(US_MACRO), macro)) == [(2, "value: finite")]
