"""Feature values as they were known at an instant, from the published versions in Postgres.

The rule of visibility is `pipeline.bitemporal`; this adds which rows to read.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime

import polars as pl

from featurestore_dagster.errors import MalformedDataError
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS
from featurestore_dagster.pipeline.bitemporal import clock_time, rows_as_known
from featurestore_dagster.projections.postgres_table import feature_schema
from featurestore_dagster.stores.postgres import PostgresStore
from featurestore_dagster.stores.redis import StoredRow


class PointInTimeReader:
    """Historical reads from Postgres."""

    def __init__(self, store: PostgresStore, catalogue: Catalogue) -> None:
        """Nothing is read before the first call."""
        self._store = store
        self._catalogue = catalogue

    def get_historical_features(self, entities: pl.DataFrame, features: str | Sequence[str]) -> pl.DataFrame:
        """The entity frame with each feature as it was known at the row's `event_timestamp`.

        Args:
            entities: Join keys of all views asked for (text) and `event_timestamp` (timezone-aware); other columns are kept.
            features: Name of a feature service, or `view:feature` or `view@version:feature` references.

        Returns:
            As many rows as `entities`, in the same order, with columns `view__feature`. NULL where nothing was known, the value was NULL,
            or its age in open-market time reached the view's TTL.

        Raises:
            MalformedDataError: A join key or `event_timestamp` is missing, or the timestamps have no time zone.
            UnknownNameError: No such service, view or feature.
        """
        pairs = self._catalogue.service(features).references if isinstance(features, str) else self._catalogue.references(features)
        wanted: dict[str, tuple[FeatureView, list[str]]] = {}
        for view, feature in pairs:
            wanted.setdefault(view.label, (view, []))[1].append(feature.name)
        result = entities
        for view, names in wanted.values():
            rows = self.visible_rows(view, entities)
            result = result.with_columns(
                pl.when(rows["is_within_ttl"]).then(rows[name]).otherwise(None).alias(f"{view.label}__{name}") for name in names
            )
        return result.select(*entities.columns, *(f"{view.label}__{feature.name}" for view, feature in pairs))

    def visible_rows(self, view: FeatureView, entities: pl.DataFrame) -> pl.DataFrame:
        """The view's row that each entity row could see, whatever its age: same rows, same order, NULL where nothing was visible.

        Columns: those of `rows_as_known`, without those of `entities` that are no join key.

        Raises:
            MalformedDataError: As `get_historical_features`.
        """
        missing = [name for name in (*view.join_keys, "event_timestamp") if name not in entities.columns]
        if missing:
            raise MalformedDataError(f"the entity frame lacks {missing}; view {view.name} needs {[*view.join_keys, 'event_timestamp']}")
        dtype = entities.schema["event_timestamp"]
        if not isinstance(dtype, pl.Datetime) or dtype.time_zone is None:
            raise MalformedDataError(f"event_timestamp is {dtype}; give timezone-aware instants, for example datetime.now(UTC)")
        asked = entities.select(*view.join_keys, pl.col("event_timestamp").dt.convert_time_zone("UTC").cast(UTC_MICROSECONDS))
        if asked.is_empty():
            versions = pl.DataFrame(schema=feature_schema(view))
        else:
            low, high = asked["event_timestamp"].min(), asked["event_timestamp"].max()
            keys = {key: asked[key].unique().drop_nulls().to_list() for key in view.join_keys}
            start = low - clock_time(view.longest_ttl)  # type: ignore[operator]
            versions = self._store.read_features(view, start, high, keys=keys, all_versions=True)  # type: ignore[arg-type]
        return rows_as_known(view, asked.rename({"event_timestamp": "asked_at"}), versions)


class RowsAt:
    """What the online store would have answered at an instant: the newest visible rows, read from Postgres."""

    tier = "postgres"

    def __init__(self, reader: PointInTimeReader, instant: datetime) -> None:
        """Answers for one instant."""
        self._reader = reader
        self._instant = instant

    def read(
        self, requests: Sequence[tuple[FeatureView, Sequence[str]]], entities: Sequence[Mapping[str, str]]
    ) -> list[dict[str, StoredRow | None]]:
        """As `RedisStore.read`."""
        found: list[dict[str, StoredRow | None]] = [{} for _ in entities]
        for view, features in requests:
            frame = pl.DataFrame(
                [{key: entity[key] for key in view.join_keys} for entity in entities], schema=dict.fromkeys(view.join_keys, pl.String)
            ).with_columns(pl.lit(self._instant).cast(UTC_MICROSECONDS).alias("event_timestamp"))
            for answer, row in zip(found, self._reader.visible_rows(view, frame).iter_rows(named=True), strict=True):
                if row["value_timestamp"] is None:
                    answer[view.label] = None
                    continue
                answer[view.label] = StoredRow(
                    event_timestamp=row["value_timestamp"],
                    known_at=row["created_timestamp"],
                    flags=row["flags"],
                    stream=row["stream"],
                    values={name: row[name] for name in features},
                )
        return found
