"""`python -m benchmarks.point_in_time`: historical features end to end from Postgres, beside Feast's Postgres offline store.

The history is drawn at random: one-minute bars of 100 symbols over 10 days, each known 5 seconds after its end, 1 % of them restated a day
later; 10 features, a TTL of one day. It is COPYed into the view's own table with the ledger rows of its days: publishing 1.4 million bars
would compute and audit them, which is not what is measured here. Entity rows are drawn from the same symbols and days. Feast reads the same
table, in a process of its own, up to 20,000 rows, since it takes a minute for those: without a known-at column,
which gives wrong values and repeated rows but is faster, and at 2,000 rows also with its known-at filter.

Prints rows per minute, wall and CPU seconds, peak memory so far of each process, and Feast's seconds over ours; then the cost against the
size of the history.
"""

import argparse
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psycopg
import yaml
from psycopg import sql

from benchmarks.printing import show
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.features.equity_views import MOMENTUM_FEATURES, TECHNICAL_INDICATORS_VIEW
from featurestore_dagster.features.streams import crypto
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS
from featurestore_dagster.model.slo import SLO
from featurestore_dagster.model.time import FrozenClock, Timeframe
from featurestore_dagster.projections.postgres_table import feature_schema
from featurestore_dagster.projections.relation import stream_relation
from featurestore_dagster.serving.point_in_time import PointInTimeReader
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.columnar_cache import ColumnarCache
from featurestore_dagster.stores.embedded import EmbeddedServices, running_settings
from featurestore_dagster.stores.postgres import PostgresStore
from featurestore_dagster.stores.postgres.schema import ensure_yearly_partitions

START = datetime(2024, 3, 4, tzinfo=UTC)
NOW = datetime(2025, 1, 1, tzinfo=UTC)
MINUTE = 60_000_000
BARS_PER_DAY = 1440
SYMBOLS = 100
DAYS = 10
RESTATED_SHARE = 0.01
FEAST_ROWS = (2_000, 20_000)
OUR_ROWS = (2_000, 20_000, 200_000, 2_000_000)
REPEATS = 3
FEAST_SECONDS = 300
"""Feast's filter for known-at may take longer than anyone waits."""

VIEW = FeatureView(
    "minute_bars",
    "Ten features of simulated one-minute bars",
    entities=TECHNICAL_INDICATORS_VIEW.entities,
    features=MOMENTUM_FEATURES.features[:10],
    streams=(replace(crypto(Timeframe.ONE_MINUTE), slo=SLO(timedelta(minutes=1))),),
    slo=SLO(timedelta(minutes=1)),
    ttl=timedelta(days=1),
    group="indicators",
)
WITH_VIEW: Catalogue = replace(CATALOGUE, views=(*CATALOGUE.views, VIEW))
REFERENCES = [f"{VIEW.name}:{name}" for name in VIEW.feature_names]
Row = dict[str, float | int | str]

FEAST = """
import json, os, resource, sys, time, warnings
warnings.simplefilter("ignore")
from datetime import timedelta
import pandas as pd
from feast import Entity, FeatureStore, FeatureView, Field, ValueType
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import PostgreSQLSource
from feast.types import Float64, String

job = json.load(sys.stdin)
keys = [Entity(name=key, join_keys=[key], value_type=ValueType.STRING) for key in job["keys"]]
times = {"timestamp_field": "event_timestamp", **({"created_timestamp_column": "created_timestamp"} if job["known_at"] else {})}
source = PostgreSQLSource(name="source", query=job["query"], **times)
view = FeatureView(
    name=job["view"], entities=keys, ttl=timedelta(days=1), source=source,
    schema=[Field(name=key, dtype=String) for key in job["keys"]] + [Field(name=name, dtype=Float64) for name in job["features"]],
)
store = FeatureStore(repo_path=job["repository"])
store.apply([*keys, view])
results = []
for path in job["entities"]:
    entities = pd.read_parquet(path)
    began, cpu = time.perf_counter(), time.process_time()
    arguments = {"filter_by_created_timestamp": True} if job["known_at"] else {}
    frame = store.get_historical_features(entities, [f"{job['view']}:{name}" for name in job["features"]], **arguments).to_df()
    took = {"seconds": time.perf_counter() - began, "client CPU seconds": time.process_time() - cpu}
    results.append({"rows": len(entities), "rows out": len(frame), **took})
    frame.to_parquet(path + ".feast")
print(json.dumps({"results": results, "peak memory (MiB)": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""


def load_history(settings: Settings, days: int) -> int:
    """COPY the versions of `days` days, a day at a time in the order of their event times, with a ledger row each; returns their number."""
    draw = np.random.Generator(np.random.PCG64(days))
    count = 0
    relation = stream_relation(VIEW, VIEW.streams[0]).name
    columns = [*feature_schema(VIEW), "batch_id"]
    with psycopg.connect(settings.postgres.conninfo) as connection:
        connection.execute(sql.SQL("truncate {}").format(sql.Identifier("features", VIEW.name)))
        connection.execute("delete from ops.publications where relation = %s", [relation])
        ensure_yearly_partitions(connection, "features", VIEW.name, START.year, (START + timedelta(days=days + 1)).year)
        for day in range(days):
            rows = _versions_of_day(draw, day)
            count += rows.height
            statement = sql.SQL("copy {} ({}) from stdin (format csv)").format(
                sql.Identifier("features", VIEW.name), sql.SQL(", ").join(map(sql.Identifier, columns))
            )
            buffer = io.BytesIO()
            rows.with_columns(pl.lit(day + 1).alias("batch_id")).select(columns).write_csv(
                buffer, include_header=False, datetime_format="%Y-%m-%d %H:%M:%S%.6f%:z"
            )
            with connection.cursor() as cursor, cursor.copy(statement) as copy:
                copy.write(buffer.getvalue())
            events = rows["event_timestamp"]
            connection.execute(
                "insert into ops.publications (batch_id, relation, partition_key, rows_published, rows_quarantined, rows_total,"
                " content_hash, min_event_timestamp, max_event_timestamp, changed, inputs, code_version, run_id, published_at)"
                " values (%s, %s, %s, %s, 0, %s, '', %s, %s, '{}', '{}', '', '', now())",
                [day + 1, relation, str(START.date() + timedelta(days=day)), rows.height, rows.height, events.min(), events.max()],
            )
    with psycopg.connect(settings.postgres.conninfo, autocommit=True) as connection:
        connection.execute(sql.SQL("vacuum analyze {}").format(sql.Identifier("features", VIEW.name)))
    return count


def _versions_of_day(draw: np.random.Generator, day: int) -> pl.DataFrame:
    first = int(START.timestamp()) * 1_000_000 + day * BARS_PER_DAY * MINUTE
    minutes = np.repeat(first + np.arange(1, BARS_PER_DAY + 1) * MINUTE, SYMBOLS)
    symbols = np.tile(np.arange(SYMBOLS), BARS_PER_DAY)
    known = minutes + 5_000_000
    again = np.flatnonzero(draw.random(minutes.size) < RESTATED_SHARE)
    minutes, symbols = np.append(minutes, minutes[again]), np.append(symbols, symbols[again])
    known = np.append(known, known[again] + BARS_PER_DAY * MINUTE)
    return pl.DataFrame(
        {
            "symbol": pl.Series([f"SIM{number:04d}" for number in range(SYMBOLS)]).gather(symbols),
            "timeframe": pl.repeat("1m", minutes.size, eager=True),
            "event_timestamp": pl.Series(minutes).cast(UTC_MICROSECONDS),
            "created_timestamp": pl.Series(known).cast(UTC_MICROSECONDS),
            **{name: draw.random(minutes.size) for name in VIEW.feature_names},
            "flags": pl.repeat(0, minutes.size, dtype=pl.Int64, eager=True),
            "feature_set_version": pl.repeat(VIEW.version, minutes.size, dtype=pl.Int32, eager=True),
            "stream": pl.repeat(VIEW.streams[0].name, minutes.size, eager=True),
        }
    )


def entity_rows(count: int, days: int) -> pl.DataFrame:
    """Random symbols and instants, none before the first half day; equal arguments give equal frames."""
    draw = np.random.Generator(np.random.PCG64(count))
    first = int(START.timestamp()) * 1_000_000
    instants = draw.integers(first + BARS_PER_DAY // 2 * MINUTE, first + days * BARS_PER_DAY * MINUTE, count)
    return pl.DataFrame(
        {
            "symbol": pl.Series([f"SIM{number:04d}" for number in range(SYMBOLS)]).gather(draw.integers(0, SYMBOLS, count)),
            "timeframe": pl.repeat("1m", count, eager=True),
            "event_timestamp": pl.Series(instants).cast(UTC_MICROSECONDS),
        }
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--no-feast", action="store_true", help="ours alone")
    parser.add_argument("--scale", type=int, nargs="*", default=[1, 7, 70], help="days of history of the scale table (default: 1 7 70)")
    parser.add_argument("--largest", action="store_true", help="also 700 days, 100 million versions, and 10 million entity rows")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        print(json.dumps(run_job(json.loads(options.job))))
        return
    with (
        tempfile.TemporaryDirectory(prefix="featurestore-bench-", ignore_cleanup_errors=True) as folder,
        EmbeddedServices(Settings(data_folder=Path(folder), clock=NOW.isoformat())) as settings,
    ):
        results = measure(settings, Path(folder), options.scale + [700] * options.largest, with_feast=not options.no_feast)
    show(results, as_json=options.json)


def measure(settings: Settings, folder: Path, scale_days: list[int], *, with_feast: bool) -> dict[str, list[Row]]:
    """All measurements, by table."""
    PostgresStore(settings.postgres, settings.make_clock()).apply(WITH_VIEW)
    versions = load_history(settings, DAYS)
    machine: Row = {
        "cores": os.cpu_count() or 0,
        "load average before": os.getloadavg()[0],
        "python": sys.version.split()[0],
        "versions": versions,
    }
    ours = [
        {
            "engine": "ours, cached" if cached else "ours, cold",
            **_in_process(settings, {"rows": rows, "cached": cached, "cache": str(folder / "cache")}),
        }
        for rows in OUR_ROWS
        for cached in (False, True)
    ]
    ours.append(
        {
            "engine": "ours, cold, to Parquet",
            **_in_process(settings, {"rows": OUR_ROWS[-1], "cached": False, "parquet": str(folder / "out.parquet")}),
        }
    )
    feast = _feast(settings, folder) if with_feast else []
    cold = {row["rows"]: row["seconds"] for row in ours if row["engine"] == "ours, cold"}
    ratios: list[Row] = [
        {"entity rows": row["rows"], "Feast over ours": float(row["seconds"]) / float(cold[row["rows"]])}
        for row in feast
        if row["known-at"] == "ignored" and isinstance(row["seconds"], float)
    ]
    scaled: list[Row] = []
    for days in scale_days:
        count = load_history(settings, days)
        for rows in (20_000, 1_000_000):
            found = _in_process(
                settings, {"rows": rows, "cached": False, "days": days, "repeats": 1, "parquet": str(folder / "out.parquet")}
            )
            scaled.append({"versions": count, **found, "microseconds per version": float(found["seconds"]) / count * 1e6})
    return {
        "machine": [machine],
        "ours": ours,
        **({"Feast": feast, "ratios": ratios} if feast else {}),
        "cost against history, to Parquet": scaled,
    }


def run_job(job: dict[str, Any]) -> Row:
    """One measurement in this process: medians of its repeats, the first one not counted; the peak is the whole process'."""
    settings = running_settings(Settings())
    cache = ColumnarCache(Path(job["cache"]), 2**34) if job["cached"] else None
    reader = PointInTimeReader(PostgresStore(settings.postgres, FrozenClock(NOW)), WITH_VIEW, cache)
    entities = entity_rows(job["rows"], job.get("days", DAYS))

    def read() -> None:
        # The cached engine is asked for by name: for few rows the reader would look them up.
        if "parquet" in job:
            reader.write_historical_features(Path(job["parquet"]), entities, REFERENCES)
        else:
            reader.get_historical_features(entities, REFERENCES, streamed=True if job["cached"] else None)

    read()
    took = [_timed(read) for _ in range(job.get("repeats", REPEATS))]
    seconds, cpu_seconds = (statistics.median(column) for column in zip(*took, strict=True))
    return {
        "rows": job["rows"],
        "seconds": seconds,
        "client CPU seconds": cpu_seconds,
        "million rows/min": job["rows"] / seconds * 60 / 1e6,
        "peak memory (MiB)": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "load average": os.getloadavg()[0],
    }


def _timed(read: Callable[[], None]) -> tuple[float, float]:
    began, cpu_began = time.perf_counter(), time.process_time()
    read()
    return time.perf_counter() - began, time.process_time() - cpu_began


def _in_process(settings: Settings, job: dict[str, Any]) -> Row:
    command = [sys.executable, "-m", "benchmarks.point_in_time", "--job", json.dumps(job)]
    done = subprocess.run(command, env=settings.child_environment(), check=True, capture_output=True, text=True)
    result: Row = json.loads(done.stdout)
    return result


@contextmanager
def _limited(settings: Settings) -> Iterator[None]:
    """The server gives up after FEAST_SECONDS: a query that only its client gave up would go on beside what is measured next."""
    database = sql.Identifier(settings.postgres.database)
    with psycopg.connect(settings.postgres.conninfo, autocommit=True) as connection:
        connection.execute(sql.SQL("alter database {} set statement_timeout = {}").format(database, sql.Literal(f"{FEAST_SECONDS}s")))
        try:
            yield
        finally:
            connection.execute(sql.SQL("alter database {} reset statement_timeout").format(database))


def _feast(settings: Settings, folder: Path) -> list[Row]:
    """Feast's offline store over the same table, without its known-at filter and, at the smallest size, with it."""
    postgres, repository = settings.postgres, folder / "feast"
    repository.mkdir()
    offline = {
        "type": "postgres", "host": postgres.host, "port": postgres.port, "database": postgres.database, "db_schema": "public",
        "user": postgres.user, "password": postgres.password.get_secret_value(), "sslmode": "disable",
    }  # fmt: skip
    online = {"type": "sqlite", "path": str(repository / "online.db")}
    store = {
        "project": "bench",
        "provider": "local",
        "registry": str(repository / "registry.db"),
        "offline_store": offline,
        "online_store": online,
    }
    (repository / "feature_store.yaml").write_text(yaml.safe_dump({**store, "entity_key_serialization_version": 3}))
    paths = []
    for rows in FEAST_ROWS:
        paths.append(str(folder / f"{rows}.parquet"))
        entity_rows(rows, DAYS).write_parquet(paths[-1])
    keys = [entity.join_key for entity in VIEW.entities]
    columns = ", ".join([*keys, "event_timestamp", "created_timestamp", *VIEW.feature_names])
    query = f'select {columns} from features."{VIEW.name}"'
    results: list[Row] = []
    for known_at, entities in ((False, paths), (True, paths[:1])):
        known = "filtered" if known_at else "ignored"
        job = {
            "keys": keys,
            "query": query,
            "view": VIEW.name,
            "features": VIEW.feature_names,
            "repository": str(repository),
            "entities": entities,
            "known_at": known_at,
        }
        with _limited(settings):
            done = subprocess.run([sys.executable, "-c", FEAST], input=json.dumps(job), check=False, capture_output=True, text=True)
        if done.returncode:
            if "statement timeout" not in done.stderr:
                raise SystemExit(f"Feast failed:\n{done.stderr}")
            gave_up: Row = {"rows": FEAST_ROWS[0], "rows out": "-", "seconds": f"over {FEAST_SECONDS}", "client CPU seconds": "-"}
            results.append({"known-at": known, **gave_up, "rows/min": "-", "peak memory (MiB)": "-"})
            continue
        answer = json.loads(done.stdout.splitlines()[-1])
        results += [
            {
                "known-at": known,
                **row,
                "rows/min": row["rows"] / row["seconds"] * 60,
                "peak memory (MiB)": answer["peak memory (MiB)"],
            }
            for row in answer["results"]
        ]
    return results


if __name__ == "__main__":
    main()
