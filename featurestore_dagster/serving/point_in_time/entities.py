"""The frame of entities and instants that a caller hands over, in whatever library, checked as a whole. Reading values is not done here."""

import sys
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import polars as pl

from featurestore_dagster.errors import MalformedDataError
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS
from featurestore_dagster.serving.offset_zones import in_named_zones

Entities: TypeAlias = Any
"""A Polars DataFrame or LazyFrame, a pandas DataFrame, anything that gives an Arrow stream (PyArrow), or SQL text."""

EARLIEST, LATEST = datetime(1700, 1, 1, tzinfo=UTC), datetime(2250, 1, 1, tzinfo=UTC)
"""An instant outside is a unit mixed up, not a date."""


def frame_of(entities: Entities) -> pl.DataFrame:
    """The rows as a Polars frame, in their order. pandas' index is left out.

    Raises:
        MalformedDataError: It is no frame, names a column twice, or has a column that mixes types.
    """
    if isinstance(entities, pl.DataFrame):
        return entities
    if isinstance(entities, pl.LazyFrame):
        return entities.collect(engine="streaming")
    if not hasattr(entities, "__arrow_c_stream__"):
        raise MalformedDataError(
            f"entities are a {type(entities).__name__}; give a frame of Polars, pandas or PyArrow, or the text of a SELECT"
        )
    import pyarrow as pa

    pandas = sys.modules.get("pandas")
    is_pandas = pandas is not None and isinstance(entities, pandas.DataFrame)
    try:
        table = pa.Table.from_pandas(entities, preserve_index=False) if is_pandas else pa.table(entities)
        return pl.DataFrame(in_named_zones(table))
    except (pa.ArrowException, pl.exceptions.PolarsError, TypeError, ValueError) as error:
        raise MalformedDataError(
            f"the entity frame cannot be read: {error}; name each column once, and give each one type: text, numbers or instants"
        ) from error


def checked(frame: pl.DataFrame, join_keys: Iterable[str], instants: Iterable[str], outputs: Iterable[str]) -> pl.DataFrame:
    """The join keys as text and the instants in UTC microseconds, nothing else; later fractions of a microsecond are cut off.

    Args:
        frame: As the caller gave it.
        join_keys: Columns with keys; NULL is allowed and sees nothing.
        instants: Columns with instants, not NULL.
        outputs: Columns that will be added.

    Raises:
        MalformedDataError: A column is missing or has integers of 128 bits, a key is no text, an instant is NULL, has no time zone or is
            not between EARLIEST and LATEST, or an output has the name of a column. Nothing was read.
    """
    join_keys, instants = tuple(join_keys), tuple(dict.fromkeys(instants))
    if missing := [name for name in (*join_keys, *instants) if name not in frame.columns]:
        raise MalformedDataError(f"the entity frame lacks {missing}; needed are {[*join_keys, *instants]}, it has {frame.columns}")
    if taken := [name for name in outputs if name in frame.columns]:
        raise MalformedDataError(f"the entity frame already has {taken}, which the answer adds: rename or drop them")
    if wide := [name for name, dtype in frame.schema.items() if dtype in (pl.Int128, pl.UInt128)]:
        raise MalformedDataError(
            f"{wide} hold integers of 128 bits, which neither Arrow nor Parquet has; cast them to 64 bits or to floats"
        )
    for name in join_keys:
        dtype = frame.schema[name]
        if dtype not in (pl.String, pl.Categorical, pl.Enum, pl.Null):
            raise MalformedDataError(f"join key {name} is {dtype}; keys are text, for example 'AAPL'")
    for name in instants:
        dtype = frame.schema[name]
        if not isinstance(dtype, pl.Datetime) or dtype.time_zone is None:
            raise MalformedDataError(f"{name} is {dtype}; give timezone-aware instants, for example datetime.now(UTC)")
        if nulls := frame[name].null_count():
            raise MalformedDataError(f"{name} is NULL in {nulls} of {frame.height} rows; every row needs an instant: drop or mend them")
        unit = dtype.time_unit
        low, high = (pl.Series([bound]).dt.cast_time_unit(unit).to_physical()[0] for bound in (EARLIEST, LATEST))
        if not frame[name].to_physical().is_between(low, high, closed="left").all():
            raise MalformedDataError(f"{name} has instants outside of {EARLIEST.year} to {LATEST.year}; is the unit {unit} right?")
    return frame.select(
        *(pl.col(name).cast(pl.String) for name in join_keys),
        *(pl.col(name).dt.convert_time_zone("UTC").cast(UTC_MICROSECONDS) for name in instants),
    )


def microseconds(duration: timedelta) -> int:
    """Exact."""
    return duration // timedelta(microseconds=1)
