"""Newest rows of a few entities within a deadline: pooled connections whose waits end in time, whatever the server does.

Bulk reads of history do not belong here (see `bulk`), nor does the order in which stores are asked (`serving.ladder`).
"""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TypeVar

import psycopg
from psycopg import sql
from psycopg.abc import PQGen
from psycopg_pool import AsyncConnectionPool, ConnectionPool, PoolTimeout

from featurestore_dagster.errors import StoreUnavailableError
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.settings import PostgresSettings

CONNECTIONS = 8
CLOSE_SECONDS = 1.0
POOL: dict[str, Any] = {
    "kwargs": {"autocommit": True, "prepare_threshold": 0},
    "min_size": 1,
    "max_size": CONNECTIONS,
}
GENERIC_PLANS = "set plan_cache_mode = force_generic_plan"
"""Planning for the values of each call takes longer than the call."""

Result = TypeVar("Result")
Query = tuple[bytes, dict[str, Any]]
Records = list[tuple[Any, ...]]

NOBODY = datetime(1970, 1, 1, tzinfo=UTC)
"""The instant of a query about no entity."""


class _DeadlineConnection(psycopg.Connection[tuple[Any, ...]]):
    """A connection whose waits end at `ends` (monotonic seconds): also when the server is frozen and will never answer."""

    ends: float | None = None

    def wait(self, gen: PQGen[Result], interval: float = 0.1, timeout: float | None = None) -> Result:
        """As the parent, within the deadline."""
        try:
            return super().wait(gen, interval, _time_left(self.ends, timeout))
        except psycopg.errors._WaitTimeout:  # noqa: SLF001 - it has no public name
            self.pgconn.finish()  # else leaving the pipeline would wait for it again
            raise


class _AsyncDeadlineConnection(psycopg.AsyncConnection[tuple[Any, ...]]):
    """As `_DeadlineConnection`. Cancelling the task instead would first ask a frozen server to cancel the query, for seconds."""

    ends: float | None = None

    async def wait(self, gen: PQGen[Result], interval: float = 0.1, timeout: float | None = None) -> Result:  # noqa: ASYNC109
        """As the parent, within the deadline."""
        try:
            return await super().wait(gen, interval, _time_left(self.ends, timeout))
        except psycopg.errors._WaitTimeout:  # noqa: SLF001
            self.pgconn.finish()
            raise


def _time_left(ends: float | None, timeout: float | None) -> float | None:
    return timeout if ends is None else max(ends - time.monotonic(), 0.0)


class NewestRows:
    """Newest visible rows of a database; safe to share between threads, the asynchronous reads within one event loop."""

    def __init__(self, settings: PostgresSettings, views: Sequence[FeatureView]) -> None:
        """No connection is made before the first read. Each has what is asked of `views` planned: cold, that takes ten times as long."""
        self._where = f"Postgres at {settings.host}:{settings.port}"
        self._conninfo = settings.conninfo
        self._lock = threading.Lock()
        self._planned = [query(view, (), (), NOBODY) for view in views]
        self._pool: ConnectionPool[_DeadlineConnection] | None = None
        self._async_pool: AsyncConnectionPool[_AsyncDeadlineConnection] | None = None

    def close(self) -> None:
        """Close the blocking reads' connections; the next read opens new ones."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.close(timeout=CLOSE_SECONDS)

    async def close_async(self) -> None:
        """Close the asynchronous reads' connections."""
        pool, self._async_pool = self._async_pool, None
        if pool is not None:
            await pool.close(timeout=CLOSE_SECONDS)

    def warm_up(self, timeout_seconds: float) -> bool:
        """Connect; whether the server answered in time."""
        try:
            self._opened().wait(timeout_seconds)
        except PoolTimeout:
            return False
        return True

    async def warm_up_async(self, timeout_seconds: float) -> bool:
        """As `warm_up`."""
        try:
            await (await self._opened_async()).wait(timeout_seconds)
        except PoolTimeout:
            return False
        return True

    def read(self, queries: Sequence[Query], deadline_seconds: float) -> list[Records]:
        """Answers of `query`s in one round trip.

        Raises:
            StoreUnavailableError: There is no answer in time, or the server refuses.
        """
        ends = time.monotonic() + deadline_seconds
        with self._translated(ends, deadline_seconds):
            pool = self._opened()
            connection = pool.getconn(timeout=deadline_seconds)
            try:
                connection.ends = ends
                with connection.pipeline():
                    cursors = [connection.execute(*asked, binary=True) for asked in queries]
                found = [cursor.fetchall() for cursor in cursors]
                connection.ends = None
            except BaseException:
                connection.close()  # an answer may still come
                raise
            finally:
                pool.putconn(connection)
        return found

    async def read_async(self, queries: Sequence[Query], deadline_seconds: float) -> list[Records]:
        """As `read`, without blocking the event loop."""
        ends = time.monotonic() + deadline_seconds
        with self._translated(ends, deadline_seconds):
            pool = await self._opened_async()
            connection = await pool.getconn(timeout=deadline_seconds)
            try:
                connection.ends = ends
                async with connection.pipeline():
                    cursors = [await connection.execute(*asked, binary=True) for asked in queries]
                found = [await cursor.fetchall() for cursor in cursors]
                connection.ends = None
            except BaseException:
                await connection.close()
                raise
            finally:
                await pool.putconn(connection)
        return found

    def _opened(self) -> ConnectionPool[_DeadlineConnection]:
        with self._lock:
            if self._pool is None:
                self._pool = ConnectionPool(
                    self._conninfo, connection_class=_DeadlineConnection, configure=self._configure, open=True, **POOL
                )
            return self._pool

    async def _opened_async(self) -> AsyncConnectionPool[_AsyncDeadlineConnection]:
        if self._async_pool is None:
            self._async_pool = AsyncConnectionPool(
                self._conninfo, connection_class=_AsyncDeadlineConnection, configure=self._configure_async, open=False, **POOL
            )
            await self._async_pool.open()
        return self._async_pool

    def _configure(self, connection: _DeadlineConnection) -> None:
        connection.execute(GENERIC_PLANS)
        for planned in self._planned:
            with suppress(psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn):  # the read itself will say so
                connection.execute(*planned, binary=True)

    async def _configure_async(self, connection: _AsyncDeadlineConnection) -> None:
        await connection.execute(GENERIC_PLANS)
        for planned in self._planned:
            with suppress(psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn):
                await connection.execute(*planned, binary=True)

    @contextmanager
    def _translated(self, ends: float, deadline_seconds: float) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            if time.monotonic() >= ends or isinstance(error, PoolTimeout):
                raise StoreUnavailableError(f"{self._where} did not answer within {deadline_seconds * 1000:.0f} ms") from None
            raise StoreUnavailableError(f"{self._where} did not answer: {str(error).strip().splitlines()[0]}") from error


def query(view: FeatureView, entities: Sequence[Mapping[str, str]], until: Sequence[datetime], known_by: datetime) -> Query:
    """One index look-up for each entity: its newest row with event time <= `until`, one for each entity, and known-at <= `known_by`.

    Columns: number of the entity, from 1; event time and known-at in microseconds since 1970; flags; stream; all features of the view. An
    entity without a row has none.
    """
    keys = {f"key{number}": [entity[key] for entity in entities] for number, key in enumerate(view.join_keys)}
    parameters = {**keys, "until": list(until), "known_by": known_by, "version": view.version}
    return _text(view.name, view.join_keys, view.feature_names), parameters


@lru_cache(maxsize=256)
def _text(table: str, join_keys: tuple[str, ...], names: tuple[str, ...]) -> bytes:
    keys = [sql.Identifier(key) for key in join_keys]
    return (
        sql.SQL(
            "select a.number, (extract(epoch from f.event_timestamp) * 1000000)::bigint,"
            " (extract(epoch from f.created_timestamp) * 1000000)::bigint, f.flags, f.stream, {values}"
            " from unnest({arrays}, %(until)s::timestamptz[]) with ordinality as a({keys}, until, number) cross join lateral"
            " (select * from {table} r where {match} and r.feature_set_version = %(version)s and r.event_timestamp <= a.until"
            " and r.created_timestamp <= %(known_by)s order by r.event_timestamp desc, r.created_timestamp desc limit 1) f"
        )
        .format(
            values=sql.SQL(", ").join(sql.SQL("f.{}").format(sql.Identifier(name)) for name in names),
            arrays=sql.SQL(", ").join(sql.SQL("{}::text[]").format(sql.Placeholder(f"key{number}")) for number in range(len(keys))),
            keys=sql.SQL(", ").join(keys),
            table=sql.Identifier("features", table),
            match=sql.SQL(" and ").join(sql.SQL("r.{0} = a.{0}").format(key) for key in keys),
        )
        .as_bytes(None)
    )
