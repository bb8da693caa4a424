"""Feast's online store on Redis, with our rules. Name `featurestore_dagster.feast_stores.online_store.BitemporalOnlineStore` as type.

Views of our own catalogue are read by our client, with its fallbacks, and written from the ledger of publications; any other view lies in
Feast's own layout, which a stock Feast can read. How bytes look belongs to `online_rows`.
"""

import asyncio
import logging
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from feast import utils
from feast.entity import Entity
from feast.errors import FeastError
from feast.feature_view import DUMMY_ENTITY_ID
from feast.feature_view import FeatureView as FeastView
from feast.infra.online_stores.helpers import _redis_key_prefix
from feast.infra.online_stores.redis import RedisOnlineStore, RedisOnlineStoreConfig
from feast.protos.feast.core.PrecomputedFeatureVector_pb2 import PrecomputedFeatureVector
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.repo_config import RepoConfig
from pydantic import Field, field_validator

from featurestore_dagster.errors import MalformedDataError, RefusedError
from featurestore_dagster.feast_stores.connections import declared_view, environments_clock, redis_settings, refuse_unexpanded, settings_of
from featurestore_dagster.feast_stores.online_rows import (
    MICROSECOND,
    Part,
    Question,
    ServedRow,
    WrittenRow,
    entity_deletions,
    entity_row,
    is_expired,
    is_known,
    is_of,
    name_in_request,
    row_deletions,
    utc,
    with_times,
    writes,
)
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.serving.answer import EPOCH
from featurestore_dagster.serving.async_client import AsyncFeatureStoreClient
from featurestore_dagster.serving.client import FeatureStoreClient
from featurestore_dagster.serving.client_base import PROJECT
from featurestore_dagster.serving.online_sync import sync_view
from featurestore_dagster.serving.policy import ReadPolicy
from featurestore_dagster.settings import RedisSettings, Settings
from featurestore_dagster.stores.postgres import PostgresStore
from featurestore_dagster.stores.redis import RedisStore
from featurestore_dagster.stores.redis.packed import rows_key
from featurestore_dagster.stores.redis.store import READ_SECONDS, WRITE_SECONDS
from featurestore_dagster.stores.redis.wire import AsyncPool, Pool, command, translated

logger = logging.getLogger(__name__)

SHORTEST_SECONDS = 0.001


class MissingJoinKeyError(FeastError, MalformedDataError):
    """A request does not name a join key of a view; stock Feast answers it with NULL."""

    def http_status_code(self) -> int:
        """The caller's fault."""
        return 422


TYPE = "featurestore_dagster.feast_stores.online_store.BitemporalOnlineStore"


class BitemporalOnlineStoreConfig(RedisOnlineStoreConfig):
    """Feast's options of the store `redis`; `skip_dedup` has no effect, because the check costs no round trip here."""

    type: Literal[TYPE] = TYPE  # type: ignore[valid-type]
    deadline_seconds: float = Field(READ_SECONDS, gt=0, le=60)
    """A read answers or fails within this time, whatever Redis does."""

    @field_validator("connection_string")
    @classmethod
    def _refuse_unexpanded(cls, value: str) -> str:
        refuse_unexpanded("online_store.connection_string", value)
        return value


class BitemporalOnlineStore(RedisOnlineStore):
    """Rows as they are known now: TTL and NULL said as such, corrections and late rows written, nothing of the future; no read hangs."""

    def __init__(self) -> None:
        """Nothing is connected before the first call."""
        self._connections: _Connections | None = None
        self._client_of_views: FeatureStoreClient | None = None
        self._async_clients: weakref.WeakKeyDictionary[Any, AsyncFeatureStoreClient] = weakref.WeakKeyDictionary()

    def online_read(
        self, config: RepoConfig, table: FeastView, entity_keys: list[EntityKey], requested_features: list[str] | None = None
    ) -> list[tuple[datetime | None, dict[str, Any] | None]]:
        """See Feast's `OnlineStore`; values outside their TTL are unset."""
        part = Part(table, requested_features or [feature.name for feature in table.features], entity_keys)
        (rows,) = self._read(config, [part])
        return [(row.event_timestamp, row.values) for row in rows]

    async def online_read_async(
        self, config: RepoConfig, table: FeastView, entity_keys: list[EntityKey], requested_features: list[str] | None = None
    ) -> list[tuple[datetime | None, dict[str, Any] | None]]:
        """As `online_read`."""
        part = Part(table, requested_features or [feature.name for feature in table.features], entity_keys)
        (rows,) = await self._read_async(config, [part])
        return [(row.event_timestamp, row.values) for row in rows]

    def online_write_batch(
        self, config: RepoConfig, table: FeastView, data: list[WrittenRow], progress: Callable[[int], Any] | None
    ) -> None:
        """Write rows unless Redis holds newer ones; rows dated after now are left out, and logged.

        A view of our catalogue is brought up to the ledger instead.

        Raises:
            MalformedDataError: A row has no event time; none is written.
            RefusedError: Rows of a view of our catalogue that were not published.
            StoreUnavailableError: Redis does not answer.
        """
        data = with_times(table, data)
        if view := declared_view(config, table):
            _write_published(settings_of(config), view, data)
        else:
            self._exchange(config, self._writes(config, table, data))
        if progress:
            progress(len(data))

    async def online_write_batch_async(
        self, config: RepoConfig, table: FeastView, data: list[WrittenRow], progress: Callable[[int], Any] | None
    ) -> None:
        """As `online_write_batch`."""
        data = with_times(table, data)
        if view := declared_view(config, table):
            await asyncio.to_thread(_write_published, settings_of(config), view, data)
        else:
            redis = self._connected(config)
            with translated(redis.settings, WRITE_SECONDS):
                for sent, count in self._writes(config, table, data):
                    await redis.async_pool.exchange(sent, count, WRITE_SECONDS)
        if progress:
            progress(len(data))

    def delete_table(self, config: RepoConfig, table: FeastView) -> None:
        """Delete the rows of a view, of exactly this project."""
        keys = list(self._keys(config, table.join_keys))
        self._exchange(config, row_deletions(config, table, keys))

    def delete_entity_values(self, config: RepoConfig, join_keys: list[str]) -> None:
        """Delete the rows of all views with these join keys, of exactly this project."""
        self._exchange(config, entity_deletions(list(self._keys(config, join_keys))))
        packed = [rows_key(config.project, join_keys, view.name) for view in CATALOGUE.views if set(view.join_keys) == set(join_keys)]
        self._exchange(config, [(command("UNLINK", key), 1) for key in packed])

    def teardown(self, config: RepoConfig, tables: Sequence[FeastView], entities: Sequence[Entity]) -> None:
        """Delete the entities of these views, and what Redis remembers of ours."""
        super().teardown(config, tables, entities)
        if ours := [view for table in tables if (view := declared_view(config, table))]:
            store = RedisStore(redis_settings(config.online_store), PROJECT)
            store.teardown(ours)
            store.close()

    async def close(self) -> None:
        """Close the connections of the running event loop."""
        if self._connections:
            self._connections.async_pool.close()
        if client := self._async_clients.pop(asyncio.get_running_loop(), None):
            await client.close()

    def _read_features_per_fv(  # Feast's name: what get_online_features calls
        self,
        config: RepoConfig,
        grouped_refs: list[tuple[FeastView, list[str]]],
        join_key_values: dict[str, Any],
        entity_name_to_join_key_map: dict[str, str],
        online_features_response: Any,
        full_feature_names: bool,
        include_feature_view_version_metadata: bool,
    ) -> None:
        asked = [_Asked.of(table, names, join_key_values, entity_name_to_join_key_map) for table, names in grouped_refs]
        found = self._read(config, [one.part for one in asked])
        for one, rows in zip(asked, found, strict=True):
            one.populate(online_features_response, rows, full_feature_names, include_feature_view_version_metadata)

    async def _read_features_per_fv_async(
        self,
        config: RepoConfig,
        grouped_refs: list[tuple[FeastView, list[str]]],
        join_key_values: dict[str, Any],
        entity_name_to_join_key_map: dict[str, str],
        online_features_response: Any,
        full_feature_names: bool,
        include_feature_view_version_metadata: bool,
    ) -> None:
        asked = [_Asked.of(table, names, join_key_values, entity_name_to_join_key_map) for table, names in grouped_refs]
        found = await self._read_async(config, [one.part for one in asked])
        for one, rows in zip(asked, found, strict=True):
            one.populate(online_features_response, rows, full_feature_names, include_feature_view_version_metadata)

    @staticmethod
    def _try_precomputed_fast_path(
        blobs: list[bytes | None],
        expected_feature_names: list[str],
        online_features_response: Any,
        full_feature_names: bool,
        num_rows: int,
        entity_row_indices: Sequence[Sequence[int]],
        grouped_refs: list[tuple[FeastView, list[str]]],
        registry: Any,
        project: str,
    ) -> bool:
        first, now = len(online_features_response.results), environments_clock().now()
        answered: bool = RedisOnlineStore._try_precomputed_fast_path(  # noqa: SLF001 - Feast's answer, to which the TTL is applied
            blobs,
            expected_feature_names,
            online_features_response,
            full_feature_names,
            num_rows,
            entity_row_indices,
            grouped_refs,
            registry,
            project,
        )
        columns = online_features_response.results[first:]
        tables = [table for table, names in grouped_refs for name in names if not name.startswith("_ts:")]
        for blob, places in zip(blobs, entity_row_indices, strict=True) if answered else ():
            made = PrecomputedFeatureVector.FromString(blob or b"")
            events = {view.feature_view_name: view.event_timestamp.ToDatetime(UTC) for view in made.fv_timestamps}
            for table, column in zip(tables, columns, strict=True):
                event = events.get(name_in_request(table))
                for place in places:
                    if is_expired(table, event, now):
                        column.values[place].Clear()
                        column.statuses[place] = FieldStatus.OUTSIDE_MAX_AGE
                    elif column.values[place].WhichOneof("val") is None:
                        column.statuses[place] = FieldStatus.NULL_VALUE
        return answered

    def _read(self, config: RepoConfig, parts: list[Part]) -> list[list[ServedRow]]:
        question, deadline = Question(config, parts), config.online_store.deadline_seconds
        ends = time.monotonic() + deadline
        answers: list[Any] = []
        if question.count:
            redis = self._connected(config)
            with translated(redis.settings, deadline):
                answers = redis.pool.exchange(question.sent, question.count, deadline)
        ours = []
        for references, entities in question.ours:
            if self._client_of_views is None:
                self._client_of_views = FeatureStoreClient(settings_of(config))
            ours.append(self._client_of_views.get_online_features(references, entities, policy=_policy(ends)))
        return question.rows(answers, ours)

    async def _read_async(self, config: RepoConfig, parts: list[Part]) -> list[list[ServedRow]]:
        question, deadline = Question(config, parts), config.online_store.deadline_seconds
        ends = time.monotonic() + deadline
        answers: list[Any] = []
        if question.count:
            redis = self._connected(config)
            with translated(redis.settings, deadline):
                answers = await redis.async_pool.exchange(question.sent, question.count, deadline)
        ours, loop = [], asyncio.get_running_loop()
        for references, entities in question.ours:
            if loop not in self._async_clients:
                self._async_clients[loop] = AsyncFeatureStoreClient(settings_of(config))
            ours.append(await self._async_clients[loop].get_online_features(references, entities, policy=_policy(ends)))
        return question.rows(answers, ours)

    def _connected(self, config: RepoConfig) -> "_Connections":
        if self._connections is None:
            settings = redis_settings(config.online_store)
            self._connections = _Connections(settings, Pool(settings), AsyncPool(settings))
        return self._connections

    @staticmethod
    def _writes(config: RepoConfig, table: FeastView, data: list[WrittenRow]) -> Iterator[tuple[bytes, int]]:
        now = environments_clock().now()
        known = [row for row in data if is_known(row, now)]
        if len(known) < len(data):
            logger.warning("%s: %d rows dated after %s were not written", table.name, len(data) - len(known), now.isoformat())
        return writes(config, table, known, now)

    def _exchange(self, config: RepoConfig, batches: Iterable[tuple[bytes, int]]) -> list[Any]:
        """Answers of the last batch."""
        redis = self._connected(config)
        answers: list[Any] = []
        with translated(redis.settings, WRITE_SECONDS):
            for sent, count in batches:
                answers = redis.pool.exchange(sent, count, WRITE_SECONDS)
        return answers

    def _keys(self, config: RepoConfig, join_keys: list[str]) -> Iterator[bytes]:
        """Keys of the entities with these join keys; none twice."""
        prefix, project = _redis_key_prefix(join_keys), config.project.encode()
        pattern = b"".join(b"\\%c" % byte if byte in b"*?[]\\" else b"%c" % byte for byte in prefix) + b"*"
        cursor, seen = b"0", set[bytes]()
        while True:
            ((cursor, keys),) = self._exchange(config, [(command("SCAN", cursor, "MATCH", pattern, "COUNT", 1000), 1)])
            yield from (key for key in set(keys) - seen if is_of(key, prefix, len(join_keys), project))
            seen.update(keys)
            if cursor == b"0":
                return


class _Connections(NamedTuple):
    """Where Redis is, and connections to it for threads and for event loops."""

    settings: RedisSettings
    pool: Pool
    async_pool: AsyncPool


class _Asked(NamedTuple):
    """One view of a request, and where each of its entities goes in the answer."""

    part: Part
    positions: Sequence[list[int]]
    length: int

    @classmethod
    def of(cls, table: FeastView, features: list[str], values: dict[str, Any], join_key_of: dict[str, str]) -> "_Asked":
        columns = utils._get_table_entity_values(table, join_key_of, values)  # noqa: SLF001 - Feast's own stores call it
        missing = sorted({join_key_of[name] for name in table.entities} - {DUMMY_ENTITY_ID} - set(columns))
        if missing:
            raise MissingJoinKeyError(
                f"the request names no {', '.join(missing)}, which view {table.name} needs; it has {', '.join(values)}"
            )
        entities, positions, length = utils._get_unique_entities(table, values, join_key_of)  # noqa: SLF001
        keys = utils._get_entity_key_protos(entities)  # noqa: SLF001
        return cls(Part(table, list(features), keys), positions, length)

    def populate(self, response: Any, rows: list[ServedRow], full_feature_names: bool, with_version: bool) -> None:
        """Append the view's columns to the response: by Feast, then with the statuses that it does not know."""
        first, table, features = len(response.results), self.part.table, self.part.features
        values = [(row.event_timestamp, row.values) for row in rows]
        utils._populate_response_from_feature_data(  # noqa: SLF001
            features, values, self.positions, response, full_feature_names, table, self.length, with_version
        )
        for name, column in zip(features, response.results[first:], strict=True):
            for row, positions in zip(rows, self.positions, strict=True):
                status = row.statuses.get(name, FieldStatus.NOT_FOUND)
                if status != FieldStatus.PRESENT:
                    for position in positions:
                        column.statuses[position] = status


def _policy(ends: float) -> ReadPolicy:
    """What is left until an instant of `time.monotonic`; a view that no store answers for is an error."""
    return ReadPolicy(max(ends - time.monotonic(), SHORTEST_SECONDS), fail_closed=True)


def _write_published(settings: Settings, view: FeatureView, data: list[WrittenRow]) -> None:
    """Bring a view of ours up to the ledger, and refuse rows that it does not know."""
    clock = settings.make_clock()
    now = clock.now()
    online = RedisStore(settings.redis, PROJECT)
    advice = f"; view {view.name} holds published rows only: they come from its pipeline (`featurestore backfill`), not from Feast"
    try:
        if any(created is None for *_, created in data):
            raise RefusedError(f"rows without {view.name}'s created_timestamp were given{advice}")
        sync_view(view, PostgresStore(settings.postgres, clock), online, now, CATALOGUE.with_sources(settings.source_names))
        names = (view.feature_names[0],)
        for start in range(0, len(data), 1000):
            rows = data[start : start + 1000]
            held = online.read([(view, names)], [entity_row(key) for key, *_ in rows], WRITE_SECONDS).rows
            for row, (stored,) in zip(rows, held, strict=True):
                key, _, event, created = row
                times = tuple((utc(moment) - EPOCH) // MICROSECOND for moment in (event, created or event))
                if stored and is_known(row, now) and times > (stored.event_microseconds, stored.known_microseconds or 0):
                    raise RefusedError(f"{entity_row(key)} of {event} was never published{advice}")
    finally:
        online.close()
