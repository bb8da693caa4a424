"""The process tree of `featurestore up`: embedded servers, code server, daemon and webserver, kept alive together and ended together.

What the processes do does not belong here, nor does any import of Dagster: everything runs as a subprocess of this Python.

Nothing of a tree outlives its supervisor. Ctrl-C, SIGTERM and SIGHUP end it in order. Should the supervisor be killed, a watchdog, which
waits at the other end of a pipe, does the same. Should both be killed, the next `up` or `down` does.
"""

from featurestore_dagster.supervisor.status import ProcessStatus, TreeStatus, down, status
from featurestore_dagster.supervisor.tree import prepare_dagster_home, up

__all__ = ["ProcessStatus", "TreeStatus", "down", "prepare_dagster_home", "status", "up"]
