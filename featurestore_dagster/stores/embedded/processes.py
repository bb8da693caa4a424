"""Processes and ports of this machine: who runs, starting a detached server, stopping it, free ports.

What a particular server needs does not belong here (see `postgres_server`, `redis_server`).
"""

import os
import pwd
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psutil  # type: ignore[import-untyped, unused-ignore]

from featurestore_dagster.errors import ConfigurationError, StoreUnavailableError

LOOPBACK = "127.0.0.1"
LAUNCHER = Path(__file__).with_name("launch.py")
UNPRIVILEGED_ACCOUNTS = ("postgres", "nobody", "daemon")
POLL_SECONDS = 0.01
ENDING_SECONDS = 5
"""Longest wait for a killed process to give back what it holds."""
CLEAN_ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C.UTF-8", "TZ": "UTC"}
"""What the servers see: no PG*, LD_* or anything else that would bend them."""


@dataclass(frozen=True)
class Account:
    """Whom a server runs as, when we are root: PostgreSQL refuses root, and Redis does not need it."""

    user_id: int
    group_id: int


def wheel_file(package: str, *candidates: str) -> Path:
    """First of `candidates` inside an installed package, found without importing it.

    Raises:
        ConfigurationError: The package or the file is not installed.
    """
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations if spec else None) or []:
        for candidate in candidates:
            if (path := Path(folder) / candidate).is_file():
                return path
    raise ConfigurationError(
        f"the embedded servers need {candidates[0]} of the package {package}, which is not installed; "
        "install `featurestore-dagster[embedded]`, or name your own servers in POSTGRES_HOST and REDIS_HOST"
    )


def account_for(folder: Path) -> Account | None:
    """None for a normal user; for root the owner of `folder` where that is a normal user, else a system account without rights."""
    if os.geteuid() != 0:
        return None
    if folder.exists() and (owner := folder.stat()).st_uid != 0:
        return Account(owner.st_uid, owner.st_gid)
    for name in UNPRIVILEGED_ACCOUNTS:
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(entry.pw_uid, entry.pw_gid)
    raise ConfigurationError(
        f"as root, the embedded servers run as one of the accounts {', '.join(UNPRIVILEGED_ACCOUNTS)}; none exists: "
        "run as a normal user, or name your own servers in POSTGRES_HOST and REDIS_HOST"
    )


def give_to(account: Account | None, *paths: Path) -> None:
    """Make `account` the owner of paths that we made for it; nothing to do for a normal user."""
    if account is not None:
        for path in paths:
            os.chown(path, account.user_id, account.group_id)


def _open_to_all(path: Path) -> bool:
    """Whether a stranger can reach and, for a file, read and execute `path`."""
    real = path.resolve()
    own = stat.S_IROTH | stat.S_IXOTH if real.is_file() else 0
    return real.stat().st_mode & own == own and all(parent.stat().st_mode & stat.S_IXOTH for parent in real.parents)


def _launch_prefix(account: Account | None, command: Sequence[str], folder: Path) -> list[str]:
    prefix = [sys.executable, "-I", "-S", str(LAUNCHER)]
    if account is not None:
        prefix += ["--user-id", str(account.user_id), "--group-id", str(account.group_id)]
        if not (_open_to_all(Path(command[0])) and _open_to_all(folder)):
            # Below /root, say, the account would not reach its own folder. Opening the parents to everybody is not ours to do, so the
            # server keeps root's right to pass them, and nothing else of root.
            prefix += ["--keep-file-access"]
    return prefix


def run(command: Sequence[str], *, account: Account | None, folder: Path, input_text: str = "", timeout_seconds: float = 60) -> str:
    """Run a server's tool to its end as `account` and return what it printed.

    Raises:
        StoreUnavailableError: It failed or took too long; the message ends with its last lines.
    """
    launched = [*_launch_prefix(account, command, folder), "--", *command]
    try:
        done = subprocess.run(
            launched, input=input_text, capture_output=True, text=True, timeout=timeout_seconds, env=CLEAN_ENVIRONMENT, check=True
        )
    except subprocess.SubprocessError as error:
        said = "".join(part for part in (getattr(error, "stdout", ""), getattr(error, "stderr", "")) if isinstance(part, str))
        raise StoreUnavailableError(f"{Path(command[0]).name} failed in {folder}: {said[-800:].strip() or error}") from error
    return done.stdout + done.stderr


def start_detached(command: Sequence[str], *, account: Account | None, folder: Path, log: Path, input_text: str = "") -> psutil.Process:
    """Start a server in its own session, so that it outlives us and no Ctrl-C reaches it; its output is appended to `log`.

    Raises:
        StoreUnavailableError: The program could not be started.
    """
    launched = [*_launch_prefix(account, command, folder), "--detach", str(log), "--", *command]
    reader, writer = os.pipe()
    try:
        os.write(writer, input_text.encode())  # well below the capacity of a pipe: the server reads it when it comes to it
        os.close(writer)
        starter = subprocess.run(
            launched,
            stdin=reader,
            capture_output=True,
            text=True,
            timeout=20,
            env=CLEAN_ENVIRONMENT,
            check=False,
        )
    finally:
        os.close(reader)
    if starter.returncode != 0:
        raise StoreUnavailableError(f"{Path(command[0]).name} could not be started: {starter.stderr[-800:].strip()}")
    try:
        return psutil.Process(int(starter.stdout))
    except psutil.NoSuchProcess:
        raise StoreUnavailableError(f"{Path(command[0]).name} ended at once: {tail(log)}") from None


def alive(process: psutil.Process) -> bool:
    """Running and not a zombie, which process 1 of a container may never collect.

    A killed process whose other threads have not ended is alive: its ports and files are held until the last of them has.
    """
    try:
        return bool(process.is_running() and (process.status() != psutil.STATUS_ZOMBIE or process.num_threads() > 1))
    except psutil.NoSuchProcess:
        return False


def process_with(pid: int, program: str) -> psutil.Process | None:
    """The live process of that number, unless the number now belongs to another program.

    One that was killed and is still ending (its memory is gone, its port may not be) is waited for, and is none.
    """
    try:
        process = psutil.Process(pid)
        if process.name() != program or not alive(process):
            return None
        if process.cmdline():
            return process
    except psutil.AccessDenied:
        return process  # another user's
    except psutil.ZombieProcess:
        pass
    except psutil.Error:
        return None
    wait_until(lambda: not alive(process), ENDING_SECONDS)
    return None


def named(program: str) -> list[psutil.Process]:
    """All live processes of that program, of any user."""
    return [process for process in psutil.process_iter(["name"]) if process.info["name"] == program and alive(process)]


def command_line(process: psutil.Process) -> list[str]:
    """Its arguments, empty when it ended. Not its working folder: root in a container may not read that of another account."""
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def wait_until(condition: Callable[[], bool], timeout_seconds: float) -> bool:
    """Poll until the condition holds; False when it did not in time."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def stop(process_signals: Mapping[psutil.Process, Iterable[signal.Signals]], patience_seconds: float = 5) -> None:
    """Send each process its next signal, all at once, wait, and go on to the next signal for those that stay; SIGKILL is last for all."""
    ladders = {process: [*signals, signal.SIGKILL] for process, signals in process_signals.items()}
    while remaining := [process for process in ladders if alive(process)]:
        for process in remaining:
            if not ladders[process]:
                raise StoreUnavailableError(f"process {process.pid} survives SIGKILL: is its disk gone?")
            try:
                process.send_signal(ladders[process].pop(0))
            except psutil.NoSuchProcess:
                continue
        wait_until(lambda: not any(alive(process) for process in remaining), patience_seconds)


def free_port(preferred: int = 0, host: str = LOOPBACK) -> int:
    """`preferred` when nobody listens there, else a free port that the system picks."""
    for port in (preferred, 0):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ConfigurationError(f"no port of {host} is free, or it is no address of this machine")


def tail(log: Path, lines: int = 8) -> str:
    """The last lines of a log, for an error message."""
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except OSError as error:
        return f"({error})"
