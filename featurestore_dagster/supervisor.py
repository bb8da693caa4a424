"""The process tree of `featurestore up`: embedded servers, code server, daemon and webserver, kept alive together and ended together.

What the processes do does not belong here, nor does any import of Dagster: everything runs as a subprocess of this Python.

Nothing of a tree outlives its supervisor. Ctrl-C, SIGTERM and SIGHUP end it in order. Should the supervisor be killed, a watchdog, which waits at
the other end of a pipe, does the same. Should both be killed, the next `up` or `down` does: each process of a tree carries the tree's token in
its environment, which tells it from any other process for certain.
"""

import fcntl
import http.client
import itertools
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TextIO

import psutil  # type: ignore[import-untyped, unused-ignore]
import psycopg
import redis

from featurestore_dagster.errors import ConfigurationError, RefusedError, StoreUnavailableError
from featurestore_dagster.model.time import SystemClock
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.embedded import EmbeddedServices, processes

DEFINITIONS_MODULE = "featurestore_dagster.definitions"
PROJECT = Path(__file__).resolve().parent.parent
RECORD, LOCK = "supervisor.json", "supervisor.lock"
TOKEN_VARIABLE = "_FEATURESTORE_TREE"  # noqa: S105 - a name
NAMES = ("code-server", "daemon", "webserver")
COLOURS = {"code-server": 36, "daemon": 35, "webserver": 32, "featurestore": 33}
START_SECONDS = 120
STOP_SECONDS = 4
"""Patience with each of the two stages of an orderly end before SIGKILL."""
RESTARTS = 3
STEADY_SECONDS = 60
"""A process that lived this long has earned its restarts back."""
HEARTBEAT_SECONDS = 90
"""A daemon whose heartbeat is older is not ready; Dagster itself calls it healthy for half an hour."""
HEARTBEAT_QUERY = "{instance{daemonHealth{allDaemonStatuses{daemonType required lastHeartbeatTime}}}}"
LOCATION_QUERY = "{workspaceOrError{... on Workspace{locationEntries{name locationOrLoadError{__typename ... on PythonError{message}}}}}}"


@dataclass(frozen=True)
class ProcessStatus:
    """One process: `process_id` is None when it does not run or is not ours; `ready` when it answers."""

    name: str
    process_id: int | None
    port: int | None
    ready: bool


@dataclass(frozen=True)
class TreeStatus:
    """The tree as it is now.

    Attributes:
        supervisor_process_id: Process of `featurestore up`; None when none runs.
        url: Where the webserver is reached; None when it does not run.
        heartbeat_age_seconds: Age of the oldest heartbeat among the daemons that must run; None when unknown.
        processes: postgres, redis, code-server, daemon, webserver.
    """

    supervisor_process_id: int | None
    url: str | None
    heartbeat_age_seconds: float | None
    processes: tuple[ProcessStatus, ...]

    @property
    def ready(self) -> bool:
        """Whether every process is."""
        return all(process.ready for process in self.processes)


def prepare_dagster_home(settings: Settings) -> Path:
    """Make DAGSTER_HOME and put our `dagster.yaml` into it; a `dagster.yaml` that is not ours is left alone. Returns the folder."""
    ours = _project_file("dagster.yaml")
    target = settings.home / "dagster.yaml"
    try:
        settings.home.mkdir(parents=True, exist_ok=True)
        mark = ours.read_text().partition("\n")[0]
        if not target.exists() or target.read_text().startswith(mark):
            shutil.copyfile(ours, target)
    except OSError as error:
        raise ConfigurationError(f"DAGSTER_HOME={settings.home} cannot be written ({error.strerror}); name another folder") from error
    return settings.home


def up(
    settings: Settings,
    *,
    module_name: str = DEFINITIONS_MODULE,
    read_only: bool = False,
    on_stores_ready: Callable[[Settings], None] | None = None,
    output: TextIO | None = None,
) -> int:
    """Run the tree in the foreground until a signal ends it. Call it in the main thread.

    Args:
        settings: Embedded servers are started, external ones are only asked for an answer.
        module_name: Module that holds Dagster's definitions.
        read_only: The webserver refuses to launch, cancel or switch anything.
        on_stores_ready: Called with the connected settings before Dagster starts, for example to apply the schema.
        output: Where the prefixed log lines go; default: standard output.

    Returns:
        0 after an orderly end, 1 when a process could not be kept alive.

    Raises:
        RefusedError: A tree of this data folder runs already.
        ConfigurationError: A folder cannot be written.
        StoreUnavailableError: A server does not answer or does not start.
    """
    with _tree_lock(settings):
        _stop_leftovers(settings)
        return _Supervisor(settings, module_name, output or sys.stdout, read_only=read_only).run(on_stores_ready)


def down(settings: Settings) -> bool:
    """End the tree of this data folder from another terminal, and the embedded servers whoever started them; False when nothing ran."""
    record = _Record.read(settings)
    supervisor = record.supervisor()
    found = supervisor is not None
    if supervisor:
        processes.stop({supervisor: [signal.SIGTERM]}, patience_seconds=3 * STOP_SECONDS)
    if not settings.data_folder.exists():
        return False
    with _tree_lock(settings):
        return _stop_leftovers(settings) or found


def status(settings: Settings) -> TreeStatus:
    """What runs of this data folder's tree; nothing is started or changed."""
    record = _Record.read(settings)
    supervisor = record.supervisor()
    lines = _store_status(settings)
    webserver_ready, heartbeat = False, None
    if webserver := record.port("webserver"):
        webserver_ready = _server_info(record.webserver_host, webserver)
        heartbeat = _heartbeat_age(record.webserver_host, webserver)
    code_server = record.port("code-server")
    ready = {
        "code-server": code_server is not None and _speaks_http2(settings.code_server_host, code_server),
        "daemon": heartbeat is not None and heartbeat < HEARTBEAT_SECONDS,
        "webserver": webserver_ready,
    }
    for name in NAMES:
        process = record.process(name)
        lines.append(ProcessStatus(name, process and process.pid, record.port(name) if process else None, bool(process) and ready[name]))
    url = _url(record.webserver_host, webserver) if webserver and webserver_ready else None
    return TreeStatus(supervisor and supervisor.pid, url, heartbeat, tuple(lines))


@dataclass
class _Child:
    name: str
    process: subprocess.Popen[str]
    port: int | None
    started: float
    pump: threading.Thread


@dataclass
class _Record:
    """What other processes must know of a tree: `supervisor.json`, readable to its owner only."""

    token: str = ""
    webserver_host: str = ""
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, settings: Settings) -> "_Record":
        try:
            return cls(**json.loads((settings.data_folder / RECORD).read_text()))
        except (OSError, ValueError, TypeError):
            return cls()

    def write(self, settings: Settings) -> None:
        draft = settings.data_folder / f"{RECORD}.draft"
        draft.touch(mode=0o600)
        draft.write_text(json.dumps({"token": self.token, "webserver_host": self.webserver_host, "entries": self.entries}))
        draft.rename(settings.data_folder / RECORD)

    def add(self, name: str, process_id: int, port: int | None = None) -> None:
        with suppress(psutil.NoSuchProcess):
            self.entries[name] = {"process_id": process_id, "created": psutil.Process(process_id).create_time(), "port": port}

    def process(self, name: str) -> psutil.Process | None:
        """The recorded process, if it still lives: its number alone may have been given to another."""
        with suppress(KeyError, psutil.Error):
            process = psutil.Process(self.entries[name]["process_id"])
            if process.create_time() == self.entries[name]["created"] and processes.alive(process):
                return process
        return None

    def supervisor(self) -> psutil.Process | None:
        return self.process("supervisor")

    def port(self, name: str) -> int | None:
        return self.entries[name]["port"] if name in self.entries and self.process(name) else None


class _Supervisor:
    def __init__(self, settings: Settings, module_name: str, output: TextIO, *, read_only: bool) -> None:
        self._settings = settings
        self._module_name = module_name
        self._output = output
        self._read_only = read_only
        self._colour = output.isatty()
        self._services = EmbeddedServices(settings) if settings.embedded else None
        self._record = _Record(token=secrets.token_hex(16), webserver_host=settings.webserver_host)
        self._children: dict[str, _Child] = {}
        self._ports = {"webserver": settings.webserver_port, "code-server": settings.code_server_port}
        self._failures: dict[str, int] = {}
        self._ending = threading.Event()
        self._printing = threading.Lock()

    def run(self, on_stores_ready: Callable[[Settings], None] | None) -> int:
        # Handlers of ours, not the inherited "ignored" of a background job: children get the default back at exec, and so can be ended.
        previous = {number: signal.signal(number, self._request_end) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, previous)
        self._record.add("supervisor", os.getpid())
        self._record.write(self._settings)
        watchdog = self._start_watchdog()
        try:
            self._say("starting")
            self._start_stores()
            prepare_dagster_home(self._settings)
            if on_stores_ready:
                on_stores_ready(self._settings)
            if not all(self._start_and_await(name) for name in NAMES):
                return 0 if self._ending.is_set() else 1
            self._say(f"ready: {_url(self._settings.webserver_host, self._ports['webserver'])} (Ctrl-C stops everything)")
            while not self._ending.wait(0.5):
                if not self._keep_alive():
                    return 1
            return 0
        finally:
            self._end()
            if watchdog.stdin:
                with suppress(OSError):
                    watchdog.stdin.write("done")
                    watchdog.stdin.close()
            watchdog.wait()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _request_end(self, number: int, _frame: object) -> None:
        self._ending.set()

    def _start_watchdog(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", __name__, self._record.token]
        environment = os.environ | {Settings.variable("data_folder"): str(self._settings.data_folder)}
        return subprocess.Popen(  # noqa: S603 - our own list, no shell
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment, start_new_session=True
        )

    def _start_stores(self) -> None:
        if self._services:
            self._settings = self._services.start()
            self._say(f"embedded servers ready after {self._services.started.seconds:.1f} s")
        else:
            _check_external(self._settings)

    def _command(self, name: str, port: int | None) -> list[str]:
        workspace = ["-w", str(_project_file("workspace.yaml"))]
        if name == "daemon":
            return [sys.executable, "-m", "dagster._daemon", "run", *workspace]
        if name == "webserver":
            read_only = ["--read-only"] if self._read_only else []
            return [sys.executable, "-m", "dagster_webserver", "-h", self._settings.webserver_host, "-p", str(port), *workspace, *read_only]
        server = ["api", "grpc", "-h", self._settings.code_server_host, "-p", str(port), "-m", self._module_name]
        return [sys.executable, "-m", "dagster", *server, "--use-python-environment-entry-point", "--location-name", "featurestore"]

    def _start(self, name: str) -> None:
        port = None
        if name in self._ports:
            host = self._settings.webserver_host if name == "webserver" else self._settings.code_server_host
            wanted, port = self._ports[name], processes.free_port(self._ports[name], host)
            if wanted not in (0, port):
                self._say(f"port {wanted} is taken: the {name} listens on {port}")
            self._ports[name] = port
        ports = {
            "FEATURESTORE_WEBSERVER_PORT": str(self._ports["webserver"]),
            "FEATURESTORE_CODE_SERVER_PORT": str(self._ports["code-server"]),
        }
        environment = self._settings.child_environment() | ports | {TOKEN_VARIABLE: self._record.token, "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(  # noqa: S603 - our own list, no shell
            self._command(name, port),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
            process_group=0,  # a Ctrl-C of the terminal reaches the supervisor alone, which ends the others in order
        )
        assert process.stdout is not None  # noqa: S101 - for the type checker: stdout is a pipe
        pump = threading.Thread(target=self._pump, args=(name, process.stdout), daemon=True)
        pump.start()
        self._children[name] = _Child(name, process, port, time.monotonic(), pump)
        self._record.add(name, process.pid, port)
        self._record.write(self._settings)

    def _pump(self, name: str, lines: IO[str]) -> None:
        with lines:
            for line in lines:
                self._say(line.rstrip("\n"), name)

    def _say(self, text: str, name: str = "featurestore") -> None:
        prefix = f"{name:<12} | "
        if self._colour:
            prefix = f"\x1b[{COLOURS[name]}m{prefix}\x1b[0m"
        with self._printing, suppress(OSError, ValueError):  # whoever read our output may be gone: that is no reason to end the tree
            self._output.write(f"{prefix}{text}\n")
            self._output.flush()

    def _start_and_await(self, name: str) -> bool:
        """Start a process and wait until it answers; restart it when it dies meanwhile. False when it cannot be, or the end was requested."""
        self._start(name)
        deadline = time.monotonic() + START_SECONDS
        while not self._ending.is_set():
            child = self._children[name]
            if child.process.poll() is not None:
                if not self._restart(child):
                    return False
            elif self._ready(child):
                return True
            elif time.monotonic() > deadline:
                self._say(f"the {name} does not answer after {START_SECONDS} s")
                return False
            self._ending.wait(0.1)
        return False

    def _ready(self, child: _Child) -> bool:
        if child.name == "code-server":
            return _speaks_http2(self._settings.code_server_host, child.port or 0)
        if child.name == "webserver":
            host, port = self._settings.webserver_host, child.port or 0
            if not _server_info(host, port):
                return False
            for problem in _location_problems(host, port):
                self._say(f"the definitions do not load: {problem}")
            return True
        return True  # the daemon says nothing by itself: `status` reads the age of its heartbeat

    def _keep_alive(self) -> bool:
        if self._services and not all(server.running for server in self._services.status()):
            self._say("an embedded server ended: starting it again")
            connected = self._services.start()
            if (connected.postgres, connected.redis) != (self._settings.postgres, self._settings.redis):
                for child in self._children.values():
                    child.process.terminate()  # it restarts with the new connections
            self._settings = connected
        return all(self._restart(child) for child in list(self._children.values()) if child.process.poll() is not None)

    def _restart(self, child: _Child) -> bool:
        """Start a dead process again after a pause that doubles; False when it died too often, or the end was requested."""
        if time.monotonic() - child.started > STEADY_SECONDS:
            self._failures[child.name] = 0
        failures = self._failures[child.name] = self._failures.get(child.name, 0) + 1
        child.pump.join(timeout=2)
        if failures > RESTARTS:
            self._say(
                f"the {child.name} ended {failures} times (last exit code {child.process.returncode}): giving up; its last lines say why"
            )
            return False
        pause = 2.0 ** (failures - 1)
        self._say(f"the {child.name} ended with exit code {child.process.returncode}: starting it again in {pause:.0f} s")
        if self._ending.wait(pause):
            return True
        self._start(child.name)
        return True

    def _end(self) -> None:
        """First who launches runs, then who executes them, then the servers that both write to."""
        self._say("stopping")
        for names in (("daemon", "webserver"), ("code-server",)):
            chosen = [self._children[name].process for name in names if name in self._children]
            for process in chosen:
                _signal_group(process.pid, signal.SIGTERM)
            processes.wait_until(lambda waited=chosen: all(process.poll() is not None for process in waited), STOP_SECONDS)  # type: ignore[misc]
        processes.stop({process: [] for process in _tree_processes(self._record.token)})
        for child in self._children.values():
            child.process.wait()
            child.pump.join(timeout=2)
        if self._services:
            self._services.stop()
        (self._settings.data_folder / RECORD).unlink(missing_ok=True)
        self._say("stopped")


def _watch(settings: Settings, token: str) -> None:
    """The watchdog: when its input ends without a farewell, the supervisor was killed, and its tree is ended here."""
    if sys.stdin.read() == "done":
        return
    with _tree_lock(settings):
        if _Record.read(settings).token == token:
            _stop_leftovers(settings)


def _stop_leftovers(settings: Settings) -> bool:
    """End what is left of a tree whose supervisor is gone; needs the tree's lock. False when nothing was left."""
    token = _Record.read(settings).token
    orphans = _tree_processes(token) if token else []
    processes.stop({process: [signal.SIGTERM] for process in orphans}, patience_seconds=STOP_SECONDS)
    services = EmbeddedServices(settings) if settings.embedded else None
    serving = services is not None and any(server.running for server in services.status())
    if services and serving:
        services.stop()
    (settings.data_folder / RECORD).unlink(missing_ok=True)
    return bool(orphans or serving)


@contextmanager
def _tree_lock(settings: Settings) -> Iterator[None]:
    """One tree for a data folder. Waits for a watchdog that is ending the last one; a living supervisor is an error."""
    folder = settings.data_folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigurationError(
            f"the data folder {folder} cannot be written ({error.strerror}); name another one in FEATURESTORE_DATA_FOLDER"
        ) from error
    try:
        for attempt in itertools.count():
            with suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            supervisor = _Record.read(settings).supervisor()
            if supervisor or attempt > START_SECONDS:
                raise RefusedError(
                    f"`featurestore up` runs already for {folder} (process {supervisor and supervisor.pid}); `featurestore down` ends it"
                )
            time.sleep(1)
        yield
    finally:
        os.close(descriptor)


def _tree_processes(token: str) -> list[psutil.Process]:
    """All live processes of a tree, grandchildren too, whatever their group or parent."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(TOKEN_VARIABLE) == token and processes.alive(process):
                found.append(process)
    return found


def _signal_group(process_id: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process_id, number)


def _project_file(name: str) -> Path:
    path = PROJECT / name
    if not path.is_file():
        raise ConfigurationError(f"{path} is missing: `featurestore up` runs from a checkout, or from the image that the Dockerfile makes")
    return path


def _url(host: str, port: int) -> str:
    return f"http://{processes.LOOPBACK if host in ('0.0.0.0', '::') else host}:{port}"  # noqa: S104 - compared, not bound


def _request(host: str, port: int, method: str, path: str, body: str | None = None) -> Any:
    """JSON answer of the webserver; None when it does not give one."""
    connection = http.client.HTTPConnection(processes.LOOPBACK if host in ("0.0.0.0", "::") else host, port, timeout=10)  # noqa: S104
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        return json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()


def _server_info(host: str, port: int) -> bool:
    return _request(host, port, "GET", "/server_info") is not None


def _graphql(host: str, port: int, query: str) -> Any:
    return (_request(host, port, "POST", "/graphql", json.dumps({"query": query})) or {}).get("data") or {}


def _heartbeat_age(host: str, port: int) -> float | None:
    daemons = _graphql(host, port, HEARTBEAT_QUERY).get("instance", {}).get("daemonHealth", {}).get("allDaemonStatuses", [])
    beats = [daemon["lastHeartbeatTime"] for daemon in daemons if daemon["required"]]
    if not beats or None in beats:
        return None
    return max(0.0, SystemClock().now().timestamp() - min(beats))


def _location_problems(host: str, port: int) -> list[str]:
    entries = _graphql(host, port, LOCATION_QUERY).get("workspaceOrError", {}).get("locationEntries", [])
    loaded = [entry["locationOrLoadError"] or {} for entry in entries]
    return [error["message"] for error in loaded if error.get("__typename") == "PythonError"]


def _speaks_http2(host: str, port: int) -> bool:
    """Whether a gRPC server serves: it answers our empty SETTINGS frame with its own. It listens, silent, long before that."""
    preface, empty_settings, settings_type = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\0\0\0\x04\0\0\0\0\0", 4
    try:
        with socket.create_connection((host, port), timeout=1) as connection:
            connection.sendall(preface + empty_settings)
            frame_header = connection.recv(9)
    except OSError:
        return False
    return frame_header[3:4] == bytes([settings_type])


def _check_external(settings: Settings) -> None:
    for database in (settings.postgres.database, settings.postgres.dagster_database):
        try:
            psycopg.connect(settings.postgres.conninfo_for(database)).close()
        except psycopg.OperationalError as error:
            raise StoreUnavailableError(f"PostgreSQL, database {database} (see POSTGRES_*): {error}") from error
    if not _redis_answers(settings):
        raise StoreUnavailableError(f"Redis at {settings.redis.host}:{settings.redis.port} does not answer or refuses us (see REDIS_*)")


def _redis_answers(settings: Settings) -> bool:
    with redis.Redis.from_url(settings.redis.url, socket_timeout=5, socket_connect_timeout=5) as client:
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False


def _store_status(settings: Settings) -> list[ProcessStatus]:
    if settings.embedded:
        return [
            ProcessStatus(server.name, server.process_id, server.port, server.running) for server in EmbeddedServices(settings).status()
        ]
    try:
        psycopg.connect(settings.postgres.conninfo).close()
        postgres_ready = True
    except psycopg.OperationalError:
        postgres_ready = False
    return [
        ProcessStatus("postgres", None, settings.postgres.port, postgres_ready),
        ProcessStatus("redis", None, settings.redis.port, _redis_answers(settings)),
    ]


if __name__ == "__main__":
    _watch(Settings(), sys.argv[1])
