"""Frames that a body holds as Arrow stream or Parquet, from a stranger: what they take in memory is known before they are unpacked.

Which columns a route needs is its own matter.
"""

import io
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

import polars as pl

from featurestore_dagster.errors import MalformedDataError, RefusedError

if TYPE_CHECKING:
    import pyarrow as pa

ARROW = "application/vnd.apache.arrow.stream"
PARQUET = "application/vnd.apache.parquet"

VALUE_BYTES = 8
"""Counted for each value beside the buffers of the file, which may stand for many values or for none."""

RECORD_BATCH, DICTIONARY_BATCH = 3, 2
"""Kinds of messages with buffers, in the union `MessageHeader` of Arrow's Message.fbs."""


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
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, pa.ArrowException, OSError, ValueError, struct.error) as error:
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

    for name, dtype in pl.scan_parquet(io.BytesIO(body)).collect_schema().items():
        if dtype.is_nested() or dtype in (pl.Object, pl.Unknown):
            _refuse_column(name, dtype)
    metadata = pyarrow.parquet.read_metadata(io.BytesIO(body))
    refuse_rows(metadata.num_rows, maximum_rows)
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    declared = sum(group.column(number).total_uncompressed_size for group in groups for number in range(group.num_columns))
    _refuse_bytes(declared + metadata.num_rows * metadata.num_columns * VALUE_BYTES, maximum_bytes)
    return pl.read_parquet(io.BytesIO(body))


def _of_arrow(body: bytes, maximum_rows: int, maximum_bytes: int) -> pl.DataFrame:
    import pyarrow as pa

    rows = unpacked = 0
    batches = []
    with pa.ipc.open_stream(body) as reader:
        for column in reader.schema:
            if not _is_flat(column.type):
                _refuse_column(column.name, column.type)
        # The reader unpacks a batch, with the dictionaries before it, when it is asked for; so its messages are looked at first.
        for is_batch, batch_rows, batch_bytes in _sizes(pa.ipc.MessageReader.open_stream(body)):
            rows += batch_rows
            unpacked += batch_bytes + batch_rows * len(reader.schema) * VALUE_BYTES
            refuse_rows(rows, maximum_rows)
            _refuse_bytes(unpacked, maximum_bytes)
            if is_batch:
                batch = reader.read_next_batch()
                batch.validate(full=True)  # buffers may be shorter than what they are said to hold
                batches.append(batch)
        found = pl.from_arrow(pa.Table.from_batches(batches, reader.schema))
    if not isinstance(found, pl.DataFrame):
        raise MalformedDataError(f"the body is no {ARROW} of columns")
    return found


def _is_flat(dtype: "pa.DataType") -> bool:
    from pyarrow import types

    if types.is_dictionary(dtype):
        dtype = dtype.value_type
    tests = (types.is_primitive, types.is_null, types.is_decimal, types.is_string, types.is_large_string, types.is_string_view)
    return any(test(dtype) for test in tests)


def _sizes(messages: "pa.ipc.MessageReader") -> Iterator[tuple[bool, int, int]]:
    """Of each message with buffers: whether it is a record batch (else a dictionary), its rows, and the bytes of its buffers, unpacked.

    pyarrow does not say them, so the message's flatbuffer is read by hand; pyarrow has verified it.
    """
    for message in iter(lambda: _next(messages), None):
        metadata, body = message.metadata.to_pybytes(), message.body
        root = struct.unpack_from("<I", metadata)[0]
        kind = struct.unpack_from("<B", metadata, _field(metadata, root, 1))[0]
        if kind not in (RECORD_BATCH, DICTIONARY_BATCH):
            continue
        header = _reference(metadata, root, 2)
        batch = header if kind == RECORD_BATCH else _reference(metadata, header, 1)
        length = _field(metadata, batch, 0)
        rows = struct.unpack_from("<q", metadata, length)[0] if length else 0
        buffers = _reference(metadata, batch, 2)
        count = struct.unpack_from("<I", metadata, buffers)[0]
        is_packed = bool(_field(metadata, batch, 3))
        unpacked = 0
        for offset, size in struct.iter_unpack("<qq", metadata[buffers + 4 : buffers + 4 + 16 * count]):
            # A packed buffer begins with its length, or -1 when it is not packed after all.
            declared = struct.unpack_from("<q", body, offset)[0] if is_packed and size else -1
            unpacked += size if declared == -1 else declared
        yield kind == RECORD_BATCH, rows if kind == RECORD_BATCH else 0, unpacked


def _next(messages: "pa.ipc.MessageReader") -> "pa.ipc.Message | None":
    try:
        return messages.read_next_message()
    except StopIteration:
        return None


def _field(metadata: bytes, table: int, number: int) -> int:
    """Where a field of a flatbuffer's table is, 0 when it is absent."""
    fields = table - struct.unpack_from("<i", metadata, table)[0]
    if 4 + 2 * number >= struct.unpack_from("<H", metadata, fields)[0]:
        return 0
    offset: int = struct.unpack_from("<H", metadata, fields + 4 + 2 * number)[0]
    return table + offset if offset else 0


def _reference(metadata: bytes, table: int, number: int) -> int:
    """Where the table or vector is that a field refers to."""
    place = _field(metadata, table, number)
    if not place:
        raise ValueError("a message lacks what it must have")
    return place + int(struct.unpack_from("<I", metadata, place)[0])


def _text_bytes(frame: pl.DataFrame) -> int:
    """Of all text, however few buffers it shares."""
    total = 0
    for column in frame:
        if column.dtype == pl.String:
            total += int(column.str.len_bytes().cast(pl.Int64).sum())
        elif column.dtype in (pl.Categorical, pl.Enum):
            total += int(column.cat.len_bytes().cast(pl.Int64).sum())
    return total
