"""Rows of a view as commands that write them, and what decides which row stays. Sans-io.

Our own rows come in thousands: what Redis holds is read for a batch of them, and the newer ones are written in a transaction that fails
when any of these entities was written meanwhile: a script for each row would cost the server several times as much.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

import polars as pl

from featurestore_dagster.errors import MalformedDataError
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.projections.postgres_table import feature_schema
from featurestore_dagster.stores.redis import layout
from featurestore_dagster.stores.redis.packed import PackedView, packed_key, times_of
from featurestore_dagster.stores.redis.reading import EXEC, MULTI, bulk

ROWS_PER_BATCH = 100
"""In one transaction, for whose one or two milliseconds nobody else is served."""

ROWS_PER_ENCODING = 10_000
"""Laid out at once: a call of Polars or NumPy costs as much as some hundred rows."""

REMEMBER_UNLESS_DISTURBED = """
local undisturbed = redis.call('GET', KEYS[1]) == ARGV[1]
redis.call('DEL', KEYS[1])
local held = string.match(redis.call('GET', KEYS[2]) or '', '^' .. ARGV[3] .. ':(%d+)$')
if undisturbed or held and tonumber(held) > tonumber(ARGV[2]) then redis.call('SET', KEYS[2], ARGV[3] .. ':' .. ARGV[2]) end
return undisturbed and 1 or 0
"""
"""Arguments: our token, the publication id, the view's version. The token is gone when Redis was flushed during the write, and another's
when a second writer began: then the id never advances, so that the next sync repeats what one of the two may have undone."""


ADVANCE = """
local held = tonumber(redis.call('GET', KEYS[1]) or nil)
if not held or held < tonumber(ARGV[1]) then redis.call('SET', KEYS[1], ARGV[1]) end
return 1
"""
"""Arguments: a number that only grows."""


@dataclass(frozen=True)
class OnlineWrite:
    """What one sync of a view did.

    Skipped entities held a newer version already; refused ones were dated after now. `bytes_used` is the memory of the whole server,
    `watermark` the newest event time among the rows that were offered and not refused.
    """

    entities_written: int
    entities_skipped: int
    entities_refused_future: int
    entities_deleted: int
    bytes_used: int
    watermark: datetime | None


@dataclass(frozen=True)
class Batch:
    """Rows of different entities. `probe` asks what Redis holds, and has `probed` answers; `rows` are the commands that write each row."""

    probe: bytes
    probed: int
    rows: Sequence[bytes]
    versions: Sequence[tuple[int, int]]

    def newer(self, answers: Sequence[bytes | None]) -> list[bytes]:
        """The commands of rows that replace what Redis holds: it has none, or none that is strictly newer by (event time, known-at).

        Feast's field gives the event time, because a stock Feast client may have written after us; the known-at is unknown then, and any
        of ours wins.
        """
        pairs = zip(self.rows, self.versions, answers[1::2], answers[2::2], strict=True)
        return [row for row, version, timestamp, packed in pairs if timestamp is None or version >= held_version(timestamp, packed)]

    @staticmethod
    def transaction(rows: Sequence[bytes]) -> tuple[bytes, int]:
        """Write these rows if no entity of the batch was written since the probe; its last answer is None if one was."""
        return b"".join((MULTI, *rows, EXEC)), 2 * len(rows) + 2


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


def upserts(project: str, view: FeatureView, rows: pl.DataFrame) -> Iterator[Batch]:
    """Batches of rows of different entities."""
    packing = PackedView(view)
    put = b"*4\r\n$4\r\nHSET\r\n"
    fields = b"*%d\r\n$4\r\nHSET\r\n" % (2 * len(view.features) + 4)
    get, watch = b"*3\r\n$4\r\nHGET\r\n", b"$5\r\nWATCH\r\n"
    packed_name, timestamp_name = bulk(packing.field), bulk(layout.timestamp_field(view.name))
    doubles = [name for name in view.feature_names if name not in packing.codes]
    for part in rows.iter_slices(ROWS_PER_ENCODING):
        keys = [(bulk(key), bulk(packed_key(key))) for key in _keys(project, view, part)]
        events, known = (part[name].to_physical().to_list() for name in ("event_timestamp", "created_timestamp"))
        columns = [
            [put + packed + packed_name for _, packed in keys],
            [bulk(text) + fields for text in packing.pack(part)],
            [key + timestamp_name + bulk(layout.encode_timestamp(event)) for (key, _), event in zip(keys, events, strict=True)],
            _double_fields(view.name, part.select(doubles)),
        ]
        for feature in packing.codes:
            name = bulk(layout.feature_field(view.name, feature))
            columns.append([name + bulk(value) for value in layout.encode_values(part[feature])])
        commands = list(map(b"".join, zip(*columns, strict=True)))
        versions = list(zip(events, known, strict=True))
        for start in range(0, len(commands), ROWS_PER_BATCH):
            of = slice(start, start + ROWS_PER_BATCH)
            probes = [part for key, packed in keys[of] for part in (get, key, timestamp_name, get, packed, packed_name)]
            watched = b"*%d\r\n" % (len(keys[of]) + 1) + watch + b"".join(key for key, _ in keys[of])
            yield Batch(watched + b"".join(probes), 2 * len(keys[of]) + 1, commands[of], versions[of])


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


def deletions(project: str, view: FeatureView, retracted: pl.DataFrame) -> Iterator[list[bytes]]:
    """Batches of pairs of commands, each of which deletes the view's row of one entity; the first of each answers how many fields went."""
    names = [layout.timestamp_field(view.name), *(layout.feature_field(view.name, feature) for feature in view.feature_names)]
    head, tail = b"*%d\r\n$4\r\nHDEL\r\n" % (len(names) + 2), b"".join(map(bulk, names)) + b"*3\r\n$4\r\nHDEL\r\n"
    field = bulk(view.name.encode())
    for batch in retracted.iter_slices(ROWS_PER_BATCH):
        yield [head + bulk(key) + tail + bulk(packed_key(key)) + field for key in _keys(project, view, batch)]


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


def _keys(project: str, view: FeatureView, rows: pl.DataFrame) -> list[bytes]:
    return layout.entity_keys(project, {key: rows[key].to_list() for key in view.join_keys})
