"""The examples in the clients' documentation run as they are printed, on two months of AAPL and MSFT that were published and synced."""

import asyncio
import doctest
import inspect
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.features.equity_views import TECHNICAL_INDICATORS_VIEW as VIEW
from featurestore_dagster.model.time import FrozenClock
from featurestore_dagster.projections.postgres_table import feature_schema
from featurestore_dagster.projections.relation import stream_relation
from featurestore_dagster.serving.async_client import AsyncFeatureStoreClient
from featurestore_dagster.serving.client import FeatureStoreClient
from featurestore_dagster.serving.client_base import PROJECT
from featurestore_dagster.serving.online_sync import sync_view
from featurestore_dagster.serving.policy import ReadPolicy
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.postgres import PostgresStore
from featurestore_dagster.stores.redis import RedisStore
from tests.integration.serving.test_vectors import SERVICE
from tests.unit.pipeline.frames import close_of, keys_between

DAYS = keys_between("2018-11-01", "2018-12-31")
NOW = datetime(2018, 12, 31, 22, tzinfo=UTC)
CATALOGUE_OF_EXAMPLES = replace(CATALOGUE, services=(*CATALOGUE.services, replace(SERVICE, name="my_vector", version=1)))


def row(number: int, day: str, symbol: str) -> dict[str, Any]:
    values = dict.fromkeys(VIEW.feature_names, 50.0 + number % 7)
    times = {"event_timestamp": close_of(day), "created_timestamp": close_of(day)}
    return {
        "symbol": symbol,
        "timeframe": "1d",
        "flags": 0,
        "feature_set_version": VIEW.version,
        "stream": "us_equity_1d",
        **values,
        **times,
    }


@pytest.fixture
def published(fresh_database: Settings, tmp_path: Path) -> Settings:
    store = PostgresStore(fresh_database.postgres, FrozenClock(NOW))
    rows = [row(number, day, symbol) for number, day in enumerate(DAYS) for symbol in ("AAPL", "MSFT")]
    store.publish(stream_relation(VIEW, VIEW.streams[0]), pl.DataFrame(rows, schema=feature_schema(VIEW)), DAYS)
    sync_view(VIEW, store, RedisStore(fresh_database.redis, PROJECT), NOW)
    return fresh_database.model_copy(update={"data_folder": tmp_path / "data", "clock": NOW.isoformat(), "services": "external"})


def documented(kind: type) -> list[tuple[str, Callable[..., Any]]]:
    return [
        (name, member)
        for name, member in inspect.getmembers(kind)
        if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property))
    ]


def test_every_public_method_of_the_client_has_an_example_that_runs(published: Settings) -> None:
    make = partial(FeatureStoreClient, published, CATALOGUE_OF_EXAMPLES)
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner()
    with make() as client:
        names = {"client": client, "FeatureStoreClient": make, "ReadPolicy": ReadPolicy, "patient": ReadPolicy(2)}
        names |= {"datetime": datetime, "UTC": UTC, "pl": pl}
        for name, member in [("FeatureStoreClient", FeatureStoreClient), *documented(FeatureStoreClient)]:
            (found,) = finder.find(member, name, globs=names)
            assert found.examples or isinstance(member, property), f"{name} has no example"
            assert runner.run(found).failed == 0, name


def test_the_asynchronous_clients_example_runs(published: Settings) -> None:
    names = {
        "asyncio": asyncio,
        "ReadPolicy": ReadPolicy,
        "AsyncFeatureStoreClient": partial(AsyncFeatureStoreClient, published, CATALOGUE_OF_EXAMPLES),
    }
    (found,) = doctest.DocTestFinder(recurse=False).find(AsyncFeatureStoreClient, "AsyncFeatureStoreClient", globs=names)
    assert found.examples
    assert doctest.DocTestRunner().run(found).failed == 0
