"""`featurestore up` is one process tree: neither a kill nor a signal leaves anything that blocks the next start."""

import os
import signal
import time

import psutil

from tests.e2e.conftest import Installation, running


def test_killed_tree_leaves_nothing_and_a_signal_ends_the_next_one(installation: Installation) -> None:
    with running(installation) as (process, _):
        family = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert [child.name() for child in alive if child.is_running() and child.status() != psutil.STATUS_ZOMBIE] == []

    with running(installation) as (process, _):
        family = psutil.Process(process.pid).children(recursive=True)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
        assert time.monotonic() - began < 30
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []
