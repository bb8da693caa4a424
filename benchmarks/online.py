"""`python -m benchmarks.online`: online reads and writes beside stock Feast, in one process, on one Redis that holds the same rows.

A hundred Float64 features over six views, for one and for fifty entities: Feast's SDK with `to_dict`, our engine (plan, read, judge:
values, statuses, ages and flags), our blocking and asynchronous clients, one bare HGET, and the bytes of our read over a raw socket, with
nothing decoded. A call that only computes for 0.05 ms shows what the machine adds. Closed loop: the next call begins when the last ended.
Open loop: calls are due at a fixed rate, and a latency counts from the instant at which its call was due. Then writes with the check
for newer rows, and a rebuild of 45,000 entities from nothing, with the CPU time of this process and of Redis: both work at the same time,
so that the larger is the bound on a machine that does nothing else. Then what entities cost in a Redis of their own: all that it has
allocated more than when it was empty (INFO's used_memory: keys, values, hash tables, the allocator's rounding). And what an import costs.
Prints milliseconds, rates and ratios.
"""

import argparse
import asyncio
import contextlib
import io
import itertools
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.printing import machine, show
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.feature_service import FeatureService
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.projections.postgres_table import feature_schema
from featurestore_dagster.serving.answer import OnlineFeatures
from featurestore_dagster.serving.online import judged
from featurestore_dagster.serving.plan import plan
from featurestore_dagster.settings import RedisSettings, Settings
from featurestore_dagster.stores.embedded import EmbeddedServices, redis_server
from featurestore_dagster.stores.redis import Change, RedisStore
from featurestore_dagster.stores.redis.reading import ReadRequest
from featurestore_dagster.stores.redis.wire import Connection, command

PROJECT = "featurestore"
CLOSE = datetime(2018, 12, 31, 21, tzinfo=UTC)
NOW = datetime(2018, 12, 31, 22, tzinfo=UTC)
WIDTHS = (17, 17, 17, 17, 16, 16)
MATERIALISED_FEATURES = 15
ENTITIES = 2_000
REBUILT = 45_000
WAIT_SECONDS = 30.0

Results = dict[str, list[dict[str, Any]]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--samples", type=int, default=5_000, help="calls for each measurement of a read (default: %(default)s)")
    parser.add_argument("--feast-samples", type=int, default=500, help="calls of Feast for 50 entities (default: %(default)s)")
    parser.add_argument("--entities", type=int, default=REBUILT, help="entities of the rebuild (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=500.0, help="calls a second of the open loop (default: %(default)s)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, EmbeddedServices(Settings(data_folder=Path(folder) / "data")) as settings:
        results = measure(settings, Path(folder), options)
    show(results, as_json=options.json)


def measure(settings: Settings, folder: Path, options: argparse.Namespace) -> Results:
    """All measurements, by table."""
    connection = settings.redis
    views = toy_views(WIDTHS)
    catalogue = replace(CATALOGUE, views=views, services=(FeatureService("hundred", "A hundred features", views),))
    store = RedisStore(connection, PROJECT)
    for view in views:
        store.write(view, random_rows(view, ENTITIES), 1, now=NOW)
    before = machine()
    feast = stock_feast(connection, folder, views)
    results: Results = {"machine": [before]}
    for entities in (1, 50):
        results[f"100 features over 6 views, {entities} entities: ms"] = reads(store, settings, catalogue, feast, entities, options)
    results["open loop: ms from the instant at which a call was due"] = open_loop(store, catalogue, options)
    results["writes, with the check for newer rows"] = writes(store, connection, folder)
    results["rebuild from nothing"] = [rebuild(store, connection, views, options.entities, together=together) for together in (True, False)]
    results["memory"] = [memory(widths, options.entities) for widths in ((7,), WIDTHS)]
    module = "featurestore_dagster.serving.client"
    results["import in a process of its own"] = [
        imported(f"import {module}"),
        imported(f"import {module}; {module}.FeatureStoreClient().close()"),
        imported("import feast"),
    ]
    store.close()
    return results


def toy_views(widths: Sequence[int], name: str = "bench_view") -> tuple[FeatureView, ...]:
    """Views of so many features each, all about symbols."""
    base = CATALOGUE.view("momentum_features")
    return tuple(
        replace(base, name=f"{name}_{number}", features=tuple(replace(base.features[0], name=f"v{number}_f{k:02d}") for k in range(width)))
        for number, width in enumerate(widths)
    )


def random_rows(view: FeatureView, entities: int) -> pl.DataFrame:
    """A row for each entity; equal arguments give equal frames."""
    draw = np.random.Generator(np.random.PCG64(1))
    constants = {
        "event_timestamp": CLOSE, "created_timestamp": CLOSE, "flags": 0, "feature_set_version": 1, "stream": view.streams[0].name,
    }  # fmt: skip
    frame = pl.DataFrame({"symbol": [f"S{number:05d}" for number in range(entities)]}, schema={"symbol": pl.String})
    schema = feature_schema(view)
    return frame.with_columns(
        *(pl.lit(value).cast(schema[name]).alias(name) for name, value in constants.items()),
        *(pl.Series(name, draw.standard_normal(entities)) for name in view.feature_names),
    ).select(*schema)


def engine(store: RedisStore, catalogue: Catalogue, references: Sequence[str], rows: Sequence[dict[str, str]]) -> OnlineFeatures:
    """What the client does when Redis answers."""
    asked = plan(catalogue, references)
    asked.refuse_incomplete(rows)
    return judged(asked, rows, store.read(asked.views, rows, WAIT_SECONDS).rows, NOW, ["redis"] * len(asked.views))


def reads(
    store: RedisStore, services: Settings, catalogue: Catalogue, feast: Any, entities: int, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Closed loop of every way to read the same."""
    import redis

    from featurestore_dagster.serving.async_client import AsyncFeatureStoreClient
    from featurestore_dagster.serving.client import FeatureStoreClient
    from featurestore_dagster.serving.policy import ReadPolicy

    references = list(plan(catalogue, "hundred").references)
    draw = np.random.Generator(np.random.PCG64(2))
    hundred = [[{"symbol": f"S{n:05d}"} for n in draw.choice(ENTITIES, entities, replace=False)] for _ in range(100)]
    batches, connection = itertools.cycle(hundred), services.redis
    settings = services.model_copy(update={"clock": NOW.isoformat()})
    client, policy = FeatureStoreClient(settings, catalogue), ReadPolicy(deadline_seconds=WAIT_SECONDS)
    plain, raw = redis.Redis.from_url(connection.url), Connection(connection, time.monotonic() + WAIT_SECONDS)
    hget = command("HGET", b"nothing", b"_ts:bench_view_0")
    request = ReadRequest(PROJECT, plan(catalogue, references).views)
    sent = itertools.cycle([request.commands(batch) for batch in hundred])
    agrees(feast, client.get_online_features(references, next(batches), policy=policy), references)
    feast_samples = options.samples if entities == 1 else min(options.feast_samples, options.samples)

    async def asynchronous() -> list[float]:
        alone = AsyncFeatureStoreClient(settings, catalogue)
        found = await timed_async(lambda: alone.get_online_features(references, next(batches), policy=policy), options.samples)
        await alone.close()
        return found

    found = {
        "Feast SDK, to_dict": timed(lambda: feast.get_online_features(references, next(batches)).to_dict(), feast_samples),
        "engine": timed(lambda: engine(store, catalogue, references, next(batches)), options.samples),
        "client": timed(lambda: client.get_online_features(references, next(batches), policy=policy), options.samples),
        "asynchronous client": asyncio.run(asynchronous()),
        "the same bytes, raw socket, not decoded": timed(
            lambda: raw.exchange(*next(sent), time.monotonic() + WAIT_SECONDS), options.samples
        ),
        "bare HGET, raw socket": timed(lambda: raw.exchange(hget, 1, time.monotonic() + WAIT_SECONDS), options.samples),
        "bare HGET, redis-py": timed(lambda: plain.hget("nothing", "_ts:bench_view_0"), options.samples),
        "no read: 0.05 ms of computing": timed(compute, options.samples),
    }
    client.close()
    plain.close()
    raw.close()
    reference = percentiles(found["Feast SDK, to_dict"])["p50"]
    return [
        {"read": name, **(row := percentiles(samples)), "calls": len(samples), "Feast's p50 / this p50": reference / row["p50"]}
        for name, samples in found.items()
    ]


def compute() -> None:
    """Work of a known length, without waiting for anything: what it takes longer is the machine's."""
    ends = time.perf_counter() + 50e-6
    while time.perf_counter() < ends:
        pass


def agrees(feast: Any, ours: OnlineFeatures, references: Sequence[str]) -> None:
    """Both answer the same, or the comparison means nothing."""
    theirs = feast.get_online_features(references, [dict(row.entity) for row in ours.rows]).to_dict()
    for position, reference in enumerate(references):
        if theirs[reference.partition(":")[2]] != [row.numbers[position] for row in ours.rows]:
            raise ValueError(f"Feast and we read different values of {reference}")


def open_loop(store: RedisStore, catalogue: Catalogue, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Our engine for one entity, called at a fixed rate."""
    references, row = list(plan(catalogue, "hundred").references), [{"symbol": "S00001"}]
    samples, began = [], time.perf_counter()
    for number in range(options.samples):
        due = began + number / options.rate
        if (early := due - time.perf_counter()) > 0:
            time.sleep(early)
        engine(store, catalogue, references, row)
        samples.append(time.perf_counter() - due)
    return [{"read": "engine, 1 entity", "calls a second": options.rate, **percentiles(samples), "calls": len(samples)}]


def stock_feast(connection: RedisSettings, folder: Path, views: Sequence[FeatureView]) -> Any:
    """A Feast store over the same Redis, with a file registry; every view reads a Parquet file of its name."""
    warnings.simplefilter("ignore")
    from feast import Entity, FeatureStore, Field, FileSource, RepoConfig, ValueType
    from feast import FeatureView as StockView
    from feast.types import Float64, String

    config = RepoConfig(
        project=PROJECT,
        provider="local",
        registry=str(folder / "registry.db"),
        online_store={"type": "redis", "connection_string": connection.feast_connection_string},
        offline_store={"type": "file"},
        entity_key_serialization_version=3,
    )
    ticker = Entity(name="ticker", join_keys=["symbol"], value_type=ValueType.STRING)
    declared = []
    for view in (*views, *toy_views((MATERIALISED_FEATURES,), "stock_view")):
        path = folder / f"{view.name}.parquet"
        random_rows(view, ENTITIES).write_parquet(path)
        fields = [Field(name=name, dtype=Float64) for name in view.feature_names]
        source = FileSource(name=view.name, path=str(path), timestamp_field="event_timestamp", created_timestamp_column="created_timestamp")
        schema = [Field(name="symbol", dtype=String), *fields]
        declared.append(StockView(name=view.name, entities=[ticker], ttl=timedelta(days=3650), schema=schema, source=source))
    store = FeatureStore(config=config)
    with contextlib.redirect_stdout(io.StringIO()):
        store.apply([ticker, *declared])
    return store


def writes(store: RedisStore, connection: RedisSettings, folder: Path) -> list[dict[str, Any]]:
    """Rows of 15 features from a Parquet file: Feast's materialize, and ours; each first into nothing, then over equal rows."""
    from feast import FeatureStore, RepoConfig

    config = RepoConfig(
        project=PROJECT, provider="local", registry=str(folder / "registry.db"), entity_key_serialization_version=3,
        online_store={"type": "redis", "connection_string": connection.feast_connection_string}, offline_store={"type": "file"},
    )  # fmt: skip
    stock, (theirs,), (ours,) = (
        FeatureStore(config=config), toy_views((MATERIALISED_FEATURES,), "stock_view"), toy_views((MATERIALISED_FEATURES,), "own_view"),
    )  # fmt: skip
    path = folder / f"{theirs.name}.parquet"
    random_rows(theirs, ENTITIES * 5).write_parquet(path)

    def materialize() -> None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            stock.materialize(CLOSE - timedelta(days=1), NOW, [theirs.name])

    random_rows(ours, REBUILT).write_parquet(folder / "own.parquet")

    def write() -> None:
        store.write(ours, pl.read_parquet(folder / "own.parquet"), 1, now=NOW)

    found: list[dict[str, Any]] = []
    for name, rows, call in (("Feast materialize", ENTITIES * 5, materialize), ("RedisStore.write", REBUILT, write)):
        for state in ("nothing there", "equal rows there"):
            used = measured(connection, call)
            found.append({"write": name, "state": state, "rows": rows, "rows a second": rows / used["seconds"], **used})
    for ours_row, theirs_row in zip(found[2:], found[:2], strict=True):
        theirs_row["ratio"], ours_row["ratio"] = 1.0, ours_row["rows a second"] / theirs_row["rows a second"]
    return found


def rebuild(store: RedisStore, connection: RedisSettings, views: Sequence[FeatureView], entities: int, *, together: bool) -> dict[str, Any]:
    """Fill an empty Redis from frames, all views at once or one after the other; reading them from Postgres is not in it."""
    changes = [Change(view, random_rows(view, entities), 1) for view in views]
    store.teardown(views)
    parts = [changes] if together else [[change] for change in changes]

    def fill() -> None:
        for part in parts:
            store.write_together(part, NOW)

    used = measured(connection, fill)
    return {
        "views": "at once" if together else "one by one",
        "entities": entities,
        "features": sum(len(view.features) for view in views),
        **used,
        "rows a second": entities * len(views) / used["seconds"],
        "load average": os.getloadavg()[0],
    }


def measured(connection: RedisSettings, call: Callable[[], None]) -> dict[str, float]:
    """Seconds of a call, and CPU time of this process and of Redis."""
    began, cpu_began, server_began = time.perf_counter(), time.process_time(), server_cpu_seconds(connection)
    call()
    return {
        "seconds": time.perf_counter() - began,
        "CPU seconds": time.process_time() - cpu_began,
        "Redis' CPU seconds": server_cpu_seconds(connection) - server_began,
    }


def server_cpu_seconds(connection: RedisSettings) -> float:
    """CPU time of the server so far."""
    import redis

    with redis.Redis.from_url(connection.url) as client:
        used: Any = client.info("cpu")
        return float(used["used_cpu_user"] + used["used_cpu_sys"])


def memory(widths: Sequence[int], entities: int) -> dict[str, Any]:
    """What entities cost a Redis of their own; see the module."""
    views = toy_views(widths, "memory_view")
    with tempfile.TemporaryDirectory() as folder:
        connection, _ = redis_server.start(Path(folder) / "redis", Path(folder) / "redis.log", None)
        try:
            store = RedisStore(connection, PROJECT)
            before = store.write(views[0], random_rows(views[0], 0), 1, now=NOW).bytes_used
            used = store.write_together([Change(view, random_rows(view, entities), 1) for view in views], NOW)[0].bytes_used - before
            store.close()
        finally:
            redis_server.stop(Path(folder) / "redis")
    return {"views": len(widths), "features": sum(widths), "entities": entities, "MB": used / 1e6, "bytes for each entity": used / entities}


def imported(statement: str) -> dict[str, Any]:
    """Median of three, with bytecode at hand as an installed package has it; the client that is made connects to nothing."""
    program = (
        "import time, warnings; warnings.simplefilter('ignore'); began, cpu = time.perf_counter(), time.process_time(); "
        f"{statement}; print(time.perf_counter() - began, time.process_time() - cpu, "
        "*(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmRSS')))"
    )
    with tempfile.TemporaryDirectory() as bytecode:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment |= {"PYTHONPYCACHEPREFIX": bytecode, "FEATURESTORE_SERVICES": "external"}
        command_line = [sys.executable, "-c", program]
        _, *done = (
            subprocess.run(command_line, capture_output=True, text=True, check=True, env=environment).stdout.split() for _ in range(4)
        )
    seconds, cpu_seconds, kibibytes = (sorted(map(float, column))[1] for column in zip(*done, strict=True))
    return {"statement": statement, "seconds": seconds, "CPU seconds": cpu_seconds, "resident MiB": kibibytes / 1024}


def timed(call: Callable[[], Any], samples: int) -> list[float]:
    """Seconds of each call, after some that do not count."""
    for _ in range(min(100, samples)):
        call()
    found = []
    for _ in range(samples):
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return found


async def timed_async(call: Callable[[], Awaitable[Any]], samples: int) -> list[float]:
    """As `timed`."""
    for _ in range(min(100, samples)):
        await call()
    found = []
    for _ in range(samples):
        began = time.perf_counter()
        await call()
        found.append(time.perf_counter() - began)
    return found


def percentiles(samples: Sequence[float]) -> dict[str, float]:
    """Milliseconds."""
    p50, p95, p99 = np.percentile(np.array(samples) * 1000, [50, 95, 99])
    return {"p50": float(p50), "p95": float(p95), "p99": float(p99)}


if __name__ == "__main__":
    main()
