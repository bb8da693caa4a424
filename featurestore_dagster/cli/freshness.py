"""Commands about promises: freshness now, SLO attainment and error budget of a month."""

import time
from datetime import datetime, timedelta
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from featurestore_dagster.cli.operate import connected
from featurestore_dagster.cli.output import AsJson, console, print_json, print_rows, rows_table
from featurestore_dagster.errors import StoreUnavailableError
from featurestore_dagster.model.time import duration
from featurestore_dagster.settings import Settings

SHOWN_BEHIND = 3
HALF_A_YEAR = timedelta(days=182)


def freshness(
    view: Annotated[str | None, typer.Argument(help="Only this view.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again and again until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks of --watch.")] = 5.0,
    as_json: bool = AsJson,
) -> None:
    """State of every stream against its calendar and SLO. Exit code 1 when a value is overdue; with --watch always 0.

    Example: `featurestore freshness --watch`
    """
    from featurestore_dagster.serving.client import FeatureStoreClient

    if watch and as_json:
        raise typer.BadParameter("--watch is for people, --json for programs; give one of them")
    with connected(Settings()) as settings, FeatureStoreClient(settings) as client:
        if watch:
            _watch(client, view, every)
            return
        states = client.get_feature_freshness(view)
        if as_json:
            print_json([state.as_dict() for state in states])
        else:
            console.print(_shown(client, view))
    raise typer.Exit(1 if any(state.freshness.state.overdue for state in states) else 0)


def _watch(client: Any, view: str | None, every: float) -> None:
    try:
        with Live(_shown(client, view), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(every)
                try:
                    live.update(_shown(client, view), refresh=True)
                except StoreUnavailableError as error:
                    live.update(Text(f"{error}\nAsked again every {every:g} s.", style="red"), refresh=True)
    except KeyboardInterrupt:
        pass


def _shown(client: Any, view: str | None) -> RenderableType:
    """The states as a table, and under it who is behind."""
    now, states = client.clock.now(), client.get_feature_freshness(view)
    try:
        online = client.get_online_watermarks()
    except StoreUnavailableError:
        online = {}
    rows = [
        {
            "state": state.freshness.state.value,
            "view / stream": f"{state.view} / {state.stream}",
            "newest_row": _short(state.freshness.watermark, now),
            "online": _online(online.get((state.view, state.stream)), state.freshness.watermark, now),
            "due": _short(state.freshness.due_at, now),
            "lag": duration(state.freshness.lag) if state.freshness.lag else None,
        }
        for state in states
    ]
    if not rows:
        return Text("no stream is fed by the sources that are switched on (FEATURESTORE_SOURCES)")
    replayed = f" ({client.clock.replayed})" if client.clock.replayed else ""
    behind = [Text(f"  behind in {state.view}, {state.stream}: {line}") for state in states for line in state.worst[:SHOWN_BEHIND]]
    return Group(rows_table(f"Freshness at {now.isoformat(timespec='seconds')}{replayed}", rows), *behind)


def _online(online: datetime | None, published: datetime | None, now: datetime) -> str | None:
    return "same" if online is not None and online == published else _short(online, now)


def _short(moment: datetime | None, now: datetime) -> str | None:
    """An instant in few letters, so that a line fits a terminal of 80: without the year, or without the time of day."""
    if moment is None:
        return None
    return f"{moment:%m-%d %H:%MZ}" if abs(moment - now) < HALF_A_YEAR else f"{moment:%Y-%m-%d}"


def slo(
    view: Annotated[str | None, typer.Argument(help="Only this view.")] = None,
    month: Annotated[str | None, typer.Option(help="YYYY-MM, UTC; this month when not given.")] = None,
    as_json: bool = AsJson,
) -> None:
    """SLO attainment and error budget of each view in a month. Exit code 1 when a budget is used up.

    Example: `featurestore slo --month 2018-12`
    """
    from featurestore_dagster.serving.client import FeatureStoreClient

    with connected(Settings()) as settings, FeatureStoreClient(settings) as client:
        found = client.get_slo_attainment(month, view)
    if as_json:
        print_json([one.as_dict() for one in found])
    else:
        rows = [
            {
                "attained": "-" if one.attainment is None else f"{one.attainment:.3%}",
                "view / stream": f"{one.view} / {one.stream or 'all'}",
                "objective": f"{one.objective:.1%}",
                "overdue": f"{one.overdue_seconds / 3600:.1f} h",
                "of": f"{one.evaluated_seconds / 3600:.1f} h",
                "budget_left": f"{one.budget_left:.0%}",
            }
            for one in found
        ]
        print_rows(f"SLO in {found[0].month if found else month or 'this month'}", rows, empty="nothing was evaluated")
    raise typer.Exit(1 if any(one.budget_left_seconds < 0 for one in found) else 0)
