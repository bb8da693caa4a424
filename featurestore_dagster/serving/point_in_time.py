"""Feature values as they were known at an instant, from the published versions in Postgres.

The rule of visibility is `pipeline.bitemporal`; this adds which rows to read, and the TTL in open-market time.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

import polars as pl

from featurestore_dagster.calendars import calendar
from featurestore_dagster.errors import MalformedDataError
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.feature_view import LONGEST_CLOSURE, FeatureView
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS
from featurestore_dagster.pipeline.bitemporal import join_visible
from featurestore_dagster.projections.postgres_table import feature_schema
from featurestore_dagster.stores.postgres import PostgresStore
from featurestore_dagster.stores.redis import StoredRow

CLOCK_TO_OPEN = 6
"""A market that opens 6.5 of 24 hours on five of seven days: this many clock hours hold at least one open hour, so history of TTL times
this, plus the longest closure, holds every row that can be inside the TTL."""

MICROSECOND = timedelta(microseconds=1)


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
            features: Name of a feature service, or `view:feature` references.

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
            wanted.setdefault(view.name, (view, []))[1].append(feature.name)
        result = entities
        for view, names in wanted.values():
            rows = self.visible_rows(view, entities)
            fresh = rows["age_microseconds"] < view.ttl // MICROSECOND
            result = result.with_columns(
                pl.when(fresh.fill_null(value=False)).then(rows[name]).otherwise(None).alias(f"{view.name}__{name}") for name in names
            )
        return result.select(*entities.columns, *(f"{view.name}__{feature.name}" for view, feature in pairs))

    def visible_rows(self, view: FeatureView, entities: pl.DataFrame) -> pl.DataFrame:
        """The view's row that each entity row could see, whatever its age: same rows, same order, NULL where nothing was visible.

        Columns: `asked_at`, those of the view's table (times as `value_timestamp` and `created_timestamp`), and `age_microseconds` of
        open-market time.

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
            start = low - view.ttl * CLOCK_TO_OPEN - LONGEST_CLOSURE  # type: ignore[operator]
            versions = self._store.read_features(view, start, high, keys=keys, all_versions=True)  # type: ignore[arg-type]
        rows = join_visible(
            asked.rename({"event_timestamp": "asked_at"}),
            versions.rename({"event_timestamp": "value_timestamp"}),
            keys=view.join_keys,
            at="asked_at",
            event_time="value_timestamp",
            known_at="created_timestamp",
        )
        ages = pl.Series("age_microseconds", [None] * rows.height, dtype=pl.Int64)
        for stream in view.streams:
            market = calendar(stream.calendar)
            age = market.open_microseconds(rows["asked_at"]) - market.open_microseconds(rows["value_timestamp"])
            ages = ages.zip_with((rows["stream"] != stream.name).fill_null(value=True), age)
        return rows.with_columns(ages.alias("age_microseconds"))


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
                    answer[view.name] = None
                    continue
                answer[view.name] = StoredRow(
                    event_timestamp=row["value_timestamp"],
                    known_at=row["created_timestamp"],
                    flags=row["flags"],
                    stream=row["stream"],
                    values={name: row[name] for name in features},
                )
        return found
