"""`featurestore demo`: the whole path on real data, from nothing to a served vector."""

import time
from collections import deque
from dataclasses import asdict
from datetime import date, timedelta
from typing import Annotated, Any

import typer

from featurestore_dagster.cli.browse import print_vector
from featurestore_dagster.cli.operate import PathRange, connected, freshness_rows, print_freshness, run_paths
from featurestore_dagster.cli.output import AsJson, console, print_json, print_rows
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.model.time import Timeframe
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.postgres import PostgresStore

DEMO_CLOCK = "2018-12-31T22:00:00Z"
"""After the last close of the sample indices: everything that is still listed is fresh."""

DEMO_SYMBOL = "SPX"
DEMO_SERVICE = "daily_equity_service"

OBSERVED_SYMBOL, OBSERVED_CALENDAR, OBSERVED_DAYS = "USDCOP", "COP", timedelta(days=4)
"""The samples have no bars of the peso, but the macro side of its observation, and its session's clock."""


def demo(start: Annotated[str, typer.Option(help="First session to ingest, YYYY-MM-DD.")] = "2012-01-03", as_json: bool = AsJson) -> None:
    """Start the stores, ingest seven years of real daily data, run the graph through Dagster, and serve a vector.

    Runs on a replay clock (2018-12-31T22:00:00Z) unless FEATURESTORE_CLOCK says otherwise. A second run publishes nothing new.

    Example: `featurestore demo`, or all twenty years: `featurestore demo --start 1999-01-04`
    """
    from featurestore_dagster.serving.client import FeatureStoreClient

    configured = Settings()
    settings = configured if configured.clock else configured.model_copy(update={"clock": DEMO_CLOCK})
    clock = settings.make_clock()
    seconds: dict[str, float] = {}
    began = time.monotonic()

    def lap(step: str) -> None:
        nonlocal began
        seconds[step] = round(time.monotonic() - began, 1)
        began = time.monotonic()

    if not as_json:
        console.print(
            f"[bold]featurestore demo[/]  data in {settings.data_folder}  [yellow]{clock.replayed or 'real time'}[/]", highlight=False
        )
    with console.status("starting PostgreSQL and Redis") as _, connected(settings) as running:
        lap("start stores")
        PostgresStore(running.postgres, clock).apply(CATALOGUE)
        lap("apply schema")
        _.stop()
        last = clock.now().date()
        observed = [PathRange(OBSERVED_CALENDAR, last - OBSERVED_DAYS, last, cadence) for cadence in (None, Timeframe.ONE_MINUTE)]
        runs = run_paths(running, [PathRange("XNYS", date.fromisoformat(start), last), *observed], quiet=as_json)
        run = next(runs)
        lap("ingest, compute, publish, sync")
        deque(runs, maxlen=0)
        lap(f"what the samples know of {OBSERVED_SYMBOL}")
        client = FeatureStoreClient(running)
        entity = {"symbol": DEMO_SYMBOL, "timeframe": "1d", "portfolio": "GLOBAL"}
        vector = client.get_online_features(DEMO_SERVICE, [entity])
        states = freshness_rows(client)
        client.close()
        lap("read vector and SLO states")
    if run is None:
        raise typer.BadParameter(f"no session between {start} and {clock.now().date()}")
    steps = {**seconds, **{f"  {name}": value for name, value in run.seconds_by_step.items()}}
    if as_json:
        print_json({"run": asdict(run), "vector": vector.to_dict(), "slo": states, "seconds": steps, "clock": clock.replayed})
    else:
        _print(run, vector, states, steps, clock.replayed)
    raise typer.Exit(0 if run.succeeded else 1)


def _print(run: Any, vector: Any, states: list[dict[str, Any]], seconds: dict[str, float], replayed: str | None) -> None:
    print_rows("Seconds", [{"step": name, "seconds": value} for name, value in seconds.items()])
    if run.rows_published:
        console.print(
            f"Materialised {run.sessions:,} sessions: {run.partitions_published:,} partitions published,"
            f" {run.rows_published:,} rows published, {run.rows_quarantined:,} quarantined"
        )
    else:
        console.print(
            f"Nothing new: all {run.sessions:,} sessions were published before, unchanged; 0 rows published,"
            f" {run.rows_quarantined:,} quarantined"
        )
    title = f"{DEMO_SYMBOL} (S&P 500 index), {DEMO_SERVICE}" + (f", {replayed}" if replayed else "")
    print_vector(title, vector)
    print_freshness("SLO state", states)
    prefix = f"FEATURESTORE_CLOCK={DEMO_CLOCK} " if replayed else ""
    console.print("\n[bold]Next[/]", highlight=False)
    for command, meaning in (
        (f"{prefix}make up", "the Dagster UI on this data: graph, partitions, backfills, checks"),
        (f"{prefix}.venv/bin/featurestore get {DEMO_SERVICE} --symbol SPX", "the vector again, from Redis"),
        (f".venv/bin/featurestore get {DEMO_SERVICE} --symbol AAPL --as-of 2013-02-15T22:00:00Z", "what was known about Apple that day"),
        (
            f"{prefix}.venv/bin/featurestore get observation_15d --symbol {OBSERVED_SYMBOL}",
            "fifteen values; NULL is what no source sends",
        ),
        (f"{prefix}.venv/bin/featurestore audit", "check everything against the declarations"),
        (".venv/bin/featurestore list", "views, services and datasets"),
    ):
        console.print(f"  {command}\n      {meaning}", highlight=False, soft_wrap=True)
