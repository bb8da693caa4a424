"""The other end of the supervisor's pipe: ends the tree when the supervisor was killed. `tree` starts it; nothing else belongs here."""

import sys
from contextlib import suppress
from pathlib import Path

from featurestore_dagster.errors import RefusedError
from featurestore_dagster.settings import Settings
from featurestore_dagster.supervisor.record import Record, stop_leftovers, tree_lock

FAREWELL = "done"
PROGRAM = f"""
import sys
if sys.stdin.read() != {FAREWELL!r}:
    from featurestore_dagster.supervisor.watchdog import clean_up
    clean_up()
"""
"""For `python -c`, with data folder, kind of services and token as arguments; our package is imported only when it is needed."""


def clean_up() -> None:
    """End the tree of the killed supervisor, unless a new one took over, which then has done so."""
    data_folder, services, token = sys.argv[1:]
    settings = Settings.model_validate({"data_folder": Path(data_folder), "services": services})
    with suppress(RefusedError), tree_lock(settings.data_folder):
        if Record.read(settings.data_folder).token == token:
            stop_leftovers(settings)
