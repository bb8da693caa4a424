"""`python -m benchmarks.simulator`: daily bars of the simulated market, 45 000 symbols by 365 days, with faults, in batches of 500 symbols.

Prints rows, seconds, rows per second and peak memory of this process; `--symbols` and `--days` make it smaller, `--hash` adds the sha256.
"""

import argparse
import dataclasses
import resource
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

import polars as pl

from featurestore_dagster.features.raw_tables import US_EQUITY_CANDLES_1D
from featurestore_dagster.model.time import FrozenClock
from featurestore_dagster.settings import Settings
from featurestore_dagster.sources.simulator import Simulation, Simulator, content_hash

FIRST = date(2025, 1, 1)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--symbols", type=int, default=45_000)
    parser.add_argument("--days", type=int, default=365)
    parser.add_argument("--hash", action="store_true")
    arguments = parser.parse_args()
    simulation = Simulation(FIRST, FIRST + timedelta(days=arguments.days - 1), symbol_count=arguments.symbols)
    end = datetime(FIRST.year + 2, 1, 1, tzinfo=UTC)
    simulator = Simulator(simulation, Settings(environment="test"), FrozenClock(end))
    dataset = dataclasses.replace(US_EQUITY_CANDLES_1D, calendar="24/7")
    counts = {"rows": 0, "faults": 0}

    def counted() -> Iterator[pl.DataFrame]:
        for rows, faults in simulator.batches(dataset, datetime(FIRST.year, 1, 1, tzinfo=UTC), end):
            counts["rows"] += rows.height
            counts["faults"] += faults.height
            yield rows

    began = time.perf_counter()
    if arguments.hash:
        print(f"sha256   {content_hash(counted())}")
    else:
        for _ in counted():
            pass
    seconds = time.perf_counter() - began
    print(f"rows     {counts['rows']:,}\nfaults   {counts['faults']:,} bars")
    print(f"seconds  {seconds:,.1f}\nrows/s   {counts['rows'] / seconds:,.0f}")
    print(f"peak RSS {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:,.0f} MiB")


if __name__ == "__main__":
    main()
