"""Runs that a command executes in a process of its own: no launcher watches them, so whoever looks finds out that the process is gone."""

import socket

import dagster as dg
import psutil
from dagster._core.storage.dagster_run import IN_PROGRESS_RUN_STATUSES, DagsterRun

PROCESS_TAG = "featurestore/process"
"""`host/pid/start time` of the process that executes the run."""

BACKFILL_TAG = "featurestore/backfill"
"""On runs of `featurestore backfill`."""


def process_identity() -> str:
    """This process, for `PROCESS_TAG`."""
    process = psutil.Process()
    return f"{socket.gethostname()}/{process.pid}/{process.create_time():.2f}"


def is_abandoned(run: DagsterRun) -> bool:
    """Whether the run's process ended without a word; False for a run that Dagster launched, or another host's."""
    host, _, rest = run.tags.get(PROCESS_TAG, "").partition("/")
    if host != socket.gethostname():
        return False
    number, _, started = rest.partition("/")
    try:
        process = psutil.Process(int(number))
        return f"{process.create_time():.2f}" != started or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def end_abandoned(instance: dg.DagsterInstance) -> None:
    """Report abandoned runs as failed, so that neither the UI nor a sensor waits for them."""
    for run in instance.get_runs(dg.RunsFilter(statuses=IN_PROGRESS_RUN_STATUSES)):
        if is_abandoned(run):
            instance.report_run_failed(run, message="the process that executed this run was killed; the same command continues it")
