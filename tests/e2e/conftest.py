"""One demo for all end-to-end tests: the installed command, processes of their own, real stores, a data folder with a space in its path."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

REPOSITORY = Path(__file__).parents[2]
COMMAND = Path(sys.executable).parent / "featurestore"
DEMO_CLOCK = "2018-12-31T22:00:00Z"
DEMO_START = "2018-10-01"
START_SECONDS = 180


@dataclass
class Installation:
    """A data folder and the command that works on it."""

    folder: Path
    variables: dict[str, str] = field(default_factory=lambda: {"FEATURESTORE_CLOCK": DEMO_CLOCK})

    @property
    def environment(self) -> dict[str, str]:
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("FEATURESTORE_", "POSTGRES_", "REDIS_", "DAGSTER_"))
        }
        return kept | {"FEATURESTORE_DATA_FOLDER": str(self.folder), "COLUMNS": "200"} | self.variables

    def run(self, *arguments: str, text: str | None = None, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [COMMAND, *arguments], env=self.environment, capture_output=True, text=True, input=text, timeout=timeout, check=False
        )

    def json(self, *arguments: str) -> Any:
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)


@contextlib.contextmanager
def running(installation: Installation) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`featurestore up` until the block ends; yields the process and the UI's address."""
    log = installation.folder / "up.log"
    environment = installation.environment | {"FEATURESTORE_WEBSERVER_PORT": "0"}
    with log.open("wb") as output:
        process = subprocess.Popen([COMMAND, "up"], env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        ready = wait_for(lambda: re.search(r"ready: (http://\S+)", log.read_text()), START_SECONDS, lambda: log.read_text()[-3000:])
        yield process, ready[1]
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=60)


def wait_for(found: Callable[[], Any], seconds: float, explain: Callable[[], object]) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := found():
            return answer
        time.sleep(0.5)
    pytest.fail(f"nothing after {seconds} s: {explain()}")


@contextlib.contextmanager
def held(connection: psycopg.Connection[Any], relation: str, first_partition: str) -> Iterator[None]:
    """Whoever publishes partitions of the relation from the first one on waits until the block ends. The connection commits by itself."""
    connection.execute("select pg_advisory_lock(1)")
    connection.execute(
        "create function public.hold() returns trigger language plpgsql as "
        "$$begin perform pg_advisory_xact_lock_shared(1); return new; end$$"
    )
    condition = sql.SQL("new.relation = {} and new.partition_key >= {}").format(relation, first_partition)
    connection.execute(
        sql.SQL("create trigger hold before insert on ops.publications for each row when ({}) execute function public.hold()").format(
            condition
        )
    )
    try:
        yield
    finally:
        connection.execute("select pg_advisory_unlock(1)")
        connection.execute("drop trigger hold on ops.publications")
        connection.execute("drop function public.hold")


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Installation, dict[str, Any]]]:
    """An installation after `featurestore demo`, and what the demo printed as JSON; its stores are left running until the end."""
    installation = Installation(tmp_path_factory.mktemp("with space") / "data")
    done = Installation(installation.folder, variables={}).run("demo", "--start", DEMO_START, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    yield installation, json.loads(done.stdout)
    installation.run("down")


@pytest.fixture(scope="session")
def installation(demo: tuple[Installation, dict[str, Any]]) -> Installation:
    return demo[0]


@pytest.fixture(scope="session")
def chromium() -> str:
    """Debian's Chromium, installed when root runs the tests on a machine without it."""
    found = shutil.which("chromium")
    if found is None and os.geteuid() == 0:
        subprocess.run(["apt-get", "update", "-qq"], check=True, capture_output=True)
        subprocess.run(["apt-get", "install", "-y", "-qq", "chromium"], check=True, capture_output=True)
        found = shutil.which("chromium")
    assert found, "the UI tests need Debian's chromium: apt-get install chromium"
    return found
