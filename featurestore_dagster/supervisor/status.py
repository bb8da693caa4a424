"""What runs of a tree, and ending it from another terminal. Running it does not belong here (see `tree`)."""

import signal
from contextlib import suppress
from dataclasses import dataclass

from featurestore_dagster.errors import StoreUnavailableError
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.embedded import EmbeddedServices, processes
from featurestore_dagster.supervisor import probes
from featurestore_dagster.supervisor.record import EXPORTER, STOP_SECONDS, SUPERVISOR, Record, stop_leftovers, tree_lock

HEARTBEAT_SECONDS = 90
"""A daemon whose heartbeat is older is not ready (it beats every 30 s); Dagster itself calls it healthy for half an hour."""


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
        url: Where the webserver is reached; None when it does not answer.
        heartbeat_age_seconds: Age of the oldest heartbeat among the daemons that must run; None when unknown.
        processes: postgres, redis, code-server, daemon, webserver, exporter.
    """

    supervisor_process_id: int | None
    url: str | None
    heartbeat_age_seconds: float | None
    processes: tuple[ProcessStatus, ...]

    @property
    def ready(self) -> bool:
        """Whether every process is."""
        return all(process.ready for process in self.processes)


def status(settings: Settings) -> TreeStatus:
    """What runs of this data folder's tree; nothing is started or changed."""
    record = Record.read(settings.data_folder)
    code_server_port, webserver_port, exporter_port = map(record.port, ("code-server", "webserver", EXPORTER))
    webserver = probes.Webserver(record.webserver_host, webserver_port) if webserver_port else None
    url = webserver.url if webserver and webserver.answers() else None
    heartbeat = webserver.heartbeat_age_seconds() if webserver and url else None
    ready = {
        "code-server": code_server_port is not None and probes.speaks_http2(settings.code_server_host, code_server_port),
        "daemon": heartbeat is not None and heartbeat < HEARTBEAT_SECONDS,
        "webserver": url is not None,
        EXPORTER: exporter_port is not None and probes.answers_health(settings.exporter_host, exporter_port),
    }
    lines = _stores(settings)
    for name, answers in ready.items():
        process = record.process(name)
        lines.append(ProcessStatus(name, process.pid if process else None, record.port(name), process is not None and answers))
    supervisor = record.process(SUPERVISOR)
    return TreeStatus(supervisor.pid if supervisor else None, url, heartbeat, tuple(lines))


def down(settings: Settings) -> bool:
    """End the tree of this data folder, and its embedded servers whoever started them; False when nothing ran."""
    if not settings.data_folder.exists():
        return False
    supervisor = Record.read(settings.data_folder).process(SUPERVISOR)
    if supervisor:
        processes.stop({supervisor: [signal.SIGTERM]}, patience_seconds=4 * STOP_SECONDS)
    with tree_lock(settings.data_folder):
        return stop_leftovers(settings) or supervisor is not None


def _stores(settings: Settings) -> list[ProcessStatus]:
    if settings.embedded:
        return [
            ProcessStatus(server.name, server.process_id, server.port, server.running) for server in EmbeddedServices(settings).status()
        ]
    postgres_ready = redis_ready = False
    with suppress(StoreUnavailableError):
        postgres_ready = probes.postgres_answers(settings, settings.postgres.database)
    with suppress(StoreUnavailableError):
        redis_ready = probes.redis_answers(settings)
    return [
        ProcessStatus("postgres", None, settings.postgres.port, postgres_ready),
        ProcessStatus("redis", None, settings.redis.port, redis_ready),
    ]
