"""A CSV or Parquet file to a rectangular frame of its own columns. What the columns mean does not belong here (see `parsing`)."""

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn, TextIO

import polars as pl

from featurestore_dagster.errors import MalformedDataError
from featurestore_dagster.sources.files.mapping import FileMapping

LINE = "\x00line"
"""Column that carries the line (CSV) or row (Parquet) of the file; no file column can have this name."""

ROWS_PER_CHUNK = 50_000


@dataclass(frozen=True)
class RawFile:
    """The cells of a file: those of a CSV are text, those of a Parquet file typed. `place` is what `LINE` counts."""

    name: str
    place: str
    frame: pl.DataFrame

    def refuse_where(self, bad: pl.Series, column: str, why: Callable[[Any], str]) -> None:
        """Refuse the file when any row is bad (NULL is not); `why` gets the first bad row's value."""
        wrong = self.frame.filter(bad.fill_null(value=False))
        if wrong.is_empty():
            return
        others = f" (and {wrong.height - 1} more)" if wrong.height > 1 else ""
        refuse(self.name, f"{self.place} {wrong[LINE][0]}, column {column!r}: {why(wrong[column][0])}{others}")

    def typed(self, column: str, dtype: pl.DataType, *, fits: bool) -> pl.Series:
        """The column cast to `dtype`, or a refusal when its own type does not fit."""
        cells = self.frame[column]
        if not fits:
            refuse(self.name, f"column {column!r} has the type {cells.dtype}, but {dtype} is needed; write it with that type")
        return cells.cast(dtype)


def without_nulls(texts: pl.Series, mapping: FileMapping) -> pl.Series:
    """The texts, with NULL for those that the mapping declares to mean no value."""
    return texts.set(texts.is_in(list(mapping.null_tokens)), None)


def refuse(name: str, why: str) -> NoReturn:
    """Refuse a whole file."""
    raise MalformedDataError(f"{name}: {why}; nothing of the file was taken")


def read(path: Path, name: str, mapping: FileMapping, maximum_bytes: int) -> RawFile:
    """All rows of the file, with exactly the mapped and ignored columns.

    Args:
        path: Where the file lies.
        name: Its name as dropped: decides the format, and stands in messages.
        mapping: The drop folder's mapping.
        maximum_bytes: The most decoded bytes that a Parquet file may declare.

    Raises:
        MalformedDataError: It is no such file, has no row, or its columns are not those of the mapping.
    """
    raw = _read_parquet(path, name, mapping, maximum_bytes) if name.lower().endswith(".parquet") else _read_csv(path, name, mapping)
    if raw.frame.is_empty():
        refuse(name, "it has columns and no rows; export it again")
    return raw


def _read_csv(path: Path, name: str, mapping: FileMapping) -> RawFile:
    """By Python's reader, because it alone counts the fields of each line and knows the line's number."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return RawFile(name, "line", _read_cells(file, name, mapping))
    except UnicodeDecodeError as error:
        refuse(name, f"it is not UTF-8 (byte 0x{error.object[error.start]:02x} cannot be decoded); export it as UTF-8")


def _read_cells(file: TextIO, name: str, mapping: FileMapping) -> pl.DataFrame:
    first_line = file.readline()
    delimiter = mapping.delimiter or (";" if first_line.count(";") > first_line.count(",") else ",")
    file.seek(0)
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    try:
        header = [column.strip() for column in next(reader, [])]
        if not any(header):
            refuse(name, "it has no header line; it is empty or begins with a blank line")
        _check_columns(header, name, mapping, f"line 1, read with the delimiter {delimiter!r}")
        schema = {LINE: pl.Int64(), **dict.fromkeys(header, pl.String())}
        rows = _rectangular(reader, header, name)
        chunks = iter(lambda: list(islice(rows, ROWS_PER_CHUNK)), [])
        return pl.concat([pl.DataFrame(schema=schema), *(pl.DataFrame(chunk, schema=schema, orient="row") for chunk in chunks)])
    except csv.Error as error:
        refuse(name, f"line {reader.line_num}: {error}")


def _rectangular(reader: Any, header: list[str], name: str) -> Iterator[tuple[int | str, ...]]:
    """(line number, cells...) of each line that is not blank."""
    for cells in reader:
        if len(cells) == len(header):
            yield (reader.line_num, *cells)
        elif cells:
            absent = f", column {header[len(cells)]!r} is the first without a value" if len(cells) < len(header) else ""
            refuse(
                name,
                f"line {reader.line_num} has {len(cells)} fields and the header {len(header)}{absent}: "
                "the file is truncated, or a value holds a delimiter without quotes",
            )


def _read_parquet(path: Path, name: str, mapping: FileMapping, maximum_bytes: int) -> RawFile:
    import pyarrow.parquet
    from pyarrow.lib import ArrowException

    try:
        declared = pyarrow.parquet.read_metadata(path)
        decoded_bytes = declared.num_rows * declared.num_columns * 8
        if decoded_bytes > maximum_bytes:
            refuse(
                name,
                f"it declares {declared.num_rows} rows of {declared.num_columns} columns, {decoded_bytes} bytes or more; "
                f"allowed are {maximum_bytes}: split it",
            )
        frame = pl.read_parquet(path)
    except (ArrowException, OSError, pl.exceptions.PolarsError) as error:
        refuse(name, f"it is no readable Parquet file ({error})")
    _check_columns(frame.columns, name, mapping, "its schema")
    return RawFile(name, "row", frame.with_row_index(LINE, offset=1))


def _check_columns(header: list[str], name: str, mapping: FileMapping, where: str) -> None:
    twice = sorted({column for column in header if header.count(column) > 1})
    if twice:
        refuse(name, f"{where}: column {_names(twice)} is there twice; rename or remove one")
    missing = [column for column in mapping.columns if column not in header]
    if missing:
        refuse(name, f"{where}: column {_names(missing)} is missing; found {_names(header)}")
    unknown = [column for column in header if column not in mapping.columns and column not in mapping.ignore]
    if unknown:
        refuse(name, f"{where}: column {_names(unknown)} is not in the mapping; map it under columns, or name it under ignore")


def _names(columns: list[str]) -> str:
    return ", ".join(map(repr, columns))
