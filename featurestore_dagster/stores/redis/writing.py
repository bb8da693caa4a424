"""Rows of a view as commands that write them, and the scripts that decide on the server which row stays. Sans-io."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

import polars as pl

from featurestore_dagster.errors import MalformedDataError
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.projections.postgres_table import feature_schema
from featurestore_dagster.stores.redis import layout
from featurestore_dagster.stores.redis.packed import PackedView, packed_key
from featurestore_dagster.stores.redis.reading import bulk

ROWS_PER_BATCH = 500
"""Sent at once: the server works on one batch while the next is sent."""

ROWS_PER_ENCODING = 10_000
"""Laid out at once: a call of Polars or NumPy costs as much as some hundred rows."""

WRITE_UNLESS_OLDER = """
local function microseconds(timestamp)
  local parts, at = {0, 0}, 1
  while at <= #timestamp do
    local number, value, scale, byte = math.floor(timestamp:byte(at) / 8), 0, 1
    repeat
      at = at + 1
      byte = timestamp:byte(at)
      value = value + byte % 128 * scale
      scale = scale * 128
    until byte < 128
    parts[number] = value
    at = at + 1
  end
  if parts[1] < 2 ^ 63 then return parts[1] * 1000000 + parts[2] / 1000 end
end
local timestamp = redis.call('HGET', KEYS[1], ARGV[3])
if timestamp then
  local packed = redis.call('HGET', KEYS[2], ARGV[1])
  local known_event, known = nil, -math.huge
  if packed then known_event, known = struct.unpack('<i8i8', packed) end
  local event = microseconds(timestamp) or known_event
  if event ~= known_event then known = -math.huge end
  local new_event, new_known = struct.unpack('<i8i8', ARGV[2])
  if event and (new_event < event or new_event == event and new_known < known) then return 0 end
end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
redis.call('HSET', KEYS[1], unpack(ARGV, 3))
return 1
"""
"""Keys: Feast's hash, ours. Arguments: our field and its value, the timestamp field and its value, then features. The event time is read
from Feast's field, because a stock Feast client may have written after us; the known-at then is unknown, and any of ours wins. Times before
1970 need our field."""

REMEMBER_UNLESS_DISTURBED = """
local undisturbed = redis.call('GET', KEYS[1]) == ARGV[1]
redis.call('DEL', KEYS[1])
local held = tonumber(redis.call('GET', KEYS[2]) or nil)
if undisturbed or held and held > tonumber(ARGV[2]) then redis.call('SET', KEYS[2], ARGV[2]) end
return undisturbed and 1 or 0
"""
"""Arguments: our token, the publication id. The token is gone when Redis was flushed during the write, and another's when a second writer
began: then the id never advances, so that the next sync repeats what one of the two may have undone."""


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


def upserts(project: str, view: FeatureView, rows: pl.DataFrame) -> Iterator[list[bytes]]:
    """Batches of commands, each of which writes one row unless Redis holds a newer one; they answer 1 if they wrote, else 0."""
    sha = hashlib.sha1(WRITE_UNLESS_OLDER.encode(), usedforsecurity=False).hexdigest().encode()
    packing = PackedView(view)
    head = b"*%d\r\n$7\r\nEVALSHA\r\n" % (2 * len(view.features) + 9) + bulk(sha) + bulk(b"2")
    packed_name, timestamp_name = bulk(packing.field), bulk(layout.timestamp_field(view.name))
    doubles = [name for name in view.feature_names if name not in packing.codes]
    for batch in rows.iter_slices(ROWS_PER_ENCODING):
        columns = [
            [head + bulk(key) + bulk(packed_key(key)) + packed_name for key in _keys(project, view, batch)],
            map(bulk, packing.pack(batch)),
            [timestamp_name + bulk(layout.encode_timestamp(event)) for event in batch["event_timestamp"].to_physical().to_list()],
            _double_fields(view.name, batch.select(doubles)),
        ]
        for feature in packing.codes:
            name = bulk(layout.feature_field(view.name, feature))
            columns.append([name + bulk(value) for value in layout.encode_values(batch[feature])])
        commands = list(map(b"".join, zip(*columns, strict=True)))
        for start in range(0, len(commands), ROWS_PER_BATCH):
            yield commands[start : start + ROWS_PER_BATCH]


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
