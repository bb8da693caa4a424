"""Partition keys are the calendar's sessions, on a real clock and on a replay."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

import dagster as dg
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from featurestore_dagster.calendars import calendar
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS
from featurestore_dagster.model.time import FrozenClock, SystemClock
from featurestore_dagster.orchestration.partitions import first_session, session_partitions

CALENDARS = ("XNYS", "FX", "24/7")
FIRST = date(2015, 1, 5)
YEAR = datetime(2026, 1, 1, tzinfo=UTC)
INSTANTS = st.integers(1, 365 * 86_400 - 1).map(lambda seconds: YEAR + timedelta(seconds=seconds, microseconds=1))


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def owner(name: str, instant: datetime) -> date:
    """The session whose window holds the instant."""
    label: date = calendar(name).session_of(pl.Series([instant], dtype=UTC_MICROSECONDS))[0]
    return label


def sessions(name: str, first: date, last: date) -> list[str]:
    return [label.isoformat() for label in calendar(name).sessions(first, last)["session"]]


@pytest.mark.parametrize("name", CALENDARS)
def test_keys_of_a_replay_are_the_sessions_up_to_the_replayed_one(name: str) -> None:
    now = utc("2018-12-31T22:00")
    keys = session_partitions(name, FIRST, FrozenClock(now)).get_partition_keys()
    assert list(keys) == sessions(name, FIRST, owner(name, now))
    assert len(keys) > 900


@pytest.mark.parametrize("name", CALENDARS)
@settings(max_examples=15, deadline=None)
@given(now=INSTANTS)
@example(now=utc("2026-03-08T06:59:59"))  # the clocks of New York go forward
@example(now=utc("2026-03-08T12:00"))
@example(now=utc("2026-11-01T05:30"))  # and back
@example(now=utc("2026-05-23T12:00"))  # Saturday before a holiday
@example(now=utc("2026-05-25T15:00"))  # Memorial Day
@example(now=utc("2026-12-24T22:30"))  # before Christmas
@example(now=utc("2026-09-18T21:30"))  # Friday 17:30 in New York
def test_the_running_session_is_the_newest_partition_at_every_instant(name: str, now: datetime) -> None:
    partitions = session_partitions(name, FIRST, SystemClock())
    with dg.partition_loading_context(now):
        assert partitions.get_last_partition_key() == owner(name, now).isoformat()


@pytest.mark.parametrize("name", CALENDARS)
def test_keys_on_the_real_clock_are_the_sessions(name: str) -> None:
    partitions, now = session_partitions(name, FIRST, SystemClock()), utc("2026-07-03T15:00")
    with dg.partition_loading_context(now):
        assert list(partitions.get_partition_keys()) == sessions(name, FIRST, owner(name, now))


@pytest.mark.parametrize("name", CALENDARS)
def test_a_partition_owns_the_instants_of_its_own_day(name: str) -> None:
    """Dagster's window is the day; the calendar's also takes the closed days before it. Both end at the same instant."""
    partitions: Any = session_partitions(name, FIRST, FrozenClock(utc("2018-12-31T22:00")))
    for label in ("2018-03-08", "2018-03-11", "2018-11-04", "2018-11-05", "2018-11-21"):
        if calendar(name).is_session(date.fromisoformat(label)):
            window = partitions.time_window_for_partition_key(label)
            assert window.end == calendar(name).session(date.fromisoformat(label)).window_end


def test_partitions_begin_with_the_first_listing() -> None:
    switched_on = CATALOGUE.with_sources(["samples", "files"])
    assert first_session(switched_on, "XNYS") == date(1999, 1, 4)
    assert first_session(switched_on, "FX") == date(2017, 4, 19)
    assert first_session(switched_on, "24/7") == date(2017, 8, 17), "no source lists it: the first instrument does"
    assert first_session(CATALOGUE, "XNYS") == date(1990, 1, 2)


@pytest.mark.parametrize("name", CALENDARS)
@pytest.mark.parametrize("offset", [timedelta(hours=-1), timedelta(days=-2, hours=-7), timedelta(days=-1000)])
def test_a_shifted_clock_has_its_running_session_too(name: str, offset: timedelta) -> None:
    clock = SystemClock(offset)
    assert session_partitions(name, FIRST, clock).get_last_partition_key() == owner(name, clock.now()).isoformat()
