"""The command that publishes metrics."""

import logging
from typing import Annotated

import typer

from featurestore_dagster.cli.output import console
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.settings import Settings


def exporter(
    host: Annotated[str | None, typer.Option(help="Address to listen on; FEATURESTORE_EXPORTER_HOST when not given.")] = None,
    port: Annotated[int | None, typer.Option(help="TCP port, 0 for a free one; FEATURESTORE_EXPORTER_PORT when not given.")] = None,
) -> None:
    """Publish metrics and heartbeats for Prometheus, until Ctrl-C, whether the stores run or not. Exit code 1 when it cannot start.

    Example: `featurestore exporter --port 8007`
    """
    from featurestore_dagster.monitoring.exporter import serve

    given = {"exporter_host": host, "exporter_port": port}
    settings = Settings.model_validate({name: value for name, value in given.items() if value is not None})
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    serve(settings, CATALOGUE.with_sources(settings.source_names), lambda line: console.print(line, highlight=False, soft_wrap=True))
