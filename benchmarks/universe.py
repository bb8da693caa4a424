"""`python -m benchmarks.universe`: a year of daily bars of many symbols, from the source to Redis, by the platform's loops.

Random walks of crypto pairs, which trade every day: bars are audited and published, seven features computed, audited and published, and the
newest rows written to Redis. Prints the seconds of each stage, those of all stages after the bars are in, rows a second, CPU seconds and
peak memory of this process and of Postgres, Redis' memory, and the disk that the database takes. The sizes run one after the other, each in
a process of its own with fresh servers: cost for a row tells whether it is linear.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
import psycopg

from benchmarks.printing import show
from featurestore_dagster.calendars import calendar
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.features.equity_views import CRYPTO_1D, MOMENTUM_FEATURES
from featurestore_dagster.features.raw_tables import CRYPTO_CANDLES
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS, Dataset
from featurestore_dagster.model.source import Listing, Source
from featurestore_dagster.model.time import FrozenClock, Timeframe
from featurestore_dagster.pipeline.publication import PartitionOutcome, Pipeline
from featurestore_dagster.projections.relation import dataset_relation
from featurestore_dagster.serving.online_sync import sync_view
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.embedded import EmbeddedServices
from featurestore_dagster.stores.postgres import Ledger, PostgresStore
from featurestore_dagster.stores.redis import RedisStore

FIRST = date(2024, 1, 1)
DATASET = CRYPTO_CANDLES[Timeframe.ONE_DAY]
VIEW: FeatureView = replace(
    MOMENTUM_FEATURES, name="seven_features", features=MOMENTUM_FEATURES.features[:7], streams=(CRYPTO_1D,), group="indicators"
)
PROJECT = "benchmark"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--symbols", type=int, nargs="+", default=[450, 4_500], help="sizes, one after the other (default: 450 4500)")
    parser.add_argument("--days", type=int, default=365, help="days of history, at most 366 (default: %(default)s)")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.symbols[0], options.days)))
        return
    rows = []
    for symbols in options.symbols:
        command = [sys.executable, "-m", "benchmarks.universe", "--one", "--symbols", str(symbols), "--days", str(options.days)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    show({"a year of daily bars, from the source to Redis": rows}, as_json=options.json)


def measure(symbols: int, days: int) -> dict[str, float | int]:
    """One size, in this process."""
    sessions = [(FIRST + timedelta(days=day)).isoformat() for day in range(days)]
    end = calendar(DATASET.calendar).session(FIRST + timedelta(days=days - 1)).window_end
    clock = FrozenClock(end + timedelta(hours=1))
    names = [f"SIM{number:05d}" for number in range(symbols)]
    listings = tuple(Listing(name, date(2020, 1, 1)) for name in names)
    source = Source("files", "random walks", datasets=CATALOGUE.datasets, listings={DATASET.name: listings})
    catalogue: Catalogue = replace(CATALOGUE, views=(*CATALOGUE.views, VIEW), sources=(source,))
    walk = Walk(names)
    with (
        tempfile.TemporaryDirectory(prefix="featurestore-bench-", ignore_cleanup_errors=True) as folder,
        EmbeddedServices(Settings(data_folder=Path(folder), clock=clock.now().isoformat())) as settings,
    ):
        servers = Watched(settings)
        store, ledger = PostgresStore(settings.postgres, clock), Ledger(settings.postgres)
        store.apply(catalogue)
        pipeline = Pipeline(catalogue, store, ledger, clock, walk.fetch)
        online = RedisStore(settings.redis, PROJECT)
        took = {
            "ingest seconds": _timed(lambda: _refuse_blocked(pipeline.ingest(DATASET, sessions))),
            "compute seconds": _timed(lambda: _refuse_blocked(pipeline.materialise(VIEW, VIEW.streams[0], sessions))),
            "sync seconds": _timed(lambda: sync_view(VIEW, store, online, clock.now(), catalogue)),
        }
        database_bytes = _database_bytes(settings)
        redis_bytes = int(online._info("memory", "used_memory"))  # noqa: SLF001 - what INFO says, over the connection that is there
        postgres_cpu, postgres_mebibytes = servers.result()
    rows, seconds = symbols * days, sum(took.values())
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "symbols": symbols,
        "days": days,
        **took,
        "computed, published, online (s)": seconds - took["ingest seconds"],
        "seconds": seconds,
        "bars a second": rows / seconds,
        "CPU seconds": used.ru_utime + used.ru_stime,
        "of Postgres": postgres_cpu,
        "peak memory (MiB)": used.ru_maxrss / 1024,
        "of Postgres (MiB)": postgres_mebibytes,
        "database (MiB)": database_bytes / 2**20,
        "Redis (MiB)": redis_bytes / 2**20,
        "load average": os.getloadavg()[0],
    }


class Watched:
    """Greatest memory of all processes of the server together, shared pages counted once, looked at every other second."""

    def __init__(self, settings: Settings) -> None:
        with psycopg.connect(settings.postgres.conninfo) as connection:
            backend = psutil.Process(connection.info.backend_pid)
        self._postmaster, self._peak = backend.parent() or backend, 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def result(self) -> tuple[float, float]:
        """CPU seconds so far, and greatest MiB."""
        self._done.set()
        self._thread.join()
        total = 0.0
        for process in (self._postmaster, *self._postmaster.children()):
            times = process.cpu_times()
            total += times.user + times.system
        times = self._postmaster.cpu_times()
        return total + times.children_user + times.children_system, self._peak / 2**20

    def _watch(self) -> None:
        while not self._done.wait(2):
            with suppress(psutil.Error):  # a backend that ends meanwhile
                processes = (self._postmaster, *self._postmaster.children())
                self._peak = max(self._peak, sum(process.memory_full_info().pss for process in processes))


def _database_bytes(settings: Settings) -> int:
    with psycopg.connect(settings.postgres.conninfo) as connection:
        row = connection.execute("select pg_database_size(current_database())").fetchone()
    return int(row[0]) if row else 0


class Walk:
    """Prices that walk at random; days must be asked for in order."""

    def __init__(self, names: list[str]) -> None:
        self._names = pl.Series("symbol", names)
        self._last = np.full(len(names), 100.0)

    def fetch(self, dataset: Dataset, start: datetime, end: datetime) -> pl.DataFrame:
        """Bars with start < event time <= end, in the dataset's canonical columns; none of other datasets."""
        schema = dataset_relation(dataset).frame_schema
        if dataset != DATASET:
            return pl.DataFrame(schema=schema)
        first, last = ((moment.date() - FIRST).days for moment in (start, end))
        return pl.concat([self._bars(day).select(list(schema)) for day in range(first, last)]).cast(schema)  # type: ignore[arg-type]

    def _bars(self, day: int) -> pl.DataFrame:
        draw, before = np.random.Generator(np.random.PCG64(day)), self._last
        close = np.round(before * np.exp(draw.normal(0, 0.01, before.size)), 8)
        self._last = close
        closes = datetime.combine(FIRST + timedelta(days=day + 1), datetime.min.time(), UTC)
        constants: dict[str, Any] = {
            "dataset": DATASET.name, "timeframe": "1d", "adjusted_close": None, "trade_count": None, "bar_vwap": None, "source": "files",
            "known_at_basis": "assumed", "flags": 0,
        }  # fmt: skip
        return pl.DataFrame(
            {
                "symbol": self._names,
                "open": before,
                "high": np.maximum(before, close) * 1.001,
                "low": np.minimum(before, close) * 0.999,
                "close": close,
                "volume": np.round(draw.uniform(1_000, 2_000, before.size), 3),
            }
        ).with_columns(
            *(pl.lit(value).alias(name) for name, value in constants.items()),
            *(pl.lit(closes, UTC_MICROSECONDS).alias(name) for name in ("event_timestamp", "known_at")),
        )


def _refuse_blocked(outcomes: Any) -> None:
    for outcome in outcomes:
        assert isinstance(outcome, PartitionOutcome)
        if outcome.audit is None or outcome.blocked:
            raise SystemExit(f"partition {outcome.partition_key} was blocked or skipped: {outcome.audit}")


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
