"""Hashes as Redis dumps them, many at once, for RESTORE: it takes a hash whole, where HSET looks through it for every field.

    payload    u8 13 (hash as ziplist), u16be 0x4000 + length of the ziplist, ziplist, u16le 9 (version, that of Redis 5), u64le checksum
    ziplist    u32le its length, u32le offset of the last entry, u16le number of entries, entries, u8 255
    entry      u8 length of the entry before, u8 length of the text (u16be 0x4000 + length from 64 on), text

Redis 7 makes listpacks of them. Rows of equal lengths are laid out together. What a hash holds is said by the caller; sending does not
belong here.
"""

import struct
from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from featurestore_dagster.stores.redis import layout

NO_FIELD = 255
"""As length of a value: the row does not have this field."""

FEWEST_ROWS = 16
"""Of equal lengths, for whose sake they are laid out: a layout costs as much as HSET does of some rows."""

LONGEST_BYTES = 0x3FFF
ROWS_PER_CHECKSUM = 2_000
CHECKSUM_BYTES = 8
_POLYNOMIAL = 0x95AC9329AC4BC9B5  # Jones' of 64 bits, its lowest coefficient first

Bytes = NDArray[np.uint8]


class Column(NamedTuple):
    """A field and its value in each row: `lengths`, and as many of the bytes of each row of `texts`."""

    name: bytes
    lengths: Bytes
    texts: Bytes


def doubles(name: bytes, values: pl.Series, is_there: Sequence[bool]) -> Column:
    """Protobuf `Value`s of a Float64 column; some rows may not have the field."""
    texts = np.empty((len(values), layout.DOUBLE_BYTES), np.uint8)
    texts[:, 0] = layout.DOUBLE_TAG[0]
    texts[:, 1:] = values.fill_null(0.0).to_numpy().astype("<f8").view(np.uint8).reshape(len(values), -1)
    lengths = np.where(values.is_null().to_numpy(), 0, layout.DOUBLE_BYTES)
    return Column(name, np.where(is_there, lengths, NO_FIELD).astype(np.uint8), texts)


def texts(name: bytes, values: Sequence[bytes | None]) -> Column:
    """Any values of up to 64 bytes; None where a row does not have the field."""
    known = [value or b"" for value in values]
    width = max(1, *map(len, known))
    joined = b"".join([value.ljust(width, b"\0") for value in known])
    lengths = [NO_FIELD if value is None else len(value) for value in values]
    return Column(name, np.array(lengths, np.uint8), np.frombuffer(joined, np.uint8).reshape(-1, width))


def dumped(columns: Sequence[Column]) -> list[bytes | None]:
    """The payload of each row as a word of a command, None where too few rows have these lengths or the hash is too long."""
    lengths = np.stack([column.lengths for column in columns], axis=1)
    found: list[bytes | None] = [None] * len(lengths)
    for shape, rows in _alike(lengths):
        if len(rows) >= FEWEST_ROWS and (form := _Form(columns, shape)).ziplist_bytes <= LONGEST_BYTES:
            for start in range(0, len(rows), ROWS_PER_CHECKSUM):
                some = rows[start : start + ROWS_PER_CHECKSUM]
                for row, word in zip(some.tolist(), form.words(some), strict=True):
                    found[row] = word
    return found


def _alike(lengths: Bytes) -> Iterator[tuple[bytes, NDArray[np.int64]]]:
    """Different rows, and the numbers of those that are alike."""
    texts, width = lengths.tobytes(), lengths.shape[1]
    if texts == texts[:width] * len(lengths):
        yield texts[:width], np.arange(len(lengths))
        return
    numbers: dict[bytes, list[int]] = {}
    for row in range(len(lengths)):
        numbers.setdefault(texts[row * width : (row + 1) * width], []).append(row)
    for shape, rows in numbers.items():
        yield shape, np.array(rows)


def trial() -> tuple[bytes, list[bytes]]:
    """A payload as a word of a command, and what HGETALL answers once it was restored."""
    columns = [texts(b"field", [b"value"] * FEWEST_ROWS), texts(b"empty", [b""] * FEWEST_ROWS)]
    return dumped(columns)[0] or b"", [b"field", b"value", b"empty", b""]


class _Form:
    """Rows with certain lengths: their payload without values and checksum, and where they go."""

    def __init__(self, columns: Sequence[Column], lengths: bytes) -> None:
        self.places: list[tuple[Column, int, int]] = []
        entries, last, before = bytearray(), 0, 0
        for column, length in zip(columns, lengths, strict=True):
            for text in (column.name, bytes(length)) if length != NO_FIELD else ():
                last = len(entries)
                entries += bytes([before, len(text)] if len(text) < 64 else [before, 0x40, len(text)]) + text
                before = len(entries) - last
            if length not in (0, NO_FIELD):
                self.places.append((column, len(entries) - length, length))
        self.ziplist_bytes = len(entries) + 11
        number = 2 * sum(length != NO_FIELD for length in lengths)
        head = b"\x0d" + struct.pack(">H", 0x4000 | self.ziplist_bytes & LONGEST_BYTES)
        head += struct.pack("<IIH", self.ziplist_bytes, 10 + last, number)
        payload = head + entries + b"\xff" + struct.pack("<H", 9)
        word = b"$%d\r\n" % (len(payload) + CHECKSUM_BYTES)
        self.end = -(-(len(word) + len(payload)) // CHECKSUM_BYTES) * CHECKSUM_BYTES
        self.first = self.end - len(payload)
        self.word = word
        self.payload = np.frombuffer(payload, np.uint8)
        self.places = [(column, self.first + len(head) + place, length) for column, place, length in self.places]

    def words(self, rows: NDArray[np.int64]) -> list[bytes]:
        """Payloads as words of a command."""
        texts = np.zeros((len(rows), self.end + CHECKSUM_BYTES + 2), np.uint8)  # zeros at the beginning leave a checksum as it is
        texts[:, self.first : self.end] = self.payload
        for column, place, length in self.places:
            texts[:, place : place + length] = column.texts[rows, :length]
        texts[:, self.end : -2] = _checksums(texts[:, : self.end]).view(np.uint8).reshape(len(rows), -1)
        begin = self.first - len(self.word)
        texts[:, begin : self.first] = np.frombuffer(self.word, np.uint8)
        texts[:, -2:] = np.frombuffer(b"\r\n", np.uint8)
        joined, width = texts.tobytes(), texts.shape[1]
        return [joined[start + begin : start + width] for start in range(0, len(joined), width)]


def _checksums(payloads: Bytes) -> NDArray[np.uint64]:
    """Redis' CRC64 of each row; its length is a multiple of eight."""
    tables = _tables()
    words = np.ascontiguousarray(np.ascontiguousarray(payloads).view("<u8").T)
    state = np.zeros(len(payloads), "<u8")
    for word in words:
        octets = (state ^ word).view(np.uint8).reshape(-1, 8)
        state = tables[0][octets[:, 0]]
        for number in range(1, 8):
            state ^= tables[number][octets[:, number]]
    return state


@cache
def _tables() -> list[NDArray[np.uint64]]:
    """By the distance of a byte from the end of its word, the furthest first: what each of its values adds to the checksum."""
    table = np.arange(256, dtype="<u8")
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ _POLYNOMIAL, table >> 1).astype("<u8")
    found = [table]
    for _ in range(7):
        found.append(table[found[-1] & 0xFF] ^ found[-1] >> 8)
    return found[::-1]
