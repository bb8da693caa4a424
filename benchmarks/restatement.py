"""`python -m benchmarks.restatement`: how long a correction takes to Redis, and what automation costs; in a data folder that is deleted.

corrections  fifty bars of last month are corrected, one after the other, while `featurestore up` idles with the propagation sensor on:
             seconds from the publication to the new value in Redis; CPU seconds of the whole tree for each.
ticks        the sensor over ten years of published sessions: with nothing new, and with its cursor lost.
live bar     100 simulated symbols, 6 views: from the source's rows to a served vector, inside one process.
"""

import argparse
import os
import re
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import dagster as dg
import httpx
import polars as pl
import psutil

from benchmarks.printing import machine, show
from featurestore_dagster.calendars import calendar
from featurestore_dagster.cli.operate import run_path
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.features.equity_views import (
    DAILY_OHLCV_STATS,
    MOMENTUM_FEATURES,
    PRICE_VOLUME_FEATURES,
    TA_GRID_1D,
    TECHNICAL_INDICATORS_VIEW,
)
from featurestore_dagster.features.event_views import FEATURE_VECTORS
from featurestore_dagster.features.raw_tables import US_EQUITY_CANDLES_1D, US_EQUITY_CORPORATE_ACTIONS
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.model.time import FrozenClock
from featurestore_dagster.orchestration.jobs import build_path_job, paths
from featurestore_dagster.orchestration.platform import Platform
from featurestore_dagster.orchestration.propagation import build_propagation_sensor
from featurestore_dagster.pipeline.publication import Pipeline
from featurestore_dagster.serving.client import FeatureStoreClient
from featurestore_dagster.serving.online_sync import sync_view
from featurestore_dagster.settings import Settings
from featurestore_dagster.sources.simulator import Simulation, Simulator
from featurestore_dagster.stores.embedded import EmbeddedServices
from featurestore_dagster.stores.postgres import Ledger, PostgresStore
from featurestore_dagster.stores.postgres.restatements import Restatements
from featurestore_dagster.stores.redis import RedisStore

Results = dict[str, dict[str, float | int | str]]

EVENING = datetime(2018, 12, 31, 22, tzinfo=UTC)
FIRST, LAST = date(2009, 1, 2), date(2018, 12, 31)
CORRECTED_FROM = date(2018, 11, 1)
SYMBOLS = ("SPX", "IXIC")
WAIT_SECONDS = 120
POLL_SECONDS = 0.02
LIVE_SYMBOLS, LIVE_SESSIONS = 100, (date(2023, 1, 3), date(2024, 12, 31))
LIVE_VIEWS = (DAILY_OHLCV_STATS, MOMENTUM_FEATURES, TECHNICAL_INDICATORS_VIEW, PRICE_VOLUME_FEATURES, TA_GRID_1D, FEATURE_VECTORS)
START_SENSOR = """mutation { startSensor(sensorSelector: {repositoryLocationName: "featurestore", repositoryName: "__repository__",
    sensorName: "propagation_sensor"}) { __typename ... on PythonError { message } } }"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--corrections", type=int, default=50, help="number of corrections (default: %(default)s)")
    options = parser.parse_args()
    results: Results = {"machine": machine()}
    results |= restatement(options.corrections)
    results["one live bar, 100 symbols, 6 views, raw to served vector"] = live_bar()
    show(results, as_json=options.json)


@contextmanager
def stores(**settings: Any) -> Iterator[Settings]:
    """Servers with the catalogue's tables, in a data folder that is deleted."""
    with (
        tempfile.TemporaryDirectory(prefix="featurestore-bench-", ignore_cleanup_errors=True) as folder,
        EmbeddedServices(Settings(data_folder=Path(folder), **settings)) as running,
    ):
        PostgresStore(running.postgres, running.make_clock()).apply(CATALOGUE)
        yield running


# Corrections and ticks --------------------------------------------------------------------------------------------------------------------


def restatement(count: int) -> Results:
    """Ten years of the samples' daily bars, the sensor's ticks over them, and corrections of the last two months."""
    minutes = (datetime.now(UTC) - EVENING) // timedelta(minutes=1)
    with stores(clock=f"-P{minutes // 1440}DT{minutes % 1440 // 60}H{minutes % 60}M") as settings:
        filled = run_path(settings, "XNYS", FIRST, LAST, quiet=True)
        if filled is None or not filled.succeeded:
            raise SystemExit(f"the fill failed: {filled and filled.failures}")
        return {"ticks of the sensor, ten years published": _ticks(settings), "corrections": _corrections(settings, count)}


def _ticks(settings: Settings) -> dict[str, float | int | str]:
    catalogue = CATALOGUE.with_sources(settings.source_names)
    sensor = build_propagation_sensor(catalogue, {path.name: build_path_job(catalogue, path) for path in paths(catalogue)}, watch_seconds=0)
    platform = Platform(settings, catalogue)
    counted = query(settings, "select count(distinct relation), count(distinct partition_key), count(*) from ops.publications")[0]

    def tick(cursor: str | None) -> tuple[float, str | None]:
        with dg.DagsterInstance.ephemeral() as instance:
            context = dg.build_sensor_context(instance=instance, cursor=cursor)
            began = time.perf_counter()
            result = sensor(context, platform=platform)
            assert isinstance(result, dg.SensorResult)
            return time.perf_counter() - began, result.cursor

    tick(None)
    lost = [tick(None) for _ in range(3)]
    idle = [tick(lost[-1][1])[0] for _ in range(5)]
    return {
        "relations": counted[0],
        "partitions of each": counted[1],
        "publications": counted[2],
        "nothing new (median s)": statistics.median(idle),
        "cursor lost, everything compared (median s)": statistics.median(seconds for seconds, _ in lost),
    }


def _corrections(settings: Settings, count: int) -> dict[str, float | int | str]:
    clock = settings.make_clock()
    store, ledger = PostgresStore(settings.postgres, clock), Ledger(settings.postgres)
    pipeline = Pipeline(CATALOGUE.with_sources(settings.source_names), store, ledger, clock, _fetches_nothing)
    online = RedisStore(settings.redis, "featurestore")
    end = EVENING + timedelta(hours=1)
    start = datetime(CORRECTED_FROM.year, CORRECTED_FROM.month, CORRECTED_FROM.day, tzinfo=UTC)
    bars = pipeline.inputs.read(US_EQUITY_CANDLES_1D, start, end).drop("ingested_at").filter(pl.col("symbol").is_in(SYMBOLS))
    seconds: list[float] = []
    in_run: list[float] = []
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with _up(settings) as tree:
        idle_cpu = _idle_cpu(tree)
        began = time.perf_counter()
        for number in range(count):
            bar = bars[number % bars.height].with_columns(
                pl.col("close") * (1 + 0.0005 * (1 + number)) if number else pl.col("close") * 1.0005
            )
            bar = bar.with_columns(high=pl.max_horizontal("high", "close"), low=pl.min_horizontal("low", "close"))
            entity = [{"symbol": bar["symbol"][0]}]

            def served(entity: list[dict[str, str]] = entity) -> Any:
                ((row,),) = online.read([(MOMENTUM_FEATURES, MOMENTUM_FEATURES.feature_names)], entity).rows
                return row and (row.known_microseconds, row.values)

            known = served()
            [outcome] = pipeline.replay(US_EQUITY_CANDLES_1D, bar, "benchmark")
            if outcome.unchanged:
                raise SystemExit(f"correction {number} changed nothing: {outcome.audit and outcome.audit.failed}")
            published = time.perf_counter()
            _wait(lambda: served() != known, f"correction {number} of {entity} did not arrive")  # noqa: B023
            seconds.append(time.perf_counter() - published)
            _wait(lambda: not Restatements(settings.postgres).requests(status="requested"), "the request was not closed", 0.5)
            [(taken,)] = query(
                settings,
                "select extract(epoch from max(published_at) - min(published_at))::float8 from ops.publications where run_id ="
                " (select run_id from ops.restatements order by restatement_id desc limit 1)",
            )
            in_run.append(taken or 0.0)
            time.sleep(number * 0.37 % 5)  # not in step with the daemon's looks
        elapsed = time.perf_counter() - began
        requests = len(Restatements(settings.postgres).requests())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    ordered = sorted(seconds)
    return {
        "corrections": len(seconds),
        "p50 (s)": statistics.median(seconds),
        "p95 (s)": ordered[max(0, round(0.95 * len(ordered)) - 1)],
        "greatest (s)": ordered[-1],
        "of it first to last publication of the run (median s)": statistics.median(in_run),
        "requests": requests,
        "CPU seconds of the idle tree, per second": idle_cpu,
        "CPU seconds per correction, idling taken off": (cpu - idle_cpu * elapsed) / len(seconds),
    }


@contextmanager
def _up(settings: Settings) -> Iterator[psutil.Process]:
    """`featurestore up` on these stores with the propagation sensor on."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("FEATURESTORE_", "POSTGRES_", "REDIS_"))}
    environment |= {
        "FEATURESTORE_DATA_FOLDER": str(settings.data_folder), "FEATURESTORE_CLOCK": settings.clock, "FEATURESTORE_WEBSERVER_PORT": "0",
    }  # fmt: skip
    log = settings.data_folder / "up.log"
    with log.open("wb") as output:
        command = [sys.executable, "-m", "featurestore_dagster.cli", "up"]
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        _wait(lambda: re.search(r"ready: (http://\S+)", log.read_text()), f"not ready: see {log}", 0.5)
        found = re.search(r"ready: (http://\S+)", log.read_text())
        answer = httpx.post(f"{found[1] if found else ''}/graphql", json={"query": START_SENSOR}, timeout=60).json()
        if answer["data"]["startSensor"]["__typename"] != "Sensor":
            raise SystemExit(f"the sensor does not start: {answer}")
        _wait(lambda: "propagation_sensor" in log.read_text(), "the sensor does not tick", 0.5)
        yield psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def _idle_cpu(tree: psutil.Process, seconds: float = 15) -> float:
    def used() -> float:
        times = [process.cpu_times() for process in (tree, *tree.children(recursive=True))]
        return sum(found.user + found.system for found in times)

    time.sleep(5)
    began = used()
    time.sleep(seconds)
    return (used() - began) / seconds


# Simulated markets ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SimulatedPlatform(Platform):
    """The platform whose source is the simulator."""

    simulator: Simulator = field(kw_only=True)

    @cached_property
    def clock(self) -> FrozenClock:
        """The evening of the simulator's last session."""
        return FrozenClock(self.simulator.clock.now())

    @cached_property
    def pipeline(self) -> Pipeline:
        """Fetches from the simulator."""
        return Pipeline(self.catalogue, self.store, self.ledger, self.clock, self.simulator.fetch)


def simulated(settings: Settings, sessions: tuple[date, date], symbols: int, *views: FeatureView) -> SimulatedPlatform:
    """A market without faults, and the first stream of each view, on the evening of the last session."""
    datasets = (US_EQUITY_CANDLES_1D, US_EQUITY_CORPORATE_ACTIONS)
    simulation = Simulation(*sessions, symbol_count=symbols, with_faults=False)
    clock = FrozenClock(calendar("XNYS").session(sessions[1]).closes + timedelta(hours=3))
    simulator = Simulator(simulation, settings, clock)
    catalogue = replace(
        CATALOGUE,
        datasets=tuple({d.name: d for view in views for s in view.streams[:1] for d in (*datasets, *s.inputs)}.values()),
        sources=(simulator.source(*datasets),),
        views=tuple(replace(view, streams=view.streams[:1]) for view in views),
        services=(),
    )
    return SimulatedPlatform(settings, catalogue, simulator=simulator)


def live_bar() -> dict[str, float | int | str]:
    """The last session of a market whose earlier ones are published."""
    with stores(environment="test") as settings:
        platform = simulated(settings, LIVE_SESSIONS, LIVE_SYMBOLS, *LIVE_VIEWS)
        views = platform.catalogue.views
        keys = [day.isoformat() for day in calendar("XNYS").sessions(*LIVE_SESSIONS)["session"]]

        def run(partitions: list[str]) -> dict[str, float]:
            steps: dict[str, float] = {}
            began = time.perf_counter()

            def timed(name: str) -> None:
                nonlocal began
                steps[name] = time.perf_counter() - began
                began = time.perf_counter()

            for dataset in (US_EQUITY_CORPORATE_ACTIONS, US_EQUITY_CANDLES_1D):
                list(platform.pipeline.ingest(dataset, partitions))
                timed(dataset.name)
            for view in views:
                list(platform.pipeline.materialise(view, view.streams[0], partitions))
                timed(view.name)
            for view in views:
                sync_view(view, platform.store, platform.online, platform.clock.now())
                timed(f"online {view.name}")
            return steps

        run(keys[:-1])
        began, cpu = time.perf_counter(), time.process_time()
        steps = run(keys[-1:])
        client = FeatureStoreClient(settings.model_copy(update={"clock": platform.clock.now().isoformat()}))
        references = [f"{view.name}:{name}" for view in LIVE_VIEWS if view.online for name in view.feature_names]
        client.get_online_features(references, [{"symbol": s, "timeframe": "1d"} for s in platform.simulator.simulation.symbols])
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        client.close()
        return {
            "seconds": seconds,
            "CPU seconds of this process": cpu,
            "symbols": LIVE_SYMBOLS,
            "views": len(views),
            "features": len(references),
            **{f"  {name} (s)": value for name, value in steps.items()},
        }


def _wait(found: Callable[[], Any], complaint: str, poll_seconds: float = POLL_SECONDS) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not found():
        if time.monotonic() > deadline:
            raise SystemExit(complaint)
        time.sleep(poll_seconds)


def query(settings: Settings, text: str) -> list[tuple[Any, ...]]:
    """Rows of a query of the deployment's database."""
    import psycopg

    with psycopg.connect(settings.postgres.conninfo) as connection:
        return connection.execute(text).fetchall()


def _fetches_nothing(*_: object) -> pl.DataFrame:
    raise SystemExit("a correction is replayed, not fetched")


if __name__ == "__main__":
    main()
