"""Run calendars' paths over ranges of sessions, here and now: `python -m featurestore_dagster.launch JOB START END [JOB START END ...]`.

For the command line: the caller starts this module with the environment of `Settings.child_environment`, and reads one JSON line per
asset step from standard output. The runs follow one another in one process, since loading the code costs more than a short run, and are
recorded in Dagster's storage like any other. Deciding what to run does not belong here.
"""

import json
import sys
from typing import Any

import dagster as dg
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run_iterator
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG, PARTITION_NAME_TAG

STEP_EVENTS = {
    dg.DagsterEventType.STEP_START: "started",
    dg.DagsterEventType.STEP_SUCCESS: "succeeded",
    dg.DagsterEventType.STEP_FAILURE: "failed",
    dg.DagsterEventType.STEP_SKIPPED: "skipped",
    dg.DagsterEventType.STEP_UP_FOR_RETRY: "will be retried",
}

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
"""Each event of ten years of partitions on the console would cost more than the work."""


def main(*jobs: str) -> int:
    """Execute each job over its [start, end]; 0 when all runs succeeded, 1 when a step failed.

    Args:
        jobs: Name of a job, first and last partition; again for each further job.

    Prints JSON lines, for each run: {"run_id"} first, then {"step", "state", "seconds", "message"} for each change of a step, last
    {"status"}.
    """
    from featurestore_dagster.definitions import defs

    with dg.DagsterInstance.get() as instance:
        succeeded = [_run(defs.resolve_job_def(name), start, end, instance) for name, start, end in zip(*[iter(jobs)] * 3, strict=True)]
    return 0 if all(succeeded) else 1


def _run(job: dg.JobDefinition, start: str, end: str, instance: dg.DagsterInstance) -> bool:
    tags = {PARTITION_NAME_TAG: start} if start == end else {ASSET_PARTITION_RANGE_START_TAG: start, ASSET_PARTITION_RANGE_END_TAG: end}
    run = instance.create_run_for_job(job, run_config=QUIET, tags=tags)
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
