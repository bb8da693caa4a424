"""The client: online vectors, historical frames and freshness, for programs and notebooks. No import of Feast, pandas or Dagster."""

from collections.abc import Mapping, Sequence
from datetime import datetime

import polars as pl

from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.time import Clock
from featurestore_dagster.serving.online import OnlineFeatures, OnlineReader
from featurestore_dagster.serving.point_in_time import PointInTimeReader, RowsAt
from featurestore_dagster.serving.slo_state import StreamState, all_states
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.embedded import running_settings
from featurestore_dagster.stores.postgres import PostgresStore
from featurestore_dagster.stores.redis import RedisStore

PROJECT = "featurestore"
"""Feast's project name: part of every online key."""


class FeatureStoreClient:
    """Reads features; safe to share between threads.

    Example:
        client = FeatureStoreClient(Settings())
        client.get_online_features("technical_indicators_service", [{"symbol": "SPX", "timeframe": "1d"}])
    """

    def __init__(self, settings: Settings, catalogue: Catalogue = CATALOGUE) -> None:
        """Nothing is connected before the first read."""
        connected = running_settings(settings)
        self.clock: Clock = settings.make_clock()
        self.catalogue = catalogue
        self._store = PostgresStore(connected.postgres, self.clock)
        self._online = RedisStore(connected.redis, PROJECT)
        self._history = PointInTimeReader(self._store, catalogue)

    def get_online_features(
        self, features: str | Sequence[str], entity_rows: Sequence[Mapping[str, str]], as_of_timestamp: datetime | None = None
    ) -> OnlineFeatures:
        """Newest values of each entity row from Redis; with `as_of_timestamp`, what was known then, from Postgres.

        Raises:
            UnknownNameError: No such service, view or feature.
            MalformedDataError: An entity row lacks a join key.
            StoreUnavailableError: The store does not answer.
        """
        source = self._online if as_of_timestamp is None else RowsAt(self._history, as_of_timestamp)
        return OnlineReader(source, self.catalogue, self.clock).get_online_features(features, entity_rows, as_of_timestamp)

    def get_historical_features(self, entities: pl.DataFrame, features: str | Sequence[str]) -> pl.DataFrame:
        """Point-in-time join; see `PointInTimeReader.get_historical_features`."""
        return self._history.get_historical_features(entities, features)

    def get_feature_freshness(self) -> list[StreamState]:
        """SLO state of every stream of every view."""
        return all_states(self.catalogue, self._store, self.clock.now())
