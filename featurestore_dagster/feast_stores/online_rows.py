"""Feast's rows as commands to Redis, and rows from its answers; what is served of them, and why not. Sans-io, for every Feast repository.

The layout is Feast's. Beside it, in a hash under the same key in braces, stand for each view the event time and known-at of the row that
was written last, so that a correction of the same event time wins, and an older one never does.
"""

import hashlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from feast.feature_view import FeatureView as FeastView
from feast.infra.online_stores.helpers import _redis_key, compute_versioned_name
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_config import RepoConfig

from featurestore_dagster.errors import MalformedDataError
from featurestore_dagster.feast_stores.connections import declared_view, environments_clock
from featurestore_dagster.serving.answer import EPOCH, OnlineFeatures, Status, instant
from featurestore_dagster.stores.redis import layout
from featurestore_dagster.stores.redis.packed import rows_key
from featurestore_dagster.stores.redis.wire import command
from featurestore_dagster.stores.redis.writing import ROWS_PER_BATCH

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


MICROSECOND = timedelta(microseconds=1)

WrittenRow = tuple[EntityKey, dict[str, Value], datetime, datetime | None]
"""Feast's: keys, values, event time, known-at."""

OurQuestion = tuple[list[str], list[dict[str, Any]]]
"""References and entity rows, as our client takes them."""

STATUSES = {
    Status.PRESENT: FieldStatus.PRESENT,
    Status.NULL_VALUE: FieldStatus.NULL_VALUE,
    Status.NOT_FOUND: FieldStatus.NOT_FOUND,
    Status.OUTSIDE_MAX_AGE: FieldStatus.OUTSIDE_MAX_AGE,
}


class ServedRow(NamedTuple):
    """What a read gives of one entity: values by feature (None: no row) and Feast's status of each."""

    event_timestamp: datetime | None
    values: dict[str, Value] | None
    statuses: Mapping[str, int]


NO_ROW = ServedRow(None, None, {})


class Part(NamedTuple):
    """One view of a request: the features wanted of it, and its entities."""

    table: FeastView
    features: list[str]
    keys: list[EntityKey]


def stored_name(config: RepoConfig, table: FeastView) -> str:
    """The view's name in Redis: with its version where the registry keeps versions online."""
    return str(compute_versioned_name(table, config.registry.enable_online_feature_view_versioning))


def name_in_request(table: FeastView) -> str:
    """The name that a request gives a view: its alias, or its own."""
    return str(table.projection.name_to_use())  # type: ignore[no-untyped-call]


def redis_key(config: RepoConfig, key: EntityKey) -> bytes:
    """Redis key of an entity."""
    return bytes(_redis_key(config.project, key, config.entity_key_serialization_version))


def reads(config: RepoConfig, part: Part) -> list[bytes]:
    """A command for each entity; `stored_row` takes the answers."""
    name = stored_name(config, part.table)
    fields = [layout.timestamp_field(name), *(layout.feature_field(name, feature) for feature in part.features)]
    return [command("HMGET", redis_key(config, key), *fields) for key in part.keys]


def stored_row(part: Part, answer: Sequence[bytes | None], now: datetime) -> ServedRow:
    """What an answer of Redis is worth at `now`: nothing of a future row, NULL when the age reaches the view's TTL."""
    timestamp, *encoded = answer
    if timestamp is None or (event := instant(layout.decode_timestamp(timestamp))) > now:
        return NO_ROW
    expired = is_expired(part.table, event, now)
    values, statuses = {}, {}
    for name, text in zip(part.features, encoded, strict=True):
        values[name] = value = Value()
        if text is None:
            statuses[name] = FieldStatus.NOT_FOUND
        elif expired:
            statuses[name] = FieldStatus.OUTSIDE_MAX_AGE
        elif text == layout.NULL:
            statuses[name] = FieldStatus.NULL_VALUE
        else:
            value.ParseFromString(text)
            statuses[name] = FieldStatus.PRESENT
    return ServedRow(event, values, statuses)


def is_expired(table: FeastView, event: datetime | None, now: datetime) -> bool:
    """Whether a value's age has reached the view's TTL, in clock time; a view without TTL has none."""
    return table.ttl is not None and table.ttl > timedelta(0) and event is not None and now - event >= table.ttl


def answered_rows(answer: OnlineFeatures, label: str, features: Sequence[str]) -> list[ServedRow]:
    """Rows of one of our own views in an answer of our client."""
    positions = [answer.plan.references.index(f"{label}:{name}") for name in features]
    found = []
    for row in answer.rows:
        statuses = {name: row.statuses[position] for name, position in zip(features, positions, strict=True)}
        if set(statuses.values()) == {Status.NOT_FOUND}:
            found.append(NO_ROW)
            continue
        values = {name: _value(row.numbers[position]) for name, position in zip(features, positions, strict=True)}
        served = {name: STATUSES[status] for name, status in statuses.items()}
        found.append(ServedRow(row.state(label).event_timestamp, values, served))
    return found


class Question:
    """What a read of several views asks of Redis and of our client: views of our own with the same entities go together."""

    def __init__(self, config: RepoConfig, parts: list[Part]) -> None:
        self._parts = parts
        self._declared = [declared_view(config, part.table) for part in parts]
        sent = [text for part, view in zip(parts, self._declared, strict=True) if view is None for text in reads(config, part)]
        self.sent, self.count = b"".join(sent), len(sent)
        self.ours: list[OurQuestion] = []
        self._group_of: dict[int, int] = {}
        for number, (part, view) in enumerate(zip(parts, self._declared, strict=True)):
            if view is not None:
                entities = [entity_row(key) for key in part.keys]
                group = next((place for place, (_, others) in enumerate(self.ours) if others == entities), len(self.ours))
                if group == len(self.ours):
                    self.ours.append(([], entities))
                self.ours[group][0].extend(f"{view.label}:{name}" for name in part.features)
                self._group_of[number] = group

    def rows(self, answers: list[Any], ours: list[OnlineFeatures]) -> list[list[ServedRow]]:
        """Rows of each part."""
        now, position = environments_clock().now(), 0
        found: list[list[ServedRow]] = []
        for number, (part, view) in enumerate(zip(self._parts, self._declared, strict=True)):
            if view is not None:
                found.append(answered_rows(ours[self._group_of[number]], view.label, part.features))
            else:
                own = answers[position : position + len(part.keys)]
                position += len(part.keys)
                found.append([stored_row(part, answer, now) for answer in own])
        return found


def entity_row(key: EntityKey) -> dict[str, Any]:
    """Join key -> value."""
    return {name: getattr(value, value.WhichOneof("val") or "", None) for name, value in zip(key.join_keys, key.entity_values, strict=True)}


def times_key(key: bytes) -> bytes:
    """Redis key of the times of an entity's rows, by view."""
    return b"{" + key + b"}"


def with_times(table: FeastView, rows: Sequence[WrittenRow]) -> list[WrittenRow]:
    """The rows, with None for a known-at that is NULL: Feast passes pandas' NaT.

    Raises:
        MalformedDataError: An event time is NULL.
    """
    if timeless := [entity_row(key) for key, _, event, _ in rows if _is_null(event)]:
        raise MalformedDataError(
            f"{table.name}: {len(timeless)} of {len(rows)} rows have no event time, the first of {timeless[0]}; every row needs one: "
            "none was written"
        )
    return [(key, values, event, None if _is_null(created) else created) for key, values, event, created in rows]


def writes(config: RepoConfig, table: FeastView, rows: Sequence[WrittenRow], now: datetime) -> Iterator[tuple[bytes, int]]:
    """Batches of commands and the numbers of their answers.

    Each row is written unless Redis holds one that is newer by (event time, known-at). A row without known-at is known from now on.
    """
    name = stored_name(config, table)
    sha = hashlib.sha1(WRITE_UNLESS_OLDER.encode(), usedforsecurity=False).hexdigest()
    lifetime = config.online_store.key_ttl_seconds
    for start in range(0, len(rows), ROWS_PER_BATCH):
        sent = [command("SCRIPT", "LOAD", WRITE_UNLESS_OLDER)]
        for entity, values, event_timestamp, created in rows[start : start + ROWS_PER_BATCH]:
            key = redis_key(config, entity)
            event = _microseconds(event_timestamp)
            times = struct.pack("<qq", event, _microseconds(created or now))
            fields = [
                text for feature, value in values.items() for text in (layout.feature_field(name, feature), value.SerializeToString())
            ]
            stamp = (layout.timestamp_field(name), layout.encode_timestamp(event))
            sent.append(command("EVALSHA", sha, 2, key, times_key(key), name, times, *stamp, *fields))
            if lifetime:
                sent += [command("EXPIRE", owner, lifetime) for owner in (key, times_key(key))]
        yield b"".join(sent), len(sent)


def is_known(row: WrittenRow, now: datetime) -> bool:
    """Whether a row is of the past, by event time and known-at."""
    return max(utc(row[2]), utc(row[3] or row[2])) <= now


def row_deletions(config: RepoConfig, table: FeastView, keys: Sequence[bytes]) -> Iterator[tuple[bytes, int]]:
    """Batches of commands that delete a view's rows, and the numbers of their answers; an empty hash is gone."""
    name = stored_name(config, table)
    fields = [layout.timestamp_field(name), *(layout.feature_field(name, feature.name) for feature in table.features)]
    for start in range(0, len(keys), ROWS_PER_BATCH):
        batch = keys[start : start + ROWS_PER_BATCH]
        sent = [text for key in batch for text in (command("HDEL", key, *fields), command("HDEL", times_key(key), name))]
        yield b"".join(sent), len(sent)
    yield command("UNLINK", rows_key(config.project, table.join_keys, name)), 1  # where it is one of ours


def entity_deletions(keys: Sequence[bytes]) -> Iterator[tuple[bytes, int]]:
    """Batches of commands that delete entities with all their rows, and the numbers of their answers."""
    for start in range(0, len(keys), ROWS_PER_BATCH):
        batch = keys[start : start + ROWS_PER_BATCH]
        yield command("UNLINK", *batch, *map(times_key, batch)), 1


def is_of(key: bytes, prefix: bytes, join_keys: int, project: bytes) -> bool:
    """Whether a Redis key has these join keys and exactly this project: a pattern would also match a project that only ends like it."""
    position = len(prefix)
    for _ in range(join_keys):
        if position + 8 > len(key):
            return False
        position += 8 + struct.unpack_from("<I", key, position + 4)[0]
    return key.startswith(prefix) and key[position:] == project


def utc(moment: datetime) -> datetime:
    """Feast's convention: an instant without zone is UTC."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _is_null(moment: datetime | None) -> bool:
    return moment is None or moment != moment  # noqa: PLR0124 - NaT differs from itself


def _microseconds(moment: datetime) -> int:
    return (utc(moment) - EPOCH) // MICROSECOND


def _value(number: float | None) -> Value:
    if number is None:
        return Value()
    return Value(int64_val=number) if isinstance(number, int) else Value(double_val=number)
