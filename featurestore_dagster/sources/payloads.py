"""What all providers share: a JSON text to declared objects, and rows to a dataset's columns. No provider belongs here."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TypeVar

import polars as pl
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from featurestore_dagster.errors import MalformedDataError
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS, Dataset
from featurestore_dagster.model.source import Source

SHOWN_COMPLAINTS = 3
LIVE = timedelta(days=1)
PLAUSIBLE_SINCE = datetime(1990, 1, 1, tzinfo=UTC)


class Document(BaseModel):
    """A provider's document or a part of it: fields that we do not read are ignored, the others have exactly their JSON type."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


Declared = TypeVar("Declared")
_validator = cache(TypeAdapter)


def read(form: type[Declared], body: bytes, where: str) -> Declared:
    """What `body` holds, a `Document` or a type made of them; `where` names it in errors. NaN and infinities are numbers.

    Raises:
        MalformedDataError: The text is no JSON, or not of the declared form; names the first places.
    """
    try:
        declared: Declared = _validator(form).validate_json(body)  # type: ignore[arg-type] # a type is hashable
    except ValidationError as error:
        found = [f"{'.'.join(str(part) for part in detail['loc']) or 'document'}: {detail['msg']}" for detail in error.errors()]
        shown = "; ".join(found[:SHOWN_COMPLAINTS])
        raise MalformedDataError(f"{where}: not of the declared form in {len(found)} places: {shown}; nothing of it was taken") from None
    return declared


def refuse_implausible(instants: Iterable[datetime], received_at: datetime, where: str) -> None:
    """Refuse a document with an instant that only another unit of time explains: before 1990, or a day after it came.

    Raises:
        MalformedDataError: There is one.
    """
    latest = received_at + timedelta(days=1)
    for instant in instants:
        if not PLAUSIBLE_SINCE <= instant <= latest:
            raise MalformedDataError(
                f"{where}: {instant.isoformat()} is outside {PLAUSIBLE_SINCE.isoformat()} to {latest.isoformat()}; nothing of it was taken"
            )


def arrival(received_at: datetime, dataset: Dataset) -> dict[str, pl.Expr]:
    """known_at and known_at_basis: the arrival of what happened within a day before it, else the event plus the declared latency."""
    event = pl.col("event_timestamp")
    live = event > received_at - LIVE
    return {
        "known_at": pl.when(live).then(pl.max_horizontal(pl.lit(received_at, UTC_MICROSECONDS), event)).otherwise(event + dataset.latency),
        "known_at_basis": pl.when(live).then(pl.lit("observed")).otherwise(pl.lit("assumed")),
    }


def canonical(rows: pl.DataFrame, dataset: Dataset, source: Source) -> pl.DataFrame:
    """Rows with the dataset's columns but `ingested_at`, cast, sorted by identity.

    Args:
        rows: The table's own columns, event_timestamp, known_at and known_at_basis; `flags` where any is set.
        dataset: What the rows belong to.
        source: What they came from.
    """
    schema = {name: dtype for name, dtype in dataset.table.schema.items() if name != "ingested_at"}
    constants = {"dataset": pl.lit(dataset.name), "source": pl.lit(source.name)}
    if "flags" not in rows.columns:
        constants["flags"] = pl.lit(0)
    return (
        rows.with_columns(**constants)
        .select(pl.col(name).cast(dtype) for name, dtype in schema.items())
        .sort(dataset.table.identity, maintain_order=True)
    )
