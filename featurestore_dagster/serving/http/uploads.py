"""Frames that a body holds as Arrow stream or Parquet, from a stranger: what they take in memory is known before they are unpacked.

Which columns a route needs is its own matter.
"""

import io
from typing import TYPE_CHECKING

import polars as pl

from featurestore_dagster.errors import MalformedDataError, RefusedError
from featurestore_dagster.serving.http.declared_sizes import message_sizes, page_sizes
from featurestore_dagster.serving.offset_zones import in_named_zones, is_at_offset

if TYPE_CHECKING:
    import pyarrow as pa

ARROW = "application/vnd.apache.arrow.stream"
PARQUET = "application/vnd.apache.parquet"

VALUE_BYTES = 8
"""Counted for each value beside the buffers of the file, which may stand for many values or for none."""


def frame_of_bytes(body: bytes, kind: str, maximum_rows: int, maximum_bytes: int) -> pl.DataFrame:
    """The frame that a body of media type ARROW or PARQUET holds.

    Raises:
        MalformedDataError: It is none, or holds lists, structures or other values that are no text, numbers or instants.
        RefusedError: Too many rows, or too many bytes when it is unpacked. What a file declares is looked at before anything is unpacked,
            what its text takes once it is in memory before anybody copies it.
    """
    import pyarrow as pa

    try:
        frame = (_of_parquet if kind == PARQUET else _of_arrow)(body, maximum_rows, maximum_bytes)
        _refuse_bytes(_text_bytes(frame), maximum_bytes)
    except MalformedDataError:  # it is readable, and says what is wrong
        raise
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, pa.ArrowException, OSError, ValueError) as error:
        raise MalformedDataError(f"the body is no {kind}: {str(error)[:200]}") from None
    return frame


def refuse_rows(rows: int, maximum: int) -> None:
    """Raise RefusedError when there are more."""
    if rows > maximum:
        raise RefusedError(f"{rows} entity rows; at most {maximum} in one request over HTTP: split it")


def _refuse_bytes(unpacked: int, maximum: int) -> None:
    if unpacked > maximum:
        raise RefusedError(f"the entity rows take {unpacked} bytes when they are unpacked; at most {maximum} in one request: split it")


def _refuse_column(name: str, dtype: object) -> None:
    raise MalformedDataError(f"column {name} is {dtype}; entity rows hold text, numbers and instants: drop it")


def _of_parquet(body: bytes, maximum_rows: int, maximum_bytes: int) -> pl.DataFrame:
    import pyarrow.parquet

    metadata = pyarrow.parquet.read_metadata(io.BytesIO(body))
    if any(is_at_offset(column.type) for column in metadata.schema.to_arrow_schema()):
        body = _without_arrow_schema(body)
    for name, dtype in pl.scan_parquet(io.BytesIO(body)).collect_schema().items():
        if dtype.is_nested() or dtype in (pl.Object, pl.Unknown):
            _refuse_column(name, dtype)
    refuse_rows(metadata.num_rows, maximum_rows)
    unpacked = metadata.num_rows * metadata.num_columns * VALUE_BYTES
    for page_bytes in page_sizes(body, metadata):
        unpacked += page_bytes
        _refuse_bytes(unpacked, maximum_bytes)
    return pl.read_parquet(io.BytesIO(body))


def _without_arrow_schema(body: bytes) -> bytes:
    """A Parquet file of which Polars takes Parquet's own types, whose instants are in UTC: the footer's Arrow schema has another name."""
    footer = len(body) - 8 - int.from_bytes(body[-8:-4], "little")
    return body[:footer] + body[footer:].replace(b"ARROW:schema", b"unread:arrow")


def _of_arrow(body: bytes, maximum_rows: int, maximum_bytes: int) -> pl.DataFrame:
    import pyarrow as pa

    rows = unpacked = 0
    batches = []
    with pa.ipc.open_stream(body) as reader:
        for column in reader.schema:
            if not _is_flat(column.type):
                _refuse_column(column.name, column.type)
        # The reader unpacks a batch, with the dictionaries before it, when it is asked for; so its messages are looked at first.
        for is_batch, batch_rows, batch_bytes in message_sizes(body):
            rows += batch_rows
            unpacked += batch_bytes + batch_rows * len(reader.schema) * VALUE_BYTES
            refuse_rows(rows, maximum_rows)
            _refuse_bytes(unpacked, maximum_bytes)
            if is_batch:
                batch = reader.read_next_batch()
                batch.validate(full=True)  # buffers may be shorter than what they are said to hold
                batches.append(batch)
        found = pl.from_arrow(in_named_zones(pa.Table.from_batches(batches, reader.schema)))
    if not isinstance(found, pl.DataFrame):
        raise MalformedDataError(f"the body is no {ARROW} of columns")
    return found


def _is_flat(dtype: "pa.DataType") -> bool:
    from pyarrow import types

    if types.is_dictionary(dtype):
        dtype = dtype.value_type
    tests = (types.is_primitive, types.is_null, types.is_decimal, types.is_string, types.is_large_string, types.is_string_view)
    return any(test(dtype) for test in tests)


def _text_bytes(frame: pl.DataFrame) -> int:
    """Of all text, however few buffers it shares."""
    total = 0
    for column in frame:
        if column.dtype == pl.String:
            total += int(column.str.len_bytes().cast(pl.Int64).sum())
        elif column.dtype in (pl.Categorical, pl.Enum):
            total += int(column.cat.len_bytes().cast(pl.Int64).sum())
    return total
