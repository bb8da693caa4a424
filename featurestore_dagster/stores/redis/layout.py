"""Feast's byte layout in Redis (entity_key_serialization_version 3). What we keep beside it stands in `packed`.

One hash holds all views of an entity:

    key                 u32le count; for each join key sorted by name: u32le 2, u32le length, name;
                        for each value in the same order: u32le 2, u32le length, text; then the project's name
    murmur3 of name     `view:feature`, 4 bytes little-endian -> protobuf `Value`; the empty string is NULL
    `_ts:<view>`        protobuf `Timestamp` of the event

Every value stays within 64 bytes, the limit up to which Redis keeps a hash compact (one fifth of the memory). Talking to Redis does not
belong here, and nothing imports Feast: the integration tests compare each function with Feast's own.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import cast

import mmh3
import polars as pl

from featurestore_dagster.errors import DeclarationError, MalformedDataError
from featurestore_dagster.model.feature_view import FeatureView

STRING = 2
"""Feast's ValueType.STRING: join keys and their values are always text here."""

NULL = b""

DOUBLE_TAG, INT64_TAG = b"\x29", b"\x20"
"""Protobuf field 5, eight bytes; field 4, varint."""

DOUBLE_BYTES = 9

_DOUBLE = struct.Struct("<d")
_MICROSECONDS = 1_000_000


COMPACT_BYTES = 64
"""Redis' own default of `hash-max-listpack-value` (`hash-max-ziplist-value` before Redis 7)."""


def _text(value: str) -> bytes:
    encoded = value.encode()
    return _text_head(len(encoded)) + encoded


@lru_cache(maxsize=256)
def _text_head(length: int) -> bytes:
    return struct.pack("<II", STRING, length)


def entity_keys(project: str, columns: Mapping[str, Iterable[str]]) -> list[bytes]:
    """Redis keys of entities given as columns: join key -> values, one per entity."""
    ordered = sorted(columns)
    head = struct.pack("<I", len(ordered)) + b"".join(_text(name) for name in ordered)
    tail = project.encode()
    values = [[_text(value) for value in columns[name]] for name in ordered]
    return [b"".join((head, *row, tail)) for row in zip(*values, strict=True)]


def decode_entity_key(key: bytes) -> tuple[dict[str, str], str]:
    """Entity and project of a Redis key.

    Raises:
        ValueError: The key does not have this layout.
    """
    texts, position = [], 4
    try:
        (count,) = struct.unpack_from("<I", key)
        if count > len(key):
            raise ValueError
        for _ in range(2 * count):
            kind, length = struct.unpack_from("<II", key, position)
            position += 8 + length
            if kind != STRING or position > len(key):
                raise ValueError
            texts.append(key[position - length : position].decode())
        return dict(zip(texts[:count], texts[count:], strict=True)), key[position:].decode()
    except (ValueError, struct.error):
        raise ValueError(f"{key!r} is not an entity key of Feast's layout") from None


def feature_field(view: str, feature: str) -> bytes:
    """Field name of a feature."""
    return struct.pack("<I", mmh3.hash(f"{view}:{feature}", signed=False))


def timestamp_field(view: str) -> bytes:
    """Field name of a view's event time."""
    return f"_ts:{view}".encode()


def refuse_unfit_declarations(views: Iterable[FeatureView]) -> None:
    """Check what the layout asks of names.

    Raises:
        DeclarationError: Two features of views with the same join keys share a field name, so that one would overwrite the other; or a
            name is so long that the hash would not stay compact.
    """
    seen: dict[tuple[frozenset[str], bytes], str] = {}
    for view in views:
        if len(timestamp_field(view.name)) > COMPACT_BYTES:
            raise DeclarationError(f"view {view.name}: its name makes a field of over {COMPACT_BYTES} bytes in Redis; shorten it")
        for feature in view.feature_names:
            reference = f"{view.name}:{feature}"
            other = seen.setdefault((frozenset(view.join_keys), feature_field(view.name, feature)), reference)
            if other != reference:
                raise DeclarationError(f"{reference} and {other} have the same 4-byte hash in Redis; rename one of the two features")


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _read_varint(encoded: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = encoded[position]
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return value - (1 << 64) if value >> 63 else value, position
        shift += 7


def encode_values(values: pl.Series) -> list[bytes]:
    """Protobuf `Value`s of a Float64 or Int64 column."""
    if values.dtype == pl.Float64():
        pack = _DOUBLE.pack
        return [NULL if value is None else DOUBLE_TAG + pack(value) for value in values.to_list()]
    return [_encode_int64(value) for value in values.to_list()]


@lru_cache(maxsize=4096)
def _encode_int64(value: int | None) -> bytes:
    return NULL if value is None else INT64_TAG + _varint(value)


def decode_values(encoded: Sequence[bytes | None]) -> list[float | int | None]:
    """Values of protobuf `Value`s; NULL and absent fields are both None here.

    Raises:
        MalformedDataError: A field has another type: another program wrote it.
    """
    count = len(encoded)
    if None not in encoded:
        joined = b"".join(cast("Sequence[bytes]", encoded))
        if len(joined) == DOUBLE_BYTES * count and joined[::DOUBLE_BYTES] == DOUBLE_TAG * count:  # nearly always, and ten times as fast
            return list(struct.unpack("<" + "xd" * count, joined))
    return [None if value is None else _decode_value(value) for value in encoded]


def _decode_value(encoded: bytes) -> float | int | None:
    tag = encoded[:1]
    if tag == DOUBLE_TAG and len(encoded) == DOUBLE_BYTES:
        value: float = _DOUBLE.unpack_from(encoded, 1)[0]
        return value
    if tag == INT64_TAG:
        return _read_varint(encoded, 1)[0]
    if encoded == NULL:
        return None
    raise MalformedDataError(f"Redis holds {encoded!r} as a feature; a double or an int64 is expected: sync the view again")


@lru_cache(maxsize=4096)
def encode_timestamp(microseconds: int) -> bytes:
    """Protobuf `Timestamp` of microseconds since 1970; parts that are zero are left out."""
    seconds, rest = divmod(microseconds, _MICROSECONDS)
    return (b"\x08" + _varint(seconds) if seconds else b"") + (b"\x10" + _varint(rest * 1000) if rest else b"")


@lru_cache(maxsize=4096)
def decode_timestamp(encoded: bytes) -> int:
    """Microseconds since 1970 of a protobuf `Timestamp`."""
    parts, position = {1: 0, 2: 0}, 0
    while position < len(encoded):
        number = encoded[position] >> 3
        parts[number], position = _read_varint(encoded, position + 1)
    return parts[1] * _MICROSECONDS + parts[2] // 1000
