"""The sensor of alerts: asks Dagster what its runs did, evaluates, and empties the outbox. The rules belong to `monitoring`."""

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice

import dagster as dg
from dagster._core.storage.tags import BACKFILL_ID_TAG, WILL_RETRY_TAG

from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.time import SystemClock
from featurestore_dagster.monitoring import alerting
from featurestore_dagster.monitoring.problems import Evidence, Found, JobHistory, find_problems
from featurestore_dagster.orchestration import asset_keys
from featurestore_dagster.orchestration.jobs import BACKFILL_TAG, paths
from featurestore_dagster.orchestration.platform import Platform
from featurestore_dagster.orchestration.propagation import CATCH_UP_TAG, RESTATEMENT_TAG
from featurestore_dagster.projections.relation import dataset_relation, stream_relation
from featurestore_dagster.stores.postgres import AlertStore, Ledger

ALERT_SECONDS = 60
SILENT_AFTER = timedelta(minutes=5)
"""A longer pause between two evaluations than this is the daemon's fault."""

LOOK_BACK, FAILURES_READ = timedelta(days=7), 100
"""Jobs that failed within it are watched, as far as the newest failures are theirs; a job that is failing stays watched."""

RUNS_READ = 25
"""A longer row of failures of a job is told as that many."""

PAGE, PAGES = 100, 10
"""Finished runs of a job are read by so many, and so often at most, until its last success is found."""

CATCHING_UP = " catching up"
"""After a job's name: its runs over missed sessions, whose failures are told apart from those of live runs."""

CATCH_UP_ENDS = timedelta(hours=2)
"""Missed sessions are asked for each hour: when that has ended, somebody else has run them."""

EXTRA_RUNS = frozenset({RESTATEMENT_TAG, CATCH_UP_TAG, BACKFILL_TAG, BACKFILL_ID_TAG})
"""Tags of runs that compute the past under a job's name: they say nothing of whether the job does its work now."""

FINISHED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE]


def build_alert_sensor(catalogue: Catalogue) -> dg.SensorDefinition:
    """Evaluates each minute what is wrong, and sends what is to be told. Messages wait in real time, also under a replay clock."""
    pages = {dataset_relation(d).name: asset_keys.raw(d) for d in catalogue.datasets}
    pages |= {stream_relation(view, s).name: asset_keys.stream(view, s) for view in catalogue.views for s in view.streams}
    page_of = {name: f"/assets/{'/'.join(key.path)}" for name, key in pages.items()}
    job_of = {stream_relation(v, s).name: path.name for path in paths(catalogue) for v, s in path.streams(catalogue)}
    sending = SystemClock()

    @dg.sensor(
        name="alert_sensor",
        minimum_interval_seconds=ALERT_SECONDS,
        description="Begins, ends and escalates alerts about overdue views, blocked partitions and failed runs, and sends their messages",
    )
    def alert_sensor(context: dg.SensorEvaluationContext, platform: dg.ResourceParam[Platform]) -> dg.SensorResult:
        previous = json.loads(context.cursor or "{}")
        evaluated_at = datetime.fromisoformat(previous["evaluated_at"]) if previous else None
        store, clock, jobs = AlertStore(platform.settings.postgres), platform.clock, dict[str, JobHistory]()

        def find(now: datetime) -> Found:
            watched = sorted({*job_of.values(), *previous.get("failing", ())})
            jobs.update(job_histories(context.instance, platform.ledger, watched, sending.now()))
            silent_since = evaluated_at if evaluated_at is not None and now - evaluated_at > SILENT_AFTER else None
            return find_problems(catalogue, platform.store, platform.ledger, Evidence(jobs, job_of, page_of, silent_since), now)

        open_alerts = alerting.evaluate(find, store, platform.settings, clock, sending)
        failing = [job for job, history in jobs.items() if history.failing_since is not None]
        done = alerting.deliver(store, platform.settings, clock, sending)
        said = f"{len(open_alerts)} open; messages: {done.sent} sent, {done.failed} to be tried again, {done.dead} given up"
        # The cursor is evidence only: what is open and what was sent stands in Postgres.
        return dg.SensorResult(skip_reason=said, cursor=json.dumps({"evaluated_at": clock.now().isoformat(), "failing": failing}))

    return alert_sensor


def job_histories(instance: dg.DagsterInstance, ledger: Ledger, watched: Iterable[str], now: datetime) -> dict[str, JobHistory]:
    """History of each job that is watched or that failed lately.

    Not counted: runs that Dagster will retry, that were cancelled, that a blocked partition failed, and `EXTRA_RUNS`. Runs from the UI
    without a job of ours share Dagster's own job name. Runs over missed sessions that fail have a history of their own, until one succeeds
    or none is asked for any more.

    Args:
        instance: Dagster's storage.
        ledger: Knows which runs blocked a partition.
        watched: Names of jobs to look at, however long ago they ran.
        now: Real time.
    """
    failed = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], updated_after=now - LOOK_BACK)
    seen = (run.job_name for run in instance.get_runs(failed, limit=FAILURES_READ))
    names = dict.fromkeys([*(name.removesuffix(CATCHING_UP) for name in watched), *seen])
    histories = {name: _history(instance, ledger, name) for name in names}
    for name in names:
        history = _history(instance, ledger, name, catching_up=True)
        if history.failing_since is not None and (_newest_catch_up(instance, name) or now) > now - CATCH_UP_ENDS:
            histories[history.job] = history
    return histories


def _newest_catch_up(instance: dg.DagsterInstance, job: str) -> datetime | None:
    """End of the newest run over missed sessions; None while it runs."""
    records = instance.get_run_records(dg.RunsFilter(job_name=job, tags={CATCH_UP_TAG: job}), limit=1)
    return _instant(records[0].end_time) if records and records[0].end_time else None


def _history(instance: dg.DagsterInstance, ledger: Ledger, job: str, *, catching_up: bool = False) -> JobHistory:
    tags = {CATCH_UP_TAG: job} if catching_up else {}
    started = instance.get_run_records(dg.RunsFilter(job_name=job, tags=tags), limit=1)
    finished = _finished(instance, dg.RunsFilter(job_name=job, statuses=FINISHED, tags=tags))
    newest_failures = list(islice(_failures_since_success(finished, EXTRA_RUNS - tags.keys()), RUNS_READ))
    blocking = ledger.blocking_runs([record.dagster_run.run_id for record in newest_failures]) if newest_failures else set()
    failed = [record for record in newest_failures if record.dagster_run.run_id not in blocking]
    last_started_at = _instant(started[0].create_timestamp.timestamp()) if started else None
    name = job + CATCHING_UP if catching_up else job
    if not failed:
        return JobHistory(name, last_started_at)
    newest, oldest = failed[0], failed[-1]
    step, error = _failure(instance, newest.dagster_run.run_id)
    since = _instant(oldest.end_time or oldest.update_timestamp.timestamp())
    return JobHistory(name, last_started_at, since, len(failed), newest.dagster_run.run_id, step, error)


def _finished(instance: dg.DagsterInstance, filters: dg.RunsFilter) -> Iterator[dg.RunRecord]:
    """Runs, newest first."""
    cursor = None
    for _ in range(PAGES):
        records = instance.get_run_records(filters, limit=PAGE, cursor=cursor)
        yield from records
        if len(records) < PAGE:
            return
        cursor = records[-1].dagster_run.run_id


def _failures_since_success(records: Iterable[dg.RunRecord], extra: frozenset[str] = EXTRA_RUNS) -> Iterator[dg.RunRecord]:
    """The newest failures in a row, newest first, whatever runs with one of the tags `extra` lie between them."""
    for record in records:
        run = record.dagster_run
        if not extra.isdisjoint(run.tags):
            continue
        if run.status is dg.DagsterRunStatus.SUCCESS:
            return
        # Dagster tags every run, and retries only those that it launched.
        if run.tags.get(WILL_RETRY_TAG) != "true" or run.remote_job_origin is None:
            yield record


def _failure(instance: dg.DagsterInstance, run_id: str) -> tuple[str | None, str]:
    """The first failed step of a run and the first line of its error; of the run itself when no step failed."""
    events = instance.all_logs(run_id, of_type={dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.RUN_FAILURE})
    for entry in events:
        event = entry.dagster_event
        if event is not None and event.is_step_failure:
            error = event.step_failure_data.error
            while error is not None and error.cause is not None:
                error = error.cause
            return event.step_key, _first_line(error.message if error is not None else event.message or "")
    messages = [entry.dagster_event.message or "" for entry in events if entry.dagster_event is not None]
    return None, _first_line(messages[0]) if messages else ""


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _instant(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
