"""Starting a tree, keeping it alive and ending it in order. Asking from outside does not belong here (see `status`)."""

import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TextIO

from featurestore_dagster.errors import ConfigurationError, UnknownNameError
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.embedded import EmbeddedServices, processes
from featurestore_dagster.supervisor import probes, watchdog
from featurestore_dagster.supervisor.record import (
    EXPORTER,
    RECORD,
    STOP_SECONDS,
    SUPERVISOR,
    TOKEN_VARIABLE,
    Record,
    stop_orphans,
    tree_lock,
    tree_processes,
)

DEFINITIONS_MODULE = "featurestore_dagster.definitions"
PROJECT = Path(__file__).resolve().parents[2]
NAMES = ("code-server", "daemon", "webserver", EXPORTER)
COLOURS = {"code-server": 36, "daemon": 35, "webserver": 32, EXPORTER: 34, "featurestore": 33}
COLOUR_CODE = re.compile(r"\x1b\[[0-9;]*m")
"""Dagster colours its lines even when nobody sees colours."""
START_SECONDS = 120
POLL_SECONDS = 0.5
RESTARTS = 3
STEADY_SECONDS = 60
"""A process that lived this long has earned its restarts back."""


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
    with tree_lock(settings.data_folder):
        stop_orphans(settings.data_folder)
        return _Supervisor(settings, module_name, output or sys.stdout, read_only=read_only).run(on_stores_ready)


def command(
    settings: Settings, name: str, port: int | None, *, module_name: str = DEFINITIONS_MODULE, read_only: bool = False
) -> list[str]:
    """Program and arguments of one of the processes (`NAMES`); the daemon has no port."""
    workspace = ["-w", str(_project_file("workspace.yaml"))]
    match name:
        case "code-server":
            server = ["api", "grpc", "-h", settings.code_server_host, "-p", str(port), "-m", module_name]
            return [sys.executable, "-m", "featurestore_dagster.code_server", *server, "--use-python-environment-entry-point"]
        case "daemon":
            return [sys.executable, "-m", "dagster._daemon", "run", *workspace]
        case "webserver":
            restriction = ["--read-only"] if read_only else []
            return [sys.executable, "-m", "dagster_webserver", "-h", settings.webserver_host, "-p", str(port), *workspace, *restriction]
        case "exporter":
            return [sys.executable, "-m", "featurestore_dagster.cli", EXPORTER, "--port", str(port)]
        case _:
            raise UnknownNameError("process", name, NAMES)


@dataclass
class _Child:
    name: str
    process: subprocess.Popen[str]
    started: float
    pump: threading.Thread


class _Supervisor:
    def __init__(self, settings: Settings, module_name: str, output: TextIO, *, read_only: bool) -> None:
        self._settings = settings
        self._module_name = module_name
        self._output = output
        self._read_only = read_only
        self._colour = output.isatty()
        self._services = EmbeddedServices(settings) if settings.embedded else None
        self._record = Record(token=secrets.token_hex(16), webserver_host=settings.webserver_host)
        self._children: dict[str, _Child] = {}
        self._ports = {"webserver": settings.webserver_port, "code-server": settings.code_server_port, EXPORTER: settings.exporter_port}
        self._hosts = {"webserver": settings.webserver_host, "code-server": settings.code_server_host, EXPORTER: settings.exporter_host}
        self._failures: dict[str, int] = {}
        self._ending = threading.Event()
        self._printing = threading.Lock()

    def run(self, on_stores_ready: Callable[[Settings], None] | None) -> int:
        # Handlers of ours, not the inherited "ignored" of a background job: children get the default back at exec, and so can be ended.
        hang_up = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]  # nohup means what it says
        previous = {number: signal.signal(number, self._request_end) for number in (signal.SIGINT, signal.SIGTERM, *hang_up)}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, previous)
        self._record.add(SUPERVISOR, os.getpid())
        self._record.write(self._settings.data_folder)
        try:
            with self._watched():
                try:
                    return self._run(on_stores_ready)
                finally:
                    self._end()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _run(self, on_stores_ready: Callable[[Settings], None] | None) -> int:
        self._say("starting")
        self._start_stores()
        prepare_dagster_home(self._settings)
        if on_stores_ready:
            on_stores_ready(self._settings)
        self._choose_port("webserver")  # before any other starts: the code server's sensor links it
        if not all(self._start_and_await(name) for name in NAMES):
            return 0 if self._ending.is_set() else 1
        self._say(f"ready: {self._webserver().url} (Ctrl-C stops everything)")
        while not self._ending.wait(POLL_SECONDS):
            if not self._keep_alive():
                return 1
        return 0

    def _request_end(self, _number: int, _frame: object) -> None:
        self._ending.set()

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """A watchdog, in a session of its own, reads a pipe that ends with us; when all is well it hears a farewell first."""
        arguments = [str(self._settings.data_folder), str(self._settings.services), self._record.token]
        process = subprocess.Popen(
            [sys.executable, "-c", watchdog.PROGRAM, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        try:
            yield
        finally:
            with suppress(BrokenPipeError):
                process.communicate(watchdog.FAREWELL)

    def _start_stores(self) -> None:
        if self._services:
            self._settings = self._services.start()
            self._say(f"embedded servers ready after {self._services.started.seconds:.1f} s")
        else:
            for database in (self._settings.postgres.database, self._settings.postgres.dagster_database):
                probes.postgres_answers(self._settings, database)
            probes.redis_answers(self._settings)

    def _webserver(self) -> probes.Webserver:
        return probes.Webserver(self._settings.webserver_host, self._ports["webserver"])

    def _choose_port(self, name: str) -> int:
        wanted, port = self._ports[name], processes.free_port(self._ports[name], self._hosts[name])
        if wanted not in (0, port):
            self._say(f"port {wanted} is taken: the {name} listens on {port}")
            if name == "code-server":
                for client in ("daemon", "webserver"):
                    if client in self._children:
                        self._children[client].process.terminate()  # it comes back with the new port
        self._ports[name] = port
        return port

    def _start(self, name: str) -> None:
        port = self._choose_port(name) if name in self._ports else None
        ports = {
            "FEATURESTORE_WEBSERVER_PORT": str(self._ports["webserver"]),
            "FEATURESTORE_CODE_SERVER_PORT": str(self._ports["code-server"]),
        }
        environment = self._settings.child_environment() | ports | {TOKEN_VARIABLE: self._record.token, "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            command(self._settings, name, port, module_name=self._module_name, read_only=self._read_only),
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
        self._children[name] = _Child(name, process, time.monotonic(), pump)
        self._record.add(name, process.pid, port)
        self._record.write(self._settings.data_folder)

    def _pump(self, name: str, lines: IO[str]) -> None:
        with lines:
            for line in lines:
                self._say(line.rstrip("\n") if self._colour else COLOUR_CODE.sub("", line.rstrip("\n")), name)

    def _say(self, text: str, name: str = "featurestore") -> None:
        prefix = f"{name:<12} | "
        if self._colour:
            prefix = f"\x1b[{COLOURS[name]}m{prefix}\x1b[0m"
        with self._printing, suppress(OSError, ValueError):  # whoever read our output may be gone: that is no reason to end the tree
            self._output.write(f"{prefix}{text}\n")
            self._output.flush()

    def _start_and_await(self, name: str) -> bool:
        """Start a process and wait until it answers; False when it ends before, takes too long, or the end was requested."""
        self._start(name)
        child, deadline = self._children[name], time.monotonic() + START_SECONDS
        while not self._ending.wait(0.1):
            if child.process.poll() is not None:
                child.pump.join(timeout=2)
                self._say(f"the {name} does not start (exit code {child.process.returncode}); its last lines say why")
                return False
            if self._ready(name):
                return True
            if time.monotonic() > deadline:
                self._say(f"the {name} does not answer after {START_SECONDS} s")
                return False
        return False

    def _ready(self, name: str) -> bool:
        if name == "code-server":
            return probes.speaks_http2(self._settings.code_server_host, self._ports[name])
        if name == EXPORTER:
            return probes.answers_health(self._settings.exporter_host, self._ports[name])
        if name == "webserver":
            webserver = self._webserver()
            if not webserver.answers():
                return False
            for problem in webserver.location_problems():
                self._say(f"the definitions do not load: {problem}")
        return True  # the daemon says nothing by itself: `status` reads the age of its heartbeat

    def _keep_alive(self) -> bool:
        """Start again what ended; False when that is hopeless."""
        if self._services and not all(server.running for server in self._services.status()):
            self._say("an embedded server ended: starting it again")
            known, self._settings = self._settings, self._services.start()
            if (known.postgres, known.redis) != (self._settings.postgres, self._settings.redis):
                for child in self._children.values():
                    child.process.terminate()  # it comes back with the new connections
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
            if child.name != EXPORTER:
                return False
            del self._children[EXPORTER]  # who watches must not end what it watches; Prometheus tells that it is gone
            return True
        pause = 2.0 ** (failures - 1)
        self._say(f"the {child.name} ended with exit code {child.process.returncode}: starting it again in {pause:.0f} s")
        if self._ending.wait(pause):
            return True
        self._start(child.name)
        return True

    def _end(self) -> None:
        """First who launches runs, then who executes them, then the servers that both write to."""
        self._say("stopping")
        for names in (("daemon", "webserver", EXPORTER), ("code-server",)):
            chosen = [self._children[name].process for name in names if name in self._children]
            for process in chosen:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)
            processes.wait_until(partial(_all_ended, chosen), STOP_SECONDS)
        processes.stop({process: [] for process in tree_processes(self._record.token)})
        for child in self._children.values():
            child.process.wait()
            child.pump.join(timeout=2)
        if self._services:
            self._services.stop()
        (self._settings.data_folder / RECORD).unlink(missing_ok=True)
        self._say("stopped")


def _all_ended(children: list[subprocess.Popen[str]]) -> bool:
    return all(child.poll() is not None for child in children)


def _project_file(name: str) -> Path:
    path = PROJECT / name
    if not path.is_file():
        raise ConfigurationError(f"{path} is missing: `featurestore up` runs from a checkout, or from the image that the Dockerfile makes")
    return path
