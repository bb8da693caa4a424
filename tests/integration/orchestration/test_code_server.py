"""Workers that are ready before their run: each run has a process of its own. The whole tree is tested elsewhere."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from featurestore_dagster.code_server import Worker, Workers
from featurestore_dagster.stores.embedded import processes

TINY = "tests.integration.tiny_definitions"
SECONDS = 120


def report(number: int, queue: Any, event: Any) -> None:
    """A run, as far as the code server cares: it says something, and ends when it is told to."""
    import sys

    queue.put((number, os.getpid(), TINY in sys.modules))
    event.wait(SECONDS)


@pytest.fixture
def workers() -> Iterator[Workers]:
    workers = Workers(TINY)
    yield workers
    workers.close()


def started(workers: Workers, number: int) -> tuple[Worker, Any, Any]:
    """Begin a run as the code server does."""
    queue, event = workers.Queue(), workers.Event()
    worker = workers.Process(target=report, args=[number, queue, event])
    worker.start()
    return worker, queue, event


def ended(worker: Worker) -> bool:
    return processes.wait_until(lambda: not worker.is_alive(), SECONDS)


def test_each_run_has_the_worker_that_waited_or_a_new_one(workers: Workers) -> None:
    spare = workers._spare
    assert spare is not None
    assert spare.is_alive()
    runs = [started(workers, number) for number in range(3)]
    found = [queue.get(timeout=SECONDS) for _, queue, _ in runs]
    assert [number for number, *_ in found] == [0, 1, 2]
    assert [pid for _, pid, _ in found] == [worker.pid for worker, *_ in runs]
    assert found[0][1] == spare.pid
    assert len({pid for _, pid, _ in found}) == 3
    assert all(loaded for *_, loaded in found), "the definitions were loaded before the run was"
    for worker, _, event in runs:
        assert worker.is_alive()
        event.set()
        assert ended(worker)
        assert worker.exitcode == 0
    # The place of the first is taken again when its run has ended.
    assert processes.wait_until(lambda: workers._spare is not None, SECONDS)


def test_a_worker_that_was_killed_while_it_waited_is_not_given_a_run(workers: Workers) -> None:
    spare = workers._spare
    assert spare is not None
    os.kill(spare.pid or 0, signal.SIGKILL)
    assert ended(spare)
    worker, queue, event = started(workers, 7)
    assert queue.get(timeout=SECONDS)[:2] == (7, worker.pid)
    event.set()
    assert ended(worker)


def test_definitions_that_do_not_load_leave_a_worker_that_runs_and_says_so_itself() -> None:
    workers = Workers("tests.no_such_module")
    worker, queue, event = started(workers, 1)
    assert queue.get(timeout=SECONDS) == (1, worker.pid, False)
    event.set()
    assert ended(worker)
    workers.close()


def test_a_worker_ends_with_the_code_server(workers: Workers) -> None:
    spare = workers._spare
    assert spare is not None
    process = psutil.Process(spare.pid)
    workers.close()
    assert ended(spare)
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
