"""A view's row in one piece, beside Feast's fields: what a read costs nothing to decode.

    key     `project:rows:join keys:view`: a hash with one field for each entity
    field   for each join key sorted by name: u32le length, text; empty for a filler that keeps the hash a table (`FILLER_BYTES`)
    value   i64le event time, i64le known-at (microseconds), u32le flags (bit 31: the row has NULLs), u32le schema, u32le stream, then eight
            bytes for each feature in declared order: f64le, or i64le for codes; NULL is NaN, or the least integer

Feast's hash holds two entries for each feature, and Redis looks through them one by one: reading 100 features there costs the server ten
times what it costs here. A second key for each entity would take 90 bytes more. Feast ignores this key. Where `_ts:<view>` in Feast's hash
names another instant, a stock Feast client wrote after us, and where the schema is another one, the declaration changed: then the row is
read from Feast's fields. Talking to Redis does not belong here.
"""

import struct
import zlib
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from enum import Enum
from functools import lru_cache
from typing import Final, NamedTuple

import polars as pl

from featurestore_dagster.errors import MalformedDataError
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.model.units import Unit
from featurestore_dagster.stores.redis import layout

_HEADER = struct.Struct("<qqIII")
_LENGTH = struct.Struct("<I")
_TIMES = struct.Struct("<qq")
HEADER_BYTES = _HEADER.size
FEATURE_BYTES = 8
REMEMBERED_HEADERS = 4096
HAS_NULLS = 1 << 31
NULL_CODE = -(1 << 63)
FILLER_BYTES = 1025
"""A hash of few and short values would be a list that Redis looks through for each entity; one value above its limit prevents it."""


class Absent(Enum):
    """The type of ABSENT."""

    ABSENT = "absent"


ABSENT: Final = Absent.ABSENT
"""A feature that Redis does not hold, where NULL is a value: another program wrote the row, or an older declaration."""

Value = float | int | None | Absent


class StoredRow(NamedTuple):
    """A view's newest row of one entity, with the values of the features asked for.

    `known_microseconds` is None and `flags` 0 when a stock Feast client wrote the row; `stream` is None when the declaration knows none of
    its name. `is_whole` promises that no value is NULL or ABSENT; False promises nothing.
    """

    event_microseconds: int
    known_microseconds: int | None
    flags: int
    stream: str | None
    values: tuple[Value, ...]
    is_whole: bool = False


STALE_ROW = StoredRow(0, None, 0, None, ())
"""The packed row is not the entity's newest, or has another form; known by identity. Never leaves this package."""


class Header(NamedTuple):
    """What a packed row begins with; `is_readable` when its values have the declared form."""

    event_microseconds: int
    known_microseconds: int
    flags: int
    stream: str | None
    has_nulls: bool
    is_readable: bool


def rows_key(project: str, join_keys: Iterable[str], view_name: str) -> bytes:
    """Redis key of a view's packed rows; `view_name` may be a pattern."""
    return f"{project}:rows:{','.join(sorted(join_keys))}:{view_name}".encode()


def entity_fields(columns: Mapping[str, Iterable[str]]) -> list[bytes]:
    """Fields of entities given as columns: join key -> values, one per entity."""
    texts = [[text.encode() for text in columns[name]] for name in sorted(columns)]
    return [b"".join([_LENGTH.pack(len(text)) + text for text in row]) for row in zip(*texts, strict=True)]


def times_of(packed: bytes) -> tuple[int, int]:
    """Event time and known-at of a packed row of any view, microseconds since 1970."""
    event, known = _TIMES.unpack_from(packed)
    return event, known


def checksum(text: str) -> int:
    """By which a schema or a stream is known in a header."""
    return zlib.crc32(text.encode())


class PackedView:
    """Packs and unpacks the rows of one view."""

    def __init__(self, view: FeatureView) -> None:
        self.name = view.name
        self.feature_names = view.feature_names
        self.codes = frozenset(feature.name for feature in view.features if feature.indicator.unit is Unit.CODE)
        self.schema = checksum(",".join(f"{name}:{'q' if name in self.codes else 'd'}" for name in self.feature_names))
        self._streams = {checksum(stream.name): stream.name for stream in view.streams}
        self.header = lru_cache(maxsize=REMEMBERED_HEADERS)(self._header)

    def _header(self, packed: bytes) -> Header:
        """The header of a packed row, or of its first bytes."""
        event, known, flags, schema, stream = _HEADER.unpack_from(packed)
        return Header(event, known, flags & ~HAS_NULLS, self._streams.get(stream), bool(flags & HAS_NULLS), schema == self.schema)

    def pack(self, rows: pl.DataFrame) -> list[bytes]:
        """Packed rows of a frame with the view's columns (`feature_schema`), in its order.

        Raises:
            MalformedDataError: Flags do not fit 31 bits.
        """
        import numpy as np  # only writers need it

        if not rows["flags"].is_between(0, HAS_NULLS - 1).all():
            raise MalformedDataError(f"rows of view {self.name} for Redis: flags must be within 0 and {HAS_NULLS - 1}")
        columns = [("event", "<i8"), ("known", "<i8"), ("flags", "<u4"), ("schema", "<u4"), ("stream", "<u4")]
        columns += [(f"feature:{name}", "<i8" if name in self.codes else "<f8") for name in self.feature_names]
        packed = np.empty(rows.height, np.dtype(columns))
        packed["event"] = rows["event_timestamp"].to_physical().to_numpy()
        packed["known"] = rows["created_timestamp"].to_physical().to_numpy()
        has_nulls = rows.select(pl.any_horizontal(pl.col(self.feature_names).is_null())).to_series()
        packed["flags"] = (rows["flags"] + has_nulls.cast(pl.Int64) * HAS_NULLS).to_numpy()
        packed["schema"] = self.schema
        streams = {name: checksum(name) for name in rows["stream"].unique()}
        packed["stream"] = rows["stream"].replace_strict(streams, return_dtype=pl.Int64).to_numpy()
        for name in self.feature_names:
            packed[f"feature:{name}"] = rows[name].fill_null(NULL_CODE if name in self.codes else float("nan")).to_numpy()
        joined, width = packed.tobytes(), packed.dtype.itemsize
        return [joined[start : start + width] for start in range(0, len(joined), width)]

    def value_format(self, wanted: Container[str]) -> str:
        """How `struct` unpacks the features of `wanted`, in declared order, and skips the others."""
        return "".join(("q" if name in self.codes else "d") if name in wanted else f"{FEATURE_BYTES}x" for name in self.feature_names)

    def reader(self, names: Sequence[str]) -> Callable[[bytes | None, bytes | None], StoredRow | None]:
        """A function that unpacks a row, given with the `_ts` field beside it, into the values of `names`, in their order.

        It returns None where Redis holds no row, and STALE_ROW where Feast's fields must be read.
        """
        wanted = set(names)
        declared = [name for name in self.feature_names if name in wanted]
        unpack = struct.Struct(f"<{HEADER_BYTES}x" + self.value_format(wanted)).unpack
        positions = [declared.index(name) for name in names]
        are_codes = [name in self.codes for name in names]
        in_order = list(names) == declared

        def read(packed: bytes | None, timestamp: bytes | None) -> StoredRow | None:
            if timestamp is None:
                return None
            if packed is None:
                return STALE_ROW
            header = self.header(packed[:HEADER_BYTES])
            if header.event_microseconds != layout.decode_timestamp(timestamp) or not header.is_readable:
                return STALE_ROW
            values = unpack(packed)
            if header.has_nulls or not in_order:
                chosen = [values[position] for position in positions]
                values = tuple([None if (v == NULL_CODE if code else v != v) else v for v, code in zip(chosen, are_codes, strict=True)])  # noqa: PLR0124 - NaN
            return StoredRow(*header[:4], values, is_whole=not header.has_nulls)

        return read
