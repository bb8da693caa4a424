"""What is simulated: period, symbols and seed, and the random streams drawn from them. The market itself does not belong here.

Every (symbol, kind) has a stream of its own, so any subset of symbols, in any order, gives the same rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from enum import IntEnum
from functools import cached_property
from zlib import crc32

import numpy as np
import polars as pl

from featurestore_dagster.errors import ConfigurationError
from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS, Dataset

VERSION = 1
"""Goes up when the same seed gives other rows."""

SOURCE = "simulator"
LATENCY = timedelta(seconds=1)
SYMBOLS_PER_BATCH = 500
YEAR = 252

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Integers = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
Booleans = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


class Stream(IntEnum):
    """Kinds of random numbers; the numbers are part of the seed."""

    UNIVERSE = 0
    DAILY = 1
    INTRADAY = 2
    QUOTES = 3
    EVENTS = 4
    FILINGS = 5
    ACTIONS = 6
    FAULTS = 7


@dataclass(frozen=True)
class Simulation:
    """A market from session `first` to `last` (labels, inclusive); symbols are `SIM00001.X` and on."""

    first: date
    last: date
    seed: int = 0
    symbol_count: int = 45_000
    with_faults: bool = True

    def __post_init__(self) -> None:
        """Refuse what cannot be simulated."""
        if self.last < self.first:
            raise ConfigurationError(f"simulation: last session {self.last} is before the first, {self.first}")
        if not 1 <= self.symbol_count <= 99_999:
            raise ConfigurationError(f"simulation: {self.symbol_count} symbols; allowed: 1 to 99999")
        if self.seed < 0:
            raise ConfigurationError(f"simulation: seed {self.seed}; allowed: 0 and above")

    @cached_property
    def symbols(self) -> tuple[str, ...]:
        """All symbols, ascending."""
        return tuple(f"SIM{number:05}.X" for number in range(1, self.symbol_count + 1))

    def generator(self, symbol: str, stream: Stream, *block: int) -> np.random.Generator:
        """The random numbers of a symbol and kind; `block` numbers independent parts of it, such as sessions."""
        entropy = [self.seed, crc32(symbol.encode()), stream.value]
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy, spawn_key=block)))


def batches(symbols: Sequence[str]) -> Iterator[Sequence[str]]:
    """Symbols in groups that bound memory."""
    for start in range(0, len(symbols), SYMBOLS_PER_BATCH):
        yield symbols[start : start + SYMBOLS_PER_BATCH]


def canonical(rows: pl.DataFrame, dataset: Dataset) -> pl.DataFrame:
    """`rows` as a source delivers them: labelled as simulated, what they lack of the nullable columns NULL.

    `rows` has event_timestamp and optionally known_at, as Int64 microseconds or Datetime, and the table's other columns.
    """
    schema = {name: dtype for name, dtype in dataset.table.schema.items() if name != "ingested_at"}
    given = set(rows.columns)
    event = pl.col("event_timestamp").cast(pl.Int64)
    absent = {column.name: pl.lit(None) for column in dataset.table.columns if column.nullable and column.name not in given}
    return (
        rows.with_columns(
            **absent,
            dataset=pl.lit(dataset.name),
            source=pl.lit(SOURCE),
            event_timestamp=event.cast(UTC_MICROSECONDS),
            known_at=(pl.col("known_at") if "known_at" in given else event + LATENCY // timedelta(microseconds=1)).cast(UTC_MICROSECONDS),
            known_at_basis=pl.lit("observed"),
            flags=pl.lit(QualityFlag.SIMULATED.value, pl.Int64),
        )
        .select(pl.col(name).cast(dtype) for name, dtype in schema.items())
        .sort(*dataset.table.identity, "known_at", maintain_order=True)
    )
