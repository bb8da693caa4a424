"""The online store: newest versions in, entity rows out, in few round trips.

What must be applied is the ledger's to say (`PostgresStore.online_changes`), and whether a value is too old to serve is decided in
`serving.online`; neither belongs here. The bytes are made in `reading` and `writing`.
"""

import contextlib
import re
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import islice, zip_longest
from typing import TYPE_CHECKING, Any, cast

import hiredis
import polars as pl

from featurestore_dagster.errors import StoreUnavailableError
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.stores.redis import layout, writing
from featurestore_dagster.stores.redis.packed import FILLER_BYTES, rows_key
from featurestore_dagster.stores.redis.reading import (
    OnlineRead,
    Requests,
    ViewRequest,
    bulk,
    epoch_key,
    publication_key,
    publication_of,
    stored_version,
    watermark_key,
)
from featurestore_dagster.stores.redis.wire import AsyncPool, Connection, Pool, command, translated

if TYPE_CHECKING:
    from featurestore_dagster.settings import RedisSettings

READ_SECONDS = 1.0
WRITE_SECONDS = 30.0
"""A batch of a bulk write may wait for a snapshot or a slow disk; nobody waits for it at a screen."""
ATTEMPTS = 100
WRITING_CONNECTIONS = 3
"""So many batches of a bulk write are on their way: the server works on one while another is decided."""

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
        return self.write_together([writing.Change(view, rows, publication_id, retracted)], now)[0]

    def write_together(self, changes: Sequence[writing.Change], now: datetime) -> list[writing.OnlineWrite]:
        """As `write` for several views: entities that Redis does not hold are laid down with the rows of all of them at once.

        Views whose write was disturbed are named by the error; the publications of the others are remembered.
        """
        for change in changes:
            writing.refuse_malformed(change.view, change.rows)
        is_visible = (pl.col("event_timestamp") <= now) & (pl.col("created_timestamp") <= now)
        offered = [replace(change, rows=change.rows.filter(is_visible)) for change in changes]
        together: dict[frozenset[str], list[writing.Change]] = {}
        for change in offered:
            together.setdefault(frozenset(change.view.join_keys), []).append(change)
        batches = 1 + max((change.rows.height for change in offered), default=0) // writing.ROWS_PER_BATCH
        token, written = uuid.uuid4().hex, Counter[str]()
        with translated(self._settings, WRITE_SECONDS), ExitStack() as closing:
            connections = [
                closing.enter_context(contextlib.closing(Connection(self._settings, _soon())))
                for _ in range(min(WRITING_CONNECTIONS, batches))
            ]
            for change in offered:
                self._begin(connections[0], change.view, token)
            for group in together.values():
                written.update(self._write_batches(connections, [change.view.name for change in group], self._batches(group)))
            deleted = [self._delete(connections[0], change) for change in offered]
            disturbed = [change for change in offered if not self._remember(connections[0], change, token)]
        if disturbed:
            raise StoreUnavailableError(
                f"Redis at {self._settings.host}:{self._settings.port} was flushed, or another writer wrote, during this write of "
                + ", ".join(f"{change.view.name} up to publication {change.publication_id}" for change in disturbed)
                + ", which is not remembered: sync again"
            )
        bytes_used = int(self._info("memory", "used_memory"))
        return [
            writing.OnlineWrite(
                entities_written=written[change.view.name],
                entities_skipped=visible.rows.height - written[change.view.name],
                entities_refused_future=change.rows.height - visible.rows.height,
                entities_deleted=gone,
                bytes_used=bytes_used,
                watermark=_newest(visible.rows),
            )
            for change, visible, gone in zip(changes, offered, deleted, strict=True)
        ]

    def teardown(self, views: Iterable[FeatureView]) -> int:
        """Delete every entity with the views' join keys in this project, and what is remembered of the views; returns the entities."""
        views = list(views)
        join_keys = {frozenset(view.join_keys) for view in views}
        ours = [key for key in self._scan(b"*" + _glob(self.project)) if self._owns(key, join_keys)]
        streams = {stream.name for view in views for stream in view.streams}
        gone = [*ours, *(epoch_key(self.project, stream) for stream in streams)]
        for keys in join_keys:
            gone += self._scan(_glob(rows_key(self.project, keys, "").decode()) + b"*")
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

    def _batches(self, changes: Sequence[writing.Change]) -> Iterator[writing.Batch]:
        return writing.batches(self.project, changes)

    def _write_batches(self, connections: Sequence[Connection], names: Sequence[str], batches: Iterator[writing.Batch]) -> Counter[str]:
        """How many entities have the offered row of each view. The server works on one connection's batch while another is decided."""
        counts = Counter[str]()
        group = list(islice(batches, len(connections)))
        restores = len(group) > 1 and self._restores(connections[0])
        is_empty = False  # as the last batch was: then the next will be too
        sent: list[tuple[writing.Batch, list[int], int]] = []  # by connection; its answers come before those of the next batch
        disturbed = []
        while group or sent:
            for connection, batch in zip(connections, group, strict=False):
                connection.send(batch.watch if is_empty else batch.probe, _soon())
            earlier, sent, was_empty = sent, [], is_empty
            for connection, batch, before in zip_longest(connections, group, earlier):
                last, written, count = before or (None, [], 0)
                asked = 0 if batch is None else batch.WATCHED if was_empty else batch.probed
                answers = connection.receive(_soon(), count + asked) if count + asked else []
                if last is not None and answers[count - 1] is None:
                    disturbed.append(last)
                else:
                    counts.update(dict(zip(names, written, strict=False)))
                if batch is not None:
                    held = answers[count:]
                    if was_empty and held[-1]:
                        held = connection.exchange(batch.probe, batch.probed, _soon())
                    transaction, count, written = batch.transaction(held, restores=restores)
                    connection.send(transaction, _soon())
                    sent.append((batch, written, count))
                    is_empty = not held[1]
            group = list(islice(batches, len(connections)))  # laid out while the server works
        for batch in disturbed:
            counts.update(dict(zip(names, self._write_again(connections[0], batch), strict=True)))
        return counts

    def _write_again(self, connection: Connection, batch: writing.Batch) -> list[int]:
        """As `_write_batches` for one batch whose entities another writer changed in between."""
        for _ in range(ATTEMPTS):
            answers = connection.exchange(batch.probe, batch.probed, _soon())
            transaction, count, written = batch.transaction(answers, restores=False)
            if connection.exchange(transaction, count, _soon())[-1] is not None:
                return written
        raise StoreUnavailableError(
            f"other writers changed the same entities of Redis at {self._settings.host}:{self._settings.port} {ATTEMPTS} times in a row; "
            "sync the view again"
        )

    def _restores(self, connection: Connection) -> bool:
        """Whether the server takes our dumps: another program may not, and a user may be forbidden to."""
        from featurestore_dagster.stores.redis import dumps  # NumPy: only writers need it

        key = f"{self.project}:trial:{uuid.uuid4().hex}"
        payload, expected = dumps.trial()
        sent = writing.restore(bulk(key.encode()), payload), command("HGETALL", key), command("DEL", key)
        try:
            return bool(connection.exchange(b"".join(sent), 3, _soon())[1] == expected)
        except hiredis.ReplyError:
            return False

    def _begin(self, connection: Connection, view: FeatureView, token: str) -> None:
        """Leave a token that goes with a flush or when another writer begins."""
        filler = command("HSET", rows_key(self.project, view.join_keys, view.name), b"", bytes(FILLER_BYTES))
        connection.exchange(command("SET", self._writer_key(view), token) + filler, 2, _soon())

    def _delete(self, connection: Connection, change: writing.Change) -> int:
        """How many of the retracted entities had a row of the view."""
        deleted = 0
        if change.retracted is not None:
            for commands, entities in writing.deletions(self.project, change.view, change.retracted):
                answers = connection.exchange(b"".join(commands), len(commands), _soon())
                deleted += sum(fields > 0 for fields in answers[:entities])
        return deleted

    def _remember(self, connection: Connection, change: writing.Change, token: str) -> bool:
        """Remember the publication, unless the token is gone."""
        keys = self._writer_key(change.view), publication_key(self.project, change.view)
        arguments = token, change.publication_id, stored_version(change.view)
        (undisturbed,) = connection.exchange(command("EVAL", writing.REMEMBER_UNLESS_DISTURBED, 2, *keys, *arguments), 1, _soon())
        return bool(undisturbed)

    def _info(self, section: str, name: str) -> str:
        found = re.search(rf"^{name}:(.*?)\r?$", self._call(command("INFO", section)).decode(), re.MULTILINE)
        return found[1] if found else ""

    def _call(self, sent: bytes, deadline_seconds: float = READ_SECONDS) -> Any:
        with translated(self._settings, deadline_seconds):
            return self._pool.exchange(sent, 1, deadline_seconds)[0]


def _soon() -> float:
    return time.monotonic() + WRITE_SECONDS


def _newest(rows: pl.DataFrame) -> datetime | None:
    newest = cast("datetime | None", rows["event_timestamp"].max())
    return newest and newest.astimezone(UTC)


def _glob(text: str) -> bytes:
    return "".join(f"\\{character}" if character in "*?[]\\" else character for character in text).encode()
