"""The client: online vectors, historical frames and freshness, for programs and notebooks. No import of Feast, pandas or Dagster."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

import polars as pl

from featurestore_dagster.errors import NotOnlineError, RefusedError
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.model.time import Clock
from featurestore_dagster.serving.online import OnlineFeatures, OnlineReader
from featurestore_dagster.serving.point_in_time import PointInTimeReader, RowsAt
from featurestore_dagster.serving.slo_state import StreamState, all_states
from featurestore_dagster.serving.vector import (
    FeatureVector,
    VectorMode,
    feature_vector,
    fit_statistics,
    load_statistics,
    refuse_unnormalised,
)
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

    def __init__(self, settings: Settings, catalogue: Catalogue | None = None) -> None:
        """Nothing is connected before the first read."""
        connected = running_settings(settings)
        self.clock: Clock = settings.make_clock()
        self.catalogue = catalogue or CATALOGUE.with_sources(settings.source_names)
        self._statistics_folder = settings.data_folder / "normalisation"
        self._store = PostgresStore(connected.postgres, self.clock)
        self._online = RedisStore(connected.redis, PROJECT)
        self._history = PointInTimeReader(self._store, self.catalogue)

    def get_online_features(
        self, features: str | Sequence[str], entity_rows: Sequence[Mapping[str, str]], as_of_timestamp: datetime | None = None
    ) -> OnlineFeatures:
        """Newest values of each entity row from Redis; with `as_of_timestamp`, what was known then, from Postgres.

        A superseded version (`view@1:feature`) is not in Redis: a request that names one is answered from Postgres as of now.

        Raises:
            UnknownNameError: No such service, view or feature.
            NotOnlineError: A view is for training only, and no `as_of_timestamp` is given.
            MalformedDataError: An entity row lacks a join key.
            StoreUnavailableError: The store does not answer.
        """
        moment = as_of_timestamp
        if moment is None:
            views = self._views(features)
            if offline := sorted({view.label for view in views if not (view.online or view.is_superseded)}):
                asked = features if isinstance(features, str) else ", ".join(features)
                raise NotOnlineError(
                    f"{asked}: {', '.join(offline)} is for training only and never online; read it with get_historical_features, or as of "
                    "an instant"
                )
            if any(view.is_superseded for view in views):
                moment = self.clock.now()
        source = self._online if moment is None else RowsAt(self._history, moment)
        return OnlineReader(source, self.catalogue, self.clock).get_online_features(features, entity_rows, moment)

    def get_feature_vector(
        self,
        service: str,
        entity: Mapping[str, str],
        *,
        mode: VectorMode = VectorMode.RAW,
        allow_null: bool = False,
        as_of_timestamp: datetime | None = None,
        statistics: Path | None = None,
    ) -> FeatureVector:
        """One service's values for one entity as a Float32 vector in the service's order.

        Args:
            service: Name of the service.
            entity: Join key -> value.
            mode: As stored, or normalised by the service's frozen statistics.
            allow_null: NULLs stay in the vector instead of being an error.
            as_of_timestamp: What was known then, from Postgres; None: the newest, from Redis.
            statistics: File of the normalisation; None: where `fit_normalisation` writes it.

        Raises:
            NullFeaturesError: A feature is NULL and `allow_null` is not set; the message lists them.
            ConfigurationError: Normalised values were asked for, and there are no statistics.
            MalformedDataError: The statistics are not those of the service, or an entity lacks a join key.
            UnknownNameError: No such service.
            NotOnlineError: A view is for training only, and no `as_of_timestamp` is given.
            StoreUnavailableError: The store does not answer.
        """
        declared = self.catalogue.service(service)
        fitted = load_statistics(declared, statistics or self.statistics_path(service)) if mode is VectorMode.NORMALISED else None
        answer = self.get_online_features(service, [entity], as_of_timestamp)
        return feature_vector(declared, answer.rows[0], answer.as_of, statistics=fitted, allow_null=allow_null)

    def statistics_path(self, service: str) -> Path:
        """Where the statistics of a service's declared version are kept."""
        return self._statistics_folder / f"{service}.v{self.catalogue.service(service).version}.json"

    def fit_normalisation(
        self, service: str, start: datetime, end: datetime, *, symbols: Sequence[str] = (), path: Path | None = None
    ) -> Path:
        """Fit and freeze the statistics of a service on the vectors that were known in a training range.

        There is one vector for each row of the service's first view with start < event time <= end, as of the instant at which its
        first version was known.

        Args:
            service: Name of a service whose views are all about symbols.
            start: First instant, exclusive.
            end: Last instant.
            symbols: Only these; all when empty.
            path: File to write; None: where `get_feature_vector` looks.

        Raises:
            RefusedError: The file exists: statistics are frozen.
            ConfigurationError: The service standardises nothing.
            MalformedDataError: A feature is constant or absent in the range.
        """
        declared, target = self.catalogue.service(service), path or self.statistics_path(service)
        refuse_unnormalised(declared)
        if target.exists():
            raise RefusedError(f"{target} exists, and statistics are frozen: models were trained with them; name another file")
        first = declared.references[0][0]
        versions = self._store.read_features(first, start, end, keys={"symbol": list(symbols)} if symbols else None, all_versions=True)
        known_at = pl.max_horizontal("event_timestamp", "created_timestamp").alias("event_timestamp")
        asked = versions.unique([*first.join_keys, "event_timestamp"], keep="first", maintain_order=True).select(*first.join_keys, known_at)
        vectors = self.get_historical_features(asked.filter(pl.col("event_timestamp") <= end), service)
        text = fit_statistics(declared, vectors, start, end)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        return target

    def _views(self, features: str | Sequence[str]) -> list[FeatureView]:
        pairs = self.catalogue.service(features).references if isinstance(features, str) else self.catalogue.references(features)
        return [view for view, _ in pairs]

    def get_historical_features(self, entities: pl.DataFrame, features: str | Sequence[str]) -> pl.DataFrame:
        """Point-in-time join; see `PointInTimeReader.get_historical_features`."""
        return self._history.get_historical_features(entities, features)

    def get_feature_freshness(self) -> list[StreamState]:
        """SLO state of every stream of every view."""
        return all_states(self.catalogue, self._store, self.clock.now())
