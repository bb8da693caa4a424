"""The propagation sensor under what goes wrong around it: a second daemon, clocks that jump, an exchange that closes at short notice."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date, datetime, timedelta

import polars as pl
import pytest

from featurestore_dagster.calendars import calendar, lookup
from featurestore_dagster.orchestration import partitions
from featurestore_dagster.pipeline import inputs
from featurestore_dagster.serving.freshness import FreshnessState
from featurestore_dagster.serving.slo_state import stream_state
from tests.integration.orchestration.conftest import CORRECTED, VIEWS, WEEKS, Daemon, bars, correct, ledger, online, span
from tests.unit.pipeline.frames import close_of

HOLIDAY = "2018-12-10"
Holidays = Callable[[str], None]


@pytest.fixture
def add_holiday(monkeypatch: pytest.MonkeyPatch) -> Iterator[Holidays]:
    """The exchange says that it was, or will be, closed on one more day: as after an upgrade of the calendar's file."""
    known = lookup.exchange_hours

    def forget() -> None:
        for remembered in (calendar, partitions.session_partitions, inputs._chunk_start, inputs.bars_before):
            remembered.cache_clear()

    def add(day: str) -> None:
        hours = known("XNYS")
        fewer = replace(hours, table=hours.table.filter(pl.col("session") != date.fromisoformat(day)))
        monkeypatch.setattr(lookup, "exchange_hours", lambda name: fewer if name == "XNYS" else known(name))
        forget()

    yield add
    monkeypatch.undo()
    forget()


def test_two_daemons_started_by_mistake_ask_once_however_their_ticks_meet(daemon: Daemon) -> None:
    daemons = [daemon, Daemon(daemon.deployment, daemon.instance)]
    daemons[1].tick()
    for day in (CORRECTED, WEEKS[20]):
        correct(daemon, CORRECTED, day)
        with ThreadPoolExecutor(2) as pool:
            asked = [request for requests in pool.map(Daemon.tick, daemons) for request in requests]
        assert len({request.run_key for request in asked}) == 1, "Dagster launches a key once"
        assert len(daemon.restatements.requests(status="requested")) == 1
        # Dagster's storage is one, so the second daemon does not launch the key either; if it did, the second run would find nothing to do.
        assert daemon.run(asked[0]).is_success
        known = ledger(daemon)
        assert daemon.run(asked[0]).is_success
        assert ledger(daemon) == known
        assert [request for other in daemons for request in other.tick()] == []
    assert [request.status for request in daemon.restatements.requests()] == ["done", "done"]


@pytest.mark.parametrize("days", [400, -10, -400], ids=["a year on", "days back", "a year back"])
def test_a_clock_that_jumps_and_returns_loses_no_correction_and_asks_for_nothing_else(daemon: Daemon, days: int) -> None:
    clock, jump = daemon.deployment.clock, timedelta(days=days)
    correct(daemon, CORRECTED)
    clock.instant += jump
    asked = daemon.tick()
    clock.instant -= jump
    asked += daemon.tick()
    assert [span(request) for request in asked] == [(CORRECTED, WEEKS[-1])]
    assert daemon.run(asked[0]).is_success
    assert daemon.tick() == []
    assert all(outcome.unchanged for view in VIEWS for outcome in daemon.deployment.materialise(view, *WEEKS))


def test_a_session_that_became_a_holiday_is_neither_late_nor_caught_up(daemon: Daemon, add_holiday: Holidays) -> None:
    deployment, view = daemon.deployment, VIEWS[0]
    deployment.clock.instant = datetime.fromisoformat(f"{HOLIDAY}T23:30+00:00")

    def state() -> FreshnessState:
        return stream_state(deployment.catalogue, deployment.store, view, view.streams[0], deployment.clock.now()).freshness.state

    assert state().overdue
    add_holiday(HOLIDAY)
    assert not state().overdue
    deployment.clock.advance(hours=12)
    assert Daemon(deployment, daemon.instance).tick() == []


def test_a_correction_passes_over_a_published_session_that_became_a_holiday(daemon: Daemon, add_holiday: Holidays) -> None:
    day = WEEKS[20]
    before = online(daemon, VIEWS[1], "AAA")
    add_holiday(day)
    correct(daemon, CORRECTED)
    late = Daemon(daemon.deployment, daemon.instance)
    (request,) = late.tick()
    assert span(request) == (CORRECTED, WEEKS[-1])
    assert late.run(request).is_success
    assert late.tick() == []
    assert online(late, VIEWS[1], "AAA") != before
    assert close_of(WEEKS[-1]) == daemon.deployment.features(VIEWS[1])["event_timestamp"].max()
    assert bars([day])[0]["event_timestamp"] in daemon.deployment.features(VIEWS[1])["event_timestamp"], "what was published stays"
