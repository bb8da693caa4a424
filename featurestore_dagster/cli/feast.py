"""`featurestore feast ...`: Feast's own command line on our stores."""

import subprocess
import sys
from pathlib import Path

import typer

from featurestore_dagster.cli.operate import connected
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.postgres import PostgresStore

FEATURE_REPO = Path(__file__).parent.parent.parent / "feature_repo"


def feast(context: typer.Context) -> None:
    """Feast's own commands on our registry and stores.

    Example: `featurestore feast apply`, `featurestore feast feature-views list`
    """
    with connected(Settings()) as settings:
        PostgresStore(settings.postgres, settings.make_clock()).apply(CATALOGUE)
        command = [sys.executable, "-m", "feast.cli.cli", "--chdir", str(FEATURE_REPO), *context.args]
        code = subprocess.run(command, env=settings.child_environment(), check=False).returncode
    raise typer.Exit(code)
