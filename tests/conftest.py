"""Fixtures for every test: embedded servers once a session, a database of its own for each test that asks, a clock that stands still."""

import itertools
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import hypothesis
import psycopg
import pytest
import redis
from psycopg import sql

from featurestore_dagster.model.time import FrozenClock, SystemClock
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.embedded import EmbeddedServices

TEMPLATE = "featurestore_template"
_numbers = itertools.count(1)

UNTIMED = hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])  # a busy machine is no defect
hypothesis.settings.register_profile("ordinary", UNTIMED)
hypothesis.settings.register_profile("nightly", UNTIMED, max_examples=1_000)  # pytest --hypothesis-profile=nightly
hypothesis.settings.load_profile("ordinary")


def pytest_configure() -> None:
    """No test depends on the shell that started it."""
    for variable in Settings.variables():
        os.environ.pop(variable, None)


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServices]:
    """Running embedded servers, stopped at the end of the session."""
    embedded = EmbeddedServices(Settings(data_folder=tmp_path_factory.mktemp("services"), environment="test"))
    embedded.start()
    yield embedded
    embedded.stop()


@pytest.fixture(scope="session")
def session_settings(services: EmbeddedServices) -> Settings:
    """Settings that know the session's servers."""
    return services.start()


@pytest.fixture(scope="session")
def initialised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder whose servers ran once and are stopped: copy it with `cp -a` instead of waiting for initdb."""
    folder = tmp_path_factory.mktemp("initialised") / "data"
    with EmbeddedServices(Settings(data_folder=folder)):
        pass
    return folder


@pytest.fixture
def settings(session_settings: Settings) -> Settings:
    """Settings that know the session's servers; their database is shared: ask for `empty_database` or `fresh_database` to write."""
    return session_settings


@pytest.fixture(scope="session")
def template_database(session_settings: Settings) -> str:
    """Name of a database with the whole catalogue applied and no rows."""
    from featurestore_dagster.features import CATALOGUE
    from featurestore_dagster.stores.postgres import PostgresStore

    _execute(session_settings, sql.SQL("create database {}").format(sql.Identifier(TEMPLATE)))
    PostgresStore(_in_database(session_settings, TEMPLATE).postgres, SystemClock()).apply(CATALOGUE)
    return TEMPLATE


@pytest.fixture
def empty_database(settings: Settings) -> Iterator[Settings]:
    """Settings for a database of this test alone, without any schema, and a flushed Redis."""
    yield from _database(settings, "template1")


@pytest.fixture
def fresh_database(settings: Settings, template_database: str) -> Iterator[Settings]:
    """Settings for a database of this test alone with the catalogue applied, and a flushed Redis."""
    yield from _database(settings, template_database)


@pytest.fixture
def frozen_clock() -> FrozenClock:
    """The demo's instant: after the close of the last session of 2018."""
    return FrozenClock(datetime(2018, 12, 31, 22, tzinfo=UTC))


def _database(settings: Settings, template: str) -> Iterator[Settings]:
    name = f"test_{next(_numbers)}"
    create = sql.SQL("create database {} template {}").format(sql.Identifier(name), sql.Identifier(template))
    _execute(settings, create)
    with redis.Redis.from_url(settings.redis.url) as client:
        client.flushall()
    yield _in_database(settings, name)
    _drop(settings, sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


def _drop(settings: Settings, statement: sql.Composed) -> None:
    """Execute, as soon as the server's own vacuum, which our role may not end, has left the database."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return _execute(settings, statement)
        except psycopg.errors.InsufficientPrivilege:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _in_database(settings: Settings, name: str) -> Settings:
    return settings.with_connections(settings.postgres.model_copy(update={"database": name}), settings.redis)


def _execute(settings: Settings, statement: sql.Composed) -> None:
    with psycopg.connect(settings.postgres.conninfo, autocommit=True) as connection:
        connection.execute(statement)
