"""Frames as Postgres' binary COPY format: every bit of a float, no text to write and to parse. No SQL.

Rows with the same NULLs and the same lengths of text have one layout, so that they are one numpy array of records.
"""

from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any

import numpy as np
import polars as pl

BLOCK_ROWS = 32_768
"""Rows written at a time."""

SIGNATURE = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
END = b"\xff\xff"
NULL_LENGTH = -1
EPOCH_DAYS = (date(2000, 1, 1) - date(1970, 1, 1)).days
EPOCH_MICROSECONDS = EPOCH_DAYS * 86_400_000_000
"""Postgres counts from the year 2000."""

NUMBERS: Mapping[type[pl.DataType], str] = {
    pl.Float64: ">f8", pl.Int64: ">i8", pl.Int32: ">i4", pl.Datetime: ">i8", pl.Date: ">i4",
}  # fmt: skip

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]
Rows = slice | Array


def binary_copy(frame: pl.DataFrame) -> Iterator[bytes]:
    """What to send after `copy ... (columns of the frame) from stdin (format binary)`; within a block the order of rows may change.

    Args:
        frame: Columns String, Float64, Int64, Int32, Date or Datetime(us, UTC), for columns text, double precision, bigint, integer, date
            and timestamptz.
    """
    columns = [_Column(column) for column in frame]
    yield SIGNATURE
    for start in range(0, frame.height, BLOCK_ROWS):
        block = range(start, min(start + BLOCK_ROWS, frame.height))
        for rows in _layouts(columns, block):
            yield _records(columns, rows)
    yield END


class _Column:
    """A column of a frame: its values as numbers, or its distinct texts and which of them each row has."""

    def __init__(self, column: pl.Series) -> None:
        self.nulls: Array | None = column.is_null().to_numpy() if column.null_count() else None
        self.texts: list[bytes] | None = None
        if column.dtype != pl.String:
            self.number = NUMBERS[column.dtype.base_type()]
            offset = {pl.Datetime: EPOCH_MICROSECONDS, pl.Date: EPOCH_DAYS}.get(column.dtype.base_type(), 0)
            values = column.to_physical().fill_null(0)
            self.values: Array = (values - offset if offset else values).to_numpy()
            return
        texts = column.drop_nulls().unique()
        self.texts = [text.encode() for text in texts]
        self.lengths = np.array([len(text) for text in self.texts], dtype=np.int64)
        self.tables = {n: np.array([t if len(t) == n else b"" for t in self.texts], dtype=f"S{n}") for n in set(self.lengths.tolist()) if n}
        if len(self.texts) > 1:
            places = pl.Series(range(texts.len()), dtype=pl.Int64)
            self.values = column.replace_strict(texts, places, default=0, return_dtype=pl.Int64).to_numpy()

    def layout(self, rows: slice) -> Array | None:
        """Length of the field in each row, -1 for NULL; None when the column gives all its rows one length."""
        if self.texts is None or len(set(self.lengths.tolist())) < 2:
            return None if self.nulls is None else -self.nulls[rows].astype(np.int64)
        lengths = self.lengths[self.values[rows]]
        return lengths if self.nulls is None else np.where(self.nulls[rows], NULL_LENGTH, lengths)

    def of_first(self, row: int) -> tuple[int, str | None]:
        """Length of the field in this row's layout, and numpy type of its content (None: no content)."""
        if self.nulls is not None and self.nulls[row]:
            return NULL_LENGTH, None
        if self.texts is None:
            return int(self.number[-1]), self.number
        length = len(self.texts[self.values[row] if len(self.texts) > 1 else 0])
        return length, f"S{length}" if length else None

    def content(self, kind: str, rows: Rows) -> Array | bytes:
        """What to write into the field of these rows, which have one layout."""
        if self.texts is None:
            return self.values[rows]
        if len(self.texts) == 1:
            return self.texts[0]
        content: Array = self.tables[int(kind[1:])][self.values[rows]]
        return content


def _layouts(columns: list[_Column], block: range) -> Iterator[Rows]:
    """Rows of the block by layout: a slice when it is one."""
    whole = slice(block.start, block.stop)
    varying = {str(number): found for number, column in enumerate(columns) if (found := column.layout(whole)) is not None}
    if not varying:
        yield whole
        return
    layouts = pl.DataFrame(varying).with_row_index("row").group_by(list(varying), maintain_order=True).agg("row")["row"]
    if layouts.len() == 1:
        yield whole
        return
    for rows in layouts:
        yield rows.to_numpy() + block.start


def _records(columns: list[_Column], rows: Rows) -> bytes:
    first, count = (rows.start, rows.stop - rows.start) if isinstance(rows, slice) else (int(rows[0]), rows.size)
    fields = [column.of_first(first) for column in columns]
    dtype: list[tuple[str, str]] = [("fields", ">i2")]
    for number, (_, kind) in enumerate(fields):
        dtype.append((f"length_{number}", ">i4"))
        if kind is not None:
            dtype.append((f"content_{number}", kind))
    template = np.zeros(1, dtype=dtype)
    template["fields"] = len(columns)
    for number, (length, _) in enumerate(fields):
        template[f"length_{number}"] = length
    records = np.repeat(template, count)
    for number, (column, (_, kind)) in enumerate(zip(columns, fields, strict=True)):
        if kind is not None:
            records[f"content_{number}"] = column.content(kind, rows)
    return records.tobytes()
