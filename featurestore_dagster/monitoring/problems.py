"""What is wrong now: overdue streams, blocked partitions, failing jobs, open restatements, undelivered messages; each with its cause.

Reads the stores and changes nothing. Whether anybody is told belongs to `monitoring.streaks`; what Dagster knows of its runs comes as
`Evidence`, since only `orchestration` asks Dagster.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import polars as pl

from featurestore_dagster.calendars import calendar
from featurestore_dagster.errors import PointInTimeViolation, UnknownPartitionError
from featurestore_dagster.model.alert import AlertKind, Problem
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.feature_view import FeatureView, Stream
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS
from featurestore_dagster.model.time import duration, instant
from featurestore_dagster.projections.relation import dataset_relation, stream_relation
from featurestore_dagster.serving.slo_state import StreamState, stream_state
from featurestore_dagster.stores.postgres import Block, Ledger, PostgresStore
from featurestore_dagster.stores.postgres.alerts import Delivery
from featurestore_dagster.stores.postgres.restatements import WAITING, Restatement, unfinished

NEWEST = 2**63 - 1
SHOWN_CHECKS = 5


@dataclass(frozen=True)
class JobHistory:
    """Runs of one job, as far as they matter: the newest start, and the failures since its last success.

    Runs that a blocked partition failed, or that a restatement asked for, are not counted: those have alerts of their own.
    """

    job: str
    last_started_at: datetime | None = None
    failing_since: datetime | None = None
    failures: int = 0
    failed_run: str | None = None
    failed_step: str | None = None
    error: str = ""


@dataclass(frozen=True)
class Evidence:
    """What Dagster knows: its jobs, and for each relation its asset's path in the UI and the job that makes it.

    `silent_since`: the last evaluation before this one, when it was longer ago than the daemon's interval allows.
    """

    jobs: Mapping[str, JobHistory] = field(default_factory=dict)
    job_of: Mapping[str, str] = field(default_factory=dict)
    page_of: Mapping[str, str] = field(default_factory=dict)
    silent_since: datetime | None = None


@dataclass(frozen=True)
class Found:
    """What is wrong, and the keys of what could not be evaluated."""

    problems: tuple[Problem, ...]
    undetermined: frozenset[tuple[AlertKind, str]] = frozenset()


def find_problems(catalogue: Catalogue, store: PostgresStore, ledger: Ledger, evidence: Evidence, now: datetime) -> Found:
    """Everything that is wrong at `now`. A closed market that owes nothing is not wrong; a stream that no source feeds is not promised.

    Raises:
        StoreUnavailableError: Postgres does not answer.
    """
    blocks = ledger.blocks()
    problems: list[Problem] = []
    undetermined = set()
    for view in catalogue.views:
        for stream in filter(catalogue.is_fed, view.streams):
            try:
                state = stream_state(catalogue, store, view, stream, now)
            except (PointInTimeViolation, UnknownPartitionError):  # the clock was set back behind the watermark, or out of the calendar
                undetermined.add((AlertKind.VIEW_OVERDUE, _subject(view.label, stream.name)))
                continue
            if state.freshness.state.overdue:
                cause = likely_cause(view, stream, state, blocks, ledger, evidence)
                problems.append(_overdue(state, cause, evidence.page_of.get(stream_relation(view, stream).name)))
    problems += [_blocked(block, evidence.page_of.get(block.relation)) for block in blocks]
    problems += [_failing(history, history.failing_since) for history in evidence.jobs.values() if history.failing_since is not None]
    problems += [_unfinished(request) for request in unfinished(ledger.settings)]
    return Found(tuple(problems), frozenset(undetermined))


def likely_cause(view: FeatureView, stream: Stream, state: StreamState, blocks: Sequence[Block], ledger: Ledger, evidence: Evidence) -> str:
    """Why a stream is overdue, as far as the ledger and Dagster tell: the first of what is looked for that is found."""
    freshness, relation = state.freshness, stream_relation(view, stream).name
    inputs = [dataset_relation(dataset).name for dataset in stream.inputs]
    owed = freshness.watermark or freshness.expected_event_timestamp
    session = calendar(stream.calendar).session_of(pl.Series([owed], dtype=UTC_MICROSECONDS))[0].isoformat()
    for block in blocks:
        if block.relation in (relation, *inputs) and (block.partition_key >= session or freshness.watermark is None):
            return f"partition {block.partition_key} of {block.relation} is blocked by {_checks(block)}"
    available_at = freshness.due_at - view.slo_of(stream).max_lag
    history = evidence.jobs.get(evidence.job_of.get(relation, ""))
    if history is not None and history.failing_since is not None:
        what = "the source fails" if (history.failed_step or "").startswith("raw__") else "a run failed"
        return f"{what}: run {history.failed_run} of {history.job} in step {history.failed_step or 'none'}: {history.error}"
    if evidence.silent_since is not None and evidence.silent_since <= freshness.due_at:
        return f"the daemon is late: it evaluated nothing from {instant(evidence.silent_since)} until now"
    if history is not None and (history.last_started_at is None or history.last_started_at < available_at):
        since = instant(history.last_started_at) if history.last_started_at else "ever"
        return f"no run of {history.job} since {since}: its schedule is off, or the daemon is late"
    for dataset, name in zip(stream.inputs, inputs, strict=True):
        newest = ledger.newest_event(name, NEWEST) if dataset.bars or dataset is stream.inputs[0] else freshness.expected_event_timestamp
        if newest is None or newest < freshness.expected_event_timestamp:
            return f"the source delivers nothing: {name} has no row after {instant(newest) if newest else 'its beginning'}"
    return "its inputs are there, and no run has computed it yet"


def undelivered(dead: Sequence[Delivery]) -> list[Problem]:
    """A problem for each channel that has dead letters."""
    channels: dict[str, list[Delivery]] = {}
    for delivery in dead:
        channels.setdefault(delivery.channel, []).append(delivery)
    return [
        Problem(
            AlertKind.MESSAGE_UNDELIVERED,
            channel,
            channel,
            letters[0].queued_at,
            f"{channel} did not take {len(letters)} messages: {letters[-1].last_error}",
            "the receiver refuses or does not answer, or its URL is wrong",
            facts={"messages": [letter.message_key for letter in letters[:10]]},
        )
        for channel, letters in channels.items()
    ]


def _subject(view: str, stream: str) -> str:
    return f"{view}/{stream}"


def _overdue(state: StreamState, cause: str, page: str | None) -> Problem:
    found, subject = state.freshness, _subject(state.view, state.stream)
    lag = f"lag {duration(found.lag)}" if found.lag is not None else "never published"
    facts = {
        "state": found.state.value,
        "due": instant(found.due_at),
        "lag": "never published" if found.lag is None else duration(found.lag),
        "newest value": instant(found.watermark) if found.watermark else "none",
        "worst": list(state.worst),
    }
    summary = f"{subject} is {found.state.value}: due {instant(found.due_at)}, {lag}"
    return Problem(AlertKind.VIEW_OVERDUE, state.view, subject, found.due_at, summary, cause, page, facts)


def _blocked(block: Block, page: str | None) -> Problem:
    examples = [f"{check['check']}: {'; '.join(check.get('examples') or [])}" for check in block.checks[:SHOWN_CHECKS]]
    return Problem(
        AlertKind.PARTITION_BLOCKED,
        block.relation,
        f"{block.relation} {block.partition_key}",
        block.logged_at,
        f"partition {block.partition_key} of {block.relation} is blocked by {_checks(block)}",
        "the audit refused its rows; what was published before is still served",
        f"{page}?view=partitions&partition={block.partition_key}" if page else None,
        {"checks": examples, "run": block.run_id},
    )


def _checks(block: Block) -> str:
    blocking = [check for check in block.checks if check.get("blocking", True)] or block.checks
    return ", ".join(f"{check['check']} ({check['rows']} rows)" for check in blocking[:SHOWN_CHECKS])


def _failing(history: JobHistory, since: datetime) -> Problem:
    return Problem(
        AlertKind.RUN_FAILED,
        history.job,
        history.job,
        since,
        f"{history.job} fails: {history.failures} runs since its last success"
        if history.failures > 1
        else f"a run of {history.job} failed",
        f"step {history.failed_step}: {history.error}" if history.failed_step else history.error or "Dagster recorded no error",
        f"/runs/{history.failed_run}",
        {"run": history.failed_run},
    )


def _unfinished(request: Restatement) -> Problem:
    subject, waits = f"restatement {request.restatement_id}", request.status == WAITING
    sessions = f"{request.partitions} sessions, {request.first_partition} to {request.last_partition}"
    return Problem(
        AlertKind.RESTATEMENT_UNFINISHED,
        request.job,
        subject,
        request.requested_at if waits else request.finished_at or request.requested_at,
        f"{subject} of {request.job} {'waits for a person' if waits else 'failed'}: {sessions}",
        "it is too long to be started unasked" if waits else "a partition is blocked, its runs died, or somebody cancelled it",
        f"/runs/{request.run_id}" if request.run_id else None,
        {
            "streams": request.relations,
            "changed": sorted(request.causes),
            "to do": f"featurestore restatements apply {request.restatement_id}",
        },
    )
