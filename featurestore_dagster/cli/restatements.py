"""`featurestore restatements`: what changed, what it touched, how long it took; and the requests that wait for a person."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from featurestore_dagster.cli.backfill import plans_of, print_preview, run_backfill
from featurestore_dagster.cli.operate import as_day, connected
from featurestore_dagster.cli.output import AsJson, console, print_json, print_rows
from featurestore_dagster.errors import RefusedError
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.projections.relation import stream_relation
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.postgres.restatements import DONE, FAILED, REQUESTED, WAITING, Restatement, Restatements

app = typer.Typer(help="Corrections of published rows, and what follows them.", invoke_without_command=True)

NAMES_SHOWN = 3


@app.callback()
def restatements(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Newest corrections and requests to show.")] = 20,
    as_json: bool = AsJson,
) -> None:
    """What changed, what it touched, how long it took, and which requests wait for `featurestore restatements apply`.

    Example: `featurestore restatements --json`
    """
    context.default_map = {"apply": {"as_json": as_json}}
    if context.invoked_subcommand is not None:
        return
    with connected(Settings()) as settings:
        store = Restatements(settings.postgres)
        changes, requests = store.changes(limit), store.requests(limit=limit)
    if as_json:
        print_json({"changes": changes, "requests": [{**vars(r), "seconds": _seconds(r)} for r in requests]})
        return
    print_rows("Changes", [_change(number, change) for number, change in enumerate(changes, 1)], empty="no published row was ever replaced")
    for number, change in enumerate(changes, 1):
        touched = (f"{name}: {t['partitions']} partitions, {t['rows']} rows" for name, t in change["touched"].items())
        _tell(f"{number}: of {_few(change['keys'])}; touched {'; '.join(touched) or 'nothing yet'}")
    print_rows("Requests", [_request(request) for request in requests], empty="none")
    for request in requests:
        _tell(f"{request.restatement_id}: of {_few(request.relations)}; because of {_few(list(request.causes))}")
        if request.status == WAITING:
            console.print(
                f"{request.restatement_id} waits: {request.partitions:,} sessions; preview it with `featurestore restatements apply"
                f" {request.restatement_id} --preview`",
                highlight=False,
            )


@app.command()
def apply(
    restatement_id: Annotated[int, typer.Argument(metavar="ID", help="Id of a waiting or failed request.")],
    preview: Annotated[bool, typer.Option("--preview", help="Say what it would do, and do nothing.")] = False,
    as_json: bool = AsJson,
) -> None:
    """Compute what a waiting request is about, as backfills of its views; after a kill, the same command continues.

    Example: `featurestore restatements apply 12 --preview`
    """
    with connected(Settings()) as settings:
        store = Restatements(settings.postgres)
        request = store.request(restatement_id)
        if request.status in (DONE, REQUESTED):
            raise RefusedError(f"restatement {restatement_id} is {request.status}; allowed: {WAITING} and {FAILED} ones")
        plans = [
            list(plans_of(settings, view, [stream], as_day(request.first_partition), as_day(request.last_partition)))
            for view, stream in _streams(request)
        ]
        if preview:
            print_preview([plan for found in plans for plan in found], as_json=as_json)
            return
        results = [result for found in plans if found for result in run_backfill(settings, found, quiet=as_json)]
        succeeded = all(result.succeeded for result in results)
        store.finish(restatement_id, DONE if succeeded else FAILED, results[-1].run_id if results else "", settings.make_clock().now())
        finished = store.request(restatement_id)
    if as_json:
        print_json({**vars(finished), "rows_published": sum(result.rows_published for result in results)})
    else:
        console.print(f"restatement {restatement_id} is {finished.status}")
    raise typer.Exit(0 if succeeded else 1)


def _streams(request: Restatement) -> list[Any]:
    """(view, stream) pairs of a request, a view that joins others last."""
    pairs = [(v, s) for v in CATALOGUE.views for s in v.streams if stream_relation(v, s).name in request.relations]
    return sorted(pairs, key=lambda pair: bool(pair[0].members))


def _seconds(request: Restatement) -> float | None:
    return (request.finished_at - request.changed_at).total_seconds() if request.finished_at else None


def _tell(line: str) -> None:
    """A line below a table: lists of names would tear its columns."""
    console.print(f"  {line}", highlight=False, soft_wrap=True, markup=False)


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def _change(number: int, change: dict[str, Any]) -> dict[str, Any]:
    return {
        "": number,
        "published_at": f"{change['published_at']:%Y-%m-%d %H:%M:%SZ}",
        "relation": change["relation"],
        "partitions": f"{change['first_partition']} to {change['last_partition']}",
        "rows": change["rows"],
        "seconds": change["seconds"],
    }


def _request(request: Restatement) -> dict[str, Any]:
    return {
        "id": request.restatement_id,
        "status": request.status,
        "job": request.job,
        "partitions": f"{request.first_partition} to {request.last_partition}",
        "sessions": request.partitions,
        "seconds": _seconds(request),
    }
