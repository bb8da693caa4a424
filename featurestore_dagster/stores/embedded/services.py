"""Both embedded servers as one: started once however many ask, recorded in `services.json` for other processes, stopped by who owns them.

How a server is made and started does not belong here (`postgres_server`, `redis_server`).
"""

import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import SecretStr

from featurestore_dagster.errors import ConfigurationError, StoreUnavailableError
from featurestore_dagster.settings import PostgresSettings, RedisSettings, Settings
from featurestore_dagster.stores.embedded import postgres_server, redis_server

logger = logging.getLogger(__name__)

RECORD = "services.json"


@dataclass(frozen=True)
class Started:
    """What one call of `start` did: whether it started each server (False: it ran already), and the seconds it took."""

    postgres: bool
    redis: bool
    seconds: float


@dataclass(frozen=True)
class ServiceStatus:
    """One embedded server: process id and port are None when it does not run."""

    name: str
    process_id: int | None
    port: int | None
    folder: Path
    log: Path

    @property
    def running(self) -> bool:
        """Whether the server's process lives."""
        return self.process_id is not None


class EmbeddedServices:
    """The two servers of one data folder.

    As a context manager it starts them and, at the end, stops those that it started. After `start` alone they go on running when this
    process ends, until `stop` here or in any other process.

    Args:
        settings: Names the data folder.

    Raises:
        ConfigurationError: The settings name external servers.
    """

    def __init__(self, settings: Settings) -> None:
        """Remember where the servers live; starts nothing."""
        if not settings.embedded:
            raise ConfigurationError(
                "the settings name external servers (FEATURESTORE_SERVICES=external); those are not ours to start or stop"
            )
        self._settings = settings
        folder = settings.data_folder
        self._postgres_folder, self._redis_folder = folder / "postgres", folder / "redis"
        self._postgres_log, self._redis_log = folder / "postgres.log", folder / "redis.log"
        self.started = Started(postgres=False, redis=False, seconds=0.0)

    def start(self) -> Settings:
        """Start what does not run yet and return settings that know the connections.

        Raises:
            ConfigurationError: The data folder cannot be written, or the wheels are not installed.
            StoreUnavailableError: A server does not start; the message ends with its log.
        """
        begun = time.monotonic()
        with self._locked():
            recorded = _Record.read(self._settings.data_folder)
            redis, redis_started = redis_server.start(self._redis_folder, self._redis_log, recorded.redis)
            postgres, postgres_started = postgres_server.start(self._postgres_folder, self._postgres_log, recorded.postgres)
            _Record(postgres, redis).write(self._settings.data_folder)
        self.started = Started(postgres_started, redis_started, time.monotonic() - begun)
        for name, port, started in (("PostgreSQL", postgres.port, postgres_started), ("Redis", redis.port, redis_started)):
            logger.info("%s %s on port %d", name, "started" if started else "was running", port)
        logger.info("embedded servers ready after %.2f s", self.started.seconds)
        return self._settings.with_connections(postgres, redis)

    def stop(self) -> None:
        """Stop both servers, cleanly where they let us; no-op for one that does not run."""
        if self._settings.data_folder.exists():
            with self._locked():
                self._stop(postgres=True, redis=True)

    def status(self) -> list[ServiceStatus]:
        """PostgreSQL, then Redis, as they are now."""
        recorded = _Record.read(self._settings.data_folder)
        found = (
            ("postgres", postgres_server.running(self._postgres_folder), recorded.postgres, self._postgres_folder, self._postgres_log),
            ("redis", redis_server.running(self._redis_folder), recorded.redis, self._redis_folder, self._redis_log),
        )
        return [
            ServiceStatus(name, process.pid if process else None, connection.port if process and connection else None, folder, log)
            for name, process, connection, folder, log in found
        ]

    def __enter__(self) -> Settings:
        """Start; the value is the settings with connections."""
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop the servers that this object started."""
        with self._locked():
            self._stop(postgres=self.started.postgres, redis=self.started.redis)

    def _stop(self, *, postgres: bool, redis: bool) -> None:
        if redis:
            redis_server.stop(self._redis_folder)
        if postgres:
            postgres_server.stop(self._postgres_folder)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One start or stop at a time for a data folder, among all processes of the machine."""
        folder = self._settings.data_folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder / "services.lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ConfigurationError(
                f"the data folder {folder} cannot be written ({error.strerror}); name another one in FEATURESTORE_DATA_FOLDER"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        except OSError as error:
            raise ConfigurationError(f"the embedded servers cannot use the data folder {folder}: {error}") from error
        finally:
            os.close(descriptor)


def running_settings(settings: Settings) -> Settings:
    """The settings with the connections of the running embedded servers filled in; settings that have connections come back unchanged.

    Raises:
        ConfigurationError: `services.json` belongs to another user.
        StoreUnavailableError: The embedded servers do not run; the message says how to start them.
    """
    if settings.postgres_connection and settings.redis_connection:
        return settings
    recorded = _Record.read(settings.data_folder)
    missing = [status.name for status in EmbeddedServices(settings).status() if not status.running]
    if missing or recorded.postgres is None or recorded.redis is None:
        raise StoreUnavailableError(
            f"the embedded servers of {settings.data_folder} do not run ({', '.join(missing) or 'no record of them'}); "
            "start them with `featurestore up` (or `make demo`), or name your own in POSTGRES_HOST and REDIS_HOST"
        )
    return settings.with_connections(recorded.postgres, recorded.redis)


def last_known_settings(settings: Settings) -> Settings:
    """As `running_settings`, whether the servers run or not: for who must notice that one of them does not.

    Raises:
        ConfigurationError: `services.json` belongs to another user.
        StoreUnavailableError: The embedded servers never ran.
    """
    if settings.postgres_connection and settings.redis_connection:
        return settings
    recorded = _Record.read(settings.data_folder)
    if recorded.postgres is None or recorded.redis is None:
        raise StoreUnavailableError(f"no embedded server of {settings.data_folder} ever ran; `featurestore up` starts them")
    return settings.with_connections(recorded.postgres, recorded.redis)


@dataclass(frozen=True)
class _Record:
    """Connections of the last start, kept across stops so that ports and passwords stay; None where unknown."""

    postgres: PostgresSettings | None
    redis: RedisSettings | None

    @classmethod
    def read(cls, data_folder: Path) -> Self:
        path = data_folder / RECORD
        try:
            entries = json.loads(path.read_text())
            return cls(PostgresSettings(**entries["postgres"]), RedisSettings(**entries["redis"]))
        except PermissionError as error:
            raise ConfigurationError(f"{path} belongs to another user; name another folder in FEATURESTORE_DATA_FOLDER") from error
        except (OSError, ValueError, KeyError, TypeError, ConfigurationError):
            return cls(None, None)  # missing or damaged: the start that follows sets new passwords and writes it again

    def write(self, data_folder: Path) -> None:
        entries = {name: _plain(part) for name, part in (("postgres", self.postgres), ("redis", self.redis)) if part is not None}
        draft = data_folder / f"{RECORD}.draft"
        draft.unlink(missing_ok=True)
        draft.touch(mode=0o600)
        draft.write_text(json.dumps(entries, indent=2))
        draft.rename(data_folder / RECORD)


def _plain(part: PostgresSettings | RedisSettings) -> dict[str, Any]:
    return {name: value.get_secret_value() if isinstance(value, SecretStr) else value for name, value in part}
