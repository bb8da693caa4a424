"""What a request resolves to: each view once, every value in its place, and what is refused."""

import dataclasses
import re
from typing import Any

import pytest

from featurestore_dagster.errors import MalformedDataError, RefusedError, UnknownNameError
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.serving.plan import plan

MOMENTUM = CATALOGUE.view("momentum_features")
STATISTICS = CATALOGUE.view("daily_ohlcv_stats")
INTRADAY = CATALOGUE.view("technical_indicators_view")
A, B, *_ = (f"{MOMENTUM.name}:{name}" for name in MOMENTUM.feature_names)
C, *_ = (f"{STATISTICS.name}:{name}" for name in STATISTICS.feature_names)


def test_each_view_is_read_once_and_every_value_finds_its_place() -> None:
    mixed = plan(CATALOGUE, [B, C, A, B])
    assert mixed.references == (B, C, A, B)
    assert [(view.name, names) for view, names in mixed.views] == [
        (MOMENTUM.name, (B.partition(":")[2], A.partition(":")[2])),
        (STATISTICS.name, (C.partition(":")[2],)),
    ]
    assert mixed.view_of == (0, 1, 0, 0)
    assert mixed.order == (0, 2, 1, 0)
    chained = (B, A, C)
    assert tuple(chained[position] for position in mixed.order) == mixed.references


def test_a_service_is_in_order_already() -> None:
    service = CATALOGUE.service("daily_equity_service")
    resolved = plan(CATALOGUE, service.name)
    assert resolved.references == tuple(f"{view.label}:{feature.name}" for view, feature in service.references)
    assert resolved.order is None
    assert set(resolved.join_keys) == {key for view, _ in service.references for key in view.join_keys}


def test_a_plan_is_made_once_for_each_catalogue() -> None:
    assert plan(CATALOGUE, [A, B]) is plan(CATALOGUE, (A, B))
    assert plan(dataclasses.replace(CATALOGUE), [A, B]) is not plan(CATALOGUE, [A, B])


@pytest.mark.parametrize("features", ["no_service", ["no_view:rsi"], [f"{MOMENTUM.name}:no_feature"], [MOMENTUM.feature_names[0]]])
def test_an_unknown_name_is_refused(features: str | list[str]) -> None:
    with pytest.raises(UnknownNameError):
        plan(CATALOGUE, features)


def test_none_and_too_many_features_are_refused_before_any_is_looked_up() -> None:
    with pytest.raises(RefusedError, match="10000 features are asked for; at most 2000"):
        plan(CATALOGUE, ["no_view:no_feature"] * 10_000)
    with pytest.raises(MalformedDataError, match="no features are asked for"):
        plan(CATALOGUE, [])
    with pytest.raises(RefusedError, match="daily_equity_service has"):
        plan(CATALOGUE, "daily_equity_service", maximum_features=3)


@pytest.mark.parametrize(
    ("entity", "complaint"),
    [
        ({"ticker": "AAPL"}, "entity row 1 lacks join key 'symbol'"),
        *(
            ({"symbol": value}, f"entity row 1 has symbol={re.escape(repr(value))}")
            for value in (7, None, float("nan"), b"AAPL", "A\0", "A\ud800", ["AAPL"])
        ),
    ],
    ids=repr,
)
def test_an_incomplete_entity_row_is_refused_by_name(entity: dict[str, str], complaint: str) -> None:
    with pytest.raises(MalformedDataError, match=f"{complaint}; view {MOMENTUM.name}"):
        plan(CATALOGUE, [A]).refuse_incomplete([{"symbol": "AAPL", "user_id": 5}, entity])  # type: ignore[dict-item]


@pytest.mark.parametrize("rows", ["AAPL", ["AAPL"], {"symbol": ["AAPL"]}, [None]], ids=repr)
def test_entity_rows_that_are_none_are_refused(rows: Any) -> None:
    with pytest.raises(MalformedDataError, match="a mapping of join key to text is needed for each entity"):
        plan(CATALOGUE, [A]).refuse_incomplete(rows)


def test_a_row_ages_as_its_stream_and_without_one_as_the_first() -> None:
    (ageing,) = plan(CATALOGUE, [f"{INTRADAY.name}:{INTRADAY.feature_names[0]}"]).ageing
    first, *others = INTRADAY.streams
    assert ageing[None] == ageing[first.name] == (first.calendar, int(INTRADAY.ttl_of(first).total_seconds() * 1e6))
    assert {ageing[stream.name][0] for stream in others} > {"FX"}
