"""References of what events, positions and session clocks say, by exact arithmetic in plain Python over one window or row at a time."""

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from featurestore_dagster.indicators import sentiment, state
from featurestore_dagster.model.indicator import Feature
from tests.unit.indicators.oracle import Oracle
from tests.unit.indicators.series import RealSeries, Values

HOUR, DAY = 3_600, 86_400

Event = Mapping[str, Any]
"""event_id, source_type, score, confidence, firm, rating, published_at."""


def _mean(values: Sequence[float]) -> float | None:
    return float(sum(map(Fraction, values)) / len(values)) if values else None


def _given(events: Sequence[Event], name: str) -> list[float]:
    return [event[name] for event in events if event[name] is not None]


def _deviation(events: Sequence[Event]) -> float | None:
    scores = [Fraction(score) for score in _given(events, "score")]
    if len(scores) < 2:
        return None
    mean = sum(scores) / len(scores)
    return math.sqrt(sum((score - mean) ** 2 for score in scores) / (len(scores) - 1))


def _weighted(events: Sequence[Event], source_type: str | None = None, least: int = 1) -> float | None:
    pairs = [
        (Fraction(event["confidence"]), Fraction(event["score"]))
        for event in events
        if event["score"] is not None and event["confidence"] is not None and source_type in (None, event["source_type"])
    ]
    weight = sum(confidence for confidence, _ in pairs)
    return float(sum(confidence * score for confidence, score in pairs) / weight) if len(pairs) >= least and weight else None


def _ratings(events: Sequence[Event]) -> list[float]:
    latest: dict[str, Event] = {}
    for event in sorted(events, key=lambda event: (event["published_at"], event["event_id"])):
        if event["source_type"] == "analyst" and event["firm"] is not None:
            latest[event["firm"]] = event
    return [event["rating"] for event in latest.values() if event["rating"] is not None]


REFERENCES: tuple[tuple[Feature, Callable[[Sequence[Event]], float | None]], ...] = (
    (sentiment.event_count.feature("event_count_1h", window_seconds=HOUR), lambda events: float(len(events))),
    (sentiment.sentiment_mean.feature("sentiment_mean_1h", window_seconds=HOUR), lambda events: _mean(_given(events, "score"))),
    (
        sentiment.sentiment_conf_mean.feature("sentiment_conf_mean_1h", window_seconds=HOUR),
        lambda events: _mean(_given(events, "confidence")),
    ),
    (sentiment.sentiment_weighted.feature("sentiment_weighted_1h", window_seconds=HOUR), _weighted),
    (sentiment.sentiment_std.feature("sentiment_std_1h", window_seconds=HOUR), _deviation),
    (sentiment.news_sentiment.feature("news_sentiment_1d", window_seconds=DAY), lambda events: _weighted(events, "news")),
    (sentiment.news_sentiment.feature("news_sentiment_7d", window_seconds=7 * DAY), lambda events: _weighted(events, "news")),
    (sentiment.social_sentiment.feature("social_sentiment", window_seconds=DAY), lambda events: _weighted(events, "social", 5)),
    (sentiment.analyst_rating.feature("analyst_rating", window_seconds=180 * DAY), lambda events: _mean(_ratings(events))),
    (
        sentiment.analyst_rating_count.feature("analyst_rating_count", window_seconds=180 * DAY),
        lambda events: float(len(_ratings(events))),
    ),
)
"""Feature, and its value on the events of its window."""


def _each_window(reference: Callable[[Sequence[Event]], float | None]) -> Callable[[RealSeries], Values]:
    def references(series: RealSeries) -> Values:
        windows: dict[int, list[Event]] = {}
        for event in series.frame.to_dicts():
            windows.setdefault(event["row"], []).append(event)
        return np.array([reference(events) for events in windows.values()], dtype=np.float64)

    return references


def _position(row: Event) -> float | None:
    age = row["position_age_seconds"]
    return row["position"] if age is not None and age <= HOUR else None


def _session_share(row: Event) -> float | None:
    elapsed, whole = row["seconds_since_open"], row["session_seconds"]
    return elapsed / whole if elapsed is not None and elapsed <= whole else None


def _each_row(reference: Callable[[Event], float | None]) -> Callable[[RealSeries], Values]:
    return lambda series: np.array([reference(row) for row in series.frame.to_dicts()], dtype=np.float64)


EVENT_ORACLES = (
    *(Oracle(feature, _each_window(reference), rtol=1e-12, atol=2e-15, series=("events",)) for feature, reference in REFERENCES),
    Oracle(state.position.feature(), _each_row(_position), series=("instants",)),
    Oracle(state.time_normalized.feature(), _each_row(_session_share), series=("instants",)),
)
