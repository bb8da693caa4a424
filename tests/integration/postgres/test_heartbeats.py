"""Heartbeats read by SQL are those that Dagster's own storages wrote: daemons, and sensors that are on and tick without error."""

import pytest
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteInstigatorOrigin, RemoteRepositoryOrigin
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    ScheduleInstigatorData,
    SensorInstigatorData,
    TickData,
    TickStatus,
)
from dagster._daemon.types import DaemonHeartbeat
from dagster._utils.error import SerializableErrorInfo
from dagster_postgres.run_storage import PostgresRunStorage
from dagster_postgres.schedule_storage import PostgresScheduleStorage

from featurestore_dagster.settings import PostgresSettings, Settings
from featurestore_dagster.stores.postgres.heartbeats import Heartbeats, SensorBeat, heartbeats

NOON = 1_546_257_600.25


@pytest.fixture
def dagster_database(empty_database: Settings) -> PostgresSettings:
    """Settings whose Dagster database is the test's own."""
    return empty_database.postgres.model_copy(update={"dagster_database": empty_database.postgres.database})


def switch(storage: PostgresScheduleStorage, name: str, status: InstigatorStatus, ticks: dict[float, TickStatus]) -> None:
    """A sensor with its ticks, as the daemon writes them."""
    repository = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("featurestore"), "__repository__")
    origin = RemoteInstigatorOrigin(repository, name)
    data = SensorInstigatorData(min_interval=60, last_tick_timestamp=max(ticks, default=None))
    state = storage.add_instigator_state(InstigatorState(origin, InstigatorType.SENSOR, status, data))
    for timestamp, outcome in ticks.items():
        told = {TickStatus.SUCCESS: {"run_ids": ["r"]}, TickStatus.FAILURE: {"error": SerializableErrorInfo("no", [], None)}}
        tick = TickData(
            origin.get_id(), name, InstigatorType.SENSOR, outcome, timestamp, selector_id=state.selector_id, **told.get(outcome, {})
        )
        storage.create_tick(tick)


def test_d13_they_are_what_dagster_wrote(dagster_database: PostgresSettings) -> None:
    assert heartbeats(dagster_database) == Heartbeats({}, {}), "Dagster never ran here"
    url = dagster_database.dagster_url
    runs, schedules = PostgresRunStorage(url), PostgresScheduleStorage(url)
    runs.add_daemon_heartbeat(DaemonHeartbeat(NOON - 30, "SENSOR", "a", None))
    runs.add_daemon_heartbeat(DaemonHeartbeat(NOON, "SENSOR", "a", None))
    runs.add_daemon_heartbeat(DaemonHeartbeat(NOON - 7, "SCHEDULER", "b", None))
    ok, skipped, failed, started = TickStatus.SUCCESS, TickStatus.SKIPPED, TickStatus.FAILURE, TickStatus.STARTED
    switch(schedules, "ticking", InstigatorStatus.RUNNING, {NOON - 60: ok, NOON: skipped})
    switch(schedules, "failing", InstigatorStatus.RUNNING, {NOON - 120: ok, NOON - 60: failed, NOON: started})
    switch(schedules, "by_default", InstigatorStatus.DECLARED_IN_CODE, {})
    switch(schedules, "stopped", InstigatorStatus.STOPPED, {NOON: ok})
    plan = RemoteInstigatorOrigin(RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("featurestore"), "__repository__"), "path_schedule")
    running = InstigatorState(plan, InstigatorType.SCHEDULE, InstigatorStatus.RUNNING, ScheduleInstigatorData("0 0 * * *", NOON))
    schedules.add_instigator_state(running)

    found = heartbeats(dagster_database)
    assert found.daemons == {"SCHEDULER": NOON - 7, "SENSOR": NOON}
    assert found.sensors == {
        "by_default": SensorBeat(0.0, 60.0),
        "failing": SensorBeat(NOON - 120, 60.0),
        "ticking": SensorBeat(NOON, 60.0),
    }
