"""`featurestore backfill`: a view over a range of sessions, previewed, in chunks, continued where a kill left it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import date
from typing import Annotated, Any

import typer

from featurestore_dagster.cli.operate import PathRange, PathRun, as_day, connected, no_session, run_paths, sessions_between
from featurestore_dagster.cli.output import AsJson, console, print_json, print_rows
from featurestore_dagster.errors import RefusedError
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.model.feature_view import FeatureView, Stream
from featurestore_dagster.model.time import Timeframe
from featurestore_dagster.pipeline.backfill import StreamBackfill, plan_backfill
from featurestore_dagster.pipeline.publication import Pipeline
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.postgres import Ledger, PostgresStore
from featurestore_dagster.stores.postgres.connection import connect
from featurestore_dagster.stores.postgres.measurements import Measurements

BACKFILL_TAG = ("featurestore/backfill", "true")


def backfill(
    view_name: Annotated[str, typer.Argument(metavar="VIEW", help="View, or version of one as name@version.")],
    start: Annotated[str, typer.Argument(metavar="START", help="First session, YYYY-MM-DD.")],
    end: Annotated[str, typer.Argument(metavar="END", help="Last session, YYYY-MM-DD; inclusive.")],
    stream_name: Annotated[str | None, typer.Option("--stream", help="Only this stream, for example us_equity_1d.")] = None,
    preview: Annotated[bool, typer.Option("--preview", help="Say what it would do, and do nothing.")] = False,
    as_json: bool = AsJson,
) -> None:
    """Bring a view up to date over the sessions from START to END, through Dagster; what is up to date is left alone.

    Each chunk is a run of its own. After a kill, the same command continues at the chunk. Exit code 1 when a chunk failed.

    Example: `featurestore backfill momentum_features 2016-01-04 2018-12-31 --preview`
    """
    settings = Settings()
    first, last = as_day(start), as_day(end)
    if first > last:
        raise typer.BadParameter(f"START {start} is after END {end}")
    view = CATALOGUE.view(view_name)
    streams = [stream for stream in view.streams if stream_name in (None, stream.name)]
    if not streams:
        raise typer.BadParameter(f"stream {stream_name!r} is not of {view.label}; allowed: {', '.join(s.name for s in view.streams)}")
    with connected(settings) as running:
        PostgresStore(running.postgres, running.make_clock()).apply(CATALOGUE)
        plans = list(plans_of(running, view, streams, first, last))
        if not plans:
            raise _nothing_to_plan(running, view, streams, first, last)
        if preview:
            print_preview(plans, as_json=as_json)
            return
        results = run_backfill(running, plans, quiet=as_json)
    if as_json:
        print_json([asdict(result) for result in results])
    elif not results:
        console.print(f"{view.label} is up to date from {start} to {end}: nothing to do")
    raise typer.Exit(0 if all(result.succeeded for result in results) else 1)


def plans_of(settings: Settings, view: FeatureView, streams: Sequence[Stream], first: date, last: date) -> Iterator[StreamBackfill]:
    """A plan for each of the streams that is fed and has a session in the range."""
    from featurestore_dagster.orchestration.jobs import paths

    catalogue = CATALOGUE.with_sources(settings.source_names)
    clock = settings.make_clock()
    pipeline = Pipeline(catalogue, PostgresStore(settings.postgres, clock), Ledger(settings.postgres), clock, _fetches_nothing)
    for stream in filter(catalogue.is_fed, streams):
        path = next(path for path in paths(catalogue) if (view, stream) in path.streams(catalogue))
        delivered = [d for d in path.datasets(catalogue) if any(d in source.datasets for source in catalogue.sources)]
        sessions = [day.isoformat() for day in sessions_between(settings, stream.calendar, first, last)]
        if sessions:
            yield plan_backfill(pipeline, Measurements(settings.postgres), view, stream, sessions, delivered)


def _nothing_to_plan(settings: Settings, view: FeatureView, streams: Sequence[Stream], first: date, last: date) -> RefusedError:
    """What to raise where there is no plan: no stream is fed, or none has a session in the range."""
    fed = [stream for stream in streams if CATALOGUE.with_sources(settings.source_names).is_fed(stream)]
    if fed:
        return no_session(settings, list(dict.fromkeys(stream.calendar for stream in fed)), first, last)
    sources = [source.name for source in CATALOGUE.sources if any(stream.inputs[0] in source.datasets for stream in streams)]
    return RefusedError(
        f"no source of {view.label}, {', '.join(stream.name for stream in streams)}, is switched on, only {settings.sources}; "
        f"allowed: {', '.join(sources)}; nothing was done: add one to FEATURESTORE_SOURCES"
    )


def run_backfill(
    settings: Settings, plans: Sequence[StreamBackfill], *, tags: Sequence[tuple[str, str]] = (), quiet: bool = False
) -> list[PathRun]:
    """Run every chunk, one after the other; stops at the first that fails. A second call waits for the first, and finds nothing to do."""
    results: list[PathRun] = []
    view = plans[0].view
    with _alone(settings, view.label, quiet=quiet):
        # What another process did while this one waited is done.
        first, last = (date.fromisoformat(key) for key in (plans[0].sessions[0], plans[0].sessions[-1]))
        for planned in list(plans_of(settings, view, [plan.stream for plan in plans], first, last)):
            ranges = [_range(planned, chunk, tags, with_mart=number == 0) for number, chunk in enumerate(planned.chunks)]
            for number, result in enumerate(run_paths(settings, ranges, quiet=quiet) if ranges else (), start=1):
                if result is None:
                    continue
                results.append(result)
                if not quiet:
                    console.print(
                        f"chunk {number} of {len(ranges)}: {result.rows_published:,} rows published in {result.sessions:,} sessions",
                        highlight=False,
                    )
                if not result.succeeded:
                    return results
    return results


def print_preview(plans: Sequence[StreamBackfill], *, as_json: bool) -> None:
    """What the plans would do."""
    rows = [preview_row(plan) for plan in plans]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        lines = [{"measure": name.replace("_", " "), "value": _text(value)} for name, value in row.items()]
        print_rows(f"Backfill of {row['view']}, {row['stream']}", lines)


def preview_row(plan: StreamBackfill) -> dict[str, Any]:
    """A plan as numbers and sentences."""
    view = plan.view
    return {
        "view": view.label,
        "stream": plan.stream.name,
        "sessions": len(plan.sessions),
        "partitions_to_compute": len(plan.stale),
        "chunks": len(plan.chunks),
        "rows": plan.rows,
        "seconds": plan.seconds,
        "postgres_bytes": plan.postgres_bytes,
        "redis_bytes": plan.redis_bytes,
        "inputs_to_fetch": [dataset.name for dataset in plan.unfetched],
        "dependents": list(plan.dependents),
        "slo_impact": _slo_impact(plan),
    }


def _slo_impact(plan: StreamBackfill) -> str:
    if plan.is_newest:
        return "it reaches the newest session: online values and watermarks may advance"
    if plan.unfetched:
        return "later sessions of the dependents are computed again where a fetched row changes them, online values with them"
    return "none: older sessions move no watermark and no online value"


def _text(value: Any) -> str:
    match value:
        case None:
            return "not measured yet"
        case float():
            return f"{value:,.1f}"
        case int():
            return f"{value:,}"
        case list():
            return ", ".join(value) or "none"
    return str(value)


def _range(plan: StreamBackfill, chunk: Sequence[str], tags: Sequence[tuple[str, str]], *, with_mart: bool) -> PathRange:
    from featurestore_dagster.orchestration import asset_keys

    view, stream = plan.view, plan.stream
    keys = [*(asset_keys.raw(dataset) for dataset in plan.unfetched), asset_keys.stream(view, stream)]
    keys += [asset_keys.online(view)] if view.online else []
    keys += [asset_keys.mart(view.mart)] if view.mart and with_mart else []
    cadence = stream.timeframe if stream.timeframe.duration < Timeframe.ONE_HOUR.duration else None
    assets = tuple(key.to_user_string() for key in keys)
    first, last = date.fromisoformat(chunk[0]), date.fromisoformat(chunk[-1])
    return PathRange(stream.calendar, first, last, cadence, assets, (BACKFILL_TAG, *tags))


@contextmanager
def _alone(settings: Settings, name: str, *, quiet: bool) -> Iterator[None]:
    """Wait for another backfill of the same view; the lock ends with the process that holds it."""
    key = f"backfill:{name}"
    with connect(settings.postgres, autocommit=True) as connection:
        taken = connection.execute("select pg_try_advisory_lock(hashtextextended(%s, 0))", [key]).fetchone()
        if taken != (True,):
            if not quiet:
                console.print(f"another backfill of {name} is running: waiting for it")
            connection.execute("select pg_advisory_lock(hashtextextended(%s, 0))", [key])
        yield


def _fetches_nothing(*_: object) -> Any:
    raise RefusedError("a plan fetches nothing")
