"""The embedded servers after an unclean end: whatever was left behind, the next start works and no committed row is lost."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from featurestore_dagster.errors import ConfigurationError, StoreUnavailableError
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.embedded import EmbeddedServices, processes
from tests.integration.embedded.test_services import START


def folder_of(services: EmbeddedServices) -> Path:
    return services.status()[0].folder.parent


def process_id(services: EmbeddedServices, name: str) -> int:
    return next(status.process_id for status in services.status() if status.name == name)


@pytest.fixture
def running(embedded: EmbeddedServices) -> Iterator[Settings]:
    """Started servers with one committed row."""
    settings = embedded.start()
    with psycopg.connect(settings.postgres.conninfo) as connection:
        connection.execute("create table kept as select 42 as answer")
    return settings


def assert_usable(settings: Settings) -> None:
    with psycopg.connect(settings.postgres.conninfo) as connection:
        assert connection.execute("select answer from kept").fetchone() == (42,)
    with redis.Redis.from_url(settings.redis.url) as client:
        assert client.set("key", "value")


def test_killed_servers_start_again_with_every_committed_row(embedded: EmbeddedServices, running: Settings) -> None:
    for status in embedded.status():
        os.kill(status.process_id, signal.SIGKILL)

    again = embedded.start()

    assert embedded.started.postgres
    assert embedded.started.redis
    assert (again.postgres, again.redis) == (running.postgres, running.redis)
    assert_usable(again)


def test_a_backend_that_outlives_its_killed_server_does_not_block_the_start(embedded: EmbeddedServices, running: Settings) -> None:
    busy = psycopg.connect(running.postgres.conninfo)
    backend = psutil.Process(busy.info.backend_pid)

    def count_for_ever() -> None:
        with suppress(psycopg.OperationalError), busy:
            busy.execute("select count(*) from generate_series(1, 1000000000000)")

    thread = threading.Thread(target=count_for_ever)
    thread.start()
    assert processes.wait_until(lambda: backend.cpu_times().user > 0.1, 20)
    os.kill(process_id(embedded, "postgres"), signal.SIGKILL)
    assert processes.alive(backend)

    again = embedded.start()

    thread.join(10)
    assert not processes.alive(backend)
    assert_usable(again)


def test_ports_taken_meanwhile_are_replaced(embedded: EmbeddedServices, running: Settings) -> None:
    embedded.stop()
    with socket.create_server(("127.0.0.1", running.postgres.port)), socket.create_server(("127.0.0.1", running.redis.port)):
        again = embedded.start()
    assert again.postgres.port != running.postgres.port
    assert again.redis.port != running.redis.port
    assert_usable(again)


def test_pid_files_that_name_a_stranger_are_not_believed(embedded: EmbeddedServices, running: Settings) -> None:
    embedded.stop()
    folder = folder_of(embedded)
    stranger = subprocess.Popen(["sleep", "600"])
    try:
        (folder / "postgres" / "postmaster.pid").write_text(
            f"{stranger.pid}\n{folder / 'postgres'}\n1\n{running.postgres.port}\n\n\n\nready\n"
        )
        (folder / "redis" / "redis.pid").write_text(str(stranger.pid))
        assert not any(status.running for status in embedded.status())
        embedded.stop()
        assert_usable(embedded.start())
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize("damage", ["missing", "half-written", "another form"])
@pytest.mark.parametrize("stopped", [True, False])
def test_a_lost_record_costs_a_new_password_and_nothing_else(
    embedded: EmbeddedServices, running: Settings, damage: str, stopped: bool
) -> None:
    record = folder_of(embedded) / "services.json"
    if stopped:
        embedded.stop()
    record.unlink()
    if damage != "missing":
        record.write_text(
            '{"postgres": {"ho' if damage == "half-written" else json.dumps({"postgres": {"host": 1, "prot": 2}, "redis": {}})
        )

    again = embedded.start()

    assert again.postgres.password != running.postgres.password
    assert_usable(again)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(running.postgres.model_copy(update={"port": again.postgres.port}).conninfo)


@pytest.mark.parametrize("alone", [True, False])
def test_a_first_start_that_is_killed_is_begun_anew(
    tmp_path: Path, make_services: Callable[[Path], EmbeddedServices], *, alone: bool
) -> None:
    folder = tmp_path / "data"
    starter = subprocess.Popen([sys.executable, "-c", START, str(folder)], stdout=subprocess.DEVNULL)
    drafts = lambda: list(folder.glob("postgres.init-*/global"))  # noqa: E731
    assert processes.wait_until(lambda: bool(drafts()) or starter.poll() is not None, 60)
    for process in [] if alone else psutil.Process(starter.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    starter.kill()
    starter.wait()
    assert not (folder / "postgres").exists()

    settings = make_services(folder).start()

    assert not drafts()
    with psycopg.connect(settings.postgres.conninfo) as connection:
        assert connection.execute("select 1").fetchone() == (1,)


def test_a_cluster_of_another_version_is_refused_untouched(embedded: EmbeddedServices) -> None:
    version = folder_of(embedded) / "postgres" / "PG_VERSION"
    version.write_text("12\n")
    with pytest.raises(ConfigurationError, match="made by PostgreSQL 12"):
        embedded.start()
    version.write_text("18\n")
    embedded.start()


def test_a_damaged_cluster_says_why_it_does_not_start(embedded: EmbeddedServices) -> None:
    shutil.rmtree(folder_of(embedded) / "postgres" / "global")
    with pytest.raises(StoreUnavailableError, match=r"log .*postgres\.log ends with") as caught:
        embedded.start()
    assert "pg_control" in str(caught.value) or "global" in str(caught.value)
