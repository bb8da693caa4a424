"""The breaker, the policy's bounds and the forms of a request."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore_dagster.errors import MalformedDataError, NotOnlineError, RefusedError, UnknownNameError
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.features.equity_views import MOMENTUM_FEATURES
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.serving import ladder
from featurestore_dagster.serving.ladder import FAILURES_TO_OPEN, FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, Breaker, together
from featurestore_dagster.serving.policy import ReadPolicy
from featurestore_dagster.serving.requests import MAXIMUM_VALUES, online_request


class Time:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def passing(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr(ladder, "time", time)
    return time


def opened(breaker: Breaker) -> Breaker:
    for _ in range(FAILURES_TO_OPEN):
        assert breaker.allows()
        breaker.failed()
    return breaker


def test_a_breaker_opens_after_failures_in_a_row_only(passing: Time) -> None:
    breaker = Breaker()
    for _ in range(10):
        breaker.failed()
        breaker.succeeded()
    assert breaker.allows()
    assert not opened(breaker).allows()
    assert breaker.is_open


def test_after_the_pause_one_caller_tries_and_its_success_closes(passing: Time) -> None:
    breaker = opened(Breaker())
    passing.seconds += FIRST_PAUSE_SECONDS
    assert [breaker.allows() for _ in range(3)] == [True, False, False]
    breaker.succeeded()
    assert [breaker.allows() for _ in range(3)] == [True, True, True]


def test_pauses_grow_to_a_bound(passing: Time) -> None:
    breaker = opened(Breaker())
    pauses = []
    for _ in range(12):
        started = passing.seconds
        while not breaker.allows():
            passing.seconds += 0.25
        pauses.append(passing.seconds - started)
        breaker.failed()
    assert pauses == sorted(pauses)
    assert pauses[0] == FIRST_PAUSE_SECONDS
    assert pauses[-1] == LONGEST_PAUSE_SECONDS


def test_failures_of_one_burst_make_one_pause(passing: Time) -> None:
    breaker = opened(Breaker())
    for _ in range(20):
        breaker.failed()
    passing.seconds += FIRST_PAUSE_SECONDS
    assert breaker.allows()


def test_views_that_share_a_stream_are_answered_by_one_tier_when_they_must_be_coherent() -> None:
    def view(name: str, *streams: str) -> tuple[FeatureView, tuple[str, ...]]:
        own = tuple(replace(MOMENTUM_FEATURES.streams[0], name=stream) for stream in streams)
        return replace(MOMENTUM_FEATURES, name=name, streams=own, aliases=()), ("rsi_14",)

    views = [view("a", "s1"), view("b", "s1", "s2"), view("c", "s2"), view("d", "s3")]
    assert together(views, [False, True, True, True]) == (False, False, False, True)
    assert together(views, [True, True, True, False]) == (True, True, True, False)


@pytest.mark.parametrize(
    "demand",
    [
        lambda: ReadPolicy(deadline_seconds=0),
        lambda: ReadPolicy(deadline_seconds=float("nan")),
        lambda: ReadPolicy(deadline_seconds=3600),
        lambda: ReadPolicy(min_coverage=1.5),
        lambda: ReadPolicy(max_age=timedelta(0)),
        lambda: ReadPolicy(max_age=3600),  # type: ignore[arg-type]
        lambda: ReadPolicy(deadline_seconds="1"),  # type: ignore[arg-type]
        lambda: ReadPolicy(min_coverage=None),  # type: ignore[arg-type]
    ],
)
def test_a_policy_that_nothing_can_meet_is_refused(demand: Callable[[], ReadPolicy]) -> None:
    with pytest.raises(RefusedError, match="allowed"):
        demand()


@given(symbol=st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1), timeframe=st.sampled_from(["1m", "1h", "1d"]))
def test_an_entity_id_is_split_at_its_last_underscore(symbol: str, timeframe: str) -> None:
    request = online_request(CATALOGUE, ["technical_indicators_view:rsi_14"], (), [f"{symbol}_{timeframe}"])
    assert request.entities == [{"symbol": symbol, "timeframe": timeframe, "portfolio": "GLOBAL"}]


def test_an_entity_id_names_the_same_symbol_to_a_view_without_timeframe() -> None:
    request = online_request(CATALOGUE, ["momentum_features:rsi_14"], (), ["BTCUSDT_1h", "BRK_B"])
    assert [row["symbol"] for row in request.entities] == ["BTCUSDT", "BRK_B"]


@pytest.mark.parametrize("identifier", ["BTCUSDT", "BTCUSDT_2h", "_1h", "BTCUSDT_"])
def test_an_entity_id_without_its_timeframe_is_refused(identifier: str) -> None:
    with pytest.raises(MalformedDataError, match="BTCUSDT_1h"):
        online_request(CATALOGUE, ["technical_indicators_view:rsi_14"], (), [identifier])


def test_a_request_is_refused_before_any_store_is_asked() -> None:
    with pytest.raises(NotOnlineError, match="get_historical_features"):
        online_request(CATALOGUE, "comprehensive_training_service", [{"symbol": "AAPL"}])
    with pytest.raises(UnknownNameError, match="momentum_features"):
        online_request(CATALOGUE, ["momentum_feature:rsi_14"], [{"symbol": "AAPL"}])
    with pytest.raises(MalformedDataError, match="not both"):
        online_request(CATALOGUE, ["momentum_features:rsi_14"], [{"symbol": "AAPL"}], ["AAPL"])
    with pytest.raises(RefusedError, match="split it"):
        online_request(CATALOGUE, ["momentum_features:rsi_14"], [{"symbol": "AAPL"}] * (MAXIMUM_VALUES + 1))
