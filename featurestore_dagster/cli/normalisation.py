"""Command fit-normalisation: statistics of a training range, frozen in a file. Using them belongs to the client."""

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from featurestore_dagster.cli.operate import connected
from featurestore_dagster.cli.output import console
from featurestore_dagster.settings import Settings

Day = Annotated[datetime, typer.Option(formats=["%Y-%m-%d"], help="Day, YYYY-MM-DD, at 00:00 UTC.")]


def fit_normalisation(
    service: Annotated[str, typer.Argument(help="A service that declares standardised features.")],
    start: Day,
    end: Day,
    symbol: Annotated[list[str] | None, typer.Option(help="Only this symbol; may be repeated.")] = None,
    output: Annotated[Path | None, typer.Option(help="File to write; without it, where the client looks.")] = None,
) -> None:
    """Fit means and standard deviations on the vectors known from START to END, and freeze them. An existing file is not overwritten.

    Example: `featurestore fit-normalisation observation_15d --start 2015-01-01 --end 2018-01-01 --symbol USDCOP`
    """
    from featurestore_dagster.serving.client import FeatureStoreClient

    with connected(Settings()) as settings:
        path = FeatureStoreClient(settings).fit_normalisation(
            service, start.replace(tzinfo=UTC), end.replace(tzinfo=UTC), symbols=symbol or (), path=output
        )
    console.print(f"{path} written, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}", highlight=False, soft_wrap=True)
