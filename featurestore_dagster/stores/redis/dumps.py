"""Hashes as Redis dumps them, many at once, for RESTORE: it takes a hash whole, where HSET looks through it for every field.

    payload    u8 13 (hash as ziplist), u16be 0x4000 + length of the ziplist, ziplist, u16le 9 (version, that of Redis 5), u64le checksum
    ziplist    u32le its length, u32le offset of the last entry, u16le number of entries, entries, u8 255
    entry      u8 length of the entry before, u8 length of the text (u16be 0x4000 + length from 64 on), text

Redis 7 makes listpacks of them. Rows of equal lengths are laid out together. What a hash holds is said by the caller; sending does not
belong here.
"""

import struct
from collections.abc import Sequence
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
    """The payload of each row, None where too few rows have these lengths or the hash is too long."""
    lengths = np.stack([column.lengths for column in columns], axis=1)
    shapes, width = lengths.tobytes(), len(columns)
    alike: dict[bytes, list[int]] = {}
    for row in range(len(lengths)):
        alike.setdefault(shapes[row * width : (row + 1) * width], []).append(row)
    forms = {shape: _Form(columns, shape) for shape, rows in alike.items() if len(rows) >= FEWEST_ROWS}
    forms = {shape: form for shape, form in forms.items() if form.ziplist_bytes <= LONGEST_BYTES}
    found: list[bytes | None] = [None] * len(lengths)
    if not forms:
        return found
    longest = -(-max(len(form.template) for form in forms.values()) // CHECKSUM_BYTES) * CHECKSUM_BYTES
    for shape, form in forms.items():
        for start in range(0, len(alike[shape]), ROWS_PER_CHECKSUM):
            rows = np.array(alike[shape][start : start + ROWS_PER_CHECKSUM])
            payloads = np.zeros((len(rows), longest + CHECKSUM_BYTES), np.uint8)
            first = longest - len(form.template)  # zeros before it leave the checksum as it is
            payloads[:, first:longest] = np.frombuffer(form.template, np.uint8)
            for column, place, length in form.places:
                payloads[:, first + place : first + place + length] = column.texts[rows, :length]
            payloads[:, longest:] = _checksums(payloads[:, :longest]).view(np.uint8).reshape(len(rows), -1)
            joined, step = payloads.tobytes(), longest + CHECKSUM_BYTES
            for number, row in enumerate(rows.tolist()):
                found[row] = joined[number * step + first : (number + 1) * step]
    return found


def trial() -> tuple[bytes, list[bytes]]:
    """A payload, and what HGETALL answers once it was restored."""
    columns = [texts(b"field", [b"value"] * FEWEST_ROWS), texts(b"empty", [b""] * FEWEST_ROWS)]
    return dumped(columns)[0] or b"", [b"field", b"value", b"empty", b""]


class _Form:
    """Payloads of rows with certain lengths: a template without checksum, and where the values go."""

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
        self.places = [(column, len(head) + place, length) for column, place, length in self.places]
        self.template = head + entries + b"\xff" + struct.pack("<H", 9)


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
