"""Run jobs over ranges of sessions, here and now: `python -m featurestore_dagster.launch RUN [RUN ...]`.

Each RUN is a JSON object: `job`, `first` and `last` partition, and optionally `assets` (the part of the job to run; a mart stands for all
its models) and `tags`.

For the command line: the caller starts this module with the environment of `Settings.child_environment`, and reads one JSON line per
asset step from standard output. The runs follow one another in one process, since loading the code costs more than a short run, and are
recorded in Dagster's storage like any other. Deciding what to run does not belong here.
"""

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

import dagster as dg
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run_iterator
from dagster._core.storage.tags import PARTITION_NAME_TAG

from featurestore_dagster.orchestration import asset_keys
from featurestore_dagster.orchestration.jobs import BACKFILL_TAG
from featurestore_dagster.orchestration.live_runs import end_abandoned
from featurestore_dagster.orchestration.partitions import range_tags

STEP_EVENTS = {
    dg.DagsterEventType.STEP_START: "started",
    dg.DagsterEventType.STEP_SUCCESS: "succeeded",
    dg.DagsterEventType.STEP_FAILURE: "failed",
    dg.DagsterEventType.STEP_SKIPPED: "skipped",
    dg.DagsterEventType.STEP_UP_FOR_RETRY: "will be retried",
}

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
"""Each event of ten years of partitions on the console would cost more than the work."""

BACKFILL_NICENESS = 10
"""A backfill leaves the processor to whoever serves live bars."""


def main(*runs: str) -> int:
    """Execute each run; 0 when all succeeded, 1 when a step failed.

    Args:
        runs: See the module.

    Prints JSON lines, for each run: {"run_id"} first, then {"step", "state", "seconds", "message"} for each change of a step, last
    {"status"}.
    """
    from featurestore_dagster.definitions import defs

    with dg.DagsterInstance.get() as instance:
        end_abandoned(instance)
        succeeded = [_run(json.loads(run), defs, instance) for run in runs]
    return 0 if all(succeeded) else 1


def _run(wanted: Mapping[str, Any], defs: dg.Definitions, instance: dg.DagsterInstance) -> bool:
    first, last, tags = wanted["first"], wanted["last"], wanted.get("tags", {})
    span = range_tags(first, last) or {PARTITION_NAME_TAG: first}
    assets = set(map(dg.AssetKey.from_user_string, wanted.get("assets", ())))
    if marts := [key.path[-1] for key in assets if key.path[0] == "marts"]:
        assets |= asset_keys.mart_models(*marts).resolve(defs.resolve_asset_graph())
    job = defs.resolve_job_def(wanted["job"])
    if assets:
        job = job.get_subset(asset_selection=assets)
    if BACKFILL_TAG in tags:
        os.nice(max(0, BACKFILL_NICENESS - os.nice(0)))
    run = instance.create_run_for_job(job, run_config=QUIET, tags={**span, **tags}, asset_selection=frozenset(assets) or None)
    _say({"run_id": run.run_id})
    for event in execute_run_iterator(InMemoryJob(job), run, instance):
        state = STEP_EVENTS.get(event.event_type)
        if state and event.step_key:
            _say({"step": event.step_key, "state": state, **_details(event)})
    finished = instance.get_run_by_id(run.run_id)
    succeeded = finished is not None and finished.is_success
    _say({"status": "succeeded" if succeeded else "failed"})
    return succeeded


def _details(event: dg.DagsterEvent) -> dict[str, Any]:
    if event.is_step_success:
        return {"seconds": event.step_success_data.duration_ms / 1000}
    if event.is_step_failure:
        data = event.step_failure_data
        failure = data.user_failure_data
        cause = data.error
        while cause is not None and cause.cause is not None:
            cause = cause.cause
        return {"message": (failure and failure.description) or (cause.message if cause else "")}
    return {}


def _say(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
