"""What is published in the tests of our own Feast repository: three views, with a correction, a NULL, two streams and a code."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl

from featurestore_dagster.calendars import calendar
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.model.time import FrozenClock
from featurestore_dagster.projections.postgres_table import feature_schema
from featurestore_dagster.projections.relation import stream_relation
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.postgres import PostgresStore
from featurestore_dagster.stores.redis import RedisStore

NOW = datetime(2018, 12, 31, 22, tzinfo=UTC)
FRIDAY = datetime(2018, 12, 28, 21, tzinfo=UTC)
MONDAY = datetime(2018, 12, 31, 21, tzinfo=UTC)
CORRECTED = datetime(2018, 12, 31, 21, 30, tzinfo=UTC)
MOMENTUM = CATALOGUE.view("momentum_features")
INTRADAY = CATALOGUE.view("technical_indicators_view")
MACRO = CATALOGUE.view("portfolio_macro_features")
DAY, MINUTE = timedelta(days=1), timedelta(minutes=1)
CODE = next(feature.name for feature in MACRO.features if feature.indicator.unit == "code")


def rows_of(view: FeatureView, *rows: Mapping[str, Any]) -> pl.DataFrame:
    schema = feature_schema(view)
    defaults: dict[str, Any] = {**dict.fromkeys(schema), "flags": 0, "feature_set_version": view.version}
    complete = [defaults | {"created_timestamp": row["event_timestamp"]} | row for row in rows]
    return pl.DataFrame([{name: row[name] for name in schema} for row in complete], schema=schema)


def publish(settings: Settings, view: FeatureView, stream_name: str, now: datetime, *rows: Mapping[str, Any]) -> None:
    """Publish rows of a stream, each in the partition of its session."""
    stream = next(stream for stream in view.streams if stream.name == stream_name)
    frame = rows_of(view, *({"stream": stream_name} | row for row in rows))
    frame = frame.with_columns(partition_key=calendar(stream.calendar).session_of(frame["event_timestamp"]).cast(pl.String))
    partitions = frame["partition_key"].unique().sort().to_list()
    PostgresStore(settings.postgres, FrozenClock(now)).publish(stream_relation(view, stream), frame, partitions)


def values(view: FeatureView, start: float) -> dict[str, float | int]:
    return {
        feature.name: int(start) if feature.indicator.unit == "code" else start + number / 8 for number, feature in enumerate(view.features)
    }


def sync(settings: Settings, view: FeatureView) -> None:
    store = RedisStore(settings.redis, "featurestore")
    changes = PostgresStore(settings.postgres, FrozenClock(NOW)).online_changes(view, store.publication_id(view), NOW)
    store.write(view, changes.rows, changes.last_publication_id, retracted=changes.retracted, now=NOW)
    store.close()
