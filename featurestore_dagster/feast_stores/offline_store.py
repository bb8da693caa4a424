"""Feast's offline store on Postgres, with our rules. Name `featurestore_dagster.feast_stores.offline_store.BitemporalOfflineStore` as type.

Views of our own catalogue are read by our point-in-time engine, where a TTL is open-market time; any other view by `history`.
"""

from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from functools import partial
from typing import Any, Literal

import polars as pl
import pyarrow as pa
from feast.data_source import DataSource
from feast.errors import FeastEntityDFMissingColumnsError
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL
from feast.feature_view import FeatureView as FeastView
from feast.infra.offline_stores import offline_utils
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres import (
    MULTIPLE_FEATURE_VIEW_POINT_IN_TIME_JOIN,
    PostgreSQLOfflineStore,
    PostgreSQLOfflineStoreConfig,
    PostgreSQLRetrievalJob,
    build_point_in_time_query,
)
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import RepoConfig
from feast.utils import compute_non_entity_date_range
from psycopg import sql
from pydantic import model_validator

from featurestore_dagster.errors import MalformedDataError
from featurestore_dagster.feast_stores.connections import (
    declared_view,
    environments_clock,
    postgres_settings,
    postgres_uri,
    refuse_unexpanded,
)
from featurestore_dagster.feast_stores.history import Source, features_at, pulled, read_arrow
from featurestore_dagster.feast_stores.online_rows import name_in_request, utc
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS
from featurestore_dagster.serving.point_in_time import PointInTimeReader
from featurestore_dagster.stores.postgres import PostgresStore

TYPE = "featurestore_dagster.feast_stores.offline_store.BitemporalOfflineStore"


class BitemporalOfflineStoreConfig(PostgreSQLOfflineStoreConfig):
    """Feast's options of the store `postgres`; TLS is used when the server offers it, instead of being demanded."""

    type: Literal[TYPE] = TYPE  # type: ignore[valid-type]
    sslmode: str | None = "prefer"

    @model_validator(mode="before")
    @classmethod
    def _refuse_unexpanded(cls, options: Any) -> Any:
        for name, value in options.items() if isinstance(options, dict) else ():
            refuse_unexpanded(f"offline_store.{name}", value)
        return options


class BitemporalRetrievalJob(PostgreSQLRetrievalJob):
    """A read that runs when its result is asked for; `to_sql` only for those that are one query."""

    def __init__(self, query: str | None, config: RepoConfig, read: Callable[[], pa.Table], **described: Any) -> None:
        super().__init__(query or "", config, **described)
        self._read = read
        self._is_query = query is not None

    def to_sql(self) -> str:
        """The query."""
        if not self._is_query:
            raise NotImplementedError("historical features are joined outside the database: there is no SQL of them")
        return str(super().to_sql())

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:  # noqa: ARG002 - Feast's
        return self._read()


class BitemporalOfflineStore(PostgreSQLOfflineStore):
    """History as it was known at each row's instant: as many rows as asked for, in their order, known-at always honoured."""

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> BitemporalRetrievalJob:
        """The newest version of each key that happened, or came to be known, in the range; nothing of the future."""
        source = _pulled_source(data_source, join_key_columns, timestamp_field, created_timestamp_column)
        return _pull(config, source, feature_name_columns, start_date, end_date, newest_only=True)

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> BitemporalRetrievalJob:
        """Every version that happened, or came to be known, in the range; nothing of the future."""
        source = _pulled_source(data_source, join_key_columns, timestamp_field, created_timestamp_column)
        return _pull(config, source, feature_name_columns, start_date, end_date, newest_only=False)

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeastView],
        feature_refs: list[str],
        entity_df: Any,
        registry: Any,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,  # noqa: ARG004 - Feast's
        **options: Any,
    ) -> RetrievalJob:
        """The entity rows with the features that were known at their instants; without entity rows, what was known of a range at its end.

        `filter_by_created_timestamp` changes nothing: known-at is always honoured.

        Raises:
            MalformedDataError: An instant is NULL or no instant.
            FeastEntityDFMissingColumnsError: A join key is missing.
        """
        if entity_df is None:
            start, end = options.get("start_date"), options.get("end_date")
            return _in_range(config, feature_views, feature_refs, registry, project, full_feature_names, start, end)
        given = _given(config, entity_df)
        schema = given.slice(0, 0).to_pandas().dtypes.to_dict()
        at = offline_utils.infer_event_timestamp_from_entity_df(schema)
        keys = offline_utils.get_expected_join_keys(project, feature_views, registry)
        if missing := (keys | {at}) - schema.keys():
            raise FeastEntityDFMissingColumnsError(keys | {at}, missing)  # type: ignore[no-untyped-call]
        entities = _entities(given, keys, at)
        now = environments_clock().now()
        low: datetime = entities["_at"].min() or now  # type: ignore[assignment]
        high: datetime = entities["_at"].max() or now  # type: ignore[assignment]
        contexts = offline_utils.get_feature_view_query_context(feature_refs, feature_views, registry, project, (low, high))
        return BitemporalRetrievalJob(
            None,
            config,
            partial(_joined, config, given, entities, feature_views, contexts, now, full_feature_names),
            full_feature_names=full_feature_names,
            on_demand_feature_views=OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry),
            metadata=RetrievalMetadata(feature_refs, [name for name in given.column_names if name != at], low, high),
        )


def _pulled_source(data_source: DataSource, keys: list[str], event_time: str, known_at: str | None) -> Source:
    return Source(data_source.get_table_query_string(), tuple(keys), (), event_time, known_at or None, None)


def _pull(
    config: RepoConfig, source: Source, features: list[str], start: datetime | None, end: datetime | None, *, newest_only: bool
) -> BitemporalRetrievalJob:
    times = [name for name in (source.event_time, source.known_at) if name]
    columns = [*source.keys, *features, *times] if features else []
    low, high = (None if moment is None else utc(moment) for moment in (start, end))
    query: sql.Composable = pulled(source, columns, low, high, environments_clock().now(), newest_only=newest_only)
    if newest_only and not source.keys:
        query = sql.SQL("select {} as {}, newest.* from ({}) as newest").format(DUMMY_ENTITY_VAL, sql.Identifier(DUMMY_ENTITY_ID), query)
    read = partial(read_arrow, postgres_uri(config.offline_store), query)
    return BitemporalRetrievalJob(query.as_string(), config, read, full_feature_names=False)


def _in_range(
    config: RepoConfig,
    feature_views: list[FeastView],
    feature_refs: list[str],
    registry: Any,
    project: str,
    full_feature_names: bool,
    start: datetime | None,
    end: datetime | None,
) -> BitemporalRetrievalJob:
    """Stock Feast's query of a range, which ends now at the latest, over the newest version of each key and event time known at its end."""
    now = environments_clock().now()
    start, end = compute_non_entity_date_range(feature_views, start, min(utc(end or now), now))
    contexts = offline_utils.get_feature_view_query_context(feature_refs, feature_views, registry, project, (start, end))
    views = {name_in_request(view): view for view in feature_views}
    known = []
    for context in contexts:
        identity = (*_key_columns(views[context.name]).values(), context.timestamp_field)
        source = Source(context.table_subquery, identity, (), context.timestamp_field, context.created_timestamp_column or None, None)
        known.append(asdict(context) | {"table_subquery": f"({pulled(source, [], None, None, end, newest_only=True).as_string()})"})
    query = build_point_in_time_query(
        known, "", "", {}.keys(), MULTIPLE_FEATURE_VIEW_POINT_IN_TIME_JOIN, full_feature_names, start_date=start, end_date=end
    )
    return BitemporalRetrievalJob(
        query,
        config,
        partial(read_arrow, postgres_uri(config.offline_store), sql.SQL(query)),
        full_feature_names=full_feature_names,
        on_demand_feature_views=OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry),
        metadata=RetrievalMetadata(feature_refs, [], start, end),
    )


def _given(config: RepoConfig, entity_df: Any) -> pa.Table:
    """The entity rows as Arrow; a text is a query."""
    if isinstance(entity_df, str):
        query = entity_df.rstrip("; \n\r\t") + "\n"  # ADBC puts brackets round it, and a comment would hide the second
        return read_arrow(postgres_uri(config.offline_store), sql.SQL(query))  # the caller's own text
    return pa.Table.from_pandas(entity_df, preserve_index=False)


def _entities(given: pa.Table, keys: set[str], at: str) -> pl.DataFrame:
    """Join keys and `_at` of the entity rows; an instant without zone is UTC, as everywhere in Feast."""
    frame = pl.DataFrame(pl.from_arrow(given.select([*keys, at])))
    instants = frame[at]
    if not isinstance(instants.dtype, pl.Datetime) or instants.null_count():
        raise MalformedDataError(f"{at} is {instants.dtype} with {instants.null_count()} NULLs; every entity row needs an instant")
    zoned = instants.dt.replace_time_zone("UTC") if instants.dtype.time_zone is None else instants.dt.convert_time_zone("UTC")
    return frame.select(*keys, zoned.cast(UTC_MICROSECONDS).alias("_at"))


def _joined(
    config: RepoConfig,
    given: pa.Table,
    entities: pl.DataFrame,
    feature_views: list[FeastView],
    contexts: list[Any],
    now: datetime,
    full_feature_names: bool,
) -> pa.Table:
    """The given rows with the features of every view."""
    uri = postgres_uri(config.offline_store)
    views = {name_in_request(view): view for view in feature_views}
    declared = {name: ours for name, view in views.items() if (ours := declared_view(config, view))}
    published = _published(
        config,
        entities,
        [(views[context.name], declared[context.name], context.features) for context in contexts if context.name in declared],
    )
    for context in contexts:
        view = views[context.name]
        if context.name in declared:
            found = published[context.name]
        else:
            mapped = {source: name for name, source in _key_columns(view).items()}
            source = Source(
                context.table_subquery,
                tuple(mapped),
                tuple(context.features),
                context.timestamp_field,
                context.created_timestamp_column or None,
                view.ttl or None,
            )
            found = features_at(uri, source, entities.select("_at", **{column: pl.col(name) for column, name in mapped.items()}), now)
        for column in context.features:
            name = context.field_mapping.get(column, column)
            given = given.append_column(f"{context.name}__{name}" if full_feature_names else name, found[column])
    return given


def _key_columns(view: FeastView) -> dict[str, str]:
    """Column of the entity rows -> column of the source, for each join key."""
    source_names = {name: column for column, name in view.batch_source.field_mapping.items()}  # type: ignore[union-attr]
    return {
        view.projection.join_key_map.get(entity.name, entity.name): source_names.get(entity.name, entity.name)
        for entity in view.entity_columns
    }


def _published(config: RepoConfig, entities: pl.DataFrame, asked: list[tuple[FeastView, FeatureView, list[str]]]) -> dict[str, pa.Table]:
    """Features of views of our own, by the name that the request gives the view; views with the same keys from one snapshot."""
    if not asked:
        return {}
    store = PostgresStore(postgres_settings(config.offline_store), environments_clock())
    reader = PointInTimeReader(store, CATALOGUE)
    groups: dict[frozenset[tuple[str, str]], list[tuple[FeastView, FeatureView, list[str]]]] = {}
    for view, ours, features in asked:
        groups.setdefault(frozenset(view.projection.join_key_map.items()), []).append((view, ours, features))
    found = {}
    for renamed, group in groups.items():
        name_of = dict(renamed)
        keys = dict.fromkeys(key for _, ours, _ in group for key in ours.join_keys)
        frame = entities.select(pl.col("_at").alias("event_timestamp"), **{key: pl.col(name_of.get(key, key)) for key in keys})
        references = [f"{ours.label}:{name}" for _, ours, features in group for name in features]
        answer = reader.get_historical_features(frame, references)
        for view, ours, features in group:
            columns = {name: answer[f"{ours.label}__{name}"].to_arrow() for name in features}
            found[name_in_request(view)] = pa.table(columns)
    return found
