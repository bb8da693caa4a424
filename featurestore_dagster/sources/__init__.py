"""Sources: fetch the rows of a dataset from everything that declares it. Auditing and publishing rows do not belong here.

A source module knows one provider and imports no other source. The declarations are in `features.sources`.
"""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import polars as pl

from featurestore_dagster.features.sources import FILES, SAMPLES, SOURCES
from featurestore_dagster.model.raw_table import Dataset
from featurestore_dagster.model.time import Clock
from featurestore_dagster.sources import files, samples

Fetch = Callable[[Dataset, datetime, datetime, Path, Clock], pl.DataFrame]

_FETCHERS: dict[str, Fetch] = {
    SAMPLES.name: lambda dataset, start, end, _, clock: samples.fetch(dataset, start, end, clock=clock),
    FILES.name: lambda dataset, start, end, drop_folder, _: files.fetch(dataset, start, end, drop_folder=drop_folder),
}


def fetch(dataset: Dataset, start: datetime, end: datetime, *, drop_folder: Path, clock: Clock) -> pl.DataFrame:
    """Rows with start < event_timestamp <= end, of all sources that declare the dataset. Reads only: `files.take` moves files.

    Args:
        dataset: What to fetch.
        start: Exclusive, UTC.
        end: Inclusive, UTC.
        drop_folder: Where `files.take` keeps what it landed.
        clock: A replayed source delivers nothing from after this clock's now.

    Returns:
        The canonical columns of `dataset.table` but `ingested_at`, sorted by the table's identity. Values are as delivered: NULL, NaN and
        infinities are left for the audit. A duplicated key within one file stays duplicated, also for the audit.

    Raises:
        ConfigurationError: The packages of the samples are not installed.
    """
    frames = [_FETCHERS[source.name](dataset, start, end, drop_folder, clock) for source in SOURCES if dataset in source.datasets]
    schema = {name: dtype for name, dtype in dataset.table.schema.items() if name != "ingested_at"}
    return pl.concat([pl.DataFrame(schema=schema), *frames]).sort(dataset.table.identity, maintain_order=True)
