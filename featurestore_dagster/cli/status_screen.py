"""`featurestore status --watch`: the overview that `/status` shows, in a terminal, renewed until Ctrl-C."""

import math
import time
from collections.abc import Sequence
from contextlib import suppress

from rich import box
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from featurestore_dagster.cli.output import console
from featurestore_dagster.errors import FeatureStoreError
from featurestore_dagster.serving.client import FeatureStoreClient
from featurestore_dagster.serving.freshness import FreshnessState
from featurestore_dagster.serving.overview import Overview, due_text, duration_text
from featurestore_dagster.settings import Settings

EVERY_SECONDS = 5.0
WIDE_COLUMNS = ("state", "view", "stream", "newest value", "due", "lag of SLO", "event to publication")
WIDE = 160
"""Columns of a terminal that hold a line of all of them."""

BARS = "▁▂▃▄▅▆▇█"
SHOWN_DELAYS = 16
SHOWN_BEHIND = 3
STYLES = {
    FreshnessState.FRESH: "green",
    FreshnessState.CLOSED: "blue",
    FreshnessState.LATE: "bold yellow",
    FreshnessState.STALE: "bold red",
    FreshnessState.NEVER: "bold magenta",
}


def watch(settings: Settings) -> None:
    """Show the overview until Ctrl-C; stores that do not answer are a line, and asked again."""
    client: FeatureStoreClient | None = None
    with (
        suppress(KeyboardInterrupt),
        Live(Text("asking the stores"), console=console, auto_refresh=False, screen=console.is_terminal) as live,
    ):
        while True:
            try:
                client = client or FeatureStoreClient(settings)
                shown: RenderableType = screen(client.get_overview(), console.width)
            except FeatureStoreError as error:
                shown = Text(f"{type(error).__name__}: {error}", style="bold red")
            live.update(shown, refresh=True)
            time.sleep(EVERY_SECONDS)


def screen(found: Overview, width: int) -> RenderableType:
    """The overview as tables for a terminal of so many columns: a narrow one gets a stream's name below its view's, and no bars."""
    replayed = f" ({found.replayed})" if found.replayed else ""
    title = f"{found.at:%Y-%m-%d %H:%M:%S}Z{replayed}: {found.overdue} of {len(found.streams)} streams overdue"
    narrow = width < WIDE
    streams = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD if narrow else box.HEAVY_HEAD)
    for name in ("state", "view", "newest value", "due", "lag of SLO") if narrow else WIDE_COLUMNS:
        streams.add_column(name, no_wrap=not narrow or name in {"state", "view", "newest value"}, overflow="fold")
    for stream in found.streams:
        state, freshness = stream.state, stream.state.freshness
        newest = f"{freshness.watermark:{'%m-%d' if narrow else '%Y-%m-%d'} %H:%M}Z" if freshness.watermark else "never"
        lag = duration_text(freshness.lag.total_seconds()) if freshness.lag is not None else "-"
        streams.add_row(
            Text(freshness.state.value, style=STYLES[freshness.state]),
            *([f"{state.view}\n{state.stream}"] if narrow else [state.view, state.stream]),
            newest,
            due_text(state, found.at),
            f"{lag} of {duration_text(stream.max_lag.total_seconds())}",
            *([] if narrow else [bars(stream.delays_seconds)]),
        )
    parts: list[RenderableType] = [streams]
    behind = [(stream.state, line) for stream in found.streams for line in stream.state.worst[:SHOWN_BEHIND]]
    parts += [Text(f"  behind in {state.view}, {state.stream}: {line}") for state, line in behind]
    if found.blocked:
        blocked = Table(title="Blocked partitions", title_justify="left", title_style="bold red")
        for name in ("relation", "partition", "failed checks"):
            blocked.add_column(name)
        for (relation, partition), checks in found.blocked.items():
            blocked.add_row(relation, partition, "\n".join(str(check.get("check")) for check in checks))
        parts.append(blocked)
    if refused := sum(found.rows_open.values()):
        parts.append(Text(f"{refused:,} refused rows are open: featurestore quarantine list"))
    return Group(*parts)


def bars(seconds: Sequence[float]) -> str:
    """Newest delays as a row of bars, logarithmic, and the last one as text."""
    if not seconds:
        return "-"
    values = [math.log10(1 + max(value, 0.0)) for value in seconds[-SHOWN_DELAYS:]]
    low, span = min(values), (max(values) - min(values)) or 1.0
    return "".join(BARS[round((value - low) / span * (len(BARS) - 1))] for value in values) + f" {duration_text(seconds[-1])}"
