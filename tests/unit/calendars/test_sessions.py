"""Sessions, labels and windows: against rules of the markets, and against real series."""

from datetime import UTC, date, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore_dagster.calendars import calendar
from featurestore_dagster.errors import ConfigurationError, MalformedDataError, UnknownNameError, UnknownPartitionError
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS

NAMES = ("XNYS", "FX", "24/7", "XTKS")
DATES = st.dates(date(1998, 1, 1), date(2030, 12, 31))
INSTANTS = st.integers(0, 33 * 365 * 86_400_000_000).map(lambda offset: datetime(1998, 1, 1, tzinfo=UTC) + timedelta(microseconds=offset))


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def instants(*values: datetime | None) -> pl.Series:
    return pl.Series("at", values, dtype=UTC_MICROSECONDS)


@pytest.mark.parametrize(
    ("label", "opens", "closes"),
    [
        pytest.param("2026-03-06", "2026-03-06T14:30", "2026-03-06T21:00", id="before the clocks go forward"),
        pytest.param("2026-03-09", "2026-03-09T13:30", "2026-03-09T20:00", id="after the clocks went forward"),
        pytest.param("2026-10-30", "2026-10-30T13:30", "2026-10-30T20:00", id="before the clocks go back"),
        pytest.param("2026-11-02", "2026-11-02T14:30", "2026-11-02T21:00", id="after the clocks went back"),
        pytest.param("2018-07-03", "2018-07-03T13:30", "2018-07-03T17:00", id="half day in summer"),
        pytest.param("2018-11-23", "2018-11-23T14:30", "2018-11-23T18:00", id="half day in winter"),
    ],
)
def test_new_york_hours(label: str, opens: str, closes: str) -> None:
    session = calendar("XNYS").session(date.fromisoformat(label))
    assert (session.opens, session.closes) == (utc(opens), utc(closes))


def test_new_york_was_closed_after_11_september_2001() -> None:
    market = calendar("XNYS")
    assert market.closed_days(date(2001, 9, 1), date(2001, 9, 30)) == [date(2001, 9, day) for day in (3, 11, 12, 13, 14)]
    assert market.previous_sessions(date(2001, 9, 17), 1) == date(2001, 9, 10)
    asked = utc("2001-09-12T16:00"), utc("2001-09-11T03:59:59"), utc("2001-09-11T04:00:01")
    owner = market.session_of(instants(*asked))
    assert owner.to_list() == [date(2001, 9, 17), date(2001, 9, 10), date(2001, 9, 17)]
    for instant, label in zip(asked, owner, strict=True):
        assert market.session_at(instant).label == label


def test_holidays_and_weekend_of_new_york() -> None:
    market = calendar("XNYS")
    assert market.closed_weekdays == (5, 6)
    assert (market.time_zone, market.hour_offset) == ("America/New_York", 0)
    # The national day of mourning of 5 December 2018 follows no rule.
    expected = ["01-01", "01-15", "02-19", "03-30", "05-28", "07-04", "09-03", "11-22", "12-05", "12-25"]
    assert market.closed_days(date(2018, 1, 1), date(2018, 12, 31)) == [date.fromisoformat(f"2018-{day}") for day in expected]


@pytest.mark.parametrize("symbol", ["AAPL", "MSFT"])
def test_real_daily_stocks_have_exactly_the_sessions(symbol: str) -> None:
    from bokeh_sampledata import stocks

    days = [date.fromisoformat(str(day)) for day in getattr(stocks, symbol)["date"]]
    assert calendar("XNYS").sessions(days[0], days[-1])["session"].to_list() == days


def test_real_index_has_exactly_the_sessions() -> None:
    from arch.data import sp500

    days = [instant.date() for instant in sp500.load().index]
    assert len(days) == 5031
    assert calendar("XNYS").sessions(days[0], days[-1])["session"].to_list() == days


@pytest.mark.parametrize(
    ("label", "opens", "closes"),
    [
        pytest.param("2026-03-05", "2026-03-05T22:00", "2026-03-06T22:00", id="Thursday label closes the week on Friday, winter"),
        pytest.param("2026-03-08", "2026-03-08T21:00", "2026-03-09T21:00", id="the Sunday on which the clocks go forward"),
        pytest.param("2026-11-01", "2026-11-01T22:00", "2026-11-02T22:00", id="the Sunday on which the clocks go back"),
    ],
)
def test_foreign_exchange_hours(label: str, opens: str, closes: str) -> None:
    session = calendar("FX").session(date.fromisoformat(label))
    assert (session.opens, session.closes) == (utc(opens), utc(closes))
    assert session.window_end == session.closes


def test_foreign_exchange_week() -> None:
    market = calendar("FX")
    assert market.closed_weekdays == (4, 5)
    assert (market.time_zone, market.hour_offset) == ("America/New_York", 17)
    # 24 December 2017 is a Sunday: its session would be Christmas Monday's.
    assert market.closed_days(date(2017, 12, 18), date(2018, 1, 7)) == [date(2017, 12, 24), date(2017, 12, 31)]
    owner = market.session_of(
        instants(utc("2018-02-02T22:00"), utc("2018-02-02T22:00:01"), utc("2018-02-04T22:00"), utc("2018-02-05T22:00"))
    )
    assert owner.to_list() == [date(2018, 2, 1), date(2018, 2, 4), date(2018, 2, 4), date(2018, 2, 4)]


def test_always_open() -> None:
    market = calendar("24/7")
    assert (market.time_zone, market.hour_offset, market.closed_weekdays) == ("UTC", 0, ())
    assert market.closed_days(date(2026, 1, 1), date(2026, 12, 31)) == []
    assert market.session_of(instants(utc("2026-03-08T00:00"), utc("2026-03-08T00:00:01"))).to_list() == [
        date(2026, 3, 7),
        date(2026, 3, 8),
    ]


@pytest.mark.parametrize("name", [*NAMES, "BVMF"])
def test_windows_are_contiguous_and_hold_their_session(name: str) -> None:
    market = calendar(name)
    sessions = market.sessions(market.first_day, market.last_day)
    assert sessions.null_count().sum_horizontal().item() == 0
    assert sessions["window_start"].slice(1).equals(sessions["window_end"].head(-1), null_equal=False)
    assert sessions.filter(
        ~((pl.col("window_start") <= pl.col("opens")) & (pl.col("opens") < pl.col("closes")) & (pl.col("closes") <= pl.col("window_end")))
    ).is_empty()


@given(name=st.sampled_from(NAMES), at=st.lists(INSTANTS, min_size=1, max_size=20))
def test_each_instant_belongs_to_the_one_session_whose_window_holds_it(name: str, at: list[datetime]) -> None:
    market = calendar(name)
    owners = market.session_of(instants(None, *at))
    assert owners.name == "at"
    assert owners[0] is None
    for instant, owner in zip(at, owners[1:], strict=True):
        session = market.session(owner)
        assert session.window_start < instant <= session.window_end


@given(name=st.sampled_from(NAMES), day=DATES, count=st.integers(0, 300))
def test_previous_sessions_counts_sessions(name: str, day: date, count: int) -> None:
    market = calendar(name)
    back = market.previous_sessions(day, count)
    assert market.is_session(back)
    known = market.sessions(market.first_day, day).height  # the beginning of a calendar is where counting ends
    assert market.sessions(back, day).height == min(count + 1, known)


@given(name=st.sampled_from(NAMES), start=DATES, days=st.integers(0, 400))
def test_every_day_is_a_session_a_weekend_or_a_holiday(name: str, start: date, days: int) -> None:
    market, end = calendar(name), start + timedelta(days=days)
    sessions, holidays = market.sessions(start, end)["session"].to_list(), market.closed_days(start, end)
    weekend = [day for n in range(days + 1) if (day := start + timedelta(days=n)).weekday() in market.closed_weekdays]
    assert sorted([*sessions, *holidays, *weekend]) == [start + timedelta(days=n) for n in range(days + 1)]


def test_history_before_the_calendar_starts_at_its_first_session() -> None:
    market = calendar("XNYS")
    assert market.previous_sessions(date(1990, 1, 5), 5000) == date(1990, 1, 2)


@pytest.mark.parametrize("name", ["NASDQ", "NYSE", "", "fx"])
def test_an_unknown_calendar_is_refused_and_valid_ones_named(name: str) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown calendar .* nearest: \S+"):
        calendar(name)


def test_overnight_sessions_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"CMES opens session .* the evening before"):
        calendar("CMES")


def test_a_shorter_recorded_range_is_kept_and_told() -> None:
    market = calendar("XSAU")
    assert market.first_day == date(2021, 1, 1)
    with pytest.raises(UnknownPartitionError, match="2020-12-31 is outside calendar XSAU, which is known from 2021-01-01 to"):
        market.sessions(date(2020, 12, 31), date(2021, 12, 31))


def test_what_is_no_session_or_outside_is_refused() -> None:
    market = calendar("XNYS")
    assert not market.is_session(date(2018, 12, 25))
    with pytest.raises(UnknownPartitionError, match="2018-12-25 is not a session of calendar XNYS; the nearest: 2018-12-24 and 2018-12-26"):
        market.session(date(2018, 12, 25))
    with pytest.raises(UnknownPartitionError, match=r"1970-01-18T.* is outside calendar XNYS"):
        market.session_of(instants(utc("2018-12-24T21:00"), utc("1970-01-18T21:00")))
    with pytest.raises(UnknownPartitionError, match="outside calendar XNYS"):
        market.session_of(instants(utc("2018-12-24T21:00"), utc("2262-01-01T00:00")))
    with pytest.raises(MalformedDataError, match="cast them first"):
        market.session_of(instants(utc("2018-12-24")).dt.replace_time_zone(None))


def test_labels_enter_a_frame_as_a_column() -> None:
    frame = pl.DataFrame({"event_timestamp": instants(utc("2018-12-24T18:00"), None)})
    labelled = frame.with_columns(session=pl.col("event_timestamp").map_batches(calendar("XNYS").session_of, return_dtype=pl.Date))
    assert labelled["session"].to_list() == [date(2018, 12, 24), None]
    assert calendar("XNYS").session_of(instants()).to_list() == []
