"""The online store: newest versions in, entity rows out, in few round trips.

What must be applied is the ledger's to say (`PostgresStore.online_changes`), and whether a value is too old to serve is decided in
`serving.online`; neither belongs here. Bytes are sent as whole batches over redis-py's connections: its own pipelines cost several times
the time of the server.
"""

import hashlib
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, cast

import polars as pl
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from featurestore_dagster.errors import ConfigurationError, MalformedDataError, StoreUnavailableError
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.projections.postgres_table import feature_schema
from featurestore_dagster.settings import RedisSettings
from featurestore_dagster.stores.redis import layout

CONNECT_SECONDS = 1.0
WRITE_SECONDS = 30.0
"""A batch of a bulk write may wait for a snapshot or a slow disk; nobody waits for it at a screen."""

ROWS_PER_BATCH = 500

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
local held = redis.call('HMGET', KEYS[1], ARGV[1], ARGV[3])
if held[2] then
  local known_event, known = nil, -math.huge
  if held[1] then known_event, known = struct.unpack('<i8i8', held[1]) end
  local event = microseconds(held[2]) or known_event
  if event ~= known_event then known = -math.huge end
  local new_event, new_known = struct.unpack('<i8i8', ARGV[2])
  if event and (new_event < event or new_event == event and new_known < known) then return 0 end
end
redis.call('HSET', KEYS[1], unpack(ARGV))
return 1
"""
"""Arguments: our field and its value, the timestamp field and its value, then features. The event time is read from Feast's field, because
a stock Feast client may have written after us; the known-at then is unknown, and any of ours wins. Times before 1970 need our field."""

REMEMBER_UNLESS_DISTURBED = """
local undisturbed = redis.call('GET', KEYS[1]) == ARGV[1]
redis.call('DEL', KEYS[1])
local held = tonumber(redis.call('GET', KEYS[2]) or nil)
if undisturbed or held and held > tonumber(ARGV[2]) then redis.call('SET', KEYS[2], ARGV[2]) end
return undisturbed and 1 or 0
"""
"""Arguments: our token, the publication id. The token is gone when Redis was flushed during the write, and another's when a second writer
began: then the id never advances, so that the next sync repeats what one of the two may have undone."""


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


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A view's newest row of one entity.

    `values` lacks the features that Redis does not hold; None is NULL. `known_at` is None and `flags` 0 when a stock Feast client wrote
    the row; `stream` is None when we never wrote one for the entity.
    """

    event_timestamp: datetime
    known_at: datetime | None
    flags: int
    stream: str | None
    values: dict[str, float | int | None]


class RedisStore:
    """One project's rows in one Redis. Safe to share between threads; no connection is made before the first call.

    Every method raises StoreUnavailableError when Redis does not answer in time, and ConfigurationError when it refuses the password.
    """

    tier = "redis"

    def __init__(self, settings: RedisSettings, project: str, *, read_deadline_seconds: float = 1.0) -> None:
        """`read_deadline_seconds` bounds each wait for an answer to `read`."""
        self.project = project
        self._place = f"Redis at {settings.host}:{settings.port}"
        self._reading = _client(settings, read_deadline_seconds)
        self._writing = _client(settings, WRITE_SECONDS)

    def close(self) -> None:
        """Close all connections; the next call opens new ones."""
        self._reading.close()
        self._writing.close()

    def ping(self) -> str:
        """The server's version, for audits."""
        with self._translated():
            return str(cast("dict[str, Any]", self._reading.info("server"))["redis_version"])

    def publication_id(self, view: FeatureView) -> int | None:
        """The last publication that was applied whole, None when Redis knows of none: then everything must be applied again."""
        with self._translated():
            held = cast("bytes | None", self._reading.get(self._publication_key(view)))
        return None if held is None else int(held)

    def write(
        self, view: FeatureView, rows: pl.DataFrame, publication_id: int, *, retracted: pl.DataFrame | None = None, now: datetime
    ) -> OnlineWrite:
        """Apply the changes up to `publication_id`, which is remembered after the last row.

        A row is skipped only if Redis holds a strictly newer (event_timestamp, created_timestamp): a correction with the same event time
        and a later known-at replaces. Safe against other writers, row by row; killed at any point, a repetition finishes it.

        Args:
            view: The view written.
            rows: Columns `feature_schema(view)`, any order, any number of rows per entity.
            publication_id: The ledger's newest publication that the rows reflect.
            retracted: Join keys of the entities whose row disappears.
            now: Rows dated after it, by event or known-at, are refused.

        Raises:
            MalformedDataError: A column is missing or has another type, or a key or time is NULL; nothing was written.
            StoreUnavailableError: Also when Redis was flushed, or another writer was at work, during the write: sync again.
        """
        _refuse_malformed(view, rows)
        future = rows.select(((pl.col("event_timestamp") > now) | (pl.col("created_timestamp") > now)).alias("future"))["future"]
        visible = rows.filter(~future)
        token = uuid.uuid4().hex
        with self._translated():
            self._writing.set(self._writer_key(view), token)
            self._writing.script_load(WRITE_UNLESS_OLDER)
            written = sum(self._stream(self._upserts(view, visible)))
            deleted = 0 if retracted is None else sum(answer > 0 for answer in self._stream(self._deletions(view, retracted)))
            undisturbed = self._writing.eval(
                REMEMBER_UNLESS_DISTURBED, 2, self._writer_key(view), self._publication_key(view), token, str(publication_id)
            )
            used = int(cast("dict[str, Any]", self._writing.info("memory"))["used_memory"])
        if not undisturbed:
            raise StoreUnavailableError(
                f"{self._place} was flushed, or another writer wrote {view.name}, during this write; its publication {publication_id} is "
                "not remembered: sync the view again"
            )
        newest = cast("datetime | None", visible["event_timestamp"].max())
        return OnlineWrite(
            entities_written=written,
            entities_skipped=visible.height - written,
            entities_refused_future=rows.height - visible.height,
            entities_deleted=deleted,
            bytes_used=used,
            watermark=newest and newest.astimezone(UTC),
        )

    def read(
        self, requests: Sequence[tuple[FeatureView, Sequence[str]]], entities: Sequence[Mapping[str, str]]
    ) -> list[dict[str, StoredRow | None]]:
        """Newest rows in one round trip.

        Args:
            requests: Views, each with the feature names wanted; each view once.
            entities: Join key -> value; every join key of the views must be there, others are ignored.

        Returns:
            For each entity, in the order given: view name -> row, None when Redis holds none.
        """
        if not entities or not requests:
            return [{} for _ in entities]
        groups: dict[tuple[str, ...], list[tuple[FeatureView, Sequence[str]]]] = {}
        for view, features in requests:
            groups.setdefault(tuple(sorted(view.join_keys)), []).append((view, features))
        commands = []
        for keys, members in groups.items():
            count = sum(len(features) + 2 for _, features in members)
            head = b"*%d\r\n$5\r\nHMGET\r\n" % (count + 2)
            tail = b"".join(_fields(view.name, tuple(features)) for view, features in members)
            columns = {key: [entity[key] for entity in entities] for key in keys}
            commands += [head + _bulk(key) + tail for key in layout.entity_keys(self.project, columns)]
        with self._translated():
            answers = self._round_trip(self._reading, commands)
        found: list[dict[str, StoredRow | None]] = [{} for _ in entities]
        for number, members in enumerate(groups.values()):
            for row, answer in zip(found, answers[number * len(entities) :], strict=False):
                position = 0
                for view, features in members:
                    end = position + len(features) + 2
                    row[view.name] = _decode(features, answer[position:end])
                    position = end
        return found

    def teardown(self, views: Iterable[FeatureView]) -> int:
        """Delete every entity with the views' join keys in this project, and what is remembered of the views; returns the entities."""
        views = list(views)
        join_keys = {frozenset(view.join_keys) for view in views}
        with self._translated():
            ours = [key for key in self._writing.scan_iter(match=b"*" + _glob(self.project), count=1000) if self._owns(key, join_keys)]
            for start in range(0, len(ours), ROWS_PER_BATCH):
                self._writing.unlink(*ours[start : start + ROWS_PER_BATCH])
            remembered = [key(view) for view in views for key in (self._publication_key, self._writer_key)]
            self._writing.delete(*remembered)
        return len(ours)

    def _owns(self, key: bytes, join_keys: set[frozenset[str]]) -> bool:
        try:
            entity, project = layout.decode_entity_key(key)
        except ValueError:
            return False
        return project == self.project and frozenset(entity) in join_keys

    def _publication_key(self, view: FeatureView) -> str:
        return f"{self.project}:publication:{view.name}@{view.version}"

    def _writer_key(self, view: FeatureView) -> str:
        return f"{self.project}:writer:{view.name}"

    def _keys(self, view: FeatureView, rows: pl.DataFrame) -> list[bytes]:
        return layout.entity_keys(self.project, {key: rows[key].to_list() for key in view.join_keys})

    def _upserts(self, view: FeatureView, rows: pl.DataFrame) -> Iterator[list[bytes]]:
        sha = hashlib.sha1(WRITE_UNLESS_OLDER.encode(), usedforsecurity=False).hexdigest().encode()
        arguments = 2 * (len(view.features) + 2)
        head = b"*%d\r\n$7\r\nEVALSHA\r\n" % (arguments + 4) + _bulk(sha) + _bulk(b"1")
        version_name, timestamp_name = _bulk(layout.version_field(view.name)), _bulk(layout.timestamp_field(view.name))
        for batch in rows.iter_slices(ROWS_PER_BATCH):
            events = batch["event_timestamp"].dt.epoch("us").to_list()
            known = batch["created_timestamp"].dt.epoch("us").to_list()
            versions = map(layout.Version, events, known, batch["flags"].to_list(), batch["stream"].to_list())
            columns = [
                [head + _bulk(key) for key in self._keys(view, batch)],
                [version_name + _bulk(layout.encode_version(version)) for version in versions],
                [timestamp_name + _bulk(layout.encode_timestamp(event)) for event in events],
            ]
            for feature in view.feature_names:
                name = _bulk(layout.feature_field(view.name, feature))
                double = name + b"$9\r\n"  # formatting each length costs more than all the rest
                columns.append(
                    [double + value + b"\r\n" if len(value) == 9 else name + _bulk(value) for value in layout.encode_values(batch[feature])]
                )
            yield list(map(b"".join, zip(*columns, strict=True)))

    def _deletions(self, view: FeatureView, retracted: pl.DataFrame) -> Iterator[list[bytes]]:
        head, tail = b"*%d\r\n$4\r\nHDEL\r\n" % (len(view.features) + 4), _fields(view.name, view.feature_names)
        for batch in retracted.iter_slices(ROWS_PER_BATCH):
            yield [head + _bulk(key) + tail for key in self._keys(view, batch)]

    def _stream(self, batches: Iterable[list[bytes]]) -> Iterator[int]:
        """Integer answers of commands sent batch by batch; the server works on one while the next is encoded."""
        connection: Any = self._writing.connection_pool.get_connection()
        try:
            awaited = 0
            for batch in batches:
                yield from (int(connection.read_response()) for _ in range(awaited))
                connection.send_packed_command([b"".join(batch)])
                awaited = len(batch)
            yield from (int(connection.read_response()) for _ in range(awaited))
        except BaseException:
            connection.disconnect()  # answers may be left in the socket
            raise
        finally:
            self._writing.connection_pool.release(connection)

    @staticmethod
    def _round_trip(client: redis.Redis, commands: Sequence[bytes]) -> list[list[bytes | None]]:
        connection: Any = client.connection_pool.get_connection()
        try:
            connection.send_packed_command([b"".join(commands)])
            return [connection.read_response() for _ in commands]
        except BaseException:
            connection.disconnect()
            raise
        finally:
            client.connection_pool.release(connection)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except redis.AuthenticationError as error:
            raise ConfigurationError(f"{self._place} refuses the login ({error}); check REDIS_USERNAME and REDIS_PASSWORD") from None
        except redis.ResponseError as error:
            raise StoreUnavailableError(f"{self._place} refuses: {error}") from error
        except (redis.RedisError, OSError) as error:
            raise StoreUnavailableError(f"{self._place} did not answer: {error}") from error


def _client(settings: RedisSettings, deadline_seconds: float) -> redis.Redis:
    return redis.Redis.from_url(
        settings.url, socket_connect_timeout=CONNECT_SECONDS, socket_timeout=deadline_seconds, retry=Retry(NoBackoff(), 0), protocol=2
    )


def _bulk(text: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(text), text)


def _glob(text: str) -> bytes:
    return "".join(f"\\{character}" if character in "*?[]\\" else character for character in text).encode()


@lru_cache(maxsize=1024)
def _fields(view: str, features: tuple[str, ...]) -> bytes:
    """Two fields of the view, then one for each feature, as the arguments of a command."""
    names = [layout.feature_field(view, feature) for feature in features]
    return b"".join(map(_bulk, [layout.version_field(view), layout.timestamp_field(view), *names]))


def _decode(features: Sequence[str], answer: Sequence[bytes | None]) -> StoredRow | None:
    ours, timestamp, *encoded = answer
    if timestamp is None:
        return None
    event = layout.decode_timestamp(timestamp)
    version = None if ours is None else layout.decode_version(ours)
    current = version is not None and version.event_microseconds == event
    values = dict(zip(features, layout.decode_values(encoded), strict=True))
    if None in encoded:
        values = {name: values[name] for name, value in zip(features, encoded, strict=True) if value is not None}
    return StoredRow(
        event_timestamp=layout.instant(event),
        known_at=layout.instant(version.known_microseconds) if version and current else None,
        flags=version.flags if version and current else 0,
        stream=version.stream if version else None,
        values=values,
    )


def _refuse_malformed(view: FeatureView, rows: pl.DataFrame) -> None:
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
