"""Freshness of snapshots of released series: due by the release calendar, over weekends and holidays, and never late without cause."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore_dagster.calendars import calendar
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.features.macro_series import RELEASED_SERIES
from featurestore_dagster.model.time import Timeframe
from featurestore_dagster.serving.freshness import Expectation, FreshnessState, evaluate, expectation
from tests.unit.serving.test_freshness import HOUR, MINUTE, NOWS, hourly_coin, owes, utc


def snapshots_of(series_id: str) -> Expectation:
    """Hourly snapshots of New York's session, of one series."""
    owed = owes("XNYS", "1h", latency=timedelta(0), max_lag=HOUR, ttl=timedelta(days=30))
    return replace(owed, series=(RELEASED_SERIES[series_id],))


def monthly_inflation() -> Expectation:
    return snapshots_of("CPILFESL")


def weekly_dollar() -> Expectation:
    return snapshots_of("DTWEXBGS")


def daily_volatility() -> Expectation:
    return snapshots_of("VIXCLS")


# New York is at UTC-4 in summer time, at UTC-5 at Christmas.
INFLATION = [
    ("2018-08-16T21:00", "2018-09-14T21:00", "CLOSED", "prices of July came on 15 August, those of August come on Saturday the 15th"),
    ("2018-08-16T21:00", "2018-09-17T15:30", "FRESH", "the first snapshot after it is that of Monday 10:30"),
    ("2018-08-16T21:00", "2018-09-17T15:30:01", "LATE", "an hour later it is overdue"),
    ("2018-08-16T21:00", "2018-09-17T16:30", "STALE", "for another hour of trading"),
    ("2018-08-15T12:29", "2018-08-15T15:30:01", "LATE", "a snapshot a minute before the release does not have it"),
]
DOLLAR = [
    (
        "2018-08-27T21:00",
        "2018-09-03T15:00",
        "CLOSED",
        "the week to 24 August came on Monday the 27th after the close; 3 September is Labor Day",
    ),
    ("2018-08-28T14:30", "2018-09-04T19:59", "FRESH", "weekly values are not late in between"),
    (
        "2018-08-28T14:30",
        "2018-09-05T15:30:00",
        "FRESH",
        "Tuesday 16:15 New York is after the close: the next snapshot is due on Wednesday",
    ),
    ("2018-08-28T14:30", "2018-09-05T15:30:01", "LATE", "an hour after it ended"),
    ("2018-09-04T20:00", "2018-09-05T15:30:01", "LATE", "the last snapshot before the release does not have it either"),
]
VOLATILITY = [
    ("2018-12-24T14:30", "2018-12-26T16:00", "FRESH", "Christmas: Monday's value comes on Wednesday at 13:15, before the first snapshot"),
    ("2018-12-24T15:30", "2018-12-26T16:30:01", "LATE", "which is due at 16:30"),
    ("2018-12-24T13:14", "2018-12-24T16:30:01", "LATE", "Friday's value, on the half day"),
    ("2018-07-02T13:15", "2018-07-03T14:30", "FRESH", "Independence Day: the value of Monday is due with Tuesday's first snapshot"),
    ("2018-07-03T17:00", "2018-07-05T15:30", "FRESH", "that of Tuesday with Thursday's"),
    ("2018-07-03T17:00", "2018-07-05T15:30:01", "LATE", "an hour after it ended"),
]
TABLE = [
    pytest.param(owed, *row[:3], id=f"{owed.__name__}: {row[3]}")
    for owed, rows in ((monthly_inflation, INFLATION), (weekly_dollar, DOLLAR), (daily_volatility, VOLATILITY))
    for row in rows
]


@pytest.mark.parametrize(("owed", "watermark", "now", "state"), TABLE)
def test_state(owed: Callable[[], Expectation], watermark: str, now: str, state: str) -> None:
    assert evaluate(owed(), utc(watermark), utc(now)).state == state


def owed_series(stream_name: str) -> list[str]:
    view = CATALOGUE.view("macro_features")
    (stream,) = (found for found in view.streams if found.name == stream_name)
    return [series.series_id for series in expectation(CATALOGUE, view, stream).series]


def test_a_stream_owes_the_series_that_its_instruments_read_and_nothing_else() -> None:
    everybody = ["DCOILBRENTEU", "DTWEXBGS", "BAMLEMCBPIOAS", "DGS10", "DEXMXUS", "VIXCLS"]
    assert owed_series("crypto_1h") == everybody
    assert owed_series("cop_1h") == [*everybody[:3], "COLIRLTLT01STM", *everybody[3:]]
    portfolio = CATALOGUE.view("portfolio_macro_features")
    assert expectation(CATALOGUE, portfolio, portfolio.streams[0]).series == (), "it reads bars too: every snapshot is owed"


def test_what_expires_is_owed_before_the_next_release() -> None:
    """Friday's values, on a calendar that never closes; nothing is released before Monday 13:15 UTC."""
    coin = replace(hourly_coin(), series=(RELEASED_SERIES["VIXCLS"],), ttl=24 * HOUR)
    watermark = utc("2018-12-21T18:00")
    assert evaluate(coin, watermark, utc("2018-12-22T18:00")).state is FreshnessState.FRESH
    expired = evaluate(coin, watermark, utc("2018-12-22T18:00:01"))
    assert (expired.state, expired.due_at, expired.next_due_at) == (FreshnessState.STALE, utc("2018-12-22T18:00"), utc("2018-12-24T15:00"))
    assert evaluate(replace(coin, ttl=72 * HOUR), watermark, utc("2018-12-24T15:00")).state is FreshnessState.FRESH


@settings(deadline=None)
@given(
    names=st.sets(st.sampled_from(sorted(RELEASED_SERIES)), min_size=1, max_size=4),
    market=st.sampled_from(["XNYS", "24/7", "COP"]),
    now=NOWS,
    delay=st.integers(0, 3600).map(lambda seconds: timedelta(seconds=seconds)),
)
def test_a_stream_whose_series_are_served_as_they_are_released_is_never_late(
    names: set[str], market: str, now: datetime, delay: timedelta
) -> None:
    """Served is only the first snapshot after each release, at most one SLO after its end."""
    series = tuple(RELEASED_SERIES[name] for name in sorted(names))
    owed = replace(owes(market, "1h", latency=MINUTE, max_lag=HOUR, ttl=timedelta(days=90)), series=series)
    since = now - timedelta(days=100)
    released = sorted(
        instant
        for one in series
        for instant in one.due_instants(calendar(one.release.calendar).sessions(since.date(), (now + timedelta(days=40)).date())["session"])
    )
    served = [owed.calendar.next_bar_end(Timeframe.ONE_HOUR, instant - timedelta.resolution) for instant in released]
    watermark = max(end for end in served if end + MINUTE + delay <= now)
    assert evaluate(owed, watermark, now).state in {FreshnessState.FRESH, FreshnessState.CLOSED}
