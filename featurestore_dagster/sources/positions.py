"""Positions that the execution service appends to a file. How it decides on them does not belong here.

The file has a JSON object a line: {"symbol": "USDCOP", "position": -0.4, "pushed_at": "2024-05-03T13:30:00Z"}. A line counts once its line
feed is written; the text behind the last one is being written still. Lines are only ever appended.
"""

from datetime import UTC, datetime
from pathlib import Path

import polars as pl
from pydantic import AwareDatetime, Field

from featurestore_dagster.errors import ConfigurationError, MalformedDataError, SourceUnavailableError
from featurestore_dagster.features.raw_tables import POSITIONS as POSITIONS_TABLE
from featurestore_dagster.features.sources import POSITIONS
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS, Dataset
from featurestore_dagster.model.time import Clock
from featurestore_dagster.sources.payloads import Document, arrival, canonical, read, refuse_implausible
from featurestore_dagster.sources.provider_settings import PositionsSettings

LARGEST_BYTES = 256 * 1024 * 1024

ROWS = {**{column.name: column.dtype for column in POSITIONS_TABLE.columns}, "event_timestamp": UTC_MICROSECONDS}


class _Push(Document):
    symbol: str = Field(min_length=1)
    position: float = Field(ge=-1, le=1, allow_inf_nan=False)
    pushed_at: AwareDatetime


def fetch(dataset: Dataset, start: datetime, end: datetime, *, settings: PositionsSettings, clock: Clock) -> pl.DataFrame:
    """Positions pushed in start < event_timestamp <= end, each once, however often its line is in the file.

    Returns:
        The canonical columns but `ingested_at`, sorted by identity. Two positions of one symbol and instant are both left for the audit.

    Raises:
        ConfigurationError: POSITIONS_FILE is not set, or names no readable file.
        SourceUnavailableError: The file does not exist yet.
        MalformedDataError: A line is not of the declared form, beyond -1 to 1 or implausible, or the file is too large.
    """
    if settings.file is None:
        raise ConfigurationError("POSITIONS_FILE is not set; set it, or take positions out of FEATURESTORE_SOURCES")
    rows = parse(_whole_lines(settings.file), clock.now())
    within = (pl.col("event_timestamp") > start) & (pl.col("event_timestamp") <= end)
    return canonical(rows.filter(within).with_columns(**arrival(clock.now(), dataset)), dataset, POSITIONS)


def parse(body: bytes, received_at: datetime) -> pl.DataFrame:
    """Whole lines to rows: symbol, position (Float64), event_timestamp, each distinct one once, in the file's order.

    Raises:
        MalformedDataError: A line is not of the declared form; names the first.
    """
    pushes = []
    for number, line in enumerate(body.split(b"\n"), start=1):
        if line.strip():
            push = read(_Push, line, f"positions line {number}")
            refuse_implausible([push.pushed_at], received_at, f"positions line {number}")
            pushes.append((push.symbol, push.position, push.pushed_at.astimezone(UTC)))
    return pl.DataFrame(pushes, schema=ROWS, orient="row").unique(maintain_order=True)


def _whole_lines(path: Path) -> bytes:
    """Everything up to the last line feed, of one state of the file."""
    try:
        with path.open("rb") as file:
            body = file.read(LARGEST_BYTES + 1)
    except FileNotFoundError:
        raise SourceUnavailableError(f"positions: {path} does not exist (yet); start the execution service") from None
    except OSError as error:
        raise ConfigurationError(f"positions: POSITIONS_FILE={path} cannot be read ({error.strerror}); name a readable file") from None
    if len(body) > LARGEST_BYTES:
        raise MalformedDataError(f"positions: {path} has more than {LARGEST_BYTES} bytes; move what was published out of it")
    return body[: body.rfind(b"\n") + 1]
