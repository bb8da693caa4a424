"""The client for an event loop: the reads of `client.FeatureStoreClient`, awaited."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Self, Unpack

import polars as pl

from featurestore_dagster.errors import FeatureStoreError
from featurestore_dagster.serving.answer import OnlineFeatures
from featurestore_dagster.serving.client_base import FIRST_CONNECT_SECONDS, ClientBase
from featurestore_dagster.serving.coverage import Coverage, coverage
from featurestore_dagster.serving.policy import DEFAULT_POLICY, ReadPolicy
from featurestore_dagster.serving.requests import online_request
from featurestore_dagster.serving.vector import FeatureVector, VectorMode

if TYPE_CHECKING:
    from featurestore_dagster.serving.overview import Overview
    from featurestore_dagster.serving.point_in_time import Entities, HistoryOptions
    from featurestore_dagster.serving.slo_ledger import SloMonth
    from featurestore_dagster.serving.slo_state import StreamState


class AsyncFeatureStoreClient(ClientBase):
    """Reads features without blocking; belongs to one event loop.

    Arguments, answers and errors are those of `FeatureStoreClient`; reads of history run in a thread.

    Example:
        >>> async def coverage() -> float:
        ...     async with AsyncFeatureStoreClient() as client:
        ...         patient = ReadPolicy(deadline_seconds=2)
        ...         answer = await client.get_online_features("technical_indicators_service", entity_ids=["AAPL_1d"], policy=patient)
        ...         return answer.rows[0].coverage
        >>> asyncio.run(coverage())
        1.0
    """

    async def __aenter__(self) -> Self:
        """Connect as far as the stores answer."""
        await self.warm_up()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connections."""
        await self.close()

    async def warm_up(self, timeout_seconds: float = 5.0) -> tuple[str, ...]:
        """Connect to every store, and return the names of those that answered within the time each."""
        self._is_warm = True
        answered = await asyncio.gather(*(tier.warm_up_async(timeout_seconds) for tier in self._ladder.tiers))
        return tuple(tier.name for tier, answers in zip(self._ladder.tiers, answered, strict=True) if answers)

    async def probe(self, deadline_seconds: float) -> str:
        """Name of the best store that answers a read now, which the statistics leave out; NoTierAnsweredError when none does in time."""
        view = next(view for view in self.catalogue.views if view.online)
        request = online_request(self.catalogue, [f"{view.label}:{view.feature_names[0]}"], [dict.fromkeys(view.join_keys, "")])
        answer = await self._ladder.read_async(request.plan, request.entities, ReadPolicy(deadline_seconds, fail_closed=True))
        return answer.rows[0].states[0].tier

    async def close(self) -> None:
        """Close all connections."""
        await self._redis.close_async()
        await self._postgres_tier.close_async()

    async def get_online_features(
        self,
        features: str | Sequence[str],
        entity_rows: Sequence[Mapping[str, str]] = (),
        as_of_timestamp: datetime | None = None,
        policy: ReadPolicy = DEFAULT_POLICY,
        *,
        entity_ids: Sequence[str] = (),
    ) -> OnlineFeatures:
        """See `FeatureStoreClient.get_online_features`."""
        if not self._is_warm:
            await self.warm_up(FIRST_CONNECT_SECONDS)
        started = time.perf_counter()
        try:
            request = online_request(self.catalogue, features, entity_rows, entity_ids, historical=as_of_timestamp is not None)
            ladder, policy = self._route(as_of_timestamp, policy)
            answer = await ladder.read_async(request.plan, request.entities, policy, as_of_timestamp)
        except FeatureStoreError as error:
            self._recorder.refused(time.perf_counter() - started, error)
            raise
        self._recorder.answered(time.perf_counter() - started, answer)
        return answer

    async def get_feature_vector(
        self,
        service: str,
        entity: Mapping[str, str],
        *,
        mode: VectorMode = VectorMode.RAW,
        allow_null: bool = False,
        as_of_timestamp: datetime | None = None,
        statistics: Path | None = None,
        policy: ReadPolicy = DEFAULT_POLICY,
    ) -> FeatureVector:
        """See `FeatureStoreClient.get_feature_vector`."""
        fitted = self._fitted(service, mode, statistics)
        answer = await self.get_online_features(service, [entity], as_of_timestamp, policy)
        return self._vector(service, answer, fitted, allow_null=allow_null)

    async def get_historical_features(
        self, entities: "Entities", features: str | Sequence[str], **options: "Unpack[HistoryOptions]"
    ) -> pl.DataFrame:
        """See `FeatureStoreClient.get_historical_features`."""
        return await asyncio.to_thread(self.history.get_historical_features, entities, features, **options)

    async def get_feature_freshness(self, view: str | None = None) -> "list[StreamState]":
        """See `FeatureStoreClient.get_feature_freshness`."""
        return await asyncio.to_thread(self._freshness, view)

    async def get_slo_attainment(self, month: str | None = None, view: str | None = None) -> "list[SloMonth]":
        """See `FeatureStoreClient.get_slo_attainment`."""
        return await asyncio.to_thread(self._slo, month, view)

    async def get_overview(self) -> "Overview":
        """See `FeatureStoreClient.get_overview`."""
        return await asyncio.to_thread(self._platform_overview)

    async def get_feature_statistics(self, view: str, start: datetime | None = None, end: datetime | None = None) -> pl.DataFrame:
        """See `FeatureStoreClient.get_feature_statistics`."""
        return await asyncio.to_thread(self._feature_statistics, view, start, end)

    async def validate_feature_coverage(
        self,
        features: str | Sequence[str],
        entity_rows: Sequence[Mapping[str, str]] = (),
        tier: int | None = 1,
        *,
        entity_ids: Sequence[str] = (),
        policy: ReadPolicy = DEFAULT_POLICY,
    ) -> Coverage:
        """See `FeatureStoreClient.validate_feature_coverage`."""
        answer = await self.get_online_features(features, entity_rows, None, policy, entity_ids=entity_ids)
        return coverage(answer, self.catalogue, tier)
