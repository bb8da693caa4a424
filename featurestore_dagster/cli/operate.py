"""Commands that run things: up, down, status, materialize."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date, datetime
from typing import Annotated, Any

import polars as pl
import typer

from featurestore_dagster.calendars import calendar
from featurestore_dagster.cli.output import AsJson, console, print_json, print_rows
from featurestore_dagster.errors import RefusedError
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.features.universe import listings_of
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS
from featurestore_dagster.model.time import Timeframe
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.embedded import EmbeddedServices
from featurestore_dagster.stores.postgres import Ledger, PostgresStore
from featurestore_dagster.stores.redis import RedisStore

SHOWN_BEHIND = 3


@contextmanager
def connected(settings: Settings) -> Iterator[Settings]:
    """Settings with reachable stores: embedded servers that do not run are started, and stopped again on leaving."""
    if not settings.embedded:
        yield settings
        return
    services = EmbeddedServices(settings)
    with services as running:
        if services.started.redis:
            refill(running)
        yield running


def refill(settings: Settings) -> None:
    """Bring an embedded Redis, which keeps nothing on disk, up to the ledger; nothing to do before the first `apply`."""
    from featurestore_dagster.serving.client_base import PROJECT
    from featurestore_dagster.serving.online_sync import sync_views

    clock = settings.make_clock()
    store, online = PostgresStore(settings.postgres, clock), RedisStore(settings.redis, PROJECT)
    catalogue = CATALOGUE.with_sources(settings.source_names)
    if not store.drift(CATALOGUE):
        sync_views([view for view in CATALOGUE.views if view.online], store, online, clock.now(), catalogue)


def up(
    read_only: Annotated[bool, typer.Option("--read-only", help="The webserver launches, cancels and switches nothing.")] = False,
) -> None:
    """Run webserver, daemon, code server and embedded stores in the foreground until Ctrl-C.

    Example: `featurestore up`, or for old data as if it were now: `FEATURESTORE_CLOCK=2018-12-31T22:00:00Z featurestore up`
    """
    from featurestore_dagster import supervisor
    from featurestore_dagster.monitoring.notifications import channels

    settings = Settings()
    channels(settings)  # a wrong one would be found by the alert sensor, which then tells nobody

    def prepare(running: Settings) -> None:
        PostgresStore(running.postgres, running.make_clock()).apply(CATALOGUE)
        refill(running)

    if settings.make_clock().replayed:
        console.print(f"[yellow]{settings.make_clock().replayed}[/]")
    raise typer.Exit(supervisor.up(settings, read_only=read_only, on_stores_ready=prepare))


def down() -> None:
    """Stop what `up` started, and the embedded stores.

    Example: `featurestore down`
    """
    from featurestore_dagster import supervisor

    console.print("stopped" if supervisor.down(Settings()) else "nothing was running")


def status(
    watch: Annotated[bool, typer.Option("--watch", help="Show the state of the data, renewed every five seconds until Ctrl-C.")] = False,
    as_json: bool = AsJson,
) -> None:
    """What runs, and the SLO state of each view. Exit code 1 when something is down.

    Example: `featurestore status --json`, or `featurestore status --watch`
    """
    if watch:
        from featurestore_dagster.cli import status_screen

        if as_json:
            raise typer.BadParameter("--watch is for people, --json for programs; give one of them")
        status_screen.watch(Settings())
        return
    from featurestore_dagster import supervisor
    from featurestore_dagster.serving.client import FeatureStoreClient

    settings = Settings()
    tree = supervisor.status(settings)
    stores_ready = all(process.ready for process in tree.processes if process.name in {"postgres", "redis"})
    states = freshness_rows(FeatureStoreClient(settings)) if stores_ready else []
    clock = settings.make_clock()
    if as_json:
        print_json({"tree": asdict(tree), "ready": tree.ready, "clock": clock.replayed or "real time", "slo": states})
    else:
        print_rows("Processes", [asdict(process) for process in tree.processes])
        if tree.url:
            console.print(f"Dagster UI: {tree.url}", highlight=False)
        replayed = f" ({clock.replayed})" if clock.replayed else ""
        print_freshness(f"SLO at {clock.now().isoformat(timespec='seconds')}{replayed}", states)
    raise typer.Exit(0 if tree.ready else 1)


def freshness_rows(client: Any) -> list[dict[str, Any]]:
    """One printable line per stream."""
    return [
        {
            "state": state.freshness.state.value,
            "view": state.view,
            "stream": state.stream,
            "newest_row": _short(state.freshness.watermark),
            "next_due": _short(state.freshness.next_due_at),
            "behind": list(state.worst),
        }
        for state in client.get_feature_freshness()
    ]


def print_freshness(title: str, states: list[dict[str, Any]]) -> None:
    """The SLO table, and under it who is behind."""
    rows = [
        {"state": state["state"], "view / stream": f"{state['view']} / {state['stream']}"}
        | {name: state[name] for name in ("newest_row", "next_due")}
        for state in states
    ]
    print_rows(title, rows, empty="stores are down")
    for state in states:
        for line in state["behind"][:SHOWN_BEHIND]:
            console.print(f"  behind in {state['view']}, {state['stream']}: {line}", highlight=False, soft_wrap=True)


def _short(instant: datetime | None) -> str | None:
    return f"{instant:%Y-%m-%d %H:%MZ}" if instant else None


def materialize(
    start: Annotated[str, typer.Argument(metavar="START", help="First session, YYYY-MM-DD.")],
    end: Annotated[str, typer.Argument(metavar="END", help="Last session, YYYY-MM-DD; inclusive.")],
    calendar_name: Annotated[str | None, typer.Option("--calendar", help="Only this calendar's path, for example XNYS.")] = None,
    cadence: Annotated[Timeframe | None, typer.Option(help="The path of bars below an hour, for example 5m.")] = None,
    as_json: bool = AsJson,
) -> None:
    """Fetch, audit, publish and serve the sessions from START to END, through Dagster.

    Example: `featurestore materialize 2018-12-01 2018-12-31 --calendar XNYS`, or `... --calendar COP --cadence 5m`
    """
    settings = Settings()
    first, last = as_day(start), as_day(end)
    if first > last:
        raise typer.BadParameter(f"START {start} is after END {end}")
    known = list(dict.fromkeys(dataset.calendar for dataset in CATALOGUE.datasets))
    if calendar_name and calendar_name not in known:
        raise typer.BadParameter(f"calendar {calendar_name!r} has no dataset; allowed: {', '.join(known)}")
    with connected(settings) as running:
        PostgresStore(running.postgres, running.make_clock()).apply(CATALOGUE)
        results = [
            result
            for name in ([calendar_name] if calendar_name else known)
            if (result := run_path(running, name, first, last, cadence=cadence, quiet=as_json)) is not None
        ]
    if not results:
        raise no_session(running, [calendar_name] if calendar_name else known, first, last)
    if as_json:
        print_json([asdict(result) for result in results])
    raise typer.Exit(0 if all(result.succeeded for result in results) else 1)


@dataclass(frozen=True)
class PathRun:
    """Outcome of one path run; `rows_published` and `rows_quarantined` count what this run wrote."""

    job: str
    run_id: str
    first: str
    last: str
    sessions: int
    succeeded: bool
    rows_published: int
    rows_quarantined: int
    partitions_published: int
    seconds_by_step: dict[str, float]
    failures: dict[str, str]


@dataclass(frozen=True)
class PathRange:
    """What to run: the path of a calendar, or some of its assets, from the first to the last day."""

    calendar_name: str
    first: date
    last: date
    cadence: Timeframe | None = None
    assets: tuple[str, ...] = ()
    tags: tuple[tuple[str, str], ...] = ()

    @property
    def job(self) -> str:
        """Name of the path's job."""
        return f"{self.calendar_name.lower().replace('/', '_')}{f'_{self.cadence}' if self.cadence else ''}_path"


def run_path(
    settings: Settings, calendar_name: str, first: date, last: date, *, cadence: Timeframe | None = None, quiet: bool = False
) -> PathRun | None:
    """Run the path job of a calendar over the sessions that have listed symbols; None when there are none.

    Steps are printed as they happen, unless `quiet`.
    """
    return next(run_paths(settings, [PathRange(calendar_name, first, last, cadence)], quiet=quiet))


def run_paths(settings: Settings, ranges: Sequence[PathRange], *, quiet: bool = False) -> Iterator[PathRun | None]:
    """As `run_path` for one after another, in one process; each outcome appears when its run has ended."""
    from featurestore_dagster.supervisor.tree import prepare_dagster_home

    found = {wanted: sessions_between(settings, wanted.calendar_name, wanted.first, wanted.last) for wanted in ranges}
    runs = [
        json.dumps({"job": w.job, "first": str(sessions[0]), "last": str(sessions[-1]), "assets": w.assets, "tags": dict(w.tags)})
        for w, sessions in found.items()
        if sessions
    ]
    if not runs:
        yield from [None] * len(ranges)
        return
    prepare_dagster_home(settings)
    log = settings.data_folder / "launch.log"
    command = [sys.executable, "-m", "featurestore_dagster.launch", *runs]
    with (
        log.open("ab") as stderr,
        subprocess.Popen(command, env=settings.child_environment(), stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
    ):
        for wanted in ranges:
            yield _followed(settings, process, wanted.job, found[wanted], quiet=quiet) if found[wanted] else None


def _followed(settings: Settings, process: subprocess.Popen[str], job: str, sessions: Sequence[date], *, quiet: bool) -> PathRun:
    """The next run of a launched process, read and printed to its end."""
    run_id, seconds, failures, status = "", dict[str, float](), dict[str, str](), ""
    if not quiet:
        console.print(f"{job}: {len(sessions)} sessions, {sessions[0]} to {sessions[-1]}", highlight=False)
    with console.status("loading the code location", spinner="dots") as spinner:
        for line in process.stdout or ():
            if not line.startswith("{"):
                continue
            event = json.loads(line)
            run_id, status = event.get("run_id", run_id), event.get("status", "")
            if status:
                break
            step, state = event.get("step"), event.get("state")
            if state == "succeeded":
                seconds[step] = event["seconds"]
            elif state == "failed":
                failures[step] = event.get("message", "")
            if quiet or step is None:
                continue
            if state == "started":
                spinner.update(f"{step}")
            elif state == "succeeded":
                console.print(f"  [green]done[/] {step} {event['seconds']:.1f} s", highlight=False)
            else:
                console.print(f"  [red]{state}[/] {step}", highlight=False)
                console.print(event.get("message", ""), markup=False, highlight=False)
    if not status:
        log = settings.data_folder / "launch.log"
        failures["launch"] = f"the run did not start or was killed (exit code {process.wait()}); see {log}"
        console.print(failures["launch"], highlight=False)
    elif status == "failed" and not quiet:
        why = f"failed in {', '.join(failures)}" if failures else "ended as failed, though no step did"
        console.print(f"[red]run {run_id} {why}[/]; its page in Dagster's UI has the events", highlight=False)
    written = Ledger(settings.postgres).written_by(run_id)
    return PathRun(
        job, run_id, sessions[0].isoformat(), sessions[-1].isoformat(), len(sessions), status == "succeeded",
        written["rows_published"], written["rows_quarantined"], written["partitions_published"], seconds, failures,
    )  # fmt: skip


def sessions_between(settings: Settings, calendar_name: str, first: date, last: date) -> list[date]:
    """Sessions of the range that the partition definition has."""
    earliest, newest = _session_bounds(settings, calendar_name)
    low, high = max(first, earliest), min(last, newest)
    return calendar(calendar_name).sessions(low, high)["session"].to_list() if low <= high else []


def no_session(settings: Settings, calendar_names: Sequence[str], first: date, last: date) -> RefusedError:
    """What to raise where `sessions_between` finds none on any of the calendars."""
    bounds = {name: _session_bounds(settings, name) for name in calendar_names}
    allowed = [f"{earliest}..{newest} ({name})" for name, (earliest, newest) in bounds.items() if earliest <= newest]
    return RefusedError(
        f"no session lies in {first}..{last}; allowed, from the first listing to the clock's session: "
        f"{', '.join(allowed) or 'none, as no source that is switched on (FEATURESTORE_SOURCES) lists anything'}; "
        "nothing was done: give days with a session among them"
    )


def _session_bounds(settings: Settings, calendar_name: str) -> tuple[date, date]:
    """Sessions of the first listing, date.max where there is none, and of the clock."""
    catalogue = CATALOGUE.with_sources(settings.source_names)
    bars = [dataset for dataset in catalogue.datasets if dataset.calendar == calendar_name and dataset.bars]
    listings = [catalogue.listings(dataset) for dataset in bars]
    if not any(listings):
        streams = [(view, stream) for view in catalogue.views for stream in view.streams if stream.calendar == calendar_name]
        listings = [listings_of(catalogue, view, stream) for view, stream in streams]
    earliest = min((listing.first for found in listings for listing in found.values()), default=date.max)
    return earliest, calendar(calendar_name).session_of(pl.Series([settings.make_clock().now()], dtype=UTC_MICROSECONDS))[0]


def as_day(text: str) -> date:
    """An ISO date, or BadParameter."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no date; give YYYY-MM-DD") from None
