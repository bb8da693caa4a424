"""What is known of a tree outside its supervisor: the record in the data folder, the lock, and ending what a killed supervisor left.

Starting processes does not belong here (see `tree`).
"""

import fcntl
import itertools
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil  # type: ignore[import-untyped, unused-ignore]

from featurestore_dagster.errors import ConfigurationError, RefusedError
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.embedded import EmbeddedServices, processes

RECORD, LOCK = "supervisor.json", "supervisor.lock"
SUPERVISOR, EXPORTER = "supervisor", "exporter"
TOKEN_VARIABLE = "_FEATURESTORE_TREE"  # noqa: S105 - a name; without the prefix of settings, which it is not
STOP_SECONDS = 4
"""Patience with each stage of an orderly end before SIGKILL."""
LOCK_SECONDS = 60
REUSE_SECONDS = 2
"""No process number is given to another process so soon."""


@dataclass
class Record:
    """The tree of a data folder, as its supervisor wrote it down; empty when none runs.

    Attributes:
        token: Carried in the environment of each process of the tree, which tells it from any other process for certain.
        webserver_host: Address that the webserver listens on.
        entries: Process id, creation time after the boot and port by name.
    """

    token: str = ""
    webserver_host: str = ""
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, data_folder: Path) -> Self:
        """The record of a data folder, empty when there is none or it is damaged."""
        try:
            return cls(**json.loads((data_folder / RECORD).read_text()))
        except (OSError, ValueError, TypeError):
            return cls()

    def write(self, data_folder: Path) -> None:
        """Replace the file in one step; only its owner may read it."""
        draft = data_folder / f"{RECORD}.draft"
        draft.touch(mode=0o600)
        draft.write_text(json.dumps(asdict(self)))
        draft.rename(data_folder / RECORD)

    def add(self, name: str, process_id: int, port: int | None = None) -> None:
        """Note a process; one that ended already is not noted."""
        with suppress(psutil.NoSuchProcess):
            created = _seconds_after_boot(psutil.Process(process_id))
            self.entries[name] = {"process_id": process_id, "seconds_after_boot": created, "port": port}

    def process(self, name: str) -> psutil.Process | None:
        """The noted process if it still lives: its number alone may have been given to another."""
        with suppress(KeyError, psutil.Error):
            process = psutil.Process(self.entries[name]["process_id"])
            is_same = abs(_seconds_after_boot(process) - self.entries[name]["seconds_after_boot"]) < REUSE_SECONDS
            if is_same and processes.alive(process):
                return process
        return None

    def port(self, name: str) -> int | None:
        """Port of a living process."""
        return self.entries[name]["port"] if self.process(name) else None


def _seconds_after_boot(process: psutil.Process) -> float:
    """When it was created; both terms move with the clock when that is set, and their difference does not."""
    return float(process.create_time() - psutil.boot_time())


def tree_processes(token: str) -> list[psutil.Process]:
    """All live processes of a tree, grandchildren too, whatever their group or parent."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(TOKEN_VARIABLE) == token and processes.alive(process):
                found.append(process)
    return found


def stop_orphans(data_folder: Path) -> bool:
    """End the processes of a tree whose supervisor is gone. Needs the lock. False when there were none."""
    token = Record.read(data_folder).token
    orphans = tree_processes(token) if token else []
    processes.stop({process: [signal.SIGTERM] for process in orphans}, patience_seconds=STOP_SECONDS)
    (data_folder / RECORD).unlink(missing_ok=True)
    return bool(orphans)


def stop_leftovers(settings: Settings) -> bool:
    """End what is left of a tree, then the embedded servers, whoever started them. Needs the lock. False when nothing was left."""
    found = stop_orphans(settings.data_folder)
    if settings.embedded:
        services = EmbeddedServices(settings)
        found |= any(server.running for server in services.status())
        services.stop()
    return found


@contextmanager
def tree_lock(data_folder: Path) -> Iterator[None]:
    """One tree for a data folder. Waits for a watchdog that is ending the last one.

    Raises:
        RefusedError: A supervisor is alive.
        ConfigurationError: The folder cannot be written.
    """
    try:
        data_folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(data_folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigurationError(
            f"the data folder {data_folder} cannot be written ({error.strerror}); name another one in FEATURESTORE_DATA_FOLDER"
        ) from error
    try:
        for attempt in itertools.count():
            with suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            supervisor = Record.read(data_folder).process(SUPERVISOR)
            if supervisor or attempt * 0.2 > LOCK_SECONDS:
                whose = f"process {supervisor.pid}" if supervisor else "its process is unknown"
                raise RefusedError(f"`featurestore up` runs already for {data_folder} ({whose}); `featurestore down` ends it")
            time.sleep(0.2)
        yield
    finally:
        os.close(descriptor)
