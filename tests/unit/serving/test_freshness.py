"""Freshness: the states as tables of instants, and the laws that hold for any instant. Long, since the tables share their expectations."""

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore_dagster.calendars import calendar
from featurestore_dagster.errors import MalformedDataError, PointInTimeViolation, UnknownPartitionError
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.features.equity_views import DAILY_OHLCV_STATS
from featurestore_dagster.features.macro_series import RELEASED_SERIES
from featurestore_dagster.features.raw_tables import FX_CANDLES_1H, US_EQUITY_CANDLES_1D, US_EQUITY_CORPORATE_ACTIONS, US_MACRO
from featurestore_dagster.model.entity import Entity
from featurestore_dagster.model.feature_view import FeatureView, Stream
from featurestore_dagster.model.indicator import Indicator
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS, Dataset
from featurestore_dagster.model.slo import SLO
from featurestore_dagster.model.time import Timeframe
from featurestore_dagster.model.units import Unit
from featurestore_dagster.serving.freshness import (
    STATES,
    Expectation,
    Freshness,
    FreshnessState,
    evaluate,
    evaluate_entities,
    expectation,
    freshness,
)

HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
SEVERITY = list(FreshnessState)


@pytest.fixture(scope="module", autouse=True)
def _built_calendars() -> None:
    """The first use of a calendar costs a second, which would count against hypothesis' deadline."""
    for name in ("XNYS", "FX", "24/7", "COP"):
        calendar(name)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def owes(name: str, timeframe: str, *, latency: timedelta, max_lag: timedelta, ttl: timedelta) -> Expectation:
    return Expectation(calendar(name), Timeframe(timeframe), latency, max_lag, ttl)


def daily() -> Expectation:
    """A close known 15 minutes later and due an hour after that."""
    return owes("XNYS", "1d", latency=15 * MINUTE, max_lag=HOUR, ttl=timedelta(days=3))


def five_minutes() -> Expectation:
    return owes("XNYS", "5m", latency=timedelta(0), max_lag=5 * MINUTE, ttl=24 * HOUR)


def hourly_snapshots() -> Expectation:
    return owes("XNYS", "1h", latency=timedelta(0), max_lag=30 * MINUTE, ttl=24 * HOUR)


def hourly_euro() -> Expectation:
    return owes("FX", "1h", latency=timedelta(0), max_lag=HOUR, ttl=6 * HOUR)


def hourly_coin() -> Expectation:
    return owes("24/7", "1h", latency=timedelta(0), max_lag=HOUR, ttl=6 * HOUR)


# New York is at UTC-5 in these rows, at UTC-4 where the comment says summer time.
DAILY = [
    ("2018-12-28T21:00", "2018-12-28T21:10", "CLOSED", "the close itself is served"),
    ("2018-12-27T21:00", "2018-12-28T21:10", "CLOSED", "the close is not available yet"),
    ("2018-12-27T21:00", "2018-12-28T22:15", "CLOSED", "the very instant at which it is due"),
    ("2018-12-27T21:00", "2018-12-28T22:15:00.000001", "LATE", "a microsecond later"),
    ("2018-12-28T21:00", "2018-12-30T12:00", "CLOSED", "weekend"),
    ("2018-12-28T21:00", "2018-12-31T15:00", "FRESH", "Monday's session knows Friday's close"),
    ("2018-12-27T21:00", "2018-12-30T12:00", "LATE", "Friday's close is missing all weekend, which makes it no staler"),
    ("2018-12-27T21:00", "2018-12-31T15:29:59", "LATE", "Monday, 59 minutes and 59 seconds of trading later"),
    ("2018-12-27T21:00", "2018-12-31T15:30", "STALE", "Monday, one SLO of trading later"),
    ("2018-12-24T18:00", "2018-12-25T16:00", "CLOSED", "Christmas after a half day"),
    ("2018-12-21T21:00", "2018-12-24T19:16", "LATE", "a half day's close at 13:00 is due at 14:15"),
    ("2018-12-21T21:00", "2018-12-24T19:15", "CLOSED", "and not before"),
    ("2018-12-24T18:00", "2018-12-26T22:15", "CLOSED", "the next close is due only after the holiday"),
    ("2018-12-24T18:00", "2018-12-26T22:16", "LATE", "Boxing Day trades"),
    ("2018-12-21T21:00", "2018-12-25T16:00", "LATE", "the half day is missing on the holiday"),
    ("2001-09-10T20:00", "2001-09-16T12:00", "CLOSED", "the week after 11 September 2001, summer time"),
    ("2001-09-10T20:00", "2001-09-17T21:16", "LATE", "the close of the first day after it, summer time"),
    ("2026-03-05T21:00", "2026-03-06T22:16", "LATE", "16:00 New York is 21:00 UTC before the clocks go forward"),
    ("2026-03-06T21:00", "2026-03-09T21:15", "CLOSED", "and 20:00 UTC after"),
    ("2026-03-06T21:00", "2026-03-09T21:16", "LATE", "so it is due an hour earlier, summer time"),
    ("2026-10-30T20:00", "2026-11-02T21:16", "CLOSED", "back at 21:00 UTC: not yet available"),
    ("2026-10-30T20:00", "2026-11-02T22:16", "LATE", "due an hour later again"),
    (None, "2018-12-30T12:00", "NEVER", "no watermark, closed market"),
    (None, "2018-12-31T15:00", "NEVER", "no watermark, open market"),
]  # fmt: skip
FIVE_MINUTES = [
    ("2018-12-28T21:00", "2018-12-31T14:30", "FRESH", "the first bar of the day is still open"),
    ("2018-12-28T21:00", "2018-12-31T14:40", "FRESH", "the first bar is due now"),
    ("2018-12-28T21:00", "2018-12-31T14:40:01", "LATE", "the first bar is overdue"),
    ("2018-12-28T21:00", "2018-12-31T14:45", "STALE", "for another SLO"),
    ("2018-12-31T14:35", "2018-12-31T14:45", "FRESH", "the first bar was served, the second is due"),
    ("2018-12-31T20:55", "2018-12-31T21:05:01", "LATE", "the day's last bar"),
    ("2018-12-31T20:55", "2019-01-02T14:34", "LATE", "no staler by the holiday"),
    ("2018-12-31T20:55", "2019-01-02T14:35", "STALE", "trading goes on without it"),
    ("2018-12-31T16:00", "2018-12-31T23:00", "STALE", "an outage in trading hours does not end with the session"),
    ("2018-12-31T21:00", "2019-01-01T12:00", "CLOSED", "New Year"),
    ("2018-11-23T18:00", "2018-11-23T20:00", "CLOSED", "the afternoon of a half day"),
]
SNAPSHOTS = [
    ("2018-12-31T14:30", "2018-12-31T15:30", "FRESH", "first snapshot of the day, at 10:30, not due"),
    ("2018-12-28T21:00", "2018-12-31T16:00:01", "LATE", "nor at 11:00, then it is overdue"),
    ("2018-12-31T20:30", "2018-12-31T21:30", "CLOSED", "the short last one ends at the close"),
    ("2018-12-31T20:30", "2018-12-31T21:30:01", "LATE", "and is due half an hour later"),
]
EURO = [
    ("2018-02-02T22:00", "2018-02-04T12:00", "CLOSED", "weekend"),
    ("2018-02-02T22:00", "2018-02-05T00:00", "FRESH", "Sunday's first bar is due at 24:00 UTC"),
    ("2018-02-02T22:00", "2018-02-05T00:00:01", "LATE", "Sunday's first bar is overdue"),
    ("2018-02-02T22:00", "2018-02-05T01:00", "STALE", "for another hour"),
    ("2017-12-22T22:00", "2017-12-25T12:00", "CLOSED", "Christmas Monday"),
    ("2018-02-06T21:00", "2018-02-06T22:30", "FRESH", "no pause at 17:00 New York in the week"),
    ("2026-03-06T22:00", "2026-03-08T23:00:01", "LATE", "the week opens at 21:00 UTC in summer time"),
    ("2026-10-30T21:00", "2026-11-01T23:30", "FRESH", "and at 22:00 UTC again"),
]
COIN = [
    ("2026-03-07T23:00", "2026-03-08T01:00", "FRESH", "a weekend is like any day"),
    ("2026-03-07T23:00", "2026-03-08T01:00:01", "LATE", "a weekend is like any day"),
    ("2026-03-07T23:00", "2026-03-08T02:00", "STALE", "a weekend is like any day"),
]
TABLE = [
    pytest.param(owed, *row[:3], id=f"{owed.__name__}: {row[3]}")
    for owed, rows in (
        (daily, DAILY),
        (five_minutes, FIVE_MINUTES),
        (hourly_snapshots, SNAPSHOTS),
        (hourly_euro, EURO),
        (hourly_coin, COIN),
    )
    for row in rows
]


@pytest.mark.parametrize(("owed", "watermark", "now", "state"), TABLE)
def test_state(owed: Callable[[], Expectation], watermark: str | None, now: str, state: str) -> None:
    assert evaluate(owed(), watermark and utc(watermark), utc(now)).state == state


def test_everything_that_an_alert_tells() -> None:
    assert evaluate(daily(), utc("2018-12-27T21:00"), utc("2018-12-31T15:00")) == Freshness(
        state=FreshnessState.LATE,
        watermark=utc("2018-12-27T21:00"),
        expected_event_timestamp=utc("2018-12-28T21:00"),
        due_at=utc("2018-12-28T22:15"),
        next_due_at=utc("2018-12-31T22:15"),
        lag=utc("2018-12-31T15:00") - utc("2018-12-28T21:15"),
        age_open=7 * HOUR,
    )
    assert evaluate(daily(), utc("2018-12-28T21:00"), utc("2018-12-30T12:00")) == Freshness(
        state=FreshnessState.CLOSED,
        watermark=utc("2018-12-28T21:00"),
        expected_event_timestamp=utc("2018-12-28T21:00"),
        due_at=utc("2018-12-31T22:15"),
        next_due_at=utc("2018-12-31T22:15"),
        lag=timedelta(0),
        age_open=timedelta(0),
    )
    assert evaluate(daily(), None, utc("2018-12-30T12:00")) == Freshness(
        state=FreshnessState.NEVER,
        watermark=None,
        expected_event_timestamp=utc("2018-12-28T21:00"),
        due_at=utc("2018-12-28T22:15"),
        next_due_at=utc("2018-12-31T22:15"),
        lag=None,
        age_open=None,
    )


def test_a_streak_is_counted_from_its_first_missing_bar() -> None:
    result = evaluate(five_minutes(), utc("2018-12-31T15:00"), utc("2018-12-31T18:02"))
    assert (result.due_at, result.next_due_at) == (utc("2018-12-31T15:10"), utc("2018-12-31T18:05"))
    assert result.lag == timedelta(hours=2, minutes=57)
    assert result.expected_event_timestamp == utc("2018-12-31T18:00")


def test_an_expired_value_is_stale_before_another_slo_has_passed() -> None:
    expired = replace(daily(), max_lag=12 * HOUR, ttl=7 * HOUR)
    watermark, late, stale = utc("2018-12-26T21:00"), utc("2018-12-28T14:59:59"), utc("2018-12-28T15:00")
    assert evaluate(expired, watermark, late).state is FreshnessState.LATE
    assert evaluate(expired, watermark, stale).state is FreshnessState.STALE


def test_a_replay_of_an_old_day_changes_nothing() -> None:
    now = utc("2018-12-31T16:00")
    served = [utc("2018-12-26T21:00"), utc("2018-12-27T21:00")]
    before = evaluate(daily(), max(served), now)
    served.append(utc("2010-05-06T20:00"))
    assert evaluate(daily(), max(served), now) == before
    assert before.state is FreshnessState.STALE


def test_a_watermark_from_the_future_is_refused_instead_of_hiding_what_is_missing() -> None:
    now = utc("2018-12-28T21:00")
    with pytest.raises(PointInTimeViolation, match=r"2019-10-24T21:00:00\+00:00 is ahead of the clock"):
        evaluate(daily(), utc("2019-10-24T21:00"), now)
    skewed = evaluate(daily(), now, now - timedelta(seconds=2))
    assert (skewed.state, skewed.age_open) == (FreshnessState.FRESH, timedelta(0))
    with pytest.raises(PointInTimeViolation):
        evaluate(daily(), now, now - timedelta(seconds=2, microseconds=1))


def test_a_wrong_epoch_is_refused() -> None:
    with pytest.raises(UnknownPartitionError, match="outside calendar XNYS"):
        evaluate(daily(), utc("1970-01-18T21:00"), utc("2018-12-28T21:00"))


CLOSE = Indicator(
    name="close_price",
    expression=lambda: pl.col("raw_close"),
    unit=Unit.PRICE,
    formula="close",
    inputs=("raw_close",),
    first=lambda: 0,
    convergence=lambda: 0,
    oracle="exact",
    minimum=0.0,
    maximum=None,
    price_exponent=0,
    volume_exponent=0,
    adjusted=False,
)


def view_of(stream: Stream) -> FeatureView:
    return FeatureView(
        name="closes",
        description="Closes",
        entities=(Entity("ticker", "symbol", "instrument"),),
        features=(CLOSE.feature(),),
        streams=(stream,),
        slo=SLO(HOUR),
        ttl=timedelta(days=3),
        group="indicators",
    )


def with_latency(dataset: Dataset, latency: timedelta) -> Dataset:
    return replace(dataset, latency=latency)


def test_a_view_waits_for_its_slowest_input() -> None:
    inputs = (with_latency(US_EQUITY_CANDLES_1D, 15 * MINUTE), with_latency(US_EQUITY_CORPORATE_ACTIONS, 3 * HOUR), US_MACRO)
    stream = Stream("us_equity_1d", "us_equity", "XNYS", Timeframe.ONE_DAY, inputs, "0 17 * * 1-5")
    assert freshness(CATALOGUE, view_of(stream), stream, utc("2018-12-27T21:00"), utc("2018-12-28T23:00")).due_at == utc("2018-12-29T01:00")


def test_each_stream_of_a_view_follows_its_own_market() -> None:
    stocks = Stream("us_equity_1d", "us_equity", "XNYS", Timeframe.ONE_DAY, (US_EQUITY_CANDLES_1D,), "0 17 * * 1-5")
    euro = Stream("fx_1h", "fx", "FX", Timeframe.ONE_HOUR, (FX_CANDLES_1H,), "0 * * * *")
    view = replace(view_of(stocks), streams=(stocks, euro))
    watermark, now = utc("2018-07-03T17:00"), utc("2018-07-04T12:00")
    assert freshness(CATALOGUE, view, stocks, watermark, now).state is FreshnessState.CLOSED
    assert freshness(CATALOGUE, view, euro, watermark, now).state is FreshnessState.STALE


def test_a_stream_owes_until_the_first_bar_for_which_nothing_is_listed() -> None:
    view, sampled = DAILY_OHLCV_STATS, CATALOGUE.with_sources(("samples",))
    stocks, coins = view.streams
    assert expectation(sampled, view, stocks).ends_at == utc("2019-01-02T21:00"), "the first close after 2018"
    assert expectation(CATALOGUE, view, stocks).ends_at is None, "another source lists some still"
    assert expectation(sampled, view, coins).ends_at is None, "no source lists any"


def test_where_nothing_is_listed_nothing_is_owed_but_a_first_value() -> None:
    now = utc("2018-12-28T23:00")
    owed, ended = daily(), replace(daily(), ends_at=now)
    for watermark in (utc("2018-12-26T21:00"), utc("2018-12-28T21:00")):
        assert evaluate(ended, watermark, now - MINUTE) == evaluate(owed, watermark, now - MINUTE)
        found = evaluate(ended, watermark, now)
        assert (found.state, found.lag, found.due_at) == (FreshnessState.CLOSED, timedelta(0), utc("2018-12-31T22:15"))
    assert evaluate(ended, None, now).state is FreshnessState.NEVER


EXPECTATIONS = st.builds(
    replace,
    st.builds(
        owes,
        st.sampled_from(["XNYS", "FX", "24/7"]),
        st.sampled_from([timeframe.value for timeframe in Timeframe]),
        latency=st.integers(0, 180).map(lambda minutes: minutes * MINUTE),
        max_lag=st.integers(1, 1500).map(lambda minutes: minutes * MINUTE),
        ttl=st.integers(1, 9000).map(lambda minutes: minutes * MINUTE),
    ),
    series=st.one_of(st.just(()), st.sampled_from(sorted(RELEASED_SERIES)).map(lambda name: (RELEASED_SERIES[name],))),
)
NOWS = st.integers(0, 20 * 365 * 86_400).map(lambda offset: utc("2000-01-01") + timedelta(seconds=offset))
AGES = st.one_of(st.integers(0, 86_400), st.integers(0, 20 * 86_400)).map(lambda seconds: timedelta(seconds=seconds))


@given(owed=EXPECTATIONS, now=NOWS, first=AGES, second=AGES)
def test_a_newer_watermark_never_worsens_anything(owed: Expectation, now: datetime, first: timedelta, second: timedelta) -> None:
    older, newer = (evaluate(owed, now - age, now) for age in (max(first, second), min(first, second)))
    assert SEVERITY.index(newer.state) <= SEVERITY.index(older.state)
    assert newer.lag <= older.lag
    assert newer.age_open <= older.age_open
    assert newer.due_at >= older.due_at
    assert newer.expected_event_timestamp == older.expected_event_timestamp


@given(owed=EXPECTATIONS, now=NOWS, age=AGES, wait=AGES)
def test_waiting_without_data_never_betters_what_is_overdue(owed: Expectation, now: datetime, age: timedelta, wait: timedelta) -> None:
    before, after = evaluate(owed, now - age, now), evaluate(owed, now - age, now + wait)
    assert after.due_at == before.due_at
    if before.state.overdue:
        assert SEVERITY.index(after.state) >= SEVERITY.index(before.state)


@given(owed=EXPECTATIONS, now=NOWS)
def test_what_never_came_has_been_overdue_since_an_instant_of_the_past(owed: Expectation, now: datetime) -> None:
    result = evaluate(owed, None, now)
    assert result.due_at <= now
    assert result.due_at - owed.latency - owed.max_lag <= result.expected_event_timestamp


@given(owed=EXPECTATIONS, now=NOWS)
def test_the_expected_watermark_owes_nothing(owed: Expectation, now: datetime) -> None:
    expected = evaluate(owed, None, now).expected_event_timestamp
    assert expected + owed.latency <= now
    result = evaluate(owed, expected, now)
    assert result.state is (FreshnessState.FRESH if owed.calendar.is_open(now) else FreshnessState.CLOSED)
    assert result.lag == timedelta(0)


@given(owed=EXPECTATIONS, now=NOWS, age=AGES)
def test_the_state_is_the_lag_against_the_slo(owed: Expectation, now: datetime, age: timedelta) -> None:
    result = evaluate(owed, now - age, now)
    assert result.state.overdue == (result.lag > owed.max_lag) == (now > result.due_at)
    assert result.next_due_at > now
    assert result.next_due_at == result.due_at or result.due_at <= now


@given(owed=EXPECTATIONS, now=NOWS, age=AGES, wait=AGES)
def test_a_closed_market_makes_nothing_stale(owed: Expectation, now: datetime, age: timedelta, wait: timedelta) -> None:
    later = now + wait
    if owed.calendar.open_time(now, later) == timedelta(0) and evaluate(owed, now - age, now).state is not FreshnessState.STALE:
        # The one exception: a value that had expired by its TTL in trading hours, while its successor was within its SLO.
        result = evaluate(owed, now - age, later)
        assert result.state is not FreshnessState.STALE or result.age_open >= owed.ttl


def test_entities_worst_first() -> None:
    now = utc("2018-12-31T15:30")
    watermarks = pl.DataFrame(
        {
            "symbol": ["GOOG", "AAPL", "MSFT", "IBM", "FB"],
            "watermark": pl.Series(
                [utc("2018-12-28T21:00"), utc("2018-12-26T21:00"), None, utc("2018-12-27T21:00"), utc("2018-12-27T21:00")],
                dtype=UTC_MICROSECONDS,
            ),
        }
    )
    judged = evaluate_entities(replace(daily(), max_lag=20 * HOUR), watermarks, now)
    assert judged.schema == {
        "symbol": pl.String,
        "watermark": UTC_MICROSECONDS,
        "state": STATES,
        "due_at": UTC_MICROSECONDS,
        "lag": pl.Duration("us"),
        "age_open": pl.Duration("us"),
    }
    assert judged.select("symbol", "state").rows() == [
        ("MSFT", "NEVER"),
        ("AAPL", "LATE"),
        ("FB", "LATE"),
        ("IBM", "LATE"),
        ("GOOG", "FRESH"),
    ]
    assert judged.row(0)[-2:] == (None, None)
    for row in judged.iter_rows(named=True):
        one = evaluate(replace(daily(), max_lag=20 * HOUR), row["watermark"], now)
        assert (one.state, one.due_at, one.lag, one.age_open) == (row["state"], row["due_at"], row["lag"], row["age_open"])


def test_entities_of_a_composite_key_and_of_none() -> None:
    schema = {"symbol": pl.String, "timeframe": pl.String, "watermark": UTC_MICROSECONDS}
    assert evaluate_entities(daily(), pl.DataFrame(schema=schema), utc("2018-12-31T15:30")).columns[:4] == [*schema, "state"]
    two = pl.DataFrame([("A", "BX", utc("2018-12-28T21:00")), ("AB", "X", utc("2018-12-27T21:00"))], schema=schema, orient="row")
    assert evaluate_entities(daily(), two, utc("2018-12-31T15:30"))["symbol"].to_list() == ["AB", "A"]


@pytest.mark.parametrize(
    "watermarks",
    [pl.DataFrame({"symbol": ["A"]}), pl.DataFrame({"symbol": ["A"], "watermark": [date(2018, 12, 28)]})],
    ids=["no watermark", "a date"],
)
def test_a_malformed_frame_of_watermarks_is_refused(watermarks: pl.DataFrame) -> None:
    with pytest.raises(MalformedDataError, match="must have a column watermark"):
        evaluate_entities(daily(), watermarks, utc("2018-12-31T15:30"))


def test_forty_five_thousand_entities_with_five_thousand_watermarks_take_seconds_at_most() -> None:
    number = 45_000
    closes = calendar("XNYS").sessions(date(1999, 1, 4), date(2018, 12, 28))["closes"]
    watermarks = pl.DataFrame({"symbol": [f"S{i:05}" for i in range(number)]}).with_columns(
        watermark=closes.gather([i % len(closes) for i in range(number)])
    )
    start = time.perf_counter()
    judged = evaluate_entities(daily(), watermarks, utc("2018-12-31T15:00"))
    assert time.perf_counter() - start < 5
    assert judged.height == number
    assert judged.filter(pl.col("state") == "FRESH").height == number // len(closes)
