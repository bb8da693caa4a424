"""`python -m benchmarks.point_in_time`: historical features end to end from Postgres, beside Feast's Postgres offline store.

1.45 million versions (`benchmarks.minute_bars`), and entity rows drawn from the same symbols and days. Feast reads the same table in a
process of its own, up to 20,000 rows: without a known-at column, which gives wrong values and repeated rows but is faster, and with its
known-at filter. For the filter the planner is forbidden nested loops: it expects one row of Feast's subquery, which nobody analyses, joins
it with itself row by row, and is not done with 2,000 rows after 12 minutes. What takes longer than FEAST_SECONDS all the same is given up.

Prints rows per minute, wall and CPU seconds, peak memory so far of each process, and Feast's seconds over ours. What a read costs against
the size of the history is in `benchmarks.history_size`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import yaml
from psycopg import sql

from benchmarks.minute_bars import NOW, entity_rows, load_history, minute_view, with_views
from benchmarks.printing import machine, memory, show
from featurestore_dagster.model.time import FrozenClock
from featurestore_dagster.serving.point_in_time import PointInTimeReader
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.columnar_cache import ColumnarCache
from featurestore_dagster.stores.embedded import EmbeddedServices, running_settings
from featurestore_dagster.stores.postgres import PostgresStore

DAYS = 10
FEAST_ROWS = (2_000, 20_000)
OUR_ROWS = (2_000, 20_000, 200_000, 2_000_000)
REPEATS = 3
FEAST_SECONDS = 300
"""Most that a query of Feast's may take."""

VIEW = minute_view("minute_bars")
WITH_VIEW = with_views([VIEW])
REFERENCES = [f"{VIEW.name}:{name}" for name in VIEW.feature_names]
Row = dict[str, float | int | str]

FEAST = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
from datetime import timedelta
import pandas as pd
from feast import Entity, FeatureStore, FeatureView, Field, ValueType
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import PostgreSQLSource
from feast.types import Float64, String
from benchmarks.printing import memory

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
entities = pd.read_parquet(job["entities"])
began, cpu = time.perf_counter(), time.process_time()
arguments = {"filter_by_created_timestamp": True} if job["known_at"] else {}
frame = store.get_historical_features(entities, [f"{job['view']}:{name}" for name in job["features"]], **arguments).to_df()
took = {"seconds": time.perf_counter() - began, "client CPU seconds": time.process_time() - cpu}
print(json.dumps({"rows out": len(frame), **took, "peak memory (MiB)": memory("VmHWM")}))
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--no-feast", action="store_true", help="ours alone")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        print(json.dumps(run_job(json.loads(options.job))))
        return
    with (
        tempfile.TemporaryDirectory(prefix="featurestore-bench-", ignore_cleanup_errors=True) as folder,
        EmbeddedServices(Settings(data_folder=Path(folder), clock=NOW.isoformat())) as settings,
    ):
        results = measure(settings, Path(folder), with_feast=not options.no_feast)
    show(results, as_json=options.json)


def measure(settings: Settings, folder: Path, *, with_feast: bool) -> dict[str, list[Row]]:
    """All measurements, by table."""
    PostgresStore(settings.postgres, settings.make_clock()).apply(WITH_VIEW)
    versions = load_history(settings.postgres, VIEW, DAYS)
    before: Row = {**machine(), "versions": versions}
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
    cold = {row["rows"]: float(row["seconds"]) for row in ours if row["engine"] == "ours, cold"}
    ratios: list[Row] = [
        {
            "entity rows": row["rows"],
            "known-at in Feast": row["known-at"],
            "Feast over ours, cold": _over(row["seconds"], cold[row["rows"]]),
        }
        for row in feast
    ]
    return {"machine": [before], "ours": ours, **({"Feast": feast, "ratios": ratios} if feast else {})}


def _over(seconds: float | str, ours: float) -> float | str:
    return seconds / ours if isinstance(seconds, float) else f"over {FEAST_SECONDS / ours:,.0f}"


def run_job(job: dict[str, Any]) -> Row:
    """One measurement in this process: medians of its repeats, the first one not counted; the peak is the whole process'."""
    settings = running_settings(Settings())
    cache = ColumnarCache(Path(job["cache"]), 2**34) if job["cached"] else None
    reader = PointInTimeReader(PostgresStore(settings.postgres, FrozenClock(NOW)), WITH_VIEW, cache)
    entities = entity_rows(job["rows"], DAYS)

    def read() -> None:
        # The cached engine is asked for by name: for few rows the reader would look them up.
        if "parquet" in job:
            reader.write_historical_features(Path(job["parquet"]), entities, REFERENCES)
        else:
            reader.get_historical_features(entities, REFERENCES, streamed=True if job["cached"] else None)

    read()
    took = [_timed(read) for _ in range(REPEATS)]
    seconds, cpu_seconds = (statistics.median(column) for column in zip(*took, strict=True))
    return {
        "rows": job["rows"],
        "seconds": seconds,
        "client CPU seconds": cpu_seconds,
        "million rows/min": job["rows"] / seconds * 60 / 1e6,
        "peak memory (MiB)": memory("VmHWM"),
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
def _for_all_connections(settings: Settings, options: dict[str, str]) -> Iterator[None]:
    """Options of the server for every connection that is opened meanwhile."""
    database = sql.Identifier(settings.postgres.database)
    with psycopg.connect(settings.postgres.conninfo, autocommit=True) as connection:
        for name, value in options.items():
            connection.execute(sql.SQL("alter database {} set {} = {}").format(database, sql.Identifier(name), sql.Literal(value)))
        try:
            yield
        finally:
            connection.execute(sql.SQL("alter database {} reset all").format(database))


def _feast(settings: Settings, folder: Path) -> list[Row]:
    """Feast's offline store over the same table, without its known-at filter and with it."""
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
    keys = [entity.join_key for entity in VIEW.entities]
    columns = ", ".join([*keys, "event_timestamp", "created_timestamp", *VIEW.feature_names])
    entities = folder / "entities.parquet"
    job = {
        "keys": keys,
        "query": f'select {columns} from features."{VIEW.name}"',
        "view": VIEW.name,
        "features": VIEW.feature_names,
        "repository": str(repository),
        "entities": str(entities),
    }
    results: list[Row] = []
    for known_at in (False, True):
        for rows in FEAST_ROWS:
            entity_rows(rows, DAYS).write_parquet(entities)
            # The server itself gives up: a query that only its client gave up would go on beside what is measured next.
            options = {"statement_timeout": f"{FEAST_SECONDS}s", **({"enable_nestloop": "off"} if known_at else {})}
            with _for_all_connections(settings, options):
                found = _run_feast({**job, "known_at": known_at})
            results.append({"known-at": "filtered" if known_at else "ignored", "rows": rows, **found})
    return results


def _run_feast(job: dict[str, Any]) -> Row:
    done = subprocess.run([sys.executable, "-c", FEAST], input=json.dumps(job), check=False, capture_output=True, text=True)
    if not done.returncode:
        found: Row = json.loads(done.stdout.splitlines()[-1])
        return found
    if "statement timeout" not in done.stderr:
        raise SystemExit(f"Feast failed:\n{done.stderr}")
    return {"rows out": "-", "seconds": f"over {FEAST_SECONDS}", "client CPU seconds": "-", "peak memory (MiB)": "-"}


if __name__ == "__main__":
    main()
