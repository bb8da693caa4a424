"""Servers of a test module's own, with published and synced features, that a test may kill, freeze, flush or lock."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from featurestore_dagster.features.equity_views import DAILY_OHLCV_STATS, MOMENTUM_FEATURES
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.serving.async_client import AsyncFeatureStoreClient
from featurestore_dagster.serving.client import FeatureStoreClient
from featurestore_dagster.serving.client_base import PROJECT
from featurestore_dagster.serving.online_sync import sync_view
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.embedded import EmbeddedServices, processes
from featurestore_dagster.stores.postgres import PostgresStore
from featurestore_dagster.stores.redis import RedisStore
from tests.integration.pipeline.conftest import Deployment, MovingClock, with_listings
from tests.unit.pipeline.frames import LISTED, close_of, keys_between, session_bars

DAYS = keys_between("2018-11-19", "2018-12-31")
NOW = close_of(DAYS[-1]) + timedelta(hours=1)
VIEWS = (DAILY_OHLCV_STATS, MOMENTUM_FEATURES)
REFERENCES = [f"{view.name}:{name}" for view in VIEWS for name in view.feature_names]
ENTITIES = [{"symbol": "AAA"}, {"symbol": "CCC"}, {"symbol": "nobody"}]


@dataclass
class Served:
    """A deployment with clients; `clock` is that of the frozen settings."""

    services: EmbeddedServices
    settings: Settings
    catalogue: Catalogue

    @property
    def store(self) -> PostgresStore:
        return PostgresStore(self.settings.postgres, MovingClock(NOW))

    def client(self, now: datetime = NOW) -> FeatureStoreClient:
        return FeatureStoreClient(self.settings.model_copy(update={"clock": now.isoformat()}), self.catalogue)

    def async_client(self) -> AsyncFeatureStoreClient:
        return AsyncFeatureStoreClient(self.settings, self.catalogue)

    def sync(self) -> None:
        online = RedisStore(self.settings.redis, PROJECT)
        for view in VIEWS:
            sync_view(view, self.store, online, NOW, self.catalogue)
        online.close()

    def redis(self) -> "redis.Redis":
        return redis.Redis.from_url(self.settings.redis.url)

    def store_connection(self) -> "psycopg.Connection[tuple[object, ...]]":
        return psycopg.connect(self.settings.postgres.conninfo)

    def processes(self, name: str) -> list[psutil.Process]:
        """The server and its children, the server first."""
        server = psutil.Process(next(status.process_id for status in self.services.status() if status.name == name))
        return [server, *server.children(recursive=True)]

    def kill(self, name: str) -> None:
        server = self.processes(name)[0]
        os.kill(server.pid, signal.SIGKILL)
        assert processes.wait_until(lambda: not processes.alive(server), 20)

    @contextmanager
    def frozen(self, *names: str) -> Iterator[None]:
        """The servers stand still: they accept connections, and never answer."""
        stopped = [process for name in names for process in self.processes(name)]
        for process in stopped:
            with suppress(psutil.NoSuchProcess):  # a connection that was just ending
                process.suspend()
        try:
            yield
        finally:
            for process in stopped:
                with suppress(psutil.NoSuchProcess):
                    process.resume()

    @contextmanager
    def locked(self, table: str) -> Iterator[None]:
        """Every read of the table waits."""
        with psycopg.connect(self.settings.postgres.conninfo) as connection:
            connection.execute(f'lock table features."{table}" in access exclusive mode')  # type: ignore[arg-type]
            yield
            connection.rollback()


@pytest.fixture(scope="module")
def deployed(initialised: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Five symbols with six weeks of daily bars; two views published."""
    folder = tmp_path_factory.mktemp("served") / "data"
    subprocess.run(["cp", "-a", str(initialised), str(folder)], check=True)
    services = EmbeddedServices(Settings(data_folder=folder, clock=NOW.isoformat()))
    settings = services.start()
    deployment = Deployment(settings, with_listings(LISTED), MovingClock(NOW))
    deployment.store.apply(deployment.catalogue)
    deployment.deliver(session_bars(DAYS))
    assert not any(outcome.blocked for outcome in deployment.ingest(*DAYS))
    for view in VIEWS:
        assert not any(outcome.blocked for outcome in deployment.materialise(view, *DAYS))
    yield Served(services, settings, deployment.catalogue)
    services.stop()


@pytest.fixture
def served(deployed: Served) -> Served:
    """As `deployed`, everything running and in step, whatever the test before did."""
    settings = deployed.services.start()
    found = replace(deployed, settings=settings)
    with found.redis() as plain:
        plain.flushall()
    found.sync()
    return found
