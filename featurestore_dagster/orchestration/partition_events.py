"""Outcomes of the pipeline -> Dagster's events: per-partition materialisations and check evaluations, whatever the size of the run.

One run may cover ten years. Dagster leaves the per-partition checks of a range run unrecorded, so a range writes its evaluations itself, in
one batch per asset (see `event_log`). What was published is decided by the ledger; this only shows it.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluation,
    AssetCheckEvaluationTargetMaterializationData,
)
from dagster._core.events import DagsterEvent, StepMaterializationData
from dagster._core.events.log import EventLogEntry
from dagster._core.execution.context.metadata_logging import AssetMetadataHandle, OutputMetadataAccumulator, OutputMetadataHandle

from featurestore_dagster.errors import TerminalError
from featurestore_dagster.orchestration.asset_keys import AUDIT
from featurestore_dagster.orchestration.presentation import checks_metadata, rows_metadata
from featurestore_dagster.orchestration.retries import retried
from featurestore_dagster.pipeline.publication import PartitionOutcome

PROGRESS_EVERY_SECONDS = 2.0
BLOCKED_NAMED = 20

Describe = Callable[[list[PartitionOutcome]], Mapping[str, Any]]
"""Metadata of the whole run (plot, lineage) from its outcomes, put on the newest partition."""


def publish_events(
    context: dg.AssetExecutionContext, outcomes: Iterator[PartitionOutcome], describe: Describe
) -> Iterator[dg.MaterializeResult[Any] | dg.AssetCheckResult]:
    """Consume the outcomes of a run and tell Dagster.

    One partition: its failed blocking check and a Failure, or a MaterializeResult with the passed check. A range: good partitions are
    materialised, each with its check evaluation; blocked ones get a failed evaluation only, and the run fails at its end naming them.

    Raises:
        dg.Failure: Partitions were blocked, or a terminal error; never retried.
        dg.RetryRequested: A transient error; what was published stays and is skipped by the retry.
    """
    keys = list(context.partition_keys)
    try:
        with retried(context.retry_number):
            done = list(_with_progress(context, outcomes, len(keys)))
    except TerminalError as error:
        raise dg.Failure(description=f"{type(error).__name__}: {error}", allow_retries=False) from error
    blocked = [outcome for outcome in done if outcome.blocked]
    good = [outcome for outcome in done if not outcome.blocked]
    run_metadata = dict(describe(good)) if good else {}
    if len(keys) == 1:
        yield from _single(context, done[0], run_metadata)
        return
    if not blocked:
        _add_metadata(context, _metadata(good), run_metadata)
        yield dg.MaterializeResult()
        _record_checks(context, done)
        yield dg.AssetCheckResult(check_name=AUDIT, passed=True, metadata={"partitions": len(good)})
        return
    _record_materialisations(context, good)
    _record_checks(context, done)
    raise _failure(context, blocked, len(good))


def _add_metadata(context: dg.AssetExecutionContext, by_partition: dict[str, dict[str, Any]], run_metadata: Mapping[str, Any]) -> None:
    """As `context.add_asset_metadata` for each partition, which copies all that was added before, every time."""
    if by_partition:
        by_partition[max(by_partition)] |= run_metadata
    handles: dict[OutputMetadataHandle | AssetMetadataHandle, Mapping[str, Any]] = {
        AssetMetadataHandle(asset_key=context.asset_key, partition_key=key): metadata for key, metadata in by_partition.items()
    }
    step = context.op_execution_context._step_execution_context  # noqa: SLF001 - see above
    step._metadata_accumulator = OutputMetadataAccumulator(per_output_metadata=handles)  # noqa: SLF001


def _single(
    context: dg.AssetExecutionContext, outcome: PartitionOutcome, run_metadata: Mapping[str, Any]
) -> Iterator[dg.MaterializeResult[Any] | dg.AssetCheckResult]:
    checks = checks_metadata(outcome.audit) if outcome.audit else {"skipped": "inputs and code are those of the last publication"}
    if outcome.blocked:
        yield dg.AssetCheckResult(check_name=AUDIT, passed=False, metadata=checks)
        raise _failure(context, [outcome], 0)
    yield dg.MaterializeResult(
        metadata={**_metadata([outcome])[outcome.partition_key], **run_metadata},
        check_results=[dg.AssetCheckResult(check_name=AUDIT, passed=True, metadata=checks)],
    )


def _with_progress(context: dg.AssetExecutionContext, outcomes: Iterator[PartitionOutcome], total: int) -> Iterator[PartitionOutcome]:
    last = time.monotonic()
    for number, outcome in enumerate(outcomes, start=1):
        yield outcome
        if time.monotonic() - last > PROGRESS_EVERY_SECONDS:
            last = time.monotonic()
            context.log.info(f"{number} of {total} partitions, at {outcome.partition_key}")


def _metadata(outcomes: list[PartitionOutcome]) -> dict[str, dict[str, Any]]:
    """Metadata of each partition's materialisation."""
    published = {outcome.partition_key: outcome.publication for outcome in outcomes if outcome.publication is not None}
    counts = rows_metadata({outcome.partition_key: outcome.rows for outcome in outcomes if outcome.partition_key in published})
    # A chunk too large to be computed at once comes with the rows of its first symbols only.
    totals = {outcome.partition_key: outcome.audit.rows_good for outcome in outcomes if outcome.audit}
    metadata: dict[str, dict[str, Any]] = {outcome.partition_key: {"published": "nothing new"} for outcome in outcomes}
    return metadata | {
        key: {
            **counts[key],
            "dagster/row_count": totals[key],
            "rows_published": publication.rows_published,
            "rows_quarantined": publication.rows_quarantined,
            "content_hash": publication.content_hash,
        }
        for key, publication in published.items()
    }


def _failure(context: dg.AssetExecutionContext, blocked: list[PartitionOutcome], good: int) -> dg.Failure:
    lines = []
    for outcome in blocked[:BLOCKED_NAMED]:
        failed = outcome.audit.failed if outcome.audit else ()
        lines.append(f"{outcome.partition_key}: " + "; ".join(f"{check.name} ({check.rows} rows)" for check in failed))
    more = f"\n... and {len(blocked) - BLOCKED_NAMED} more" if len(blocked) > BLOCKED_NAMED else ""
    return dg.Failure(
        description=(
            f"{context.asset_key.to_user_string()}: {len(blocked)} partitions blocked, {good} published. What was published before goes on "
            f"being served. See check {AUDIT} of each partition, and `featurestore quarantine list`.\n" + "\n".join(lines) + more
        ),
        metadata={"blocked": len(blocked), "published": good},
        allow_retries=False,
    )


def _entries(
    context: dg.AssetExecutionContext, event_type: dg.DagsterEventType, contents: Sequence[tuple[Any, str]]
) -> list[EventLogEntry]:
    """One event of the running step for each pair of data and message; at least one pair."""
    step = context.op_execution_context._step_execution_context  # noqa: SLF001 - Dagster has no public way to write a batch
    event = DagsterEvent(
        event_type_value=event_type.value,
        job_name=context.run.job_name,
        step_handle=step.step.handle,
        node_handle=step.step.node_handle,
        step_kind_value=step.step.kind.value,
        logging_tags=step.event_tags,
        event_specific_data=contents[0][0],
        pid=os.getpid(),
    )
    entry = EventLogEntry(  # type: ignore[no-untyped-call]
        error_info=None,
        level=logging.DEBUG,
        user_message="",
        run_id=context.run.run_id,
        timestamp=time.time(),
        step_key=step.step.key,
        job_name=context.run.job_name,
        dagster_event=event,
    )
    return [entry._replace(dagster_event=event._replace(event_specific_data=data, message=message)) for data, message in contents]


def _record_materialisations(context: dg.AssetExecutionContext, good: list[PartitionOutcome]) -> None:
    contents = [
        (
            StepMaterializationData(dg.AssetMaterialization(context.asset_key, partition=key, metadata=metadata), []),
            f"Materialized partition {key}",
        )
        for key, metadata in _metadata(good).items()
    ]
    if contents:
        entries = _entries(context, dg.DagsterEventType.ASSET_MATERIALIZATION, contents)
        context.instance.event_log_storage.store_event_batch(entries)


def _record_checks(context: dg.AssetExecutionContext, outcomes: list[PartitionOutcome]) -> None:
    storage = context.instance.event_log_storage
    stored = storage.get_latest_storage_id_by_partition(context.asset_key, dg.DagsterEventType.ASSET_MATERIALIZATION)
    contents = []
    for outcome in outcomes:
        target = None if outcome.blocked else stored.get(outcome.partition_key)
        metadata = checks_metadata(outcome.audit) if outcome.audit else {}
        evaluation = AssetCheckEvaluation(
            asset_key=context.asset_key,
            check_name=AUDIT,
            passed=not outcome.blocked,
            metadata={name: dg.MetadataValue.int(value) if isinstance(value, int) else value for name, value in metadata.items()},
            target_materialization_data=target
            and AssetCheckEvaluationTargetMaterializationData(storage_id=target, run_id=context.run.run_id, timestamp=time.time()),
            blocking=True,
            partition=outcome.partition_key,
        )
        contents.append((evaluation, f"{AUDIT} of {outcome.partition_key}"))
    storage.store_event_batch(_entries(context, dg.DagsterEventType.ASSET_CHECK_EVALUATION, contents))
