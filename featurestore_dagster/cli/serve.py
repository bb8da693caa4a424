"""The command that serves HTTP."""

from typing import Annotated

import typer

from featurestore_dagster.cli.operate import connected
from featurestore_dagster.cli.output import console
from featurestore_dagster.settings import Settings


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; FEATURESTORE_SERVE_HOST when not given.")] = None,
    port: Annotated[int | None, typer.Option(help="TCP port, 0 for a free one; FEATURESTORE_SERVE_PORT when not given.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that answer; FEATURESTORE_SERVE_WORKERS when not given.")] = None,
) -> None:
    """Answer online and historical reads over HTTP, in the foreground until Ctrl-C. Exit code 1 when it cannot start.

    Example: `featurestore serve --port 8006 --workers 2`
    """
    from featurestore_dagster.serving.http import supervisor

    given = {"serve_host": host, "serve_port": port, "serve_workers": workers}
    settings = Settings.model_validate({name: value for name, value in given.items() if value is not None})
    supervisor.refuse_open_door(settings)
    with connected(settings) as running:
        raise typer.Exit(supervisor.serve(running, lambda line: console.print(line, highlight=False, soft_wrap=True)))
