"""Frames as Postgres' binary COPY format: every bit of a float, no text to write and to parse. No SQL.

Rows with the same NULLs and the same lengths of text have one layout, so that they are one numpy array of records.
"""

from collections.abc import Iterator, Mapping
from datetime import date

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

Array = np.ndarray[tuple[int, ...], np.dtype[np.generic]]


def binary_copy(frame: pl.DataFrame) -> Iterator[bytes]:
    """What to send after `copy ... (columns of the frame) from stdin (format binary)`; within a block the order of rows may change.

    Args:
        frame: Columns String, Float64, Int64, Int32, Date or Datetime(us, UTC), for columns text, double precision, bigint, integer, date
            and timestamptz.
    """
    yield SIGNATURE
    for block in frame.iter_slices(BLOCK_ROWS):
        yield from _block(block)
    yield END


def _block(block: pl.DataFrame) -> Iterator[bytes]:
    columns = [_Column(column) for column in block]
    layout = block.select(part for column in columns for part in column.layout)
    groups = layout.with_row_index("row").group_by(layout.columns, maintain_order=True).agg("row")["row"] if layout.width else [None]
    for group in groups:
        rows = None if group is None else group.to_numpy()
        yield _records(columns, block.height if rows is None else rows.size, rows)


class _Column:
    """A column of a block: its values as numbers, or its distinct texts and which of them each row has."""

    def __init__(self, column: pl.Series) -> None:
        name, null_count = column.name, column.null_count()
        self.nulls = column.is_null().to_numpy() if null_count else None
        self.layout = [pl.col(name).is_null().alias(f"{name}:null")] if 0 < null_count < column.len() else []
        self.texts: list[bytes] | None = None
        if column.dtype != pl.String:
            self.number = NUMBERS[column.dtype.base_type()]
            offset = {pl.Datetime: EPOCH_MICROSECONDS, pl.Date: EPOCH_DAYS}.get(column.dtype.base_type(), 0)
            values = column.to_physical()
            self.values: Array = (values.fill_null(0) - offset if offset else values.fill_null(0)).to_numpy()
            return
        texts = column.unique(maintain_order=True).drop_nulls()
        self.texts = [text.encode() for text in texts]
        if len({len(text) for text in self.texts}) > 1:
            self.layout.append(pl.col(name).str.len_bytes().alias(f"{name}:length"))
        places = pl.Series(range(texts.len()), dtype=pl.Int64)
        self.values = column.replace_strict(texts, places, default=0, return_dtype=pl.Int64).to_numpy() if texts.len() else np.zeros(1, int)

    def of_first(self, row: int) -> tuple[int, str | None]:
        """Length of the field in this row's layout, and numpy type of its content (None: no content)."""
        if self.nulls is not None and self.nulls[row]:
            return NULL_LENGTH, None
        if self.texts is None:
            return int(self.number[-1]), self.number
        length = len(self.texts[self.values[row]])
        return length, f"S{length}" if length else None

    def content(self, kind: str, rows: Array | None) -> Array | bytes:
        """What to write into the field of these rows (None: all of the block)."""
        if self.texts is None:
            return self.values if rows is None else self.values[rows]
        if len(self.texts) == 1:
            return self.texts[0]
        length = int(kind[1:])
        table = np.array([text if len(text) == length else b"" for text in self.texts], dtype=kind)
        content: Array = table[self.values if rows is None else self.values[rows]]
        return content


def _records(columns: list[_Column], count: int, rows: Array | None) -> bytes:
    fields = [column.of_first(0 if rows is None else int(rows[0])) for column in columns]
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
