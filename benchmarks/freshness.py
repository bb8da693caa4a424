"""`python -m benchmarks.freshness`: judging 45,000 entities, and the ticks of the sensors over 2,500 partitions of every asset.

In an own data folder that is deleted afterwards: one stream with 45,000 listed symbols, published whole; then a ledger with 2,500
publications and audits of each relation, and a tick of `data_freshness_sensor` and of `alert_sensor` over all streams. Prints seconds: the
median of five, and the first, which opens connections and counts the backlog in the SLO ledger.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from benchmarks.printing import machine, show
from featurestore_dagster.calendars import calendar
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.features.equity_views import DAILY_OHLCV_STATS
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.source import Listing
from featurestore_dagster.orchestration.alerting import build_alert_sensor
from featurestore_dagster.orchestration.platform import Platform
from featurestore_dagster.orchestration.sensors import build_freshness_sensor
from featurestore_dagster.projections.relation import relations, stream_relation
from featurestore_dagster.serving.slo_state import stream_state
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.embedded import EmbeddedServices
from featurestore_dagster.stores.postgres import PostgresStore
from featurestore_dagster.stores.postgres.connection import connect

NOW = datetime(2018, 12, 31, 23, 30, tzinfo=UTC)
VIEW, STREAM = DAILY_OHLCV_STATS, DAILY_OHLCV_STATS.streams[0]
PARTITIONS = 2_500
REPEATS = 5

FILL = """
insert into ops.publications (batch_id, relation, partition_key, rows_published, rows_quarantined, rows_total, content_hash,
  min_event_timestamp, max_event_timestamp, changed, inputs, code_version, run_id, published_at)
select -n, %(relation)s, key, 10, 0, 10, '', closes, closes, '{}', '{}', '', '', closes + interval '20 minutes'
from unnest(%(keys)s::text[], %(closes)s::timestamptz[]) with ordinality as p(key, closes, n)
"""
AUDITS = """
insert into ops.quality_log (relation, partition_key, outcome, checks, flags, run_id, logged_at)
select %(relation)s, key, case when n %% 100 = 0 and attempt = 1 then 'blocked' else 'published' end,
  '[{"check": "row_count", "rows": 1}]', '{}', '', now()
from unnest(%(keys)s::text[]) with ordinality as p(key, n), generate_series(1, 3) attempt order by attempt
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--entities", type=int, default=45_000, help="listed symbols (default: %(default)s)")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="featurestore-bench-", ignore_cleanup_errors=True) as folder,
        EmbeddedServices(Settings(data_folder=Path(folder), clock=NOW.isoformat())) as settings,
    ):
        results = measure(settings, options.entities)
    show(results, as_json=options.json)


def measure(settings: Settings, entities: int) -> dict[str, dict[str, float | int | str]]:
    """All measurements, by table."""
    store = PostgresStore(settings.postgres, settings.make_clock())
    store.apply(CATALOGUE)
    catalogue = listing(entities)
    publishing = [_publish(store, entities, session) for session in (date(2018, 12, 27), date(2018, 12, 28))]
    judged = _timed(lambda: stream_state(catalogue, store, VIEW, STREAM, NOW))
    fill(settings)
    platform = Platform(settings, catalogue)
    with dg.DagsterInstance.ephemeral() as instance:
        ticks = {
            name: _timed(lambda sensor=sensor: sensor(dg.build_sensor_context(instance=instance), platform=platform))  # type: ignore[misc]
            for name, sensor in (
                ("data_freshness_sensor", build_freshness_sensor(catalogue)),
                ("alert_sensor", build_alert_sensor(catalogue)),
            )
        }
    streams = sum(catalogue.is_fed(stream) for view in catalogue.views for stream in view.streams)
    return {
        "machine": machine(),
        f"freshness of {entities:,} entities of a stream, watermarks read from Postgres": {
            "seconds": judged[0],
            "first (s)": judged[1],
            "publishing their rows of one session, watermarks included (s)": publishing[-1],
        },
        f"sensor ticks, {streams} streams, {PARTITIONS:,} partitions of each of {len(relations(catalogue))} relations": {
            label: seconds
            for name, (median, first) in ticks.items()
            for label, seconds in ((f"{name} (s)", median), (f"  first {name} (s)", first))
        },
    }


def listing(entities: int) -> Catalogue:
    """The catalogue, with one source that lists so many symbols for the daily stream, and no other that does."""
    symbols = tuple(Listing(f"S{number:05}", date(2000, 1, 3)) for number in range(entities))
    bars = STREAM.inputs[0].name
    first, *others = (replace(source, listings={**source.listings, bars: ()}) for source in CATALOGUE.sources)
    return replace(CATALOGUE, sources=(replace(first, listings={**first.listings, bars: symbols}), *others))


def fill(settings: Settings) -> None:
    """Publications and audits of many sessions for every relation."""
    with connect(settings.postgres) as connection:
        for relation in relations(CATALOGUE).values():
            sessions = calendar(relation.calendar).sessions(date(2008, 1, 2), date(2018, 12, 27)).tail(PARTITIONS)
            parameters = {
                "relation": relation.name,
                "keys": [session.isoformat() for session in sessions["session"]],
                "closes": sessions["closes"].to_list(),
            }
            connection.execute(FILL, parameters)
            connection.execute(AUDITS, parameters)
    with connect(settings.postgres, autocommit=True) as connection:
        connection.execute("analyze")


def _publish(store: PostgresStore, entities: int, session: date) -> float:
    relation = stream_relation(VIEW, STREAM)
    closes = calendar(STREAM.calendar).session(session).closes
    columns: dict[str, Any] = {
        "symbol": pl.Series([f"S{number:05}" for number in range(entities)]),
        "event_timestamp": closes,
        "created_timestamp": closes,
        "flags": 0,
        "feature_set_version": VIEW.version,
        "stream": STREAM.name,
    }
    rows = pl.select(pl.lit(columns.get(name, 1.0)).cast(dtype).alias(name) for name, dtype in relation.frame_schema.items())
    began = time.perf_counter()
    store.publish(relation, rows, [session.isoformat()])
    return time.perf_counter() - began


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    """(median, first) seconds."""
    seconds = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:]), seconds[0]


if __name__ == "__main__":
    main()
