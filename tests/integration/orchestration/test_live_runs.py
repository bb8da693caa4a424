"""Runs whose process is gone, over Dagster's storage in Postgres: who executes a run is known by a lock, and nobody waits for the dead."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.events import EVENT_TYPE_TO_PIPELINE_RUN_STATUS
from dagster._core.events.log import EventLogEntry
from sqlalchemy import create_engine, text

from featurestore_dagster.orchestration.event_log import BatchingPostgresEventLogStorage
from featurestore_dagster.orchestration.live_runs import RunLock, end_abandoned, unheld
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.embedded import processes
from tests.integration.orchestration.conftest import CORRECTED, WEEKS, Daemon, bars, correct, label

ROOT = Path(__file__).parents[3]
SECONDS = 60
WORKER = """
import json, sys
import dagster as dg
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run

@dg.op
def work():
    input()

@dg.job(name="xnys_path", executor_def=dg.in_process_executor)
def path():
    work()

with dg.DagsterInstance.from_config(sys.argv[1]) as instance:
    run = instance.create_run_for_job(path, tags=json.loads(sys.argv[2]))
    print(run.run_id, flush=True)
    execute_run(InMemoryJob(path), run, instance)
"""


@pytest.fixture
def url(fresh_database: Settings) -> str:
    return fresh_database.postgres.url("psycopg2", fresh_database.postgres.database)


@pytest.fixture
def instance(url: str) -> Iterator[dg.DagsterInstance]:
    """Dagster's storage as `dagster.yaml` has it."""
    config = {"postgres_url": url}
    event_log = {"module": "featurestore_dagster.orchestration.event_log", "class": "BatchingPostgresEventLogStorage", "config": config}
    runs = {"module": "dagster_postgres.run_storage", "class": "PostgresRunStorage", "config": config}
    with dg.instance_for_test(overrides={"event_log_storage": event_log, "run_storage": runs}) as instance:
        yield instance


def status(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRunStatus | None:
    run = instance.get_run_by_id(run_id)
    return run and run.status


@contextmanager
def worker(instance: dg.DagsterInstance, tags: str = "{}") -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that executes a run until it is killed; and the run's id."""
    command = [sys.executable, "-c", WORKER, instance.root_directory, tags]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        try:
            run_id = process.stdout.readline().strip()
            assert processes.wait_until(lambda: status(instance, run_id) is dg.DagsterRunStatus.STARTED, SECONDS)
            yield process, run_id
        finally:
            process.kill()


def killed(process: subprocess.Popen[str], instance: dg.DagsterInstance, run_id: str) -> None:
    """Kill it, and wait until Postgres has noticed."""
    process.kill()
    process.wait()
    storage = instance.event_log_storage
    assert isinstance(storage, BatchingPostgresEventLogStorage)
    assert processes.wait_until(lambda: storage.without_process([run_id]) == {run_id}, SECONDS)


def test_a_publisher_that_was_killed_is_not_waited_for(daemon: Daemon, instance: dg.DagsterInstance) -> None:
    with worker(instance) as (process, run_id):
        daemon.deployment.clock.advance(minutes=1)
        daemon.deployment.deliver(bars(WEEKS, **label(CORRECTED)))
        daemon.deployment.ingest(CORRECTED, run_id=run_id)
        assert daemon.tick() == []
        assert daemon.tick() == []
        killed(process, instance, run_id)
    assert len(daemon.tick()) == 1
    assert status(instance, run_id) is dg.DagsterRunStatus.FAILURE


def test_a_request_whose_run_lost_its_process_is_asked_for_again_and_changes_each_partition_once(
    daemon: Daemon, instance: dg.DagsterInstance
) -> None:
    correct(daemon, CORRECTED)
    (request,) = daemon.tick()
    tags = json.dumps({"restatement": request.tags["restatement"]})
    with worker(instance, tags) as (process, run_id):
        assert daemon.tick() == [], "it lives"
        killed(process, instance, run_id)
    (again,) = daemon.tick()
    assert again.run_key != request.run_key
    assert daemon.run(again).is_success
    daemon.run(request)  # the first one was not dead after all
    assert daemon.tick() == []
    (restatement,) = daemon.restatements.requests()
    assert (restatement.status, restatement.attempts) == ("done", 2)
    written = daemon.deployment.query(
        "select relation, partition_key, count(*) from ops.publications where rows_published > 0 and run_id = any(%s)"
        " group by 1, 2 having count(*) > 1",
        [run.run_id for run in instance.get_runs()],
    )
    assert written == []


def test_a_run_that_has_ended_is_not_held(daemon: Daemon, instance: dg.DagsterInstance, url: str) -> None:
    correct(daemon, CORRECTED)
    (request,) = daemon.tick()
    run = daemon.run(request)
    with create_engine(url).connect() as connection:
        assert unheld(connection, [run.run_id], 0) == {run.run_id}


@pytest.mark.parametrize("end", [dg.DagsterEventType.RUN_SUCCESS, dg.DagsterEventType.RUN_FAILURE, dg.DagsterEventType.RUN_CANCELED])
def test_a_run_whose_end_is_stored_before_its_status_has_that_end(instance: dg.DagsterInstance, end: dg.DagsterEventType) -> None:
    @dg.job
    def path() -> None: ...

    run = instance.create_run_for_job(path)
    storage = instance.event_log_storage
    assert isinstance(storage, BatchingPostgresEventLogStorage)
    events = [dg.DagsterEvent(kind.value, "path") for kind in (dg.DagsterEventType.RUN_START, end)]
    entries = [EventLogEntry(None, 20, "", run.run_id, float(at), job_name="path", dagster_event=event) for at, event in enumerate(events)]
    instance.handle_new_event(entries[0])
    assert status(instance, run.run_id) is dg.DagsterRunStatus.STARTED
    end_abandoned(instance)
    assert status(instance, run.run_id) is dg.DagsterRunStatus.STARTED, "its process holds the lock"
    storage.store_event(entries[1])
    assert processes.wait_until(lambda: storage.without_process([run.run_id]) == {run.run_id}, SECONDS)
    end_abandoned(instance)
    assert status(instance, run.run_id) is EVENT_TYPE_TO_PIPELINE_RUN_STATUS[end]
    assert len(storage.get_logs_for_run(run.run_id)) == len(entries)


def test_a_lock_outlives_its_connection_and_notices_a_host_that_died(url: str) -> None:
    lock = RunLock(url, "a run")
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        assert unheld(connection, ["a run", "another"], 0) == {"another"}
        assert unheld(connection, ["another"], 1e9) == set(), "Postgres has just started, for all it knows"
        assert lock._connection.execute(text("show tcp_keepalives_idle")).scalar() == "10"
        holder = lock._connection.execute(text("select pg_backend_pid()")).scalar()
        connection.execute(text("select pg_terminate_backend(:pid)"), {"pid": holder})
        assert processes.wait_until(lambda: unheld(connection, ["a run"], 0) == {"a run"}, SECONDS)
        assert processes.wait_until(lambda: unheld(connection, ["a run"], 0) == set(), SECONDS), "taken again"
        lock.release()
        assert unheld(connection, ["a run"], 0) == {"a run"}
    engine.dispose()
