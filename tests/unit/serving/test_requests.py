"""Requests as callers write them: what is understood, and what is refused with a type that they can catch."""

from typing import Any

import pytest

from featurestore_dagster.errors import MalformedDataError, NotOnlineError
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.serving.requests import online_request

DAILY, INTRADAY = ["momentum_features:rsi_14"], "technical_indicators_service"
AAPL = {"symbol": "AAPL"}


def test_an_entity_id_is_a_symbol_or_a_symbol_and_its_timeframe() -> None:
    assert [row["symbol"] for row in online_request(CATALOGUE, DAILY, (), ["AAPL"]).entities] == ["AAPL"]
    rows = online_request(CATALOGUE, INTRADAY, (), ["BTCUSDT_1h", "BRK_B_1d"]).entities
    assert [(row["symbol"], row["timeframe"]) for row in rows] == [("BTCUSDT", "1h"), ("BRK_B", "1d")]


@pytest.mark.parametrize(
    ("features", "rows", "ids", "complaint"),
    [
        (DAILY, [{"symbol": float("nan")}], (), "entity row 0 has symbol=nan"),
        (DAILY, [{"symbol": None}], (), "entity row 0 has symbol=None"),
        (DAILY, [AAPL, "AAPL"], (), "entity row 1 is 'AAPL'"),
        (DAILY, {"symbol": ["AAPL"]}, (), "entity rows and ids are lists"),
        (DAILY, "AAPL", (), "entity rows and ids are lists"),
        (DAILY, (), "AAPL", "entity rows and ids are lists"),
        (DAILY, [AAPL], ["AAPL"], "not both"),
        (INTRADAY, (), ["BTCUSDT"], "does not end with a timeframe"),
        (INTRADAY, (), [float("nan")], "entity id nan is no text"),
        (DAILY, (), [7], "entity id 7 is no text"),
        ([None], [AAPL], (), "features hold what is no text"),
        ([DAILY], [AAPL], (), "features hold what is no text"),
        (None, [AAPL], (), "features are None"),
        ([], [AAPL], (), "no features are asked for"),
    ],
)
def test_what_is_no_request_is_refused(features: Any, rows: Any, ids: Any, complaint: str) -> None:
    with pytest.raises(MalformedDataError, match=complaint):
        online_request(CATALOGUE, features, rows, ids)


def test_views_for_training_only_are_refused_unless_an_instant_is_given() -> None:
    service = "comprehensive_training_service"
    with pytest.raises(NotOnlineError, match="comprehensive_features_view is for training only"):
        online_request(CATALOGUE, service, (), ["AAPL_1d"])
    assert online_request(CATALOGUE, service, (), ["AAPL_1d"], historical=True).plan.training_only == ("comprehensive_features_view",)
