"""`python -m benchmarks.backfill`: ten years of 500 simulated symbols, daily, raw to Redis, as `featurestore backfill` does it.

Dagster runs of one chunk each, recorded in Postgres, in this process: seconds, rows, and the peak memory of the process.
"""

import argparse
import os
import resource
import statistics
import tempfile
import time
from datetime import date
from pathlib import Path

import dagster as dg
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run

from benchmarks.printing import machine, show
from benchmarks.restatement import SimulatedPlatform, query, simulated, stores
from featurestore_dagster.calendars import calendar
from featurestore_dagster.features.equity_views import MOMENTUM_FEATURES
from featurestore_dagster.launch import QUIET
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.feature_view import FeatureView, Stream
from featurestore_dagster.orchestration.assets.online import build_online_asset
from featurestore_dagster.orchestration.assets.raw import build_raw_asset
from featurestore_dagster.orchestration.assets.views import build_stream_asset
from featurestore_dagster.orchestration.drift import drift_checks
from featurestore_dagster.orchestration.jobs import build_path_job, paths
from featurestore_dagster.orchestration.partitions import range_tags
from featurestore_dagster.pipeline.backfill import plan_backfill
from featurestore_dagster.stores.postgres.measurements import Measurements

SYMBOLS, SESSIONS = 500, (date(2015, 1, 2), date(2024, 12, 31))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--symbols", type=int, default=SYMBOLS, help="number of simulated symbols (default: %(default)s)")
    options = parser.parse_args()
    before = machine()
    title = f"ten-year daily backfill, {options.symbols} symbols, raw to Redis"
    show({"machine": before, title: backfill(options.symbols)}, as_json=options.json)


def backfill(symbols: int) -> dict[str, float | int | str]:
    """As `featurestore backfill momentum_features`."""
    with stores(environment="test") as settings:
        platform = simulated(settings, SESSIONS, symbols, MOMENTUM_FEATURES)
        view, stream = platform.catalogue.views[0], platform.catalogue.views[0].streams[0]
        keys = [day.isoformat() for day in calendar("XNYS").sessions(*SESSIONS)["session"]]
        measured = Measurements(settings.postgres)
        plan = plan_backfill(platform.pipeline, measured, view, stream, keys, platform.catalogue.datasets)
        definitions = _definitions(platform, view, stream)
        job = definitions.resolve_job_def("xnys_path")
        os.environ.update(settings.exports())
        with tempfile.TemporaryDirectory() as home:
            (Path(home) / "dagster.yaml").write_text((Path(__file__).parent.parent / "dagster.yaml").read_text())
            with dg.DagsterInstance.from_config(home) as instance:
                began, cpu = time.perf_counter(), time.process_time()
                by_chunk = []
                for chunk in plan.chunks:
                    chunk_began = time.perf_counter()
                    run = instance.create_run_for_job(job, run_config=QUIET, tags=range_tags(chunk[0], chunk[-1]))
                    execute_run(InMemoryJob(job), run, instance)
                    finished = instance.get_run_by_id(run.run_id)
                    if finished is None or not finished.is_success:
                        raise SystemExit(f"the run of {chunk[0]}..{chunk[-1]} failed: see its events")
                    by_chunk.append(time.perf_counter() - chunk_began)
                seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        [(rows,)] = query(settings, "select sum(rows_published)::bigint from ops.publications")
        again = plan_backfill(platform.pipeline, measured, view, stream, keys, platform.catalogue.datasets)
        return {
            "seconds": seconds,
            "CPU seconds of this process": cpu,
            "peak memory (MiB)": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "sessions": len(keys),
            "chunks": len(plan.chunks),
            "median chunk (s)": statistics.median(by_chunk),
            "rows published": rows,
            "rows per second": rows / seconds,
            "left to do afterwards": len(again.stale),
        }


def _definitions(platform: SimulatedPlatform, view: FeatureView, stream: Stream) -> dg.Definitions:
    catalogue: Catalogue = platform.catalogue
    path = next(path for path in paths(catalogue) if (view, stream) in path.streams(catalogue))
    return dg.Definitions(
        assets=[
            *(build_raw_asset(catalogue, dataset, platform.clock) for dataset in catalogue.datasets),
            build_stream_asset(catalogue, view, stream, platform.clock),
            build_online_asset(view),
        ],
        asset_checks=drift_checks(catalogue),
        jobs=[build_path_job(catalogue, path)],
        resources={"platform": platform},
    )


if __name__ == "__main__":
    main()
