"""The online store: newest versions in, entity rows out, in few round trips.

What must be applied is the ledger's to say (`PostgresStore.online_changes`), and whether a value is too old to serve is decided in
`serving.online`; neither belongs here. The bytes are made in `reading` and `writing`.
"""

import contextlib
import re
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import polars as pl

from featurestore_dagster.errors import StoreUnavailableError
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.stores.redis import layout, writing
from featurestore_dagster.stores.redis.packed import packed_key
from featurestore_dagster.stores.redis.reading import (
    OnlineRead,
    Requests,
    ViewRequest,
    epoch_key,
    publication_key,
    publication_of,
    watermark_key,
)
from featurestore_dagster.stores.redis.wire import AsyncPool, Connection, Pool, command, translated

if TYPE_CHECKING:
    from featurestore_dagster.settings import RedisSettings

READ_SECONDS = 1.0
WRITE_SECONDS = 30.0
ATTEMPTS = 100
WRITING_CONNECTIONS = 2
"""A batch of a bulk write may wait for a snapshot or a slow disk; nobody waits for it at a screen."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class RedisStore:
    """One project's rows in one Redis. Safe to share between threads and tasks; no connection is made before the first call.

    Every method raises StoreUnavailableError when Redis does not answer in time, and ConfigurationError when it refuses the password.
    """

    def __init__(self, settings: "RedisSettings", project: str) -> None:
        self.project = project
        self._settings = settings
        self._pool = Pool(settings)
        self._async_pool = AsyncPool(settings)
        self._requests = Requests(project)

    def close(self) -> None:
        """Close all connections of blocking calls; the next call opens new ones."""
        self._pool.close()

    async def close_async(self) -> None:
        """Close all connections of the running event loop."""
        self._async_pool.close()

    def warm_up(self, timeout_seconds: float) -> bool:
        """Connect, so that the next read need not; whether Redis answered in time."""
        try:
            self._call(command("PING"), timeout_seconds)
        except StoreUnavailableError:
            return False
        return True

    async def warm_up_async(self, timeout_seconds: float) -> bool:
        """As `warm_up`."""
        try:
            with translated(self._settings, timeout_seconds):
                await self._async_pool.exchange(command("PING"), 1, timeout_seconds)
        except StoreUnavailableError:
            return False
        return True

    def ping(self) -> str:
        """The server's version, for audits."""
        return self._info("server", "redis_version")

    def memory(self) -> tuple[int, int]:
        """Bytes that Redis has allocated, and bytes that it may (0: no limit)."""
        return int(self._info("memory", "used_memory")), int(self._info("memory", "maxmemory"))

    def keys(self) -> int:
        """Keys in the database, whosever they are."""
        return int(self._call(command("DBSIZE")))

    def publication_id(self, view: FeatureView) -> int | None:
        """The last publication that was applied whole, None when Redis knows of none: then everything must be applied again."""
        return publication_of(view, self._call(command("GET", publication_key(self.project, view))))

    def forget(self, view: FeatureView) -> None:
        """Remember no publication of the view: readers go elsewhere until the next one is applied."""
        self._call(command("DEL", publication_key(self.project, view)))

    def advance_epoch(self, stream: str, instant: datetime) -> None:
        """Say that every view of a stream's bar was written; call it after the last of them. An epoch never goes back."""
        microseconds = (instant - EPOCH) // timedelta(microseconds=1)
        self._call(command("EVAL", writing.ADVANCE, 1, epoch_key(self.project, stream), microseconds))

    def advance_watermark(self, view: FeatureView, stream: str, instant: datetime) -> None:
        """Say that rows of a stream up to an event time were written; a watermark never goes back."""
        microseconds = (instant - EPOCH) // timedelta(microseconds=1)
        self._call(command("EVAL", writing.ADVANCE, 1, watermark_key(self.project, view, stream), microseconds))

    def watermarks(self, streams: Sequence[tuple[FeatureView, str]]) -> list[datetime | None]:
        """Greatest event time written of each stream of a view, UTC, None where none was; each entity's own is in its row."""
        if not streams:
            return []
        held = self._call(command("MGET", *(watermark_key(self.project, view, stream) for view, stream in streams)))
        return [None if instant is None else EPOCH + timedelta(microseconds=int(instant)) for instant in held]

    def read(
        self,
        views: Sequence[ViewRequest],
        entities: Sequence[Mapping[str, str]],
        deadline_seconds: float = READ_SECONDS,
        *,
        coherent: bool = False,
    ) -> OnlineRead:
        """Newest rows of all views and entities in one round trip; in a second one, rows that a stock Feast client wrote.

        Args:
            views: Each view once, with the feature names wanted of it. The pairs are remembered by identity: those of a plan.
            entities: Join key -> value; every join key of the views must be there, others are ignored.
            deadline_seconds: The answer or the error comes within this time.
            coherent: Read in one transaction, together with the streams' epochs.
        """
        ends = time.monotonic() + deadline_seconds
        request = self._requests.of(views)
        sent, count = request.commands(entities, coherent=coherent)
        with translated(self._settings, deadline_seconds):
            decoded = request.decoded(self._pool.exchange(sent, count, deadline_seconds), coherent=coherent)
            if not decoded.stale:
                return decoded.read
            sent, count = request.again(entities, decoded.stale)
            answers = self._pool.exchange(sent, count, ends - time.monotonic())
        return request.complete(decoded.read, decoded.stale, answers)

    async def read_async(
        self,
        views: Sequence[ViewRequest],
        entities: Sequence[Mapping[str, str]],
        deadline_seconds: float = READ_SECONDS,
        *,
        coherent: bool = False,
    ) -> OnlineRead:
        """As `read`, without blocking the event loop."""
        ends = time.monotonic() + deadline_seconds
        request = self._requests.of(views)
        sent, count = request.commands(entities, coherent=coherent)
        with translated(self._settings, deadline_seconds):
            decoded = request.decoded(await self._async_pool.exchange(sent, count, deadline_seconds), coherent=coherent)
            if not decoded.stale:
                return decoded.read
            sent, count = request.again(entities, decoded.stale)
            answers = await self._async_pool.exchange(sent, count, ends - time.monotonic())
        return request.complete(decoded.read, decoded.stale, answers)

    def write(
        self, view: FeatureView, rows: pl.DataFrame, publication_id: int, *, retracted: pl.DataFrame | None = None, now: datetime
    ) -> writing.OnlineWrite:
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
        writing.refuse_malformed(view, rows)
        future = rows.select(((pl.col("event_timestamp") > now) | (pl.col("created_timestamp") > now)).alias("future"))["future"]
        visible = rows.filter(~future)
        token = uuid.uuid4().hex
        publication, writer = publication_key(self.project, view), self._writer_key(view)
        with translated(self._settings, WRITE_SECONDS), ExitStack() as closing:
            connections = [
                closing.enter_context(contextlib.closing(Connection(self._settings, _soon())))
                for _ in range(min(WRITING_CONNECTIONS, 1 + visible.height // writing.ROWS_PER_BATCH))
            ]
            first = connections[0]
            first.exchange(command("SET", writer, token), 1, _soon())
            written = self._write_batches(connections, self._upserts(view, visible))
            gone = [] if retracted is None else list(_stream(first, writing.deletions(self.project, view, retracted), 2))
            remembered = command("EVAL", writing.REMEMBER_UNLESS_DISTURBED, 2, writer, publication, token, publication_id, view.version)
            (undisturbed,) = first.exchange(remembered, 1, _soon())
        if not undisturbed:
            raise StoreUnavailableError(
                f"Redis at {self._settings.host}:{self._settings.port} was flushed, or another writer wrote {view.name}, during this "
                f"write; its publication {publication_id} is not remembered: sync the view again"
            )
        newest = cast("datetime | None", visible["event_timestamp"].max())
        return writing.OnlineWrite(
            entities_written=written,
            entities_skipped=visible.height - written,
            entities_refused_future=rows.height - visible.height,
            entities_deleted=sum(fields > 0 for fields in gone[::2]),
            bytes_used=int(self._info("memory", "used_memory")),
            watermark=newest and newest.astimezone(UTC),
        )

    def teardown(self, views: Iterable[FeatureView]) -> int:
        """Delete every entity with the views' join keys in this project, and what is remembered of the views; returns the entities."""
        views = list(views)
        join_keys = {frozenset(view.join_keys) for view in views}
        ours = [key for key in self._scan(b"*" + _glob(self.project)) if self._owns(key, join_keys)]
        streams = {stream.name for view in views for stream in view.streams}
        gone = [*ours, *map(packed_key, ours), *(epoch_key(self.project, stream) for stream in streams)]
        for view in views:
            gone += [publication_key(self.project, view), self._writer_key(view)]
            gone += [watermark_key(self.project, view, stream.name) for stream in view.streams]
        for start in range(0, len(gone), writing.ROWS_PER_BATCH):
            self._call(command("UNLINK", *gone[start : start + writing.ROWS_PER_BATCH]), WRITE_SECONDS)
        return len(ours)

    def _scan(self, pattern: bytes) -> Iterator[bytes]:
        cursor, seen = b"0", set[bytes]()
        while True:
            cursor, keys = self._call(command("SCAN", cursor, "MATCH", pattern, "COUNT", 1000), WRITE_SECONDS)
            yield from set(keys) - seen
            seen.update(keys)
            if cursor == b"0":
                return

    def _owns(self, key: bytes, join_keys: set[frozenset[str]]) -> bool:
        try:
            entity, project = layout.decode_entity_key(key)
        except ValueError:
            return False
        return project == self.project and frozenset(entity) in join_keys

    def _writer_key(self, view: FeatureView) -> bytes:
        return f"{self.project}:writer:{view.name}".encode()

    def _upserts(self, view: FeatureView, rows: pl.DataFrame) -> Iterator[writing.Batch]:
        return writing.upserts(self.project, view, writing.newest_of_each(view, rows))

    def _write_batches(self, connections: Sequence[Connection], batches: Iterator[writing.Batch]) -> int:
        """How many rows replaced what Redis held. The server works on one connection's batch while another's is being decided."""
        written = 0
        group = list(islice(batches, len(connections)))
        while group:
            pairs = list(zip(connections, group, strict=False))
            for connection, batch in pairs:
                connection.send(batch.probe, _soon())
            sent = []
            for connection, batch in pairs:
                newer = batch.newer(connection.receive(_soon(), batch.probed))
                transaction, count = batch.transaction(newer)
                connection.send(transaction, _soon())
                sent.append((connection, batch, len(newer), count))
            group = list(islice(batches, len(connections)))  # laid out while the server works
            for connection, batch, rows, count in sent:
                done = connection.receive(_soon(), count)[-1] is not None
                written += rows if done else self._write_again(connection, batch)
        return written

    def _write_again(self, connection: Connection, batch: writing.Batch) -> int:
        """As `_write_batches` for one batch whose entities another writer changed in between."""
        for _ in range(ATTEMPTS):
            newer = batch.newer(connection.exchange(batch.probe, batch.probed, _soon()))
            if connection.exchange(*batch.transaction(newer), _soon())[-1] is not None:
                return len(newer)
        raise StoreUnavailableError(
            f"other writers changed the same entities of Redis at {self._settings.host}:{self._settings.port} {ATTEMPTS} times in a row; "
            "sync the view again"
        )

    def _info(self, section: str, name: str) -> str:
        found = re.search(rf"^{name}:(.*?)\r?$", self._call(command("INFO", section)).decode(), re.MULTILINE)
        return found[1] if found else ""

    def _call(self, sent: bytes, deadline_seconds: float = READ_SECONDS) -> Any:
        with translated(self._settings, deadline_seconds):
            return self._pool.exchange(sent, 1, deadline_seconds)[0]


def _stream(connection: Connection, batches: Iterable[list[bytes]], answers_each: int = 1) -> Iterator[int]:
    """Integer answers of commands sent batch by batch; the server works on one while the next is encoded."""
    awaited = 0
    for batch in batches:
        connection.send(b"".join(batch), _soon())
        sent = len(batch) * answers_each
        awaited += sent
        while awaited > sent:
            found = connection.receive(_soon())
            awaited -= len(found)
            yield from found
    while awaited:
        found = connection.receive(_soon())
        awaited -= len(found)
        yield from found


def _soon() -> float:
    return time.monotonic() + WRITE_SECONDS


def _glob(text: str) -> bytes:
    return "".join(f"\\{character}" if character in "*?[]\\" else character for character in text).encode()
