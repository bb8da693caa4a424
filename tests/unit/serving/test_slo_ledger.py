"""Overdue time counted from publications: the same as looking at the freshness of every instant."""

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore_dagster.calendars import calendar
from featurestore_dagster.model.time import Timeframe
from featurestore_dagster.serving.freshness import Expectation, evaluate
from featurestore_dagster.serving.slo_ledger import SloMonth, overdue_intervals

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def daily() -> Expectation:
    """A close known 15 minutes later and due an hour after that."""
    return Expectation(calendar("XNYS"), Timeframe("1d"), 15 * MINUTE, HOUR, 3 * DAY)


def hourly() -> Expectation:
    return Expectation(calendar("24/7"), Timeframe("1h"), timedelta(0), 30 * MINUTE, 6 * HOUR)


CLOSE_OF_THURSDAY, CLOSE_OF_FRIDAY = utc("2018-12-27T21:00"), utc("2018-12-28T21:00")
FRIDAY_DUE = utc("2018-12-28T22:15")


@pytest.mark.parametrize(
    ("advances", "overdue"),
    [
        pytest.param([("2018-12-28T21:20", CLOSE_OF_FRIDAY)], [], id="in time"),
        pytest.param([("2018-12-28T23:15", CLOSE_OF_FRIDAY)], [("2018-12-28T22:15", "2018-12-28T23:15")], id="an hour late"),
        pytest.param([], [("2018-12-28T22:15", "2018-12-30T00:00")], id="never, over the weekend too: the SLO is clock time"),
        pytest.param([("2018-12-28T21:20", utc("2017-01-03T21:00"))], [("2018-12-28T22:15", "2018-12-30T00:00")], id="a backfill"),
    ],
)
def test_a_daily_close_is_overdue_from_due_to_publication(advances: list[tuple[str, datetime]], overdue: list[tuple[str, str]]) -> None:
    published = [(utc(at), watermark) for at, watermark in advances]
    found = overdue_intervals(daily(), CLOSE_OF_THURSDAY, published, utc("2018-12-28T00:00"), utc("2018-12-30T00:00"))
    assert found == [(utc(begin), utc(end)) for begin, end in overdue]


def test_a_publication_committed_after_its_time_counts_from_when_it_could_be_seen() -> None:
    start, end = utc("2018-12-28T23:00"), utc("2018-12-28T23:30")
    assert overdue_intervals(daily(), CLOSE_OF_THURSDAY, [(FRIDAY_DUE + MINUTE, CLOSE_OF_FRIDAY)], start, end) == []


def test_what_was_never_published_is_overdue_all_the_time() -> None:
    start, end = utc("2018-12-28T00:00"), utc("2018-12-29T00:00")
    assert overdue_intervals(daily(), None, [], start, end) == [(start, end)]


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 48 * 60), st.integers(-3, 48)), max_size=12), st.none() | st.integers(-6, 48))
def test_the_intervals_are_the_instants_at_which_freshness_says_overdue(published: list[tuple[int, int]], listed_hours: int | None) -> None:
    """Publications at random minutes, of bars that had ended by then."""
    start = utc("2026-03-07T00:00")
    owed = replace(hourly(), ends_at=None if listed_hours is None else start + listed_hours * HOUR)
    advances = [(start + minute * MINUTE, start + hour * HOUR) for minute, hour in published if hour * 60 <= minute]
    before = start - 5 * HOUR
    intervals = overdue_intervals(owed, before, advances, start, start + 48 * HOUR)
    for minute in range(0, 48 * 60, 10):
        instant = start + minute * MINUTE + timedelta(seconds=1)  # due instants and publications lie on whole minutes
        watermark = max([before, *(mark for at, mark in advances if at <= instant)])
        overdue = evaluate(owed, watermark, instant).state.overdue
        assert overdue == any(begin <= instant < end for begin, end in intervals), instant
    assert all(first[1] < second[0] for first, second in itertools.pairwise(intervals))


def test_a_budget_is_what_the_objective_leaves_of_the_month() -> None:
    month = SloMonth(
        "view", "stream", "2026-11", 0.99, evaluated_seconds=10 * 86_400.0, overdue_seconds=43_200.0, budget_seconds=0.01 * 30 * 86_400
    )
    assert month.attainment == pytest.approx(0.95)
    assert month.budget_left_seconds == pytest.approx(25_920 - 43_200)
    assert month.budget_left == pytest.approx(-2 / 3)
