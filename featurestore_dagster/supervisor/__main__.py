"""One process of a tree alone in the foreground, for containers, which have a supervisor of their own: `run NAME` and `check NAME`.

Example: python -m featurestore_dagster.supervisor run webserver --read-only
"""

import argparse
import os
import sys

from featurestore_dagster.errors import FeatureStoreError
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.embedded import running_settings
from featurestore_dagster.supervisor import probes
from featurestore_dagster.supervisor.record import EXPORTER
from featurestore_dagster.supervisor.status import HEARTBEAT_SECONDS
from featurestore_dagster.supervisor.tree import NAMES, command, prepare_dagster_home


def main() -> int:
    """Become the process, or return 0 when it answers and 1 when it does not."""
    parser = argparse.ArgumentParser(prog="python -m featurestore_dagster.supervisor", description=__doc__)
    parser.add_argument("action", choices=("run", "check"))
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--read-only", action="store_true", help="the webserver refuses every change")
    arguments = parser.parse_args()
    try:
        return _perform(arguments.action, arguments.name, read_only=arguments.read_only)
    except FeatureStoreError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1


def _perform(action: str, name: str, *, read_only: bool) -> int:
    settings = Settings()
    if action == "check" and name != "daemon":
        return 0 if _answers(settings, name) else 1
    settings = running_settings(settings)
    environment = settings.child_environment()
    if action == "check":
        environment["DAGSTER_DAEMON_HEARTBEAT_TOLERANCE"] = str(HEARTBEAT_SECONDS)
        program = [sys.executable, "-m", "dagster._daemon", "liveness-check"]
    else:
        prepare_dagster_home(settings)
        port = {"code-server": settings.code_server_port, EXPORTER: settings.exporter_port}.get(name, settings.webserver_port)
        program = command(settings, name, port, read_only=read_only)
    return os.execve(program[0], program, environment)  # noqa: S606 - no shell is the point


def _answers(settings: Settings, name: str) -> bool:
    if name == "code-server":
        return probes.speaks_http2(settings.code_server_host, settings.code_server_port)
    if name == EXPORTER:
        return probes.answers_health(settings.exporter_host, settings.exporter_port)
    return probes.Webserver(settings.webserver_host, settings.webserver_port).answers()


if __name__ == "__main__":
    sys.exit(main())
