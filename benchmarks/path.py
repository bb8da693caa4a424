"""`python -m benchmarks.path`: the path from candles to a served vector, measured in an own data folder that is deleted afterwards.

Prints: seconds to load the definitions; a ten-year daily backfill of all sample symbols by step, with rows per second and peak memory;
the same again (nothing new); one live bar through Dagster in one process.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from benchmarks.printing import machine, show
from featurestore_dagster.cli.operate import PathRun, run_path
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.embedded import EmbeddedServices
from featurestore_dagster.stores.postgres import PostgresStore

CLOCK = "2018-12-31T22:00:00Z"
TEN_YEARS = (date(2009, 1, 2), date(2018, 12, 26))
LIVE_SESSIONS = (date(2018, 12, 27), date(2018, 12, 28), date(2018, 12, 31))

LOAD_DEFINITIONS = """
import json, sys, time
began = time.perf_counter()
import featurestore_dagster.definitions
print(json.dumps({"seconds": time.perf_counter() - began, "heavy": [m for m in ("feast", "pandas", "dagster_dbt") if m in sys.modules]}))
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    as_json = parser.parse_args().json
    with tempfile.TemporaryDirectory(prefix="featurestore-bench-", ignore_cleanup_errors=True) as folder:
        configured = Settings(data_folder=Path(folder), clock=CLOCK)
        with EmbeddedServices(configured) as settings:
            results = measure(settings)
    show(results, as_json=as_json)


def measure(settings: Settings) -> dict[str, dict[str, float | int | str]]:
    """All measurements, by table."""
    PostgresStore(settings.postgres, settings.make_clock()).apply(CATALOGUE)
    environment = settings.child_environment()
    subprocess.run(
        [sys.executable, "-c", LOAD_DEFINITIONS], env=environment, check=True, capture_output=True
    )  # parses the dbt project once
    loads = [
        json.loads(subprocess.run([sys.executable, "-c", LOAD_DEFINITIONS], env=environment, check=True, capture_output=True).stdout)
        for _ in range(3)
    ]
    backfill, backfill_seconds = _timed(settings, *TEN_YEARS)
    again, again_seconds = _timed(settings, *TEN_YEARS)
    live = [_timed(settings, session, session) for session in LIVE_SESSIONS]
    peak_bytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    steps = sum(run.seconds_by_step[name] for run, _ in live for name in run.seconds_by_step) / len(live)
    return {
        "machine": machine(),
        "load the definitions": {
            "median seconds": statistics.median(load["seconds"] for load in loads),
            "heavy imports": ", ".join(loads[0]["heavy"]) or "none",
        },
        "ten-year daily backfill, all sample symbols, raw to Redis": {
            "seconds": backfill_seconds,
            **{f"  {name} (s)": value for name, value in backfill.seconds_by_step.items()},
            "sessions": backfill.sessions,
            "partitions published": backfill.partitions_published,
            "rows published": backfill.rows_published,
            "rows per second": backfill.rows_published / backfill_seconds,
            "peak memory of the run (MiB)": peak_bytes / 2**20,
        },
        "the same again": {"seconds": again_seconds, "rows published": again.rows_published},
        "one live bar, all views, new process": {
            "median seconds, process start included": statistics.median(seconds for _, seconds in live),
            "mean seconds inside the steps": steps,
            "rows published": sum(run.rows_published for run, _ in live),
        },
    }


def _timed(settings: Settings, first: date, last: date) -> tuple[PathRun, float]:
    began = time.perf_counter()
    run = run_path(settings, "XNYS", first, last, quiet=True)
    if run is None or not run.succeeded:
        raise SystemExit(f"the run over {first}..{last} failed: {run and run.failures}")
    return run, time.perf_counter() - began


if __name__ == "__main__":
    main()
