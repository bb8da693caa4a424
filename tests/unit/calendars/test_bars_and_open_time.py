"""Expected bar ends and open-market time."""

import itertools
from datetime import UTC, date, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore_dagster.calendars import calendar
from featurestore_dagster.errors import UnknownPartitionError
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS
from featurestore_dagster.model.time import Timeframe

NAMES = ("XNYS", "FX", "24/7", "XTKS")
INSTANTS = st.integers(0, 33 * 365 * 86_400_000_000).map(lambda offset: datetime(1998, 1, 1, tzinfo=UTC) + timedelta(microseconds=offset))


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def bar_ends(name: str, timeframe: str, start: str, end: str) -> list[str]:
    ends = calendar(name).bar_ends(Timeframe(timeframe), utc(start), utc(end))
    assert ends.dtype == UTC_MICROSECONDS
    return ends.dt.strftime("%d %H:%M").to_list()


@pytest.mark.parametrize(
    ("name", "timeframe", "start", "end", "expected"),
    [
        pytest.param("XNYS", "1d", "2018-07-02", "2018-07-07", ["02 20:00", "03 17:00", "05 20:00", "06 20:00"], id="half day, 4 July"),
        pytest.param("XNYS", "1d", "2026-03-06", "2026-03-10", ["06 21:00", "09 20:00"], id="clocks go forward"),
        pytest.param("XNYS", "1d", "2026-10-30", "2026-11-03", ["30 20:00", "02 21:00"], id="clocks go back"),
        pytest.param(
            "XNYS", "1h", "2018-12-31", "2019-01-01", ["31 15:30", "31 16:30", "31 17:30", "31 18:30", "31 19:30", "31 20:30", "31 21:00"],
            id="seven a session, the last one short",
        ),
        pytest.param("XNYS", "1h", "2018-11-23", "2018-11-24", ["23 15:30", "23 16:30", "23 17:30", "23 18:00"], id="half day by the hour"),
        pytest.param("XNYS", "4h", "2018-12-31", "2019-01-01", ["31 18:30", "31 21:00"], id="4h from the open"),
        pytest.param("XNYS", "1h", "2018-12-31T15:30", "2018-12-31T16:30", ["31 16:30"], id="start excluded, end included"),
        pytest.param("XNYS", "5m", "2018-12-31T21:00", "2019-01-02T14:34", [], id="closed, and before the first bar's end"),
        pytest.param("XTKS", "1h", "2019-06-03", "2019-06-03T12",
                     ["03 01:00", "03 02:00", "03 03:00", "03 04:00", "03 05:00", "03 06:00"],
                     id="bars that only touch the lunch break remain"),
        pytest.param("XTKS", "15m", "2019-06-03T02:00", "2019-06-03T04:00", ["03 02:15", "03 02:30", "03 03:45", "03 04:00"],
                     id="no bars inside the lunch break"),
        pytest.param("FX", "1d", "2026-03-05T12:00", "2026-03-10T12:00", ["05 22:00", "06 22:00", "09 21:00"], id="17:00 New York"),
        pytest.param("FX", "4h", "2018-02-02T12:00", "2018-02-05T08:00",
                     ["02 16:00", "02 20:00", "02 22:00", "05 00:00", "05 04:00", "05 08:00"], id="the week's last is short"),
        pytest.param("FX", "4h", "2018-02-05T16:00", "2018-02-06T04:00", ["05 20:00", "06 00:00", "06 04:00"], id="runs through 17:00"),
        pytest.param("24/7", "1d", "2026-03-07T12:00", "2026-03-09T12:00", ["08 00:00", "09 00:00"], id="next midnight"),
        pytest.param("24/7", "4h", "2026-03-07T20:00", "2026-03-08T04:00", ["08 00:00", "08 04:00"], id="across midnight"),
    ],
)  # fmt: skip
def test_expected_bar_ends(name: str, timeframe: str, start: str, end: str, expected: list[str]) -> None:
    assert bar_ends(name, timeframe, start, end) == expected


def test_real_hourly_euro_lies_on_the_grid() -> None:
    from backtesting.test import EURUSD

    ends = [instant.to_pydatetime().replace(tzinfo=UTC) + timedelta(hours=1) for instant in EURUSD.index]
    gaps = [(before, after) for before, after in itertools.pairwise(ends) if after - before > timedelta(hours=1)]
    market = calendar("FX")
    expected = market.bar_ends(Timeframe.ONE_HOUR, ends[0] - timedelta(hours=1), ends[-1]).to_list()
    assert len(gaps) == 42
    assert set(expected) - set(ends) == set()
    # Two flat one-tick bars that start at the weekly close: off the market's grid, as their vendor's mistake should be.
    off_grid = sorted(set(ends) - set(expected))
    assert off_grid == [utc("2017-10-06T22:00"), utc("2017-10-20T22:00")]
    assert [EURUSD.loc[end.replace(tzinfo=None) - timedelta(hours=1), "Volume"] for end in off_grid] == [1, 1]
    for before, after in gaps:
        opens = after - timedelta(hours=1)
        assert market.open_time(before, opens) == timedelta(0)
        assert not market.is_open(opens - timedelta(microseconds=1))
        assert market.is_open(opens)


@given(name=st.sampled_from(NAMES), timeframe=st.sampled_from(Timeframe), start=INSTANTS, hours=st.integers(0, 24 * 12))
def test_bar_ends_agree_with_stepping_and_stay_in_their_session(name: str, timeframe: Timeframe, start: datetime, hours: int) -> None:
    market, end = calendar(name), start + timedelta(hours=hours)
    ends = market.bar_ends(timeframe, start, end)
    assert ends.is_sorted()
    assert ends.n_unique() == len(ends)
    following = market.next_bar_end(timeframe, start)
    assert (ends[0] == following) if len(ends) else (following > end)
    latest = market.latest_bar_end(timeframe, end)
    assert (ends[-1] == latest) if len(ends) else (latest <= start)
    for bar_end in ends.head(3):
        session = market.session(market.session_of(pl.Series([bar_end], dtype=UTC_MICROSECONDS))[0])
        assert session.opens < bar_end
        assert market.open_time(bar_end - timeframe.duration, bar_end) > timedelta(0)


def test_splitting_a_range_loses_and_repeats_no_bar() -> None:
    market, cuts = calendar("XNYS"), [utc("2018-07-02T13:30"), utc("2018-07-03T17:00"), utc("2018-07-04T12:00"), utc("2018-07-06T20:00")]
    parts = [market.bar_ends(Timeframe.FIVE_MINUTES, start, end) for start, end in itertools.pairwise(cuts)]
    assert pl.concat(parts).equals(market.bar_ends(Timeframe.FIVE_MINUTES, cuts[0], cuts[-1]))
    assert sum(map(len, parts)) == 78 + 42 + 78 + 78


@pytest.mark.parametrize(
    ("name", "start", "end", "hours"),
    [
        pytest.param("XNYS", "2018-12-28T21:00", "2018-12-31T14:30", 0, id="weekend"),
        pytest.param("XNYS", "2018-12-28T20:00", "2018-12-31T15:30", 2, id="an hour on each side of a weekend"),
        pytest.param("XNYS", "2018-07-03T17:00", "2018-07-05T13:30", 0, id="half day and holiday"),
        pytest.param("XNYS", "2026-03-06T15:30", "2026-03-09T14:30", 6.5, id="one session, whatever the clocks do"),
        pytest.param("XTKS", "2019-06-03T02:00", "2019-06-03T04:00", 1, id="lunch break"),
        pytest.param("FX", "2018-02-02T21:30", "2018-02-04T22:30", 1, id="FX weekend"),
        pytest.param("FX", "2017-12-22T21:00", "2017-12-25T23:00", 2, id="FX Christmas"),
        pytest.param("24/7", "2026-03-07", "2026-03-09", 48, id="always open"),
    ],
)
def test_open_time(name: str, start: str, end: str, hours: float) -> None:
    assert calendar(name).open_time(utc(start), utc(end)) == timedelta(hours=hours)


@given(
    name=st.sampled_from(["XNYS", "FX", "24/7", "COP"]),
    start=st.integers(0, 18 * 365 * 86_400).map(lambda offset: utc("2000-01-01") + timedelta(seconds=offset)),
    span=st.integers(1, 30 * 86_400 * 10**6).map(lambda count: timedelta(microseconds=count)),
)
def test_after_open_time_is_the_first_instant_of_that_age(name: str, start: datetime, span: timedelta) -> None:
    found = calendar(name).after_open_time(start, span)
    assert calendar(name).open_time(start, found) == span
    assert calendar(name).open_time(start, found - timedelta.resolution) < span


def test_open_time_is_exact_to_the_microsecond() -> None:
    assert calendar("XNYS").open_time(utc("2018-12-31T20:59:59.999999"), utc("2019-01-02T14:30:00.000001")) == timedelta(microseconds=2)


@given(name=st.sampled_from(NAMES), at=st.lists(INSTANTS, min_size=2, max_size=10))
def test_open_microseconds_is_monotone_and_agrees_with_open_time(name: str, at: list[datetime]) -> None:
    market = calendar(name)
    traded = market.open_microseconds(pl.Series("at", [None, *at], dtype=UTC_MICROSECONDS))
    assert (traded.dtype, traded.name, traded[0]) == (pl.Int64, "at", None)
    elapsed = dict(zip(at, traded[1:], strict=True))
    for earlier, later in itertools.pairwise(sorted(at)):
        aged = timedelta(microseconds=elapsed[later] - elapsed[earlier])
        assert timedelta(0) <= aged <= later - earlier
        assert aged == market.open_time(earlier, later)


def test_whole_years_trade_what_their_sessions_trade() -> None:
    for name in NAMES:
        market = calendar(name)
        sessions = market.sessions(date(2010, 1, 1), date(2019, 12, 31))
        trading = (sessions["closes"] - sessions["opens"]).sum()
        if name == "XTKS":
            trading -= timedelta(hours=1) * sessions.height
        assert market.open_time(sessions["window_start"][0], sessions["window_end"][-1]) == trading


@pytest.mark.parametrize("name", NAMES)
def test_the_calendar_is_known_to_its_very_ends(name: str) -> None:
    market = calendar(name)
    sessions = market.sessions(market.first_day, market.last_day)
    start, end = sessions["window_start"][0], sessions["window_end"][-1]
    assert market.bar_ends(Timeframe.ONE_DAY, start, end).equals(sessions["closes"])
    assert market.latest_bar_end(Timeframe.ONE_HOUR, end) == sessions["closes"][-1]
    ends = pl.Series([start, end], dtype=UTC_MICROSECONDS)
    assert market.session_of(ends).to_list() == [sessions["session"][0], sessions["session"][-1]]
    assert market.open_microseconds(ends)[0] == 0
    for outside in (start - timedelta(microseconds=1), end + timedelta(microseconds=1)):
        with pytest.raises(UnknownPartitionError, match="outside calendar"):
            market.is_open(outside)


def test_open_includes_the_opening_instant_and_not_the_closing_one() -> None:
    market = calendar("XNYS")
    assert market.is_open(utc("2018-12-31T14:30"))
    assert not market.is_open(utc("2018-12-31T14:29:59.999999"))
    assert not market.is_open(utc("2018-12-31T21:00"))
    assert not market.is_open(utc("2018-12-30T16:00"))
    assert not calendar("XTKS").is_open(utc("2019-06-03T03:00"))


@pytest.mark.parametrize("timeframe", Timeframe)
def test_instants_outside_the_calendar_are_refused(timeframe: Timeframe) -> None:
    market = calendar("XNYS")
    for call in (market.latest_bar_end, market.next_bar_end):
        with pytest.raises(UnknownPartitionError, match="outside calendar XNYS"):
            call(timeframe, utc("1985-01-01"))
    with pytest.raises(UnknownPartitionError, match="outside calendar XNYS"):
        market.latest_bar_end(timeframe, utc("1990-01-02T14:30"))
    with pytest.raises(UnknownPartitionError, match="outside calendar XNYS"):
        market.next_bar_end(timeframe, utc("2049-12-31T21:00"))
    for call in (market.open_microseconds, market.session_of):
        with pytest.raises(UnknownPartitionError, match="outside calendar XNYS"):
            call(pl.Series([utc("1985-01-01")], dtype=UTC_MICROSECONDS))
    with pytest.raises(UnknownPartitionError, match="outside calendar XNYS"):
        market.is_open(utc("2050-06-01"))
    with pytest.raises(UnknownPartitionError, match="outside calendar XNYS"):
        market.open_time(utc("2018-01-01"), utc("2050-06-01"))
