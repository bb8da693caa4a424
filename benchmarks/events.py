"""`python -m benchmarks.events`: the windows of a million events at every minute of every symbol, in one process.

Events are drawn at random: 100 symbols over 10 days, known late (a minute on average), 2 % sent again with another score, 1 % repeating
the headline of another event of their symbol. Prints for each view's features: seconds and CPU seconds, rows and events per second, and
the peak memory of the process so far.
"""

import argparse
import resource
import time
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl

from benchmarks.printing import machine, show
from featurestore_dagster.features.event_views import EVENT_FEATURES_1H, SENTIMENT_FEATURES_VIEW
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.model.indicator import Grain
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS
from featurestore_dagster.pipeline.blocks.events import event_windows

START = datetime(2024, 3, 4, tzinfo=UTC)
DAY_MICROSECONDS = timedelta(days=1) // timedelta(microseconds=1)
MINUTE_MICROSECONDS = timedelta(minutes=1) // timedelta(microseconds=1)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--events", type=int, default=1_000_000, help="number of events (default: %(default)s)")
    options = parser.parse_args()
    results = measure(options.events)
    show(results, as_json=options.json)


def measure(events: int, symbols: int = 100, days: int = 10) -> dict[str, dict[str, float | int | str]]:
    """All measurements, by table."""
    told = random_events(events, symbols, days)
    minutes = pl.datetime_range(START, START + timedelta(days=days), "1m", closed="right", eager=True).alias("event_timestamp")
    rows = told.select(pl.col("symbol").unique()).join(minutes.to_frame(), how="cross")
    return {
        "machine": machine(),
        "input": {"events": told.height, "rows": rows.height, "peak memory (MiB)": _peak_mebibytes()},
        "event_features_1h, every minute": _timed(EVENT_FEATURES_1H, rows, told),
        "sentiment_features_view, every quarter of an hour": _timed(
            SENTIMENT_FEATURES_VIEW, rows.filter(pl.col("event_timestamp").dt.minute() % 15 == 0), told
        ),
    }


def random_events(count: int, symbols: int, days: int) -> pl.DataFrame:
    """Rows of raw.events; equal arguments give equal frames."""
    draw = np.random.Generator(np.random.PCG64(1))
    number = np.where(draw.random(count) < 0.02, draw.integers(0, count, count), np.arange(count))
    headline = np.where(draw.random(count) < 0.01, number + symbols, number)
    published = draw.integers(0, days * DAY_MICROSECONDS, count)
    columns = {
        "event_id": pl.Series(number),
        "symbol": pl.Series(number % symbols),
        "source_type": pl.Series(draw.choice(["news", "social", "analyst"], count)),
        "headline_hash": pl.Series(headline),
        "score": draw.uniform(-1, 1, count),
        "confidence": draw.beta(5, 2, count),
        "firm": draw.choice(["Ash", "Birch", "Cedar"], count),
        "rating": draw.integers(1, 6, count).astype(np.float64),
        "event_timestamp": published,
        "known_at": published + draw.exponential(MINUTE_MICROSECONDS, count).astype(np.int64),
        "flags": np.zeros(count, dtype=np.int64),
    }
    origin = pl.lit(START).cast(UTC_MICROSECONDS)
    return pl.DataFrame(columns).with_columns(
        pl.format("event-{}", "event_id").alias("event_id"),
        pl.format("SIM{}", "symbol").alias("symbol"),
        pl.format("{}", pl.col("headline_hash").hash(1)).alias("headline_hash"),
        *((origin + pl.col(name).cast(pl.Duration("us"))).alias(name) for name in ("event_timestamp", "known_at")),
    )


def _timed(view: FeatureView, rows: pl.DataFrame, events: pl.DataFrame) -> dict[str, float | int | str]:
    features = view.by_grain[Grain.EVENTS]
    began, cpu_began = time.perf_counter(), time.process_time()
    found = event_windows(features, rows, events)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    return {
        "seconds": seconds,
        "CPU seconds, all threads": cpu_seconds,
        "rows": found.height,
        "rows per second": found.height / seconds,
        "events per second": events.height / seconds,
        "rows without value": found[f"value:{features[0].name}"].null_count(),
        "peak memory (MiB)": _peak_mebibytes(),
    }


def _peak_mebibytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
