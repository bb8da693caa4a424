"""A store on a flushed Redis, and frames of views."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import polars as pl
import pytest
import redis

from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.projections.postgres_table import feature_schema
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.redis import RedisStore

MakeRows = Callable[..., pl.DataFrame]


@pytest.fixture
def client(settings: Settings) -> Iterator[redis.Redis]:
    """Plain client of a flushed Redis."""
    with redis.Redis.from_url(settings.redis.url) as plain:
        plain.flushall()
        yield plain


@pytest.fixture
def store(settings: Settings, client: redis.Redis) -> Iterator[RedisStore]:
    online = RedisStore(settings.redis, "featurestore")
    yield online
    online.close()


@pytest.fixture
def make_rows() -> MakeRows:
    """Frame of a view: one row for each mapping; features that a mapping lacks are NULL."""

    def make(view: FeatureView, *rows: Mapping[str, Any]) -> pl.DataFrame:
        schema = feature_schema(view)
        defaults: dict[str, Any] = {
            **dict.fromkeys(schema),
            "timeframe": "1d",
            "portfolio": "GLOBAL",
            "flags": 0,
            "feature_set_version": 1,
            "stream": view.streams[0].name,
        }
        complete = [defaults | {"created_timestamp": row.get("event_timestamp")} | row for row in rows]
        return pl.DataFrame([{name: row[name] for name in schema} for row in complete], schema=schema)

    return make
