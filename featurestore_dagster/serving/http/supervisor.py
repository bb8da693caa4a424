"""The parent of the worker processes: listens, starts them, replaces one that crashed, and stops them all. It answers no request itself."""

import errno
import ipaddress
import json
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from featurestore_dagster.errors import ConfigurationError, StoreUnavailableError
from featurestore_dagster.settings import Settings

BACKLOG = 2048
START_SECONDS = 60.0
POLL_SECONDS = 0.1
CRASH_PAUSE_SECONDS = 1.0
WORKER = "featurestore_dagster.serving.http.worker"

Say = Callable[[str], None]


def serve(settings: Settings, say: Say) -> int:
    """Serve until SIGTERM or SIGINT, then drain.

    Args:
        settings: With connections that are known.
        say: Is told what happens, a line at a time.

    Returns:
        0 when all workers ended in order, 1 when one had to be killed.

    Raises:
        ConfigurationError: No key, although others than this machine can connect; or the address cannot be listened on.
        StoreUnavailableError: The workers did not start.
    """
    refuse_open_door(settings)
    with listening(settings) as listener, tempfile.TemporaryDirectory(prefix="featurestore-metrics-") as folder:
        workers = _Workers(settings, listener, Path(folder), say)
        with _signals(workers):
            workers.start()
            return workers.watch()


def refuse_open_door(settings: Settings) -> None:
    """Raise ConfigurationError when anybody on the network could read without a key, or the key is none that a header can carry."""
    key = settings.serve_api_key.get_secret_value()
    if key != key.strip():
        raise ConfigurationError("FEATURESTORE_SERVE_API_KEY begins or ends with a blank, which no header carries; set it without")
    if key or _is_loopback(settings.serve_host):
        return
    raise ConfigurationError(
        f"FEATURESTORE_SERVE_HOST={settings.serve_host} can be reached from other machines, and no key is set; "
        "set FEATURESTORE_SERVE_API_KEY, or listen on 127.0.0.1"
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextmanager
def listening(settings: Settings) -> Iterator[socket.socket]:
    """A socket that listens where the settings say, or ConfigurationError."""
    host, port = settings.serve_host, settings.serve_port
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind)
    except OSError as error:
        raise ConfigurationError(f"FEATURESTORE_SERVE_HOST={host} is no address: {error}") from None
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError as error:
            reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be listened on: {error.strerror}"
            raise ConfigurationError(f"{host} port {port} {reason}; stop what listens there, or set FEATURESTORE_SERVE_PORT") from None
        yield listener


class _Workers:
    def __init__(self, settings: Settings, listener: socket.socket, metrics_folder: Path, say: Say) -> None:
        self._settings = settings
        self._listener = listener
        self._folder = metrics_folder
        self._say = say
        self._processes: list[subprocess.Popen[str]] = []
        self._is_stopping = False

    def start(self) -> None:
        """Start all, and wait until they answer."""
        host, port = self._listener.getsockname()[:2]
        where = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        self._say(f"starting {self._settings.serve_workers} worker processes for {where}")
        self._processes = [self._started() for _ in range(self._settings.serve_workers)]
        deadline = time.monotonic() + START_SECONDS
        for process in self._processes:
            tier = self._ready(process, deadline)
            if self._is_stopping:
                return
            self._say(f"worker {process.pid} is ready; reads are answered by {tier or 'no store yet'}")
        self._say(f"serving on {where}; Ctrl-C to stop")

    def _started(self) -> subprocess.Popen[str]:
        descriptor = self._listener.fileno()
        environment = self._settings.child_environment() | {"PROMETHEUS_MULTIPROC_DIR": str(self._folder)}
        return subprocess.Popen(
            [sys.executable, "-m", WORKER, str(descriptor), str(self._folder)],
            stdin=subprocess.PIPE,  # its end tells a worker that we were killed
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            pass_fds=[descriptor],
            start_new_session=True,  # a Ctrl-C is for us; we tell the workers
        )

    def _ready(self, process: subprocess.Popen[str], deadline: float) -> str | None:
        """The tier that the worker's first line names."""
        output = process.stdout
        while not self._is_stopping and output is not None and time.monotonic() < deadline:
            if select.select([output], [], [], POLL_SECONDS)[0]:
                line = output.readline()
                if line:
                    tier: str | None = json.loads(line)["tier"]
                    return tier
                break
        if self._is_stopping:
            return None
        self._kill()
        raise StoreUnavailableError(f"worker {process.pid} did not start: exit code {process.returncode}; its own message stands above")

    def watch(self) -> int:
        """Replace workers that end without having been told to; return when all have ended."""
        while not self._is_stopping:
            for number, process in enumerate(self._processes):
                if process.poll() is not None:
                    self._forget(process)
                    self._say(f"worker {process.pid} ended with exit code {process.returncode}; starting another")
                    time.sleep(CRASH_PAUSE_SECONDS)
                    self._processes[number] = self._started()
            time.sleep(POLL_SECONDS)
        return self._stopped()

    def _stopped(self) -> int:
        self._say("stopping: requests that were begun are answered, new ones refused")
        patience_ends = time.monotonic() + 2 * self._settings.serve_deadline_seconds + 1
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            with process:
                try:
                    process.wait(max(patience_ends - time.monotonic(), 0))
                except subprocess.TimeoutExpired:
                    self._say(f"worker {process.pid} does not end; killed")
                    process.kill()
        self._say("stopped")
        in_order = {0, -signal.SIGTERM}  # the second: told to end before it had begun
        return 0 if all(process.returncode in in_order for process in self._processes) else 1

    def stop(self, *_: object) -> None:
        """A signal came: `watch` drains and returns; a second one passes Ctrl-C on, which ends the workers at once."""
        if self._is_stopping:
            for process in self._processes:
                process.send_signal(signal.SIGINT)
        self._is_stopping = True

    def _kill(self) -> None:
        for process in self._processes:
            with process:
                process.kill()

    def _forget(self, process: subprocess.Popen[str]) -> None:
        """A gauge of what is under way must not count a dead process; counters stay."""
        with process:
            pass  # closes our ends of its pipes
        for path in self._folder.glob(f"gauge_live*_{process.pid}.db"):
            path.unlink()


@contextmanager
def _signals(workers: _Workers) -> Iterator[None]:
    def handle(_number: int, _frame: FrameType | None) -> None:
        workers.stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
