"""The client for programs and notebooks: online vectors, historical frames, freshness, coverage. No import of Feast, pandas or Dagster.

For an event loop there is `async_client`; what both share is in `client_base`.
"""

import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Self, Unpack

import polars as pl

from featurestore_dagster.errors import FeatureStoreError, RefusedError
from featurestore_dagster.serving.answer import OnlineFeatures
from featurestore_dagster.serving.client_base import FIRST_CONNECT_SECONDS, ClientBase
from featurestore_dagster.serving.coverage import Coverage, coverage
from featurestore_dagster.serving.policy import DEFAULT_POLICY, ReadPolicy
from featurestore_dagster.serving.requests import online_request
from featurestore_dagster.serving.vector import FeatureVector, VectorMode, fit_statistics, refuse_unnormalised

if TYPE_CHECKING:
    from featurestore_dagster.serving.overview import Overview
    from featurestore_dagster.serving.point_in_time import Entities, HistoryOptions
    from featurestore_dagster.serving.slo_ledger import SloMonth
    from featurestore_dagster.serving.slo_state import StreamState


class FeatureStoreClient(ClientBase):
    """Reads features; safe to share between threads.

    It connects with the first read, which may therefore take up to two seconds more than its deadline; as a context manager, or by
    `warm_up`, it connects before.

    Example:
        >>> patient = ReadPolicy(deadline_seconds=2)  # a notebook can wait longer than the default of 25 ms
        >>> with FeatureStoreClient() as client:
        ...     answer = client.get_online_features("technical_indicators_service", entity_ids=["AAPL_1d"], policy=patient)
        >>> answer.rows[0].coverage
        1.0
    """

    def __enter__(self) -> Self:
        """Connect as far as the stores answer."""
        self.warm_up()
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connections."""
        self.close()

    def warm_up(self, timeout_seconds: float = 5.0) -> tuple[str, ...]:
        """Connect to every store, and return the names of those that answered within the time each.

        Example:
            >>> client.warm_up()
            ('redis', 'postgres')
        """
        self._is_warm = True
        return tuple(tier.name for tier in self._ladder.tiers if tier.warm_up(timeout_seconds))

    def close(self) -> None:
        """Close all connections; the next read opens new ones.

        Example:
            >>> client.close()
        """
        self._redis.close()
        self._postgres_tier.close()

    def get_online_features(
        self,
        features: str | Sequence[str],
        entity_rows: Sequence[Mapping[str, str]] = (),
        as_of_timestamp: datetime | None = None,
        policy: ReadPolicy = DEFAULT_POLICY,
        *,
        entity_ids: Sequence[str] = (),
    ) -> OnlineFeatures:
        """Newest values of each entity row; with `as_of_timestamp`, what was known then, from Postgres.

        Redis is asked first, then Postgres, then the features are computed from raw data, within the policy's deadline together; each value
        says which one answered. A superseded version (`view@1:feature`) is not in Redis.

        Args:
            features: Name of a feature service, or `view:feature` or `view@version:feature` references; values come in this order.
            entity_rows: Join key -> value; keys that no view needs are ignored.
            as_of_timestamp: A timezone-aware instant; None: now.
            policy: Deadline, and what must be there.
            entity_ids: In place of rows: a symbol, or `BTCUSDT_1h` for symbol and timeframe.

        Raises:
            UnknownNameError: No such service, view or feature.
            NotOnlineError: A view is for training only, and no `as_of_timestamp` is given.
            MalformedDataError: An entity row lacks a join key, or the instant has no time zone.
            NoTierAnsweredError: No store answered in time.
            InsufficientCoverageError: Fewer values than the policy demands are there.
            PointInTimeViolation: A store gave a value from after the instant; nothing of the answer is returned.

        Example:
            >>> reference = "technical_indicators_view:rsi_14"
            >>> answer = client.get_online_features([reference], [{"symbol": "AAPL", "timeframe": "1d"}], policy=patient)
            >>> value = answer.rows[0][reference]
            >>> value.value, value.status.value, value.age_seconds, value.flags, value.tier
            (54.0, 'PRESENT', 0.0, (), 'redis')
            >>> instant = datetime(2018, 12, 28, 22, tzinfo=UTC)
            >>> answer = client.get_online_features([reference], entity_ids=["AAPL_1d"], as_of_timestamp=instant)
            >>> answer.rows[0][reference].event_timestamp.isoformat(), answer.rows[0][reference].tier
            ('2018-12-28T21:00:00+00:00', 'postgres')
        """
        if not self._is_warm:
            self.warm_up(FIRST_CONNECT_SECONDS)
        started = time.perf_counter()
        try:
            request = online_request(self.catalogue, features, entity_rows, entity_ids, historical=as_of_timestamp is not None)
            ladder, policy = self._route(as_of_timestamp, policy)
            answer = ladder.read(request.plan, request.entities, policy, as_of_timestamp)
        except FeatureStoreError as error:
            self._recorder.refused(time.perf_counter() - started, error)
            raise
        self._recorder.answered(time.perf_counter() - started, answer)
        return answer

    def get_feature_vector(
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
        """One service's values for one entity as a Float32 vector in the service's order.

        Args:
            service: Name of the service.
            entity: Join key -> value.
            mode: As stored, or normalised by the service's frozen statistics.
            allow_null: NULLs stay in the vector instead of being an error.
            as_of_timestamp: What was known then, from Postgres; None: the newest.
            statistics: File of the normalisation; None: where `fit_normalisation` writes it.
            policy: As for `get_online_features`.

        Raises:
            NullFeaturesError: A feature is NULL and `allow_null` is not set; the message lists them.
            ConfigurationError: Normalised values were asked for, and there are no statistics.
            MalformedDataError: The statistics are not those of the service, or an entity lacks a join key.
            FeatureStoreError: As `get_online_features`.

        Example:
            >>> entity = {"symbol": "AAPL", "timeframe": "1d"}
            >>> vector = client.get_feature_vector("technical_indicators_service", entity, policy=patient)
            >>> len(vector.features), vector.values.dtype
            (6, Float32)
        """
        fitted = self._fitted(service, mode, statistics)
        answer = self.get_online_features(service, [entity], as_of_timestamp, policy)
        return self._vector(service, answer, fitted, allow_null=allow_null)

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

        Example:
            >>> client.fit_normalisation("my_vector", datetime(2018, 10, 31, tzinfo=UTC), datetime(2018, 12, 14, 22, tzinfo=UTC)).name
            'my_vector.v1.json'
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

    def get_historical_features(
        self, entities: "Entities", features: str | Sequence[str], **options: "Unpack[HistoryOptions]"
    ) -> pl.DataFrame:
        """Point-in-time join; see `PointInTimeReader.get_historical_features`. The other outputs are methods of `history`.

        Example:
            >>> rows = {"symbol": ["AAPL"], "timeframe": ["1d"], "event_timestamp": [datetime(2018, 12, 28, 22, tzinfo=UTC)]}
            >>> client.get_historical_features(pl.DataFrame(rows), ["technical_indicators_view:rsi_14"]).columns
            ['symbol', 'timeframe', 'event_timestamp', 'technical_indicators_view__rsi_14']
        """
        return self.history.get_historical_features(entities, features, **options)

    def get_feature_freshness(self, view: str | None = None) -> "list[StreamState]":
        """SLO state of every stream, or of the streams of one view.

        Raises:
            UnknownNameError: No such view.
            StoreUnavailableError: Postgres does not answer.

        Example:
            >>> states = client.get_feature_freshness("technical_indicators_view")
            >>> [state.freshness.state.value for state in states if state.stream == "us_equity_1d"]
            ['CLOSED']
        """
        return self._freshness(view)

    def get_slo_attainment(self, month: str | None = None, view: str | None = None) -> "list[SloMonth]":
        """SLO attainment and error budget of every stream in a month (YYYY-MM, UTC; None: this one), or of one view's.

        Raises:
            UnknownNameError: No such view.
            MalformedDataError: `month` is none.
            StoreUnavailableError: Postgres does not answer.

        Example:
            >>> {found.month for found in client.get_slo_attainment("2018-12", "technical_indicators_view")}
            {'2018-12'}
        """
        return self._slo(month, view)

    def get_overview(self) -> "Overview":
        """Streams with their delays, blocked partitions and refused rows: what `/status` shows.

        Raises:
            StoreUnavailableError: Postgres does not answer.

        Example:
            >>> overview = client.get_overview()
            >>> overview.at.isoformat(), overview.blocked
            ('2018-12-31T22:00:00+00:00', {})
        """
        return self._platform_overview()

    def get_feature_statistics(self, view: str, start: datetime | None = None, end: datetime | None = None) -> pl.DataFrame:
        """Statistics of a view's newest versions with start < event time <= end; a year up to now when not given.

        Returns:
            A row for each feature: feature and unit String; rows and nulls Int64; mean, standard_deviation, minimum, p05, median, p95 and
            maximum Float64, NULL without values.

        Raises:
            UnknownNameError: No such view.
            StoreUnavailableError: Postgres does not answer.

        Example:
            >>> statistics = client.get_feature_statistics("technical_indicators_view")
            >>> statistics.filter(feature="rsi_14").select("rows", "nulls", "minimum", "maximum").row(0)
            (80, 0, 50.0, 56.0)
        """
        return self._feature_statistics(view, start, end)

    def validate_feature_coverage(
        self,
        features: str | Sequence[str],
        entity_rows: Sequence[Mapping[str, str]] = (),
        tier: int | None = 1,
        *,
        entity_ids: Sequence[str] = (),
        policy: ReadPolicy = DEFAULT_POLICY,
    ) -> Coverage:
        """Share of the eligible cells that are served now, for each feature, against the bar that its view declares.

        Args:
            features: As for `get_online_features`.
            entity_rows: As for `get_online_features`.
            tier: Only instruments of this tier count; None: all of them.
            entity_ids: As for `get_online_features`.
            policy: As for `get_online_features`.

        Returns:
            `is_met` is None, neither met nor missed, where no cell is eligible; `not_judged` names the entities without an eligible cell.

        Raises:
            RefusedError: No instrument is of this tier.
            FeatureStoreError: As `get_online_features`.

        Example:
            >>> found = client.validate_feature_coverage("technical_indicators_service", entity_ids=["AAPL_1d"], policy=patient)
            >>> found.is_met
            True
        """
        return coverage(self.get_online_features(features, entity_rows, None, policy, entity_ids=entity_ids), self.catalogue, tier)
