"""`python -m benchmarks.history_size`: what a historical read costs, and holds in memory, against the size of the history.

Views of one and ten million versions (`benchmarks.minute_bars`), or as many as `--days` says, each read from Postgres into a Parquet file
with its manifest for 20,000 rows, a million, and of the largest ten million. Few rows of much history are looked up by the server, else
history is streamed through the rows, whichever is estimated to be quicker. Rows are drawn from all of the history, so that it is all
needed. Each read is the first of its process. Of the peak of memory, what was allocated is printed apart from what was mapped from the
files in which answers wait, which leaves memory when others need it.

`--days 7 70 700` adds a hundred million, which take some 15 minutes and 30 GB of disk. With `--folder` the data stay, and the next run
finds them there.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from benchmarks.minute_bars import NOW, entity_rows, load_history, minute_view, with_views
from benchmarks.printing import machine, memory, show
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.model.time import FrozenClock
from featurestore_dagster.serving.point_in_time import PointInTimeReader
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.embedded import EmbeddedServices, running_settings
from featurestore_dagster.stores.postgres import PostgresStore

DAYS = (7, 70)
ROWS, MOST_ROWS = (20_000, 1_000_000), 10_000_000
Row = dict[str, float | int | str]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--days", type=int, nargs="+", default=DAYS, help="days of history, 145,000 versions each (default: 7 70)")
    parser.add_argument("--folder", type=Path, help="keep the data here (default: a temporary folder)")
    parser.add_argument("--load-only", action="store_true", help="lay the data down in the folder, and stop")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        print(json.dumps(run_job(json.loads(options.job))))
        return
    with tempfile.TemporaryDirectory(prefix="featurestore-bench-", ignore_cleanup_errors=True) as temporary:
        folder = options.folder or Path(temporary)
        with EmbeddedServices(Settings(data_folder=folder, clock=NOW.isoformat())) as settings:
            counts = {days: loaded(settings, days) for days in sorted(options.days)}
            if not options.load_only:
                show(measure(settings, Path(temporary), counts), as_json=options.json)


def view_of(days: int) -> FeatureView:
    """The view with so many days of history."""
    return minute_view(f"minute_bars_{days}d")


def loaded(settings: Settings, days: int) -> int:
    """Lay the history down unless it is there; returns the number of versions."""
    view = view_of(days)
    PostgresStore(settings.postgres, settings.make_clock()).apply(with_views([view]))
    with psycopg.connect(settings.postgres.conninfo, autocommit=True) as connection:
        published = "select sum(rows_published)::bigint from ops.publications where relation like %s having count(*) = %s"
        found = connection.execute(published, [f"features.{view.name}.%", days]).fetchone()
        if found:
            return int(found[0])
        connection.execute("delete from ops.publications where relation like %s", [f"features.{view.name}.%"])
        partitions = "select c.oid::regclass::text from pg_class c where relkind = 'r' and relname like %s"
        for (partition,) in connection.execute(partitions, [f"{view.name}\\_%"]).fetchall():
            connection.execute(sql.SQL("drop table {}").format(sql.SQL(partition)))
    return load_history(settings.postgres, view, days)


def measure(settings: Settings, folder: Path, counts: dict[int, int]) -> dict[str, list[Row]]:
    """Cost and memory for each size."""
    before = machine()
    found: list[Row] = []
    for days, count in counts.items():
        for rows in (*ROWS, *([MOST_ROWS] if days == max(counts) else [])):
            job = {"days": days, "rows": rows, "parquet": str(folder / "out.parquet")}
            command = [sys.executable, "-m", "benchmarks.history_size", "--job", json.dumps(job)]
            done = subprocess.run(command, env=settings.child_environment(), check=True, capture_output=True, text=True)
            found.append({"versions": count, **json.loads(done.stdout)})
    return {"machine": [before], "cost against history, to Parquet": found}


def run_job(job: dict[str, Any]) -> Row:
    """One read in this process, the first."""
    settings, view = running_settings(Settings()), view_of(job["days"])
    reader = PointInTimeReader(PostgresStore(settings.postgres, FrozenClock(NOW)), with_views([view]))
    entities = entity_rows(job["rows"], job["days"])
    before = Peak()
    began, cpu_began = time.perf_counter(), time.process_time()
    reader.write_historical_features(Path(job["parquet"]), entities, [f"{view.name}:{name}" for name in view.feature_names])
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    return {
        "entity rows": job["rows"],
        "seconds": seconds,
        "client CPU seconds": cpu_seconds,
        "allocated at the peak (MiB)": before.stop(),
        "with mapped files (MiB)": memory("VmHWM"),
        "load average": os.getloadavg()[0],
    }


class Peak:
    """The most that this process had allocated in memory, looked at every 20 ms."""

    def __init__(self) -> None:
        """Looks until it is stopped."""
        self._most = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._done.wait(0.02):
            self._most = max(self._most, memory("RssAnon"))

    def stop(self) -> float:
        """MiB."""
        self._done.set()
        self._thread.join()
        return self._most


if __name__ == "__main__":
    main()
