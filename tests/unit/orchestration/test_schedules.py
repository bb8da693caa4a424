"""Schedules: a tick of an open session asks for that session's partition; weekends and holidays start nothing."""

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg
import pytest
from dagster._utils.schedules import schedule_execution_time_iterator

from featurestore_dagster.calendars import calendar
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.model.time import FrozenClock, SystemClock
from featurestore_dagster.orchestration import asset_keys
from featurestore_dagster.orchestration.jobs import MarketPath, paths
from featurestore_dagster.orchestration.partitions import first_session, session_partitions
from featurestore_dagster.orchestration.platform import Platform
from featurestore_dagster.orchestration.schedules import build_path_schedule, build_refetch_schedule
from featurestore_dagster.settings import Settings

NEW_YORK = ZoneInfo("America/New_York")


def new_york(local: str) -> datetime:
    return datetime.fromisoformat(local).replace(tzinfo=NEW_YORK)


def tick(schedule: Any, at: datetime) -> dg.RunRequest | dg.SkipReason:
    """What the schedule answers at an instant; its function is called as Dagster calls it, without an instance for each call."""
    platform = Platform(Settings(clock=at.astimezone(UTC).isoformat()), CATALOGUE)
    answer = schedule._execution_fn.decorated_fn(dg.build_schedule_context(scheduled_execution_time=at), platform=platform)
    assert isinstance(answer, dg.RunRequest | dg.SkipReason)
    return answer


@pytest.mark.parametrize(
    ("calendar_name", "local", "session"),
    [
        pytest.param("XNYS", "2026-03-06T16:05", "2026-03-06", id="after the close"),
        pytest.param("XNYS", "2026-03-09T10:35", "2026-03-09", id="first morning of summer time"),
        pytest.param("XNYS", "2018-07-03T16:05", "2018-07-03", id="half day, hours after its close"),
        pytest.param("XNYS", "2026-11-02T10:35", "2026-11-02", id="first morning of winter time"),
        pytest.param("FX", "2026-11-01T18:02", "2026-11-01", id="evening of the Sunday that ends summer time"),
        pytest.param("FX", "2026-03-08T18:02", "2026-03-08", id="Sunday evening"),
        pytest.param("FX", "2026-03-09T16:02", "2026-03-08", id="Monday afternoon is still Sunday's session"),
        pytest.param("FX", "2026-03-09T17:02", "2026-03-08", id="the last bar of Sunday's session"),
        pytest.param("FX", "2026-03-09T18:02", "2026-03-09", id="Monday evening"),
        pytest.param("FX", "2026-03-06T17:02", "2026-03-05", id="the last bar of the week"),
    ],
)
def test_an_open_session_asks_for_its_partition(calendar_name: str, local: str, session: str) -> None:
    request = tick(build_path_schedule(CATALOGUE, MarketPath(calendar_name)), new_york(local))
    assert isinstance(request, dg.RunRequest)
    assert request.partition_key == session
    clock = FrozenClock(new_york(local).astimezone(UTC))
    partitions = session_partitions(calendar_name, first_session(CATALOGUE, calendar_name), clock)
    assert partitions.has_partition_key(session)
    assert request.run_key == f"{session}:{new_york(local).isoformat()}"


@pytest.mark.parametrize(
    ("calendar_name", "local", "last", "next_bar_end"),
    [
        pytest.param("XNYS", "2018-12-25T16:05", "2018-12-24", "2018-12-26T15:30", id="Christmas"),
        pytest.param("XNYS", "2018-12-05T10:35", "2018-12-04", "2018-12-06T15:30", id="day of mourning, which no rule foretells"),
        pytest.param("XNYS", "2026-03-07T10:35", "2026-03-06", "2026-03-09T14:30", id="Saturday"),
        pytest.param("XNYS", "2026-03-09T09:35", "2026-03-06", "2026-03-09T14:30", id="open, and no bar yet"),
        pytest.param("FX", "2026-03-06T18:02", "2026-03-05", "2026-03-08T22:00", id="Friday evening"),
        pytest.param("FX", "2026-03-07T12:02", "2026-03-05", "2026-03-08T22:00", id="Saturday"),
        pytest.param("FX", "2017-12-24T18:02", "2017-12-21", "2017-12-25T23:00", id="Christmas Eve on a Sunday"),
    ],
)
def test_without_a_new_bar_nothing_starts_and_the_reason_names_the_next(
    calendar_name: str, local: str, last: str, next_bar_end: str
) -> None:
    answer = tick(build_path_schedule(CATALOGUE, MarketPath(calendar_name)), new_york(local))
    assert isinstance(answer, dg.SkipReason)
    assert answer.skip_message == (f"calendar {calendar_name}: no bar since session {last}; the next one ends at {next_bar_end}:00+00:00")


def test_of_the_ticks_that_a_daemon_missed_only_the_newest_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule, now = build_path_schedule(CATALOGUE, MarketPath("XNYS")), new_york("2026-03-09T16:10").astimezone(UTC)
    monkeypatch.setattr(SystemClock, "now", lambda _: now)
    platform = Platform(Settings(), CATALOGUE)

    def answer(local: str) -> Any:
        context = dg.build_schedule_context(scheduled_execution_time=new_york(local))
        return schedule._execution_fn.decorated_fn(context, platform=platform)

    early, newest = answer("2026-03-09T15:35"), answer("2026-03-09T16:05")
    assert isinstance(early, dg.SkipReason)
    assert str(early.skip_message).startswith("missed: the tick of 2026-03-09T16:05:00-04:00")
    assert isinstance(newest, dg.RunRequest)
    assert newest.partition_key == "2026-03-09"


@pytest.mark.parametrize(
    ("calendar_name", "local", "first", "last"),
    [
        pytest.param("XNYS", "2018-12-28T06:00", "2018-12-20", "2018-12-27", id="Christmas between"),
        pytest.param("XNYS", "2026-03-10T06:00", "2026-03-03", "2026-03-09", id="after the first session of summer time"),
        pytest.param("XNYS", "2026-03-07T06:00", "2026-03-02", "2026-03-06", id="Saturday"),
        pytest.param("FX", "2026-03-10T06:00", "2026-03-02", "2026-03-08", id="Monday evening's session is still open"),
    ],
)
def test_each_morning_the_last_sessions_that_are_over_are_fetched_again(calendar_name: str, local: str, first: str, last: str) -> None:
    path = MarketPath(calendar_name)
    request = tick(build_refetch_schedule(CATALOGUE, path), new_york(local))
    assert isinstance(request, dg.RunRequest)
    assert (request.run_key, request.partition_key) == (f"refetch:{last}", None)
    assert (request.tags["dagster/asset_partition_range_start"], request.tags["dagster/asset_partition_range_end"]) == (first, last)
    assert set(request.asset_selection or ()) == {asset_keys.raw(dataset) for dataset in path.delivered(CATALOGUE)}
    assert {(check.asset_key, check.name) for check in request.asset_check_keys or ()} == {
        (key, asset_keys.AUDIT) for key in request.asset_selection or ()
    }


@pytest.mark.parametrize(
    ("calendar_name", "local"),
    [("XNYS", "2026-03-08T06:00"), ("XNYS", "2026-03-09T06:00"), ("XNYS", "2018-12-26T06:00"), ("FX", "2026-03-09T06:00")],
)
def test_a_morning_after_no_session_fetches_nothing_again(calendar_name: str, local: str) -> None:
    answer = tick(build_refetch_schedule(CATALOGUE, MarketPath(calendar_name)), new_york(local))
    assert isinstance(answer, dg.SkipReason)
    assert "was fetched again since" in str(answer.skip_message)


@pytest.mark.parametrize("path", [pytest.param(path, id=path.name) for path in paths(CATALOGUE) if path.streams(CATALOGUE)])
@pytest.mark.parametrize("last", [pytest.param("2026-03-06", id="week"), pytest.param("2026-11-27", id="half day after a holiday")])
def test_every_bar_is_asked_for_by_a_tick_before_it_is_due(path: MarketPath, last: str) -> None:
    """The cadence of the schedule keeps the promise of each view."""
    schedule, market = build_path_schedule(CATALOGUE, path), calendar(path.calendar)
    assert schedule.job_name == path.name
    assert schedule.execution_timezone is not None
    days = 7 if path.cadence is None else 1
    start = datetime.fromisoformat(last).replace(tzinfo=UTC) - timedelta(days=days - 1)
    end = start + timedelta(days=days)
    ticks = schedule_execution_time_iterator(start.timestamp(), schedule.cron_schedule, schedule.execution_timezone, ascending=True)
    times = list(itertools.takewhile(lambda at: at < end + timedelta(days=1), ticks))
    asked = [(at, answer.partition_key) for at in times if isinstance(answer := tick(schedule, at), dg.RunRequest)]
    for view, stream in path.streams(CATALOGUE):
        bars = market.bar_ends(stream.timeframe, start, end)
        sessions = [label.isoformat() for label in market.session_of(bars)]
        missed = [
            bar
            for bar, session in zip(bars, sessions, strict=True)
            if not any(bar <= at < bar + view.slo_of(stream).max_lag and key == session for at, key in asked)
        ]
        assert bars.len() >= max(days - 3, 1)
        assert missed == [], f"{view.name}/{stream.name}: no tick asks for these bars before they are due"
