"""Which runs have a process: whoever executes one holds a lock in Dagster's database, which ends with the process, its host or its network.

Postgres says so whatever launched the run, on whichever host, and whatever clocks do. ADR 0018 says why. Asking for a run again does not
belong here.
"""

import threading
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime

import dagster as dg
from dagster._core.events import DagsterEventType
from dagster._core.events.log import EventLogEntry
from sqlalchemy import Connection, NullPool, create_engine, text
from sqlalchemy.exc import SQLAlchemyError

KEEP_SECONDS = 5.0
"""A lock that Postgres forgot when it was restarted is taken again within it."""

GRACE_SECONDS = 30
"""So long after its start Postgres is not asked: the processes that live are taking their locks again."""

KEEPALIVE = "set tcp_keepalives_idle = 10; set tcp_keepalives_interval = 5; set tcp_keepalives_count = 3"
"""A host that died says nothing: Postgres asks its side of the connection, and gives up after half a minute."""

LOCK = text("select pg_advisory_lock_shared(hashtextextended(:run_id, 0))")
UNLOCK = text("select pg_advisory_unlock_shared(hashtextextended(:run_id, 0))")
FREE = text(
    "select run_id from unnest(cast(:run_ids as text[])) as run_id"
    " where clock_timestamp() - pg_postmaster_start_time() > make_interval(secs => :grace)"
    " and pg_try_advisory_xact_lock(hashtextextended(run_id, 0))"
)
ENDS = frozenset({DagsterEventType.RUN_SUCCESS, DagsterEventType.RUN_FAILURE, DagsterEventType.RUN_CANCELED})


class RunLock:
    """A run's lock, from now on until `release`; taken again when the connection was lost."""

    def __init__(self, url: str, run_id: str) -> None:
        """Takes it.

        Raises:
            SQLAlchemyError: Postgres does not answer.
        """
        self._engine = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
        self._run_id = run_id
        self._connection = self._taken()
        self._released = threading.Event()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def release(self) -> None:
        """Give it back; it is free when this returns (a connection that is closed keeps its locks until Postgres has noticed)."""
        self._released.set()
        self._keeper.join(KEEP_SECONDS)
        with suppress(SQLAlchemyError):
            self._connection.execute(UNLOCK, {"run_id": self._run_id})
        with suppress(SQLAlchemyError):
            self._connection.close()

    def _taken(self) -> Connection:
        connection = self._engine.connect()
        connection.execute(text(KEEPALIVE))
        connection.execute(LOCK, {"run_id": self._run_id})
        return connection

    def _keep(self) -> None:
        while not self._released.wait(KEEP_SECONDS):
            try:
                self._connection.execute(text("select 1"))
            except SQLAlchemyError:
                with suppress(SQLAlchemyError):
                    self._connection = self._taken()


class RunLocks:
    """The locks of the runs that this process executes, by what it tells the event log."""

    def __init__(self, url: str) -> None:
        """Nothing is connected before a run starts."""
        self._url = url
        self._held: dict[str, RunLock] = {}

    def before(self, event: EventLogEntry) -> None:
        """A run that has started is held: its start is stored after."""
        if event.is_dagster_event and event.dagster_event_type is DagsterEventType.RUN_START and event.run_id not in self._held:
            self._held[event.run_id] = RunLock(self._url, event.run_id)

    def after(self, event: EventLogEntry) -> None:
        """A run is held until its end is stored."""
        if event.is_dagster_event and event.dagster_event_type in ENDS and (lock := self._held.pop(event.run_id, None)) is not None:
            lock.release()


def unheld(connection: Connection, run_ids: Iterable[str], grace_seconds: float = GRACE_SECONDS) -> set[str]:
    """Those of these started runs that no process executes; none while Postgres is younger than `grace_seconds`."""
    return set(connection.execute(FREE, {"run_ids": list(run_ids), "grace": grace_seconds}).scalars())


def end_abandoned(instance: dg.DagsterInstance) -> None:
    """End started runs without a process, so that neither the UI nor a sensor nor the queue waits for them.

    A lock is released when the run's end is stored, and Dagster sets the status after that: a run with a stored end has that end, also
    when its process died in between. Any other has failed.
    """
    started = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
    find = getattr(instance.event_log_storage, "without_process", None)
    if not started or find is None:
        return
    gone = find([run.run_id for run in started])
    for run in started:
        if run.run_id not in gone:
            continue
        ends = instance.get_records_for_run(run.run_id, of_type=set(ENDS), limit=1, ascending=False).records
        if (now := instance.get_run_by_id(run.run_id)) is None or now.is_finished:
            continue
        if ends:
            end = ends[0].event_log_entry
            instance.run_storage.handle_run_event(run.run_id, end.get_dagster_event(), datetime.fromtimestamp(end.timestamp, UTC))
        else:
            instance.report_run_failed(run, message="the process that executed this run is gone, or its host: what it published stays")
