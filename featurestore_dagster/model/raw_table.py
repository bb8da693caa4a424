"""Raw tables and datasets: what arrives from outside, append-only and bitemporal. How it is fetched does not belong here."""

from dataclasses import dataclass
from datetime import timedelta

import polars as pl

from featurestore_dagster.errors import DeclarationError
from featurestore_dagster.model.time import Timeframe
from featurestore_dagster.model.units import Unit

UTC_MICROSECONDS = pl.Datetime("us", "UTC")


@dataclass(frozen=True)
class Column:
    """One column of a raw table: its Polars type is the canonical one, the others are projected from it."""

    name: str
    dtype: pl.DataType
    description: str
    nullable: bool = False
    unit: Unit | None = None


@dataclass(frozen=True)
class RawTable:
    """A physical table in schema `raw`.

    Beside `columns` each table has `dataset`, `event_timestamp`, `source`, `known_at`, `known_at_basis` (observed or assumed), `flags`
    and `ingested_at`. A row's identity is dataset + `key` + event_timestamp + source; each distinct content of an identity is a version
    with its own `known_at`.
    """

    name: str
    description: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]

    def __post_init__(self) -> None:
        """Key columns must exist."""
        missing = set(self.key) - {column.name for column in self.columns}
        if missing:
            raise DeclarationError(f"raw table {self.name}: key columns {sorted(missing)} are not among its columns")

    @property
    def all_columns(self) -> tuple[Column, ...]:
        """Columns in table order, bookkeeping included."""
        return (
            Column("dataset", pl.String(), "dataset that the row belongs to"),
            *self.columns,
            Column("event_timestamp", UTC_MICROSECONDS, "first instant at which the row is true of the market and public by its nature"),
            Column("source", pl.String(), "source that the row came from"),
            Column("known_at", UTC_MICROSECONDS, "when this version could first have been used here"),
            Column("known_at_basis", pl.String(), "observed (measured on arrival) or assumed (event time plus the declared latency)"),
            Column("flags", pl.Int64(), "bitmask of quality flags"),
            Column("ingested_at", UTC_MICROSECONDS, "when our process wrote the row; forensics only"),
        )

    @property
    def identity(self) -> tuple[str, ...]:
        """Columns that identify a row whatever its version."""
        return ("dataset", *self.key, "event_timestamp", "source")

    @property
    def schema(self) -> dict[str, pl.DataType]:
        """Canonical frame schema: what a source returns and a reader gets."""
        return {column.name: column.dtype for column in self.all_columns}


@dataclass(frozen=True)
class Dataset:
    """A raw table of one market and timeframe; one Dagster asset in group raw.

    `latency` is the declared time from the event to its first availability here. `quarantine_limit` is the share of a partition's rows
    above which the partition is blocked instead of published without them. `bars` says that the calendar expects one row per listed
    symbol and bar end; without it (macro releases, corporate actions) an empty partition is normal.
    """

    name: str
    table: RawTable
    market: str
    calendar: str
    timeframe: Timeframe
    description: str
    latency: timedelta
    bars: bool
    quarantine_limit: float = 0.2

    def __post_init__(self) -> None:
        """Refuse limits that could never trigger or always would."""
        if not 0 <= self.quarantine_limit < 1:
            raise DeclarationError(f"dataset {self.name}: quarantine_limit {self.quarantine_limit} is not in [0, 1)")
