"""Counts, sentiment and ratings of the events in a window; which events are in it does not belong here (see `pipeline.blocks.events`).

An expression is an aggregate over the events of one symbol's window: `event_id source_type score confidence firm rating published_at`.
It reads them through sums only, and the sums are of integers: exact, so that neither the order of the events nor the way they are summed
changes a bit. Numbers become integers at a resolution of 2**-100 (2**-50 where they are squared); 2**26 events in a window still fit.
"""

import math
from datetime import timedelta
from typing import Protocol

import polars as pl

from featurestore_dagster.model.indicator import Feature, Grain, indicator
from featurestore_dagster.model.units import Unit

SCALE = 2.0**100
SQUARED_SCALE = 2.0**50
SOCIAL_LEAST_EVENTS = 5


def window(feature: Feature) -> timedelta:
    """Length w of the window (T - w, T] that a feature of events aggregates."""
    return timedelta(seconds=float(feature.parameters["window_seconds"]))


class Total(Protocol):
    """How a term is summed over the events of the window (T - window_seconds, T]."""

    def __call__(self, term: pl.Expr, window_seconds: int, latest_of: pl.Expr | None = None) -> pl.Expr:
        """Sum of integers, NULL counting nothing; with `latest_of`, over the latest published event of each of its values, NULL aside."""


def frame_total(term: pl.Expr, window_seconds: int, latest_of: pl.Expr | None = None) -> pl.Expr:  # noqa: ARG001 - the frame is the window
    """Sum over a frame that holds exactly one window's events; of two published at one instant the one of greater event_id is later."""
    if latest_of is None:
        return term.sum()
    key, ordered = (value.sort_by("published_at", "event_id") for value in (latest_of, term))
    return ordered.filter(key.is_last_distinct() & key.is_not_null()).sum()


def _count(given: pl.Expr) -> pl.Expr:
    return given.cast(pl.Int64)


def _exact(value: pl.Expr, scale: float = SCALE) -> pl.Expr:
    return (value * scale).cast(pl.Int128)


def _quotient(numerator: pl.Expr, denominator: pl.Expr) -> pl.Expr:
    """NULL where the denominator is 0; both integers below 2**127. Without `bind`, which panics inside `group_by.agg`."""
    return pl.when(denominator != 0).then(numerator.cast(pl.Float64) / denominator.cast(pl.Float64))


def _mean(column: str, window_seconds: int, total: Total, latest_of: pl.Expr | None = None) -> pl.Expr:
    value = pl.col(column)
    return _quotient(total(_exact(value), window_seconds, latest_of), total(_count(value.is_not_null()), window_seconds, latest_of)) / SCALE


def _weighted(selected: pl.Expr, window_seconds: int, total: Total, least: int = 1) -> pl.Expr:
    """Sum of confidence times score over sum of confidence, of the selected events that have both; NULL with fewer than `least`."""
    score, confidence = pl.col("score"), pl.col("confidence")
    used = selected & score.is_not_null() & confidence.is_not_null()
    products, weights = (_exact(pl.when(used).then(value)) for value in (score * confidence, confidence))
    mean = _quotient(total(products, window_seconds), total(weights, window_seconds))
    return pl.when(total(_count(used), window_seconds) >= least).then(mean)


@indicator(
    unit=Unit.COUNT,
    formula="number of events of all source types; 0 without any",
    inputs=("event_id",),
    oracle="brute force",
    first=0,
    minimum=0,
    grain=Grain.EVENTS,
)
def event_count(window_seconds: int, total: Total = frame_total) -> pl.Expr:
    """Events in the window."""
    return total(_count(pl.col("event_id").is_not_null()), window_seconds).cast(pl.Float64)


@indicator(
    unit=Unit.RATIO,
    formula="sum(score) / n over the events that have a score; NULL without any",
    inputs=("score",),
    oracle="brute force",
    first=0,
    minimum=-1,
    maximum=1,
    grain=Grain.EVENTS,
)
def sentiment_mean(window_seconds: int, total: Total = frame_total) -> pl.Expr:
    """Mean score."""
    return _mean("score", window_seconds, total)


@indicator(
    unit=Unit.RATIO,
    formula="sum(confidence) / n over the events that have a confidence; NULL without any",
    inputs=("confidence",),
    oracle="brute force",
    first=0,
    minimum=0,
    maximum=1,
    grain=Grain.EVENTS,
)
def sentiment_conf_mean(window_seconds: int, total: Total = frame_total) -> pl.Expr:
    """Mean confidence of the scores."""
    return _mean("confidence", window_seconds, total)


@indicator(
    unit=Unit.RATIO,
    formula="sum(confidence * score) / sum(confidence) over the events that have both; NULL when the weights sum to 0",
    inputs=("score", "confidence"),
    oracle="brute force",
    first=0,
    minimum=-1,
    maximum=1,
    grain=Grain.EVENTS,
)
def sentiment_weighted(window_seconds: int, total: Total = frame_total) -> pl.Expr:
    """Mean score weighted by confidence."""
    return _weighted(pl.lit(value=True), window_seconds, total)


@indicator(
    unit=Unit.RATIO,
    formula="std(score, ddof 1) over the events that have a score; NULL with fewer than 2",
    inputs=("score",),
    oracle="brute force",
    first=0,
    minimum=0,
    maximum=math.sqrt(2),
    grain=Grain.EVENTS,
)
def sentiment_std(window_seconds: int, total: Total = frame_total) -> pl.Expr:
    """Sample deviation of the scores, exactly 0 when all are equal."""
    score = _exact(pl.col("score"), SQUARED_SCALE)
    count = total(_count(pl.col("score").is_not_null()), window_seconds).cast(pl.Int128)
    sums, squares = total(score, window_seconds), total(score * score, window_seconds)
    # Squares about the integer part of the mean, less what its fraction adds: nothing cancels in floating point.
    centre = sums // count
    rest = sums - count * centre
    about_centre = (squares - centre * (sums + rest)).cast(pl.Float64)
    variance = (about_centre - rest.cast(pl.Float64) ** 2 / count.cast(pl.Float64)) / (count - 1).cast(pl.Float64)
    return pl.when(count > 1).then(variance.sqrt() / SQUARED_SCALE)


@indicator(
    unit=Unit.RATIO,
    formula="sum(confidence * score) / sum(confidence) over news; NULL when the weights sum to 0",
    inputs=("source_type", "score", "confidence"),
    oracle="brute force",
    first=0,
    minimum=-1,
    maximum=1,
    grain=Grain.EVENTS,
)
def news_sentiment(window_seconds: int, total: Total = frame_total) -> pl.Expr:
    """Mean score of news weighted by confidence."""
    return _weighted(pl.col("source_type") == "news", window_seconds, total)


@indicator(
    unit=Unit.RATIO,
    formula="sum(confidence * score) / sum(confidence) over posts; NULL with fewer than 5, or when the weights sum to 0",
    inputs=("source_type", "score", "confidence"),
    oracle="brute force",
    first=0,
    minimum=-1,
    maximum=1,
    grain=Grain.EVENTS,
)
def social_sentiment(window_seconds: int, total: Total = frame_total) -> pl.Expr:
    """Mean score of posts weighted by confidence."""
    return _weighted(pl.col("source_type") == "social", window_seconds, total, SOCIAL_LEAST_EVENTS)


def _firm() -> pl.Expr:
    return pl.when(pl.col("source_type") == "analyst").then(pl.col("firm"))


@indicator(
    unit=Unit.INDEX_POINTS,
    formula="mean over firms of the latest rating of each, 1 strong sell to 5 strong buy; NULL without any",
    inputs=("event_id", "source_type", "firm", "rating", "published_at"),
    oracle="brute force",
    first=0,
    minimum=1,
    maximum=5,
    grain=Grain.EVENTS,
)
def analyst_rating(window_seconds: int, total: Total = frame_total) -> pl.Expr:
    """Mean rating."""
    return _mean("rating", window_seconds, total, _firm())


@indicator(
    unit=Unit.COUNT,
    formula="number of firms whose latest rating counts; 0 without any",
    inputs=("event_id", "source_type", "firm", "rating", "published_at"),
    oracle="brute force",
    first=0,
    minimum=0,
    grain=Grain.EVENTS,
)
def analyst_rating_count(window_seconds: int, total: Total = frame_total) -> pl.Expr:
    """Firms with a rating."""
    return total(_count(pl.col("rating").is_not_null()), window_seconds, _firm()).cast(pl.Float64)
