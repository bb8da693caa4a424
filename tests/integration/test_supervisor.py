"""The process tree of `featurestore up`, with the real Dagster: started, watched, hurt, killed and ended from outside."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from pydantic import SecretStr

from featurestore_dagster.errors import ConfigurationError, RefusedError, StoreUnavailableError
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.embedded import EmbeddedServices, processes, running_settings
from featurestore_dagster.supervisor import down, prepare_dagster_home, status, up
from featurestore_dagster.supervisor.probes import Webserver
from featurestore_dagster.supervisor.record import Record, tree_processes

PROJECT = Path(__file__).resolve().parents[2]
UP = """
import sys
from pathlib import Path
from featurestore_dagster.settings import Settings
from featurestore_dagster.supervisor import up
folder, port, module_name = sys.argv[1:]
sys.exit(up(Settings(data_folder=Path(folder), webserver_port=int(port)), module_name=module_name))
"""
TINY = "tests.integration.tiny_definitions"
READY_SECONDS = 180
LAUNCH = """mutation { launchRun(executionParams: {selector: {repositoryLocationName: "featurestore", repositoryName: "__repository__",
    jobName: "__ASSET_JOB"}}) { __typename } }"""


class Tree:
    """A `featurestore up` in a process of its own, with its output in a file."""

    def __init__(self, folder: Path, port: int = 0, module_name: str = TINY) -> None:
        self.settings = Settings(data_folder=folder)
        self.log = folder.parent / f"{folder.name}.log"
        # A shell that ignores SIGINT, as one does for a background job in a script: children must be stoppable nevertheless.
        command = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, "-c", UP, str(folder), str(port), module_name]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=PROJECT)

    def said(self, pattern: str) -> bool:
        return re.search(pattern, self.log.read_text()) is not None

    def await_said(self, pattern: str) -> None:
        processes.wait_until(lambda: self.said(pattern) or self.process.poll() is not None, READY_SECONDS)
        assert self.said(pattern), self.log.read_text()

    def members(self) -> list[psutil.Process]:
        """Everything that belongs to it: Dagster's processes, run workers, both servers, the watchdog."""
        record = Record.read(self.settings.data_folder)
        servers = [psutil.Process(server.process_id) for server in EmbeddedServices(self.settings).status() if server.process_id]
        supervisor = psutil.Process(self.process.pid)
        return [*tree_processes(record.token), *servers, supervisor, *supervisor.children()]


def heartbeats(tree: Tree) -> set[str]:
    """Names of what gave a heartbeat within the last two minutes, as the tree's exporter publishes it."""
    port = Record.read(tree.settings.data_folder).port("exporter")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    found = re.findall(r'^feature_store_(?:daemon|sensor)_heartbeat_timestamp_seconds\{\w+="(\w+)"\} (\S+)$', text, re.MULTILINE)
    return {name for name, instant in found if time.time() - float(instant) < 120}


def graphql(url: str, query: str) -> dict[str, dict[str, str]]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    connection.request("POST", "/graphql", json.dumps({"query": query}), {"Content-Type": "application/json"})
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return answer["data"]


def one_process(settings: Settings, *arguments: str) -> subprocess.Popen[bytes]:
    """What a container of docker-compose.yml runs."""
    command = [sys.executable, "-m", "featurestore_dagster.supervisor", *arguments]
    return subprocess.Popen(command, env=settings.child_environment(), cwd=PROJECT)


def process_id(tree: Tree, name: str) -> int | None:
    return next(process.process_id for process in status(tree.settings).processes if process.name == name)


def variables(tree: Tree, name: str) -> dict[str, str]:
    return psutil.Process(process_id(tree, name)).environ()


def all_gone(members: list[psutil.Process]) -> bool:
    return not any(processes.alive(process) for process in members)


@pytest.fixture
def folder(initialised: Path, tmp_path: Path) -> Iterator[Path]:
    """An initialised data folder with a space in its name; whatever runs of it ends after the test."""
    folder = tmp_path / "data folder"
    subprocess.run(["cp", "-a", str(initialised), str(folder)], check=True)
    yield folder
    down(Settings(data_folder=folder))


def test_life_of_a_tree(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        tree = Tree(folder, port=taken.getsockname()[1])
        tree.await_said("ready: http")
        assert tree.said(f"port {taken.getsockname()[1]} is taken")
    assert "\x1b" not in tree.log.read_text()
    port = Record.read(tree.settings.data_folder).port("webserver")
    assert {variables(tree, name)["FEATURESTORE_WEBSERVER_PORT"] for name in ("code-server", "daemon")} == {str(port)}

    # Ready, and honest about it.
    assert processes.wait_until(lambda: status(tree.settings).ready, 60), status(tree.settings)
    state = status(tree.settings)
    assert state.supervisor_process_id == tree.process.pid
    assert state.heartbeat_age_seconds is not None
    assert {process.name for process in state.processes} == {"postgres", "redis", "code-server", "daemon", "webserver", "exporter"}
    for name in ("code-server", "daemon", "webserver", "exporter"):
        ignored = int(re.search(r"SigIgn:\s*(\w+)", Path(f"/proc/{process_id(tree, name)}/status").read_text())[1], 16)
        assert not ignored & (1 << (signal.SIGINT - 1) | 1 << (signal.SIGTERM - 1)), f"{name} ignores signals"

    assert one_process(running_settings(tree.settings), "check", "daemon").wait(60) == 0

    # Its exporter sees the daemon and the sensor alive.
    assert processes.wait_until(lambda: {"SENSOR", "SCHEDULER", "ticking"} <= heartbeats(tree), READY_SECONDS), heartbeats(tree)

    # A second tree on the same folder is refused.
    with pytest.raises(RefusedError, match=str(tree.process.pid)):
        up(tree.settings)

    # Whatever dies comes back.
    daemon, postgres = process_id(tree, "daemon"), process_id(tree, "postgres")
    os.kill(daemon, signal.SIGKILL)
    os.kill(postgres, signal.SIGKILL)
    assert processes.wait_until(lambda: status(tree.settings).ready and daemon != process_id(tree, "daemon"), READY_SECONDS)
    assert process_id(tree, "postgres") != postgres
    assert tree.said("daemon ended with exit code -9")
    assert tree.said("an embedded server ended")

    # A run's worker belongs to the tree.
    before = len(tree.members())
    assert graphql(state.url, LAUNCH)["launchRun"]["__typename"] == "LaunchRunSuccess"
    assert processes.wait_until(lambda: len(tree.members()) > before, READY_SECONDS)

    # Killed, it takes everything along, and the next one starts.
    members = tree.members()
    tree.process.kill()
    tree.process.wait()
    assert processes.wait_until(lambda: all_gone(members), 30), [process for process in members if processes.alive(process)]
    again = Tree(folder)
    again.await_said("code-server .*Started")

    # Ended from another terminal.
    members = again.members()
    assert down(again.settings)
    assert again.process.wait(10) == 0
    assert all_gone(members)
    assert not down(again.settings)
    assert not any(process.process_id for process in status(again.settings).processes)


def test_ctrl_c_ends_everything_in_time(folder: Path) -> None:
    tree = Tree(folder)
    tree.await_said("code-server .*Started")
    members = tree.members()
    tree.process.send_signal(signal.SIGINT)
    assert tree.process.wait(10) == 0
    assert all_gone(members)
    assert tree.said("stopped")


def test_d15_the_next_one_clears_up_when_supervisor_and_watchdog_are_killed(folder: Path) -> None:
    tree = Tree(folder)
    tree.await_said("code-server .*Started")
    members = tree.members()
    watchdog = next(process for process in members if "watchdog" in " ".join(process.cmdline()))
    watchdog.kill()
    tree.process.kill()
    tree.process.wait()
    assert not all_gone(members)
    assert down(tree.settings)
    assert all_gone(members)


def test_definitions_that_do_not_load_end_it_with_the_reason(folder: Path) -> None:
    tree = Tree(folder, module_name="no_such_module")
    assert tree.process.wait(READY_SECONDS) == 1
    assert tree.said("code-server .*No module named 'no_such_module'")
    assert tree.said("the code-server does not start")
    assert not any(process.process_id for process in status(tree.settings).processes)


def test_containers_run_and_check_one_process_each(empty_database: Settings, tmp_path: Path) -> None:
    postgres = empty_database.postgres.model_copy(update={"dagster_database": empty_database.postgres.database})
    port = processes.free_port()
    settings = empty_database.model_copy(
        update={
            "services": "external",
            "data_folder": tmp_path,
            "dagster_home": tmp_path / "home",
            "webserver_port": port,
            "code_server_port": 1,
        }
    ).with_connections(postgres, empty_database.redis)
    webserver = one_process(settings, "run", "webserver", "--read-only")
    try:
        assert one_process(settings, "check", "code-server").wait(60) == 1
        assert processes.wait_until(lambda: Webserver("127.0.0.1", port).answers() or webserver.poll() is not None, READY_SECONDS)
        assert one_process(settings, "check", "webserver").wait(60) == 0
        assert one_process(settings, "check", "daemon").wait(60) == 1
        assert graphql(f"http://127.0.0.1:{port}", LAUNCH)["launchRun"]["__typename"] == "UnauthorizedError"
    finally:
        webserver.terminate()
        webserver.wait(30)


def test_external_servers_are_asked_before_anything_starts(session_settings: Settings, tmp_path: Path) -> None:
    external = session_settings.model_copy(update={"services": "external", "data_folder": tmp_path})
    wrong = external.with_connections(external.postgres.model_copy(update={"password": SecretStr("wrong")}), external.redis)
    with pytest.raises(StoreUnavailableError, match="password authentication failed"):
        up(wrong)
    unreachable = external.with_connections(external.postgres, external.redis.model_copy(update={"port": processes.free_port()}))
    with pytest.raises(StoreUnavailableError, match="REDIS_"):
        up(unreachable)
    assert [(process.name, process.ready) for process in status(unreachable).processes][:2] == [("postgres", True), ("redis", False)]


def test_a_foreign_dagster_yaml_is_left_alone(tmp_path: Path) -> None:
    settings = Settings(data_folder=tmp_path)
    home = prepare_dagster_home(settings)
    assert (home / "dagster.yaml").read_text() == (PROJECT / "dagster.yaml").read_text()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    prepare_dagster_home(settings)
    assert (home / "dagster.yaml").read_text() == "telemetry: {enabled: false}\n"


def test_a_data_folder_that_is_a_file_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="FEATURESTORE_DATA_FOLDER"):
        up(Settings(data_folder=tmp_path / "file"))
