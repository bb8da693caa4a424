"""Aggregates over the events of one window: equal to exact arithmetic, blind to order, and as computed by hand."""

import math
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore_dagster.indicators import state
from featurestore_dagster.indicators.sentiment import window
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS
from tests.unit.indicators.event_oracles import REFERENCES, Event

FEATURES = [feature for feature, _ in REFERENCES]
NOON = datetime(2024, 3, 5, 12, tzinfo=UTC)
SCHEMA = {
    "event_id": pl.String,
    "source_type": pl.String,
    "score": pl.Float64,
    "confidence": pl.Float64,
    "firm": pl.String,
    "rating": pl.Float64,
    "published_at": UTC_MICROSECONDS,
}

WEIGHT = st.one_of(st.just(0.0), st.just(1.0), st.floats(1e-6, 1))
EVENTS = st.lists(
    st.fixed_dictionaries(
        {
            "event_id": st.uuids().map(str),
            "source_type": st.sampled_from(["news", "social", "analyst"]),
            "score": st.none() | st.sampled_from([-1.0, 0.0, 0.1, 1.0]) | st.floats(-1, 1),
            "confidence": st.none() | WEIGHT,
            "firm": st.sampled_from([None, "Ash", "Birch"]),
            "rating": st.sampled_from([None, 1.0, 2.0, 5.0]),
            "published_at": st.integers(0, 3).map(lambda minutes: NOON + timedelta(minutes=minutes)),
        }
    ),
    max_size=14,
)


def event(score: float | None = None, confidence: float | None = None, source_type: str = "news", **other: Any) -> dict[str, Any]:
    """An event; its place in the window is that of its `minute`."""
    minute = other.pop("minute", 0)
    given_columns = {"score": score, "confidence": confidence, "source_type": source_type, "published_at": NOON + timedelta(minutes=minute)}
    return {"event_id": f"e{minute}", "firm": None, "rating": None} | given_columns | other


def values_of(events: Sequence[Event]) -> dict[str, float | None]:
    """All features over one window."""
    frame = pl.DataFrame(list(events), schema=SCHEMA, orient="row")
    return frame.select(feature.expression() for feature in FEATURES).row(0, named=True)


@settings(max_examples=150, deadline=None)
@given(events=EVENTS, seed=st.integers(0, 99))
def test_values_are_those_of_exact_arithmetic_in_any_order(events: list[Event], seed: int) -> None:
    found = values_of(events)
    for feature, reference in REFERENCES:
        expected = reference(events)
        assert found[feature.name] == (expected if expected is None else pytest.approx(expected, rel=1e-12, abs=2e-15)), feature.name
        minimum, maximum = feature.indicator.minimum, feature.indicator.maximum
        assert minimum is not None
        assert (value := found[feature.name]) is None or minimum <= value <= (math.inf if maximum is None else maximum), feature.name
    assert values_of(random.Random(seed).sample(events, len(events))) == found


def test_by_hand() -> None:
    news = [event(0.5, 0.25, minute=0), event(-0.25, 0.75, minute=1)]
    posts = [event(0.1 * number, 0.5, "social", minute=1 + number) for number in range(1, 6)]
    ratings = [
        event(source_type="analyst", firm="Ash", rating=2.0, minute=10),
        event(source_type="analyst", firm="Ash", rating=5.0, minute=12),
        event(source_type="analyst", firm="Ash", rating=1.0, minute=11),
        event(source_type="analyst", firm="Birch", rating=4.0, minute=9),
        event(source_type="news", firm="Cedar", rating=1.0, minute=9, event_id="not an analyst"),
    ]
    found = values_of([*news, *posts, *ratings])
    assert found["event_count_1h"] == 12
    assert found["sentiment_mean_1h"] == pytest.approx((0.5 - 0.25 + 1.5) / 7, rel=1e-15)
    assert found["sentiment_conf_mean_1h"] == pytest.approx(0.5, rel=1e-15)
    assert found["sentiment_weighted_1h"] == pytest.approx((0.125 - 0.1875 + 0.75) / 3.5, rel=1e-15)
    assert found["news_sentiment_1d"] == found["news_sentiment_7d"] == -0.0625
    assert found["social_sentiment"] == pytest.approx(0.3, rel=1e-15)
    assert (found["analyst_rating"], found["analyst_rating_count"]) == (4.5, 2)
    assert values_of(news)["sentiment_std_1h"] == pytest.approx(0.75 / math.sqrt(2), rel=1e-15)
    assert values_of([*news, *posts[:4]])["social_sentiment"] is None


def test_null_rules() -> None:
    nothing = dict.fromkeys((feature.name for feature in FEATURES), None) | {"event_count_1h": 0.0, "analyst_rating_count": 0.0}
    assert values_of([]) == nothing
    assert values_of([event()]) == nothing | {"event_count_1h": 1.0}
    weightless = values_of([event(0.5, 0.0, minute=number) for number in range(2)])
    assert (weightless["sentiment_mean_1h"], weightless["sentiment_conf_mean_1h"]) == (0.5, 0.0)
    assert (weightless["sentiment_weighted_1h"], weightless["news_sentiment_1d"]) == (None, None)
    assert values_of([event(0.3, 0.5)])["sentiment_std_1h"] is None
    assert values_of([event(0.3, 0.5, minute=number) for number in range(3)])["sentiment_std_1h"] == 0.0
    withdrawn = [
        event(source_type="analyst", firm="Ash", rating=4.0, minute=0),
        event(source_type="analyst", firm="Ash", rating=None, minute=1),
    ]
    assert values_of(withdrawn)["analyst_rating"] is None


def test_windows_are_reachable_from_the_features() -> None:
    assert {feature.name: window(feature) for feature in FEATURES} == {
        **{
            name: timedelta(hours=1)
            for name in ("event_count_1h", "sentiment_mean_1h", "sentiment_conf_mean_1h", "sentiment_weighted_1h", "sentiment_std_1h")
        },
        "news_sentiment_1d": timedelta(days=1),
        "news_sentiment_7d": timedelta(days=7),
        "social_sentiment": timedelta(days=1),
        "analyst_rating": timedelta(days=180),
        "analyst_rating_count": timedelta(days=180),
    }


def test_state_by_hand() -> None:
    rows = pl.DataFrame(
        {
            "position": [-0.5, -0.5, -0.5, None],
            "position_age_seconds": [0.0, 3600.0, 3600.000001, None],
            "seconds_since_open": [0.0, 4500.0, 18000.0, 18000.000001],
            "session_seconds": [18000.0] * 4,
        }
    )
    assert rows.select(state.position.feature().expression()).to_series().to_list() == [-0.5, -0.5, None, None]
    assert rows.select(state.time_normalized.feature().expression()).to_series().to_list() == [0.0, 0.25, 1.0, None]
