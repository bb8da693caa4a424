"""Answers put back into the caller's rows: in memory, or on disk and then into a Parquet file; and what is recorded about them."""

import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from featurestore_dagster.serving.point_in_time.lookup import Answer

ROWS_PER_GROUP = 262_144
"""Of a Parquet file, and of what is hashed or assembled at a time."""

MANIFEST_SUFFIX = ".manifest.json"


@dataclass(frozen=True)
class Manifest:
    """What a historical read was, so that it can be repeated and compared.

    `references` are the features in order; `labels` map name to reference and horizon; `as_of` maps a view to the column with its
    instant of knowledge. `versions` are the code versions of each view's streams. `publications` lists for each view the runs of ledger
    ids that were considered, first and last. `content_sha256` covers join keys, instants and answers of all rows in order, see
    `ContentHash`.
    """

    references: tuple[str, ...]
    labels: Mapping[str, Mapping[str, str | float]]
    as_of: Mapping[str, str]
    details: tuple[str, ...]
    versions: Mapping[str, Mapping[str, str]]
    publications: Mapping[str, Sequence[tuple[int, int]]]
    now: str
    row_count: int
    columns: Mapping[str, str]
    content_sha256: str

    def to_json(self) -> str:
        """Keys in declared order; ends with a line feed."""
        return json.dumps(asdict(self), indent=2) + "\n"


def manifest_path(path: Path) -> Path:
    """Where the manifest of a Parquet file is written."""
    return path.with_name(path.name + MANIFEST_SUFFIX)


def id_runs(ids: pl.Series) -> list[tuple[int, int]]:
    """Runs of consecutive ids (ascending) as first and last."""
    if ids.is_empty():
        return []
    run = (ids.diff().fill_null(2) != 1).cum_sum()
    return [
        (int(first), int(last))
        for first, last in ids.to_frame("id")
        .group_by(run, maintain_order=True)
        .agg(first=pl.col("id").min(), last=pl.col("id").max())
        .select("first", "last")
        .iter_rows()
    ]


class ContentHash:
    """sha256 over the rows of frames with the same columns, however they are cut.

    Of the hexadecimal digests of each column, one after another: first of which values are NULL (a byte each), then of the values, little
    endian with 0 for NULL, or of the bytes of text followed by the lengths' digest.
    """

    def __init__(self) -> None:
        """Of no rows yet."""
        self._digests: dict[tuple[str, str], hashlib._Hash] = {}

    def add(self, frame: pl.DataFrame) -> None:
        """The next rows."""
        for column in frame:
            self._update(column.name, "nulls", column.is_null().to_numpy().astype(np.uint8).tobytes())
            if column.dtype == pl.String:
                self._update(column.name, "text", (column.str.join("", ignore_nulls=True).item() or "").encode())
                self._update(column.name, "lengths", column.str.len_bytes().fill_null(0).cast(pl.Int64).to_numpy().tobytes())
            else:
                self._update(column.name, "values", column.to_physical().fill_null(0).to_numpy().tobytes())

    def _update(self, name: str, part: str, content: bytes) -> None:
        self._digests.setdefault((name, part), hashlib.sha256()).update(content)

    def hexdigest(self) -> str:
        """Of all rows so far."""
        return hashlib.sha256("".join(digest.hexdigest() for digest in self._digests.values()).encode()).hexdigest()


def in_memory(answers: Iterable[Answer], row_count: int, schema: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """The columns of a lookup for all rows, in the caller's order; NULL for a row without an answer."""
    found = list(answers)
    if len(found) == 1 and found[0].positions.size == row_count:
        return found[0].columns.select(list(schema))
    if not found:
        return pl.DataFrame({name: pl.repeat(None, row_count, dtype=dtype, eager=True) for name, dtype in schema.items()}, height=row_count)
    positions = np.concatenate([answer.positions for answer in found])
    places = np.full(row_count, -1, np.int64)
    places[positions] = np.arange(positions.size)
    order = pl.Series(places)
    if positions.size < row_count:
        order = order.set(order < 0, None)
    together = pl.concat([answer.columns for answer in found])
    return pl.DataFrame([together[name].gather(order).rename(name) for name in schema], height=row_count)


class OnDisk:
    """Columns of many rows in memory-mapped files: what is written to them may leave memory at any time."""

    def __init__(self, folder: Path, row_count: int, schema: Mapping[str, pl.DataType]) -> None:
        """Everything is NULL. The files belong to `folder`, which is the caller's to remove."""
        self._schema = dict(schema)
        self._values: dict[str, npt.NDArray[Any]] = {}
        self._is_known: dict[str, npt.NDArray[np.bool_]] = {}
        for number, (name, dtype) in enumerate(self._schema.items()):
            stored = np.float64 if dtype == pl.Float64 else np.int64
            self._values[name] = _mapped(folder / f"{number}.values", stored, row_count)
            self._is_known[name] = _mapped(folder / f"{number}.known", np.bool_, row_count)

    def put(self, answers: Iterable[Answer]) -> None:
        """Scatter the columns that the answers have."""
        for answer in answers:
            for column in answer.columns:
                known = column.is_not_null().to_numpy()
                physical = column.to_physical()
                self._values[column.name][answer.positions] = physical.fill_null(0).to_numpy()
                self._is_known[column.name][answer.positions] = known

    def rows(self, start: int, count: int) -> pl.DataFrame:
        """Some rows, in the caller's order."""
        columns = []
        for name, dtype in self._schema.items():
            values = pl.Series(name, np.array(self._values[name][start : start + count])).cast(dtype)
            known = pl.Series(np.array(self._is_known[name][start : start + count]))
            columns.append(values.set(~known, None))
        return pl.DataFrame(columns, height=count)


def _mapped(path: Path, dtype: type[np.generic], row_count: int) -> npt.NDArray[Any]:
    if not row_count:
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, "w+", shape=(row_count,))


def slices(frame: pl.DataFrame) -> Iterator[tuple[int, pl.DataFrame]]:
    """Start and rows of each group; one without rows when the frame has none."""
    if frame.is_empty():
        yield 0, frame
    for start in range(0, frame.height, ROWS_PER_GROUP):
        yield start, frame.slice(start, ROWS_PER_GROUP)


def write_parquet(path: Path, frames: Iterator[pl.DataFrame]) -> None:
    """One row group per frame, under a temporary name until the file is whole."""
    import pyarrow.parquet

    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    writer = None
    try:
        for frame in frames:
            table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
            if writer is None:
                writer = pyarrow.parquet.ParquetWriter(temporary, table.schema, compression="lz4")
            writer.write_table(table, row_group_size=ROWS_PER_GROUP)
        if writer is not None:
            writer.close()
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Beside the Parquet file, whole or not at all."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        file.write(manifest.to_json())
    Path(file.name).replace(manifest_path(path))
