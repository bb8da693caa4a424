"""What Arrow streams and Parquet files say of their sizes before anything is unpacked, read by hand, as pyarrow does not tell.

What is too large, and unpacking, do not belong here (`uploads`).
"""

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet

PAGE_UNPACKED, PAGE_PACKED = 2, 3
"""Fields of Parquet's PageHeader: sizes of the page."""

THRIFT_INTEGERS, THRIFT_BINARY, THRIFT_STRUCTURE = (4, 5, 6), 8, 12
THRIFT_WIDTHS = {1: 0, 2: 0, 3: 1, 7: 8}
"""Bytes of the other types that a page's header may have: booleans, byte, double."""

DEEPEST = 8

PART_BYTES = 1_024
"""Counted for each page or message: a body of a million empty ones is refused before they are all looked at."""

RECORD_BATCH, DICTIONARY_BATCH = 3, 2
"""Kinds of messages with buffers, in the union `MessageHeader` of Arrow's Message.fbs."""


def message_sizes(body: bytes) -> Iterator[tuple[bool, int, int]]:
    """Of each message with buffers: whether it is a record batch (else a dictionary), its rows, and the bytes of its buffers, unpacked.

    Raises:
        ValueError: The body is no Arrow stream. pyarrow verifies the flatbuffer of each message.
    """
    import pyarrow as pa

    messages = pa.ipc.MessageReader.open_stream(body)
    for message in iter(lambda: _next(messages), None):
        try:
            yield from _of_message(message.metadata.to_pybytes(), message.body)
        except struct.error as error:
            raise ValueError(f"a message has no sizes: {error}") from None


def _of_message(metadata: bytes, body: "pa.Buffer") -> Iterator[tuple[bool, int, int]]:
    """Nothing for a message without buffers."""
    root = struct.unpack_from("<I", metadata)[0]
    kind = struct.unpack_from("<B", metadata, _field(metadata, root, 1))[0]
    if kind not in (RECORD_BATCH, DICTIONARY_BATCH):
        return
    header = _reference(metadata, root, 2)
    batch = header if kind == RECORD_BATCH else _reference(metadata, header, 1)
    length = _field(metadata, batch, 0)
    rows = struct.unpack_from("<q", metadata, length)[0] if length else 0
    buffers = _reference(metadata, batch, 2)
    count = struct.unpack_from("<I", metadata, buffers)[0]
    is_packed = bool(_field(metadata, batch, 3))
    unpacked = PART_BYTES
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


def page_sizes(body: bytes, metadata: "pyarrow.parquet.FileMetaData") -> Iterator[int]:
    """Bytes of each page of a Parquet file, unpacked, by the headers that the decompressor goes by: the sums in the footer are only said.

    Raises:
        ValueError: There is no header where a page must begin.
    """
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    for chunk in (group.column(number) for group in groups for number in range(group.num_columns)):
        at = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
        end = at + chunk.total_compressed_size
        while at < end:
            try:
                numbers, at = _numbers(body, at)
                unpacked, packed = numbers[PAGE_UNPACKED], numbers[PAGE_PACKED]
            except LookupError:
                raise ValueError("a page has no header") from None
            if min(unpacked, packed, at) < 0:
                raise ValueError("a page has less than no bytes")
            yield unpacked + PART_BYTES
            at += packed


def _numbers(body: bytes, at: int, depth: int = 0) -> tuple[dict[int, int], int]:
    """The integers of a structure in Thrift's compact protocol by field number, and where it ends. Page headers hold no lists."""
    numbers: dict[int, int] = {}
    field = 0
    if depth == DEEPEST:
        raise ValueError("a page's header has no end")
    while head := body[at]:
        at += 1
        kind = head & 15
        if head >> 4:
            field += head >> 4
        else:
            field, at = _signed(body, at)
        if kind in THRIFT_INTEGERS:
            numbers[field], at = _signed(body, at)
        elif kind == THRIFT_BINARY:
            length, at = _unsigned(body, at)
            at += length
        elif kind == THRIFT_STRUCTURE:
            _, at = _numbers(body, at, depth + 1)
        elif kind in THRIFT_WIDTHS:
            at += THRIFT_WIDTHS[kind]
        else:
            raise ValueError("a page's header is none")
    return numbers, at + 1


def _unsigned(body: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        byte = body[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number has no end")


def _signed(body: bytes, at: int) -> tuple[int, int]:
    value, at = _unsigned(body, at)
    return (value >> 1) ^ -(value & 1), at
