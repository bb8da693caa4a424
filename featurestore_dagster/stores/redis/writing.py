"""Rows of views as commands that write them, and what decides which row stays. Sans-io.

Our own rows come in thousands: what Redis holds is read for a batch of entities, and the newer rows are written in a transaction that fails
when any of these entities was written meanwhile: a script for each row would cost the server several times as much.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import polars as pl

from featurestore_dagster.errors import MalformedDataError
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.projections.postgres_table import feature_schema
from featurestore_dagster.stores.redis import layout
from featurestore_dagster.stores.redis.packed import PackedView, entity_fields, rows_key, times_of
from featurestore_dagster.stores.redis.reading import EXEC, MULTI, bulk

if TYPE_CHECKING:
    from featurestore_dagster.stores.redis import dumps

UNWATCH = b"*1\r\n$7\r\nUNWATCH\r\n"
HSET = b"*%d\r\n$4\r\nHSET\r\n"
HMGET = b"*%d\r\n$5\r\nHMGET\r\n"

ROWS_PER_BATCH = 100
"""In one transaction, for whose milliseconds nobody else is served."""

ROWS_PER_ENCODING = 10_000
"""Laid out at once: a call of Polars or NumPy costs as much as some hundred rows."""

REMEMBER_UNLESS_DISTURBED = """
local undisturbed = redis.call('GET', KEYS[1]) == ARGV[1]
redis.call('DEL', KEYS[1])
local held = string.match(redis.call('GET', KEYS[2]) or '', '^' .. ARGV[3] .. ':(%d+)$')
if undisturbed or held and tonumber(held) > tonumber(ARGV[2]) then redis.call('SET', KEYS[2], ARGV[3] .. ':' .. ARGV[2]) end
return undisturbed and 1 or 0
"""
"""Arguments: our token, the publication id, the stored version. The token is gone when Redis was flushed during the write, and another's
when a second writer began: then the id never advances, so that the next sync repeats what one of the two may have undone."""


ADVANCE = """
local held = tonumber(redis.call('GET', KEYS[1]) or nil)
if not held or held < tonumber(ARGV[1]) then redis.call('SET', KEYS[1], ARGV[1]) end
return 1
"""
"""Arguments: a number that only grows."""


@dataclass(frozen=True)
class Change:
    """What is to be applied of one view, in the form that `RedisStore.write` asks for.

    With `replaces`, whatever Redis holds of these entities gives way: it may be another version's or another database's.
    """

    view: FeatureView
    rows: pl.DataFrame
    publication_id: int
    retracted: pl.DataFrame | None = None
    replaces: bool = False


@dataclass(frozen=True)
class OnlineWrite:
    """What one sync of a view did.

    Written are also entities whose row Redis held already, bit by bit. Skipped entities held a newer version; refused ones were dated after
    now. `bytes_used` is the memory of the whole server, `watermark` the newest event time among the rows that were offered and not refused.
    """

    entities_written: int
    entities_skipped: int
    entities_refused_future: int
    entities_deleted: int
    bytes_used: int
    watermark: datetime | None


class Batch:
    """Entities with a row or none of each view.

    `watch` asks how many of them are there, the last of its `WATCHED` answers. `probe` asks also what Redis holds, and has `probed`.
    """

    WATCHED = 2

    def __init__(self, part: "_Part", of: slice) -> None:
        self._part = part
        self._of = of
        keys = part.keys[of]
        count, head = b"*%d\r\n" % (len(keys) + 1), HMGET % (len(part.views) + 2)
        joined = b"".join(keys)
        self.watch = b"".join((count, b"$5\r\nWATCH\r\n", joined, count, b"$6\r\nEXISTS\r\n", joined))
        words = [self.watch]
        for key in keys:
            words += (head, key, part.timestamp_names)
        head, fields = HMGET % (len(keys) + 2), b"".join(part.fields[of])
        for rows in part.views:
            words += (head, rows.key, fields)
        self.probe = b"".join(words)
        self.probed = self.WATCHED + len(keys) + len(part.views)

    def transaction(self, answers: Sequence[Any], *, restores: bool) -> tuple[bytes, int, list[int]]:
        """What is sent, the number of its answers, and for each view how many entities have the offered row afterwards.

        It does nothing, and its last answer is None, if one of the entities was written since they were watched. Where none of them is
        there, which `watch` is enough to know, they are laid down whole if the server `restores`.
        """
        part, of = self._part, self._of
        _, existing, *held = answers
        if existing:
            entities = len(held) - len(part.views)
            columns = zip(part.views, zip(*held[:entities], strict=True), held[entities:], strict=True)
            found = [rows.newer(of, timestamps, packed) for rows, timestamps, packed in columns]
        else:
            found = [(rows.offered(of), 0) for rows in part.views]
        newer = [chosen for chosen, _ in found]
        written = [len(chosen) + unchanged for chosen, unchanged in found]
        if not any(newer):
            return UNWATCH, 1, written
        commands = [rows.update(part.fields, chosen) for rows, chosen in zip(part.views, newer, strict=True) if chosen]
        commands += part.creations(newer) if restores and not existing else part.updates(newer)
        return b"".join((MULTI, *commands, EXEC)), len(commands) + 2, written


class _Part:
    """Entities, and a row or none of each view; laid out at once, and not before it is needed."""

    def __init__(self, project: str, changes: Sequence[Change], frames: Sequence[pl.DataFrame]) -> None:
        keys = {name: frames[0][name].to_list() for name in changes[0].view.join_keys}
        self.keys = list(map(bulk, layout.entity_keys(project, keys)))
        self.fields = list(map(bulk, entity_fields(keys)))
        self.views = [_Rows(project, change, frame) for change, frame in zip(changes, frames, strict=True)]
        self.timestamp_names = b"".join(rows.timestamp_name for rows in self.views)

    def updates(self, newer: Sequence[Sequence[int]]) -> list[bytes]:
        """A command for each entity, which leaves its other views as they are."""
        words: dict[int, list[bytes]] = {}
        counts: dict[int, int] = {}
        for rows, chosen in zip(self.views, newer, strict=True):
            for number in chosen:
                words.setdefault(number, [self.keys[number]]).append(rows.words[number])
                counts[number] = counts.get(number, 2) + 2 * len(rows.view.features) + 2
        return [HSET % count + b"".join(words[number]) for number, count in counts.items()]

    def creations(self, newer: Sequence[Sequence[int]]) -> list[bytes]:
        """As `updates`, for entities that are not there."""
        payloads = self._payloads
        commands = self.updates([[number for number in chosen if payloads[number] is None] for chosen in newer])
        for number in set().union(*newer):
            if payload := payloads[number]:
                commands.append(restore(self.keys[number], payload))
        return commands

    @cached_property
    def _payloads(self) -> list[bytes | None]:
        from featurestore_dagster.stores.redis import dumps  # NumPy: only writers need it

        times, *features = zip_longest(*(rows.columns() for rows in self.views))  # times first: a read looks for them
        return dumps.dumped([column for columns in (times, *features) for column in columns if column])


class _Rows:
    """Rows of one view, by the entity's number; where an entity has none, its time is None and the rest is of no meaning."""

    def __init__(self, project: str, change: Change, frame: pl.DataFrame) -> None:
        packing = PackedView(change.view)
        self.view = change.view
        self.key = bulk(rows_key(project, self.view.join_keys, self.view.name))
        self.timestamp_name = bulk(layout.timestamp_field(self.view.name))
        self._replaces = change.replaces
        self._frame = frame
        self._codes = packing.codes
        events, known = (frame[name].to_physical().to_list() for name in ("event_timestamp", "created_timestamp"))
        self.versions = list(zip(events, known, strict=True))
        self.timestamps = [None if event is None else layout.encode_timestamp(event) for event in events]
        is_there = frame["event_timestamp"].is_not_null()
        packed = iter(packing.pack(frame.filter(is_there)))
        self.packed = [next(packed) if there else b"" for there in is_there.to_list()]

    def offered(self, of: slice) -> list[int]:
        """Numbers of the rows."""
        return [number for number, timestamp in enumerate(self.timestamps[of], of.start) if timestamp is not None]

    def newer(self, of: slice, timestamps: Sequence[bytes | None], packed: list[bytes | None]) -> tuple[list[int], int]:
        """Numbers of the rows that replace what Redis holds, and how many it holds already, bit by bit.

        A row gives way to one that is strictly newer by (event time, known-at). Feast's field gives the event time, because a stock Feast
        client may have written after us; the known-at is unknown then, and any of ours wins.
        """
        own_times, own = self.timestamps[of], self.packed[of]
        if packed == own and list(timestamps) == own_times and not self._replaces:
            return [], len(own)
        chosen, unchanged = [], 0
        rows = zip(own_times, own, self.versions[of], timestamps, packed, strict=True)
        for number, (own_time, row, version, timestamp, held) in enumerate(rows, of.start):
            if own_time is None:
                continue
            if timestamp is None or self._replaces:
                chosen.append(number)
            elif timestamp == own_time and held == row:
                unchanged += 1
            elif version >= held_version(timestamp, held):
                chosen.append(number)
        return chosen, unchanged

    def update(self, fields: Sequence[bytes], chosen: Sequence[int]) -> bytes:
        """The command that writes packed rows."""
        begin, end = b"$%d\r\n" % len(self.packed[chosen[0]]), b"\r\n"
        words = [word for number in chosen for word in (fields[number], begin, self.packed[number], end)]
        return HSET % (2 * len(chosen) + 2) + self.key + b"".join(words)

    @cached_property
    def words(self) -> list[bytes]:
        """Names and values as words of a command."""
        doubles = [name for name in self.view.feature_names if name not in self._codes]
        columns = [
            [self.timestamp_name + bulk(timestamp or b"") for timestamp in self.timestamps],
            _double_fields(self.view.name, self._frame.select(doubles)),
        ]
        for feature in self._codes:
            name = bulk(layout.feature_field(self.view.name, feature))
            columns.append([name + bulk(value) for value in layout.encode_values(self._frame[feature])])
        return list(map(b"".join, zip(*columns, strict=True)))

    def columns(self) -> "Iterator[dumps.Column]":
        """The time and the features, to be dumped."""
        from featurestore_dagster.stores.redis import dumps  # NumPy: only writers need it

        yield dumps.texts(layout.timestamp_field(self.view.name), self.timestamps)
        is_there = [timestamp is not None for timestamp in self.timestamps]
        for feature in self.view.feature_names:
            name, values = layout.feature_field(self.view.name, feature), self._frame[feature]
            if feature in self._codes:
                encoded = zip(layout.encode_values(values), is_there, strict=True)
                yield dumps.texts(name, [text if there else None for text, there in encoded])
            else:
                yield dumps.doubles(name, values, is_there)


def held_version(timestamp: bytes, packed: bytes | None) -> tuple[int, float]:
    """Event time and known-at, microseconds since 1970, of a row with these fields."""
    event = layout.decode_timestamp(timestamp)
    if packed is not None:
        known_event, known = times_of(packed)
        if known_event == event:
            return event, known
    return event, -math.inf


def newest_of_each(view: FeatureView, rows: pl.DataFrame) -> pl.DataFrame:
    """One row for each entity: that of the greatest event time, then known-at."""
    if not rows.select(pl.struct(view.join_keys).is_duplicated().any()).item():
        return rows
    return rows.sort("event_timestamp", "created_timestamp").unique(view.join_keys, keep="last", maintain_order=True)


def batches(project: str, changes: Sequence[Change]) -> Iterator[Batch]:
    """Batches of different entities; the views have the same join keys."""
    keys = changes[0].view.join_keys
    frames = [newest_of_each(change.view, change.rows) for change in changes]
    if len(frames) > 1:
        entities = pl.concat([frame.select(keys) for frame in frames]).unique(maintain_order=True)
        frames = [entities.join(frame, on=keys, how="left", maintain_order="left") for frame in frames]
    for start in range(0, frames[0].height, ROWS_PER_ENCODING):
        part = _Part(project, changes, [frame.slice(start, ROWS_PER_ENCODING) for frame in frames])
        step = max(1, ROWS_PER_BATCH // len(changes))
        for first in range(0, len(part.keys), step):
            yield Batch(part, slice(first, first + step))


def _double_fields(view: str, values: pl.DataFrame) -> list[bytes]:
    """For each row the names and values of its Float64 features as words of a command.

    They are laid out for all rows at once, as if no value were NULL: encoding them one by one costs more than all the rest of a write.
    """
    import numpy as np  # only writers need it

    if values.is_empty() or not values.width:
        return [b""] * values.height
    null, end = bulk(layout.NULL), b"\r\n"
    columns, starts, width = [], [], 0
    for name in values.columns:
        before = bulk(layout.feature_field(view, name))
        double = b"$%d\r\n%b" % (layout.DOUBLE_BYTES, layout.DOUBLE_TAG)
        columns += [(f"{name}:before", before + double), (name, None), (f"{name}:after", end)]
        starts.append(width + len(before))
        width = starts[-1] + len(double) + layout.DOUBLE_BYTES - len(layout.DOUBLE_TAG) + len(end)
    record = np.empty(values.height, np.dtype([(name, "<f8" if text is None else f"V{len(text)}") for name, text in columns]))
    for name, text in columns:
        record[name] = values[name].fill_null(0.0).to_numpy() if text is None else np.void(text)
    joined = record.tobytes()
    rows = [joined[start : start + width] for start in range(0, len(joined), width)]
    value_bytes = width - starts[-1]
    for column, start in zip(reversed(values.get_columns()), reversed(starts), strict=True):  # backwards: what comes before stays in place
        for number in column.is_null().arg_true() if column.null_count() else ():
            rows[number] = rows[number][:start] + null + rows[number][start + value_bytes :]
    return rows


def restore(key: bytes, payload: bytes) -> bytes:
    """The command that lays a hash down, of its words; refused when the key is there."""
    return b"*4\r\n$7\r\nRESTORE\r\n%b$1\r\n0\r\n%b" % (key, payload)


def deletions(project: str, view: FeatureView, retracted: pl.DataFrame) -> Iterator[tuple[list[bytes], int]]:
    """Batches of commands that delete the view's rows, and how many entities each has: their answers, how many fields went, come first."""
    names = [layout.timestamp_field(view.name), *(layout.feature_field(view.name, feature) for feature in view.feature_names)]
    head, tail = b"*%d\r\n$4\r\nHDEL\r\n" % (len(names) + 2), b"".join(map(bulk, names))
    rows = bulk(rows_key(project, view.join_keys, view.name))
    for batch in retracted.iter_slices(ROWS_PER_BATCH):
        keys = {name: batch[name].to_list() for name in view.join_keys}
        commands = [head + bulk(key) + tail for key in layout.entity_keys(project, keys)]
        fields = entity_fields(keys)
        yield [*commands, b"*%d\r\n$4\r\nHDEL\r\n" % (len(fields) + 2) + rows + b"".join(map(bulk, fields))], len(fields)


def refuse_malformed(view: FeatureView, rows: pl.DataFrame) -> None:
    """Raise MalformedDataError unless the rows have the view's columns and types, and keys, times, flags and stream."""
    wrong = [
        f"{name}: {rows.schema.get(name, 'missing')}, not {dtype}"
        for name, dtype in feature_schema(view).items()
        if rows.schema.get(name) != dtype
    ]
    required = [*view.join_keys, "event_timestamp", "created_timestamp", "flags", "stream"]
    if not wrong:
        wrong = [f"{name}: {count} NULLs" for name in required if (count := rows[name].null_count())]
    if wrong:
        raise MalformedDataError(f"rows of view {view.name} for Redis: {'; '.join(wrong)}")
