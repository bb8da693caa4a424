"""What the blocking and the asynchronous client share: stores, tiers, what needs no waiting. Reading values belongs to the two."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from featurestore_dagster.errors import MalformedDataError, RefusedError
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.time import Clock
from featurestore_dagster.serving.answer import OnlineFeatures
from featurestore_dagster.serving.ladder import Ladder
from featurestore_dagster.serving.policy import AS_OF_DEADLINE_SECONDS, ReadPolicy
from featurestore_dagster.serving.redis_tier import RedisTier
from featurestore_dagster.serving.retrieval_statistics import RetrievalRecorder, RetrievalStatistics
from featurestore_dagster.serving.vector import FeatureVector, Statistics, VectorMode, feature_vector, load_statistics
from featurestore_dagster.stores.redis import RedisStore

if TYPE_CHECKING:
    from featurestore_dagster.serving.overview import Overview
    from featurestore_dagster.serving.point_in_time import PointInTimeReader
    from featurestore_dagster.serving.slo_ledger import SloMonth
    from featurestore_dagster.serving.slo_state import StreamState
    from featurestore_dagster.settings import Settings

PROJECT = "featurestore"
"""Feast's project name: part of every online key."""

DEFAULT_STATISTICS_RANGE = timedelta(days=365)
LONGEST_STATISTICS_RANGE = timedelta(days=10 * 366)
BEGINNING = datetime(1900, 1, 1, tzinfo=UTC)

FIRST_CONNECT_SECONDS = 1.0
"""For each store, before the first read of a client that was not warmed up."""


@dataclass(frozen=True)
class ServiceFeature:
    """One feature of a service, in the service's order."""

    reference: str
    unit: str
    formula: str
    time_to_live_seconds: float
    slo_seconds: float


@dataclass(frozen=True)
class ServiceInfo:
    """What a caller must know to ask for a service and to read the answer."""

    name: str
    version: int
    description: str
    is_online: bool
    join_keys: tuple[str, ...]
    features: tuple[ServiceFeature, ...]


class ClientBase:
    """Stores and tiers of one client; safe to share between threads."""

    def __init__(self, settings: "Settings | None" = None, catalogue: Catalogue | None = None) -> None:
        """Nothing is connected before the first read, or `warm_up`.

        Args:
            settings: Where the stores are; None: from the environment.
            catalogue: The declarations; None: this package's, with the sources that the settings switch on.

        Raises:
            StoreUnavailableError: The stores are embedded, and do not run.
        """
        # What connects is imported when a client is made: who imports the class only should not wait for drivers and settings.
        from featurestore_dagster.serving.postgres_tier import PostgresTier
        from featurestore_dagster.serving.raw_tier import RawTier
        from featurestore_dagster.settings import Settings
        from featurestore_dagster.stores.embedded import running_settings
        from featurestore_dagster.stores.postgres import PostgresStore

        settings = settings or Settings()
        connected = running_settings(settings)
        self.clock: Clock = settings.make_clock()
        self.catalogue = catalogue or CATALOGUE.with_sources(settings.source_names)
        self._statistics_folder = settings.data_folder / "normalisation"
        self._store = PostgresStore(connected.postgres, self.clock)
        self._redis = RedisStore(connected.redis, PROJECT)
        self._postgres_tier = PostgresTier(connected.postgres, self.catalogue)
        self._ladder = Ladder([RedisTier(self._redis), self._postgres_tier, RawTier(self._store, self.catalogue, self.clock)], self.clock)
        self._as_of = Ladder([self._postgres_tier], self.clock)
        self._cache_folder, self._cache_bytes = settings.data_folder / "cache", settings.history_cache_mebibytes * 2**20
        self._recorder = RetrievalRecorder()
        self._is_warm = False

    @cached_property
    def history(self) -> "PointInTimeReader":
        """The historical engine; it is imported when it is first asked for."""
        from featurestore_dagster.serving.point_in_time import PointInTimeReader
        from featurestore_dagster.stores.columnar_cache import ColumnarCache

        return PointInTimeReader(self._store, self.catalogue, ColumnarCache(self._cache_folder, self._cache_bytes))

    @property
    def degraded(self) -> tuple[str, ...]:
        """Names of the stores that reads pass over now, because they did not answer."""
        return self._ladder.degraded

    def get_retrieval_stats(self, window_minutes: float = 60) -> RetrievalStatistics:
        """Latencies, null rate, tiers, violations and refusals of this client's online reads of the last minutes.

        Raises:
            RefusedError: The window is not above zero and at most a day.

        Example:
            >>> client.get_retrieval_stats(window_minutes=5).violations
            0
        """
        return self._recorder.statistics(window_minutes)

    def get_online_watermarks(self) -> dict[tuple[str, str], datetime | None]:
        """Greatest event time in Redis of each (view, stream) that is online, None where nothing is.

        Raises:
            StoreUnavailableError: Redis does not answer.

        Example:
            >>> client.get_online_watermarks()["technical_indicators_view", "us_equity_1d"].isoformat()
            '2018-12-31T21:00:00+00:00'
        """
        streams = [(view, stream.name) for view in self.catalogue.views if view.online for stream in view.streams]
        return {(view.label, name): instant for (view, name), instant in zip(streams, self._redis.watermarks(streams), strict=True)}

    def get_feature_service_info(self, service: str) -> ServiceInfo:
        """What a service answers and what it must be asked with.

        Raises:
            UnknownNameError: No such service.

        Example:
            >>> info = client.get_feature_service_info("technical_indicators_service")
            >>> info.join_keys, len(info.features), info.is_online
            (('symbol', 'timeframe'), 6, True)
        """
        declared = self.catalogue.service(service)
        keys = dict.fromkeys(key for view, _ in declared.references for key in view.join_keys)
        features = tuple(
            ServiceFeature(
                reference=f"{view.label}:{feature.name}",
                unit=feature.indicator.unit.value,
                formula=feature.indicator.formula,
                time_to_live_seconds=view.longest_ttl.total_seconds(),
                slo_seconds=view.slo.max_lag.total_seconds(),
            )
            for view, feature in declared.references
        )
        return ServiceInfo(declared.name, declared.version, declared.description, declared.is_online, tuple(keys), features)

    def statistics_path(self, service: str) -> Path:
        """Where the statistics of a service's declared version are kept.

        Example:
            >>> client.statistics_path("observation_15d").name
            'observation_15d.v1.json'
        """
        return self._statistics_folder / f"{service}.v{self.catalogue.service(service).version}.json"

    def _freshness(self, view: str | None) -> "list[StreamState]":
        """SLO states, of one view only when it is named."""
        from featurestore_dagster.serving.slo_state import all_states

        label = None if view is None else self.catalogue.view(view).label
        states = all_states(self.catalogue, self._store, self.clock.now())
        return states if label is None else [state for state in states if state.view == label]

    def _slo(self, month: str | None, view: str | None) -> "list[SloMonth]":
        from featurestore_dagster.serving.slo_ledger import slo_months
        from featurestore_dagster.stores.postgres.slo_ledger import SloStore

        return slo_months(self.catalogue, SloStore(self._store.settings), self.clock.now(), month, view)

    def _platform_overview(self) -> "Overview":
        from featurestore_dagster.serving.overview import overview

        return overview(self.catalogue, self._store, self.clock)

    def _feature_statistics(self, view: str, start: datetime | None, end: datetime | None) -> pl.DataFrame:
        declared = self.catalogue.view(view)
        end = min(end or self.clock.now(), self.clock.now())
        start = start or end - min(DEFAULT_STATISTICS_RANGE, end - BEGINNING)
        if not BEGINNING <= start < end <= start + LONGEST_STATISTICS_RANGE:
            raise RefusedError(
                f"statistics from {start.isoformat()} to {end.isoformat()}; allowed: instants since {BEGINNING.year}, the first before the "
                f"second, at most {LONGEST_STATISTICS_RANGE.days} days apart"
            )
        rows = self._store.read_features(declared, start, end)
        columns = {name: pl.col(name) for name in declared.feature_names}
        measures = {
            "rows": {name: pl.len() for name in columns},
            "nulls": {name: column.null_count() for name, column in columns.items()},
            "mean": {name: column.mean() for name, column in columns.items()},
            "standard_deviation": {name: column.std() for name, column in columns.items()},
            "minimum": {name: column.min() for name, column in columns.items()},
            "p05": {name: column.quantile(0.05) for name, column in columns.items()},
            "median": {name: column.median() for name, column in columns.items()},
            "p95": {name: column.quantile(0.95) for name, column in columns.items()},
            "maximum": {name: column.max() for name, column in columns.items()},
        }
        counts = {"rows", "nulls"}
        dtypes = {measure: pl.Int64() if measure in counts else pl.Float64() for measure in measures}
        found = {
            measure: rows.select(value.cast(dtypes[measure]).alias(name) for name, value in values.items()).row(0)
            for measure, values in measures.items()
        }
        units = [declared.feature(name).indicator.unit.value for name in columns]
        return pl.DataFrame(
            {"feature": list(columns), "unit": units, **{measure: list(values) for measure, values in found.items()}},
            schema_overrides=dtypes,
        )

    def _route(self, as_of: datetime | None, policy: ReadPolicy) -> tuple[Ladder, ReadPolicy]:
        """What is asked: an instant of the past only of Postgres, which the caller knows to take longer."""
        if not isinstance(policy, ReadPolicy):
            raise MalformedDataError(f"policy is {policy!r:.80}; a ReadPolicy is needed: leave it out for the default")
        if as_of is None:
            return self._ladder, policy
        if not isinstance(as_of, datetime) or as_of.tzinfo is None:
            raise MalformedDataError(f"as_of_timestamp {as_of} has no time zone; give a timezone-aware datetime")
        return self._as_of, replace(policy, deadline_seconds=policy.deadline_seconds or AS_OF_DEADLINE_SECONDS)

    def _fitted(self, service: str, mode: VectorMode, statistics: Path | None) -> Statistics | None:
        if mode is not VectorMode.NORMALISED:
            return None
        return load_statistics(self.catalogue.service(service), statistics or self.statistics_path(service))

    def _vector(self, service: str, answer: OnlineFeatures, fitted: Statistics | None, *, allow_null: bool) -> FeatureVector:
        return feature_vector(self.catalogue.service(service), answer.rows[0], answer.as_of, statistics=fitted, allow_null=allow_null)
