"""The `featurestore` command: parses, calls, prints. No rule of the platform is decided here.

Exit codes: 0 done, 1 failed or refused, 2 wrong usage.
"""

import logging
import sys

from featurestore_dagster.cli.app import app
from featurestore_dagster.cli.output import errors
from featurestore_dagster.errors import FeatureStoreError


def main() -> None:
    """Entry point: deliberate errors become one line and exit code 1."""
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)  # what it warns of is in the error, or in the answer's tier
    try:
        app()
    except FeatureStoreError as error:
        errors.print(f"[bold red]{type(error).__name__}[/]: ", end="")
        errors.print(str(error), markup=False, highlight=False)
        sys.exit(1)
