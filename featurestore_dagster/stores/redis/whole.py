"""An entity's rows of all views decoded at once: what a read mostly finds, and what it costs least.

A row of every view is there, packed, and the newest. Otherwise `packed` decodes view by view.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import itemgetter
from typing import NamedTuple, overload

from featurestore_dagster.stores.redis import layout
from featurestore_dagster.stores.redis.packed import FEATURE_BYTES, HEADER_BYTES, NULL_CODE, PackedView, StoredRow

REMEMBERED_HEADS = 4096

Number = float | int | None


class Head(NamedTuple):
    """What a view's row says of itself: the first fields of `StoredRow`."""

    event_microseconds: int
    known_microseconds: int
    flags: int
    stream: str | None


@dataclass(frozen=True, eq=False, slots=True)
class Heads:
    """The heads of an entity's rows, view by view. Entities of one bar mostly share one object, known by identity.

    `parts` says where in `WholeRow.values` each view's are, `with_nulls` which views' rows have a NULL among all their features.
    """

    of: tuple[Head, ...]
    newest_microseconds: int
    parts: tuple[slice, ...]
    with_nulls: tuple[int, ...]
    timestamp_fields: list[bytes]


class WholeRow(Sequence[StoredRow]):
    """A row for each view, in the order asked; `values` are those of all views, chained. A `StoredRow` is made when one is asked for."""

    __slots__ = ("heads", "values")

    __hash__ = None  # type: ignore[assignment] # equal by content, and a list inside

    def __init__(self, heads: Heads, values: Sequence[Number]) -> None:
        self.heads = heads
        self.values = values

    def __eq__(self, other: object) -> bool:
        """Whether the rows of all views are equal."""
        return isinstance(other, WholeRow) and tuple(self) == tuple(other)

    def __len__(self) -> int:
        """Number of views."""
        return len(self.heads.of)

    @overload
    def __getitem__(self, position: int) -> StoredRow: ...
    @overload
    def __getitem__(self, position: slice) -> tuple[StoredRow, ...]: ...
    def __getitem__(self, position: int | slice) -> StoredRow | tuple[StoredRow, ...]:
        """The row of a view."""
        if isinstance(position, slice):
            return tuple(self)[position]
        heads = self.heads
        return StoredRow(*heads.of[position], tuple(self.values[heads.parts[position]]), is_whole=position not in heads.with_nulls)


class WholeRows:
    """Decodes the rows of some views with the names wanted of each.

    `arrival` says for each row of an answer which view it is of, as a position in `views`.
    """

    def __init__(self, views: Sequence[PackedView], names: Sequence[Sequence[str]], arrival: Sequence[int]) -> None:
        self._arriving = [views[position] for position in arrival]
        self._places = [arrival.index(position) for position in range(len(views))]
        heads, values, unpacked = "<", "<", []
        for position in arrival:
            view, wanted = views[position], set(names[position])
            heads += f"{HEADER_BYTES}s{FEATURE_BYTES * len(view.feature_names)}x"
            values += f"{HEADER_BYTES}x" + view.value_format(wanted)
            unpacked += [(position, name) for name in view.feature_names if name in wanted]
        self._unpack_heads, self._unpack, self._size = struct.Struct(heads).unpack, struct.Struct(values).unpack, struct.calcsize(values)
        asked = [(position, name) for position, own in enumerate(names) for name in own]
        self._reordered = None if asked == unpacked else itemgetter(*map(unpacked.index, asked))
        ends = list(accumulate(map(len, names)))
        self._parts = tuple(map(slice, [0, *ends], ends))
        self._are_codes = [name in views[position].codes for position, name in asked]
        self._known: dict[tuple[bytes, ...], Heads] = {}

    def read(self, packed: Sequence[bytes | None], timestamps: list[bytes | None]) -> WholeRow | None:
        """The rows of one entity, with the `_ts` fields beside them, both as they arrive; None when they are not as the module says."""
        if None in packed:
            return None
        joined = b"".join(packed)  # type: ignore[arg-type] # none is None
        if len(joined) != self._size:
            return None
        texts = self._unpack_heads(joined)
        heads = self._known.get(texts)
        if heads is None or heads.timestamp_fields != timestamps:
            heads = self._learnt(texts, timestamps)
            if heads is None:
                return None
        values = self._unpack(joined) if self._reordered is None else self._reordered(self._unpack(joined))
        return WholeRow(heads, self._with_nulls(values, heads) if heads.with_nulls else values)

    def _learnt(self, texts: tuple[bytes, ...], timestamps: list[bytes | None]) -> Heads | None:
        headers = [view.header(text) for view, text in zip(self._arriving, texts, strict=True)]
        for header, timestamp in zip(headers, timestamps, strict=True):
            if timestamp is None or not header.is_readable or header.event_microseconds != layout.decode_timestamp(timestamp):
                return None
        headers = [headers[place] for place in self._places]
        if len(self._known) >= REMEMBERED_HEADS:
            self._known.clear()
        found = self._known[texts] = Heads(
            of=tuple(Head(*header[:4]) for header in headers),
            newest_microseconds=max(max(header.event_microseconds, header.known_microseconds) for header in headers),
            parts=self._parts,
            with_nulls=tuple(position for position, header in enumerate(headers) if header.has_nulls),
            timestamp_fields=list(timestamps),  # type: ignore[arg-type] # none is None
        )
        return found

    def _with_nulls(self, values: Sequence[Number], heads: Heads) -> list[Number]:
        found = list(values)
        for position in heads.with_nulls:
            part = heads.parts[position]
            pairs = zip(values[part], self._are_codes[part], strict=True)
            found[part] = [None if (value == NULL_CODE if is_code else value != value) else value for value, is_code in pairs]  # noqa: PLR0124 - NaN
        return found
