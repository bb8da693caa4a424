"""A real `featurestore serve` over servers that a test may kill or freeze."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.embedded import processes
from tests.integration.serving.conftest import Served, deployed, served

__all__ = ["deployed", "served"]

START_SECONDS = 90
PATIENCE_SECONDS = 60


@dataclass
class HttpServer:
    """A running server; `lines` is what it has printed."""

    process: "subprocess.Popen[str]"
    url: str
    lines: list[str]

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, **options)

    def workers(self) -> list[int]:
        return [int(found[1]) for line in self.lines if (found := re.match(r"worker (\d+) is ready", line))]

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)


def environment(settings: Settings, **variables: str) -> dict[str, str]:
    external = settings.model_copy(update={"services": "external"})
    return external.child_environment() | {"FEATURESTORE_SERVE_PORT": "0", "PYTHONWARNINGS": "error"} | variables


COMMAND = [sys.executable, "-m", "featurestore_dagster.cli", "serve"]


@contextmanager
def serving(settings: Settings, **variables: str) -> Iterator[HttpServer]:
    """`featurestore serve`, ready; killed at the end when the test has not stopped it."""
    process = subprocess.Popen(COMMAND, stdout=subprocess.PIPE, text=True, env=environment(settings, **variables))
    lines: list[str] = []
    ready = threading.Event()

    def listen() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip())
            if line.startswith("serving on "):
                ready.set()
        ready.set()

    listener = threading.Thread(target=listen)
    listener.start()
    try:
        assert ready.wait(START_SECONDS)
        assert process.poll() is None, lines
        yield HttpServer(process, lines[-1].split()[2].rstrip(";"), lines)
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(60)
        finally:
            with process:
                process.kill()
            listener.join()


@pytest.fixture(scope="module")
def http(deployed: Served) -> Iterator[HttpServer]:
    """Two workers without a key."""
    with serving(deployed.settings) as server:
        yield server


def wait_until(condition: Callable[[], bool]) -> None:
    assert processes.wait_until(condition, PATIENCE_SECONDS)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
