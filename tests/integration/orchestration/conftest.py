"""A daemon over real stores: five weeks of bars, two views of them, the propagation sensor, and the runs that it asks for."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cached_property
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run
from dagster._core.storage.tags import PARTITION_NAME_TAG

from featurestore_dagster.features.equity_views import DAILY_OHLCV_STATS, MOMENTUM_FEATURES
from featurestore_dagster.features.raw_tables import US_EQUITY_CORPORATE_ACTIONS
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.orchestration.assets.online import build_online_asset
from featurestore_dagster.orchestration.assets.raw import build_raw_asset
from featurestore_dagster.orchestration.assets.views import build_stream_asset
from featurestore_dagster.orchestration.drift import drift_checks
from featurestore_dagster.orchestration.jobs import build_path_job, paths
from featurestore_dagster.orchestration.platform import Platform
from featurestore_dagster.orchestration.propagation import build_propagation_sensor
from featurestore_dagster.pipeline.publication import Pipeline
from featurestore_dagster.serving.online_sync import sync_view
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.postgres.restatements import Restatements
from tests.integration.pipeline.conftest import Deployment, MovingClock, with_listings
from tests.unit.pipeline.frames import EQUITIES, LISTED, close_of, keys_between, session_bars

WEEKS = keys_between("2018-11-05", "2018-12-07")
CORRECTED, LATER = WEEKS[10], WEEKS[15]
VIEWS = tuple(replace(view, streams=view.streams[:1]) for view in (DAILY_OHLCV_STATS, MOMENTUM_FEATURES))
NEW_PRICES = {"close": 118.0, "high": 125.0, "low": 90.0}
"""Above its neighbours: else the sums of gains and losses, and with them the RSI, stay what they were."""


def bars(days: list[str], **corrected: dict[str, float]) -> list[dict[str, Any]]:
    """Prices that move; `corrected` replaces columns of AAA on a day, given as d_2018_11_19."""
    rows = []
    for row in session_bars(days):
        step = (row["event_timestamp"].toordinal() * 7 + ord(row["symbol"][0])) % 11
        moved = {name: row[name] + step for name in ("open", "high", "low", "close")}
        rows.append({**row, **moved, **(corrected.get(f"d_{row['event_timestamp']:%Y_%m_%d}", {}) if row["symbol"] == "AAA" else {})})
    return rows


def label(*days: str) -> dict[str, dict[str, float]]:
    return {"d_" + day.replace("-", "_"): NEW_PRICES for day in days}


@dataclass(frozen=True)
class DeployedPlatform(Platform):
    """The platform over a deployment's clock and sources."""

    deployment: Deployment = field(kw_only=True)

    @cached_property
    def clock(self) -> MovingClock:
        return self.deployment.clock

    @property
    def pipeline(self) -> Pipeline:
        return self.deployment.pipeline


class Daemon:
    """The sensor as Dagster's daemon drives it: cursor kept, requests launched in a real instance, each key once."""

    def __init__(self, deployment: Deployment, instance: dg.DagsterInstance) -> None:
        self.deployment, self.instance = deployment, instance
        catalogue = deployment.catalogue
        self.platform = DeployedPlatform(deployment.settings, catalogue, deployment=deployment)
        self.jobs = jobs = {path.name: build_path_job(catalogue, path) for path in paths(catalogue)}
        self.sensor = build_propagation_sensor(catalogue, jobs, watch_seconds=0)
        self.definitions = dg.Definitions(
            assets=[
                *(build_raw_asset(catalogue, dataset, deployment.clock) for dataset in catalogue.datasets),
                *(build_stream_asset(catalogue, view, view.streams[0], deployment.clock) for view in catalogue.views),
                *(build_online_asset(view) for view in catalogue.views),
            ],
            asset_checks=drift_checks(catalogue),
            jobs=list(jobs.values()),
            sensors=[self.sensor],
            resources={"platform": self.platform},
        )
        self.cursor: str | None = None
        self.keys: set[str] = set()

    def tick(self, *, crash: bool = False, sensor: dg.SensorDefinition | None = None) -> list[dg.RunRequest]:
        """Requests of one tick, of a sensor that need not watch, that Dagster has not heard yet; after a crash nothing of it is stored."""
        with dg.build_sensor_context(
            instance=self.instance, cursor=self.cursor, definitions=self.definitions, resources={"platform": self.platform}
        ) as context:
            result = (sensor or self.sensor).evaluate_tick(context)
        if crash:
            return []
        self.cursor = result.cursor
        fresh = [request for request in result.run_requests or [] if request.run_key not in self.keys]
        self.keys |= {str(request.run_key) for request in fresh}
        return fresh

    def run(self, request: dg.RunRequest) -> dg.DagsterRun:
        """The run of a request, to its end."""
        job = self.definitions.resolve_job_def(str(request.job_name))
        if request.asset_selection:
            checks = None if request.asset_check_keys is None else set(request.asset_check_keys)
            job = job.get_subset(asset_selection=set(request.asset_selection), asset_check_selection=checks)
        tags = {**request.tags, **({PARTITION_NAME_TAG: request.partition_key} if request.partition_key else {})}
        run = self.instance.create_run_for_job(job, tags=tags)
        execute_run(InMemoryJob(job), run, self.instance)
        finished = self.instance.get_run_by_id(run.run_id)
        assert finished is not None
        return finished

    @property
    def restatements(self) -> Restatements:
        return Restatements(self.deployment.settings.postgres)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as instance:
        yield instance


def five_weeks(settings: Settings, instance: dg.DagsterInstance) -> Daemon:
    """Five weeks of bars and two views of them, in Postgres and Redis; the sensor has not looked yet."""
    catalogue: Catalogue = replace(with_listings(LISTED), datasets=(EQUITIES, US_EQUITY_CORPORATE_ACTIONS), views=VIEWS, services=())
    deployment = Deployment(settings, catalogue, MovingClock(close_of(WEEKS[-1]) + timedelta(hours=1)))
    deployment.deliver(bars(WEEKS))
    deployment.ingest(*WEEKS, dataset=US_EQUITY_CORPORATE_ACTIONS)
    deployment.ingest(*WEEKS)
    daemon = Daemon(deployment, instance)
    for view in VIEWS:
        deployment.materialise(view, *WEEKS)
        sync_view(view, deployment.store, daemon.platform.online, deployment.clock.now())
    return daemon


@pytest.fixture
def daemon(fresh_database: Settings, instance: dg.DagsterInstance) -> Daemon:
    """Five weeks that the sensor has seen."""
    daemon = five_weeks(fresh_database, instance)
    assert daemon.tick() == []
    return daemon


def span(request: dg.RunRequest) -> tuple[str, str]:
    if request.partition_key:
        return request.partition_key, request.partition_key
    return request.tags["dagster/asset_partition_range_start"], request.tags["dagster/asset_partition_range_end"]


def correct(daemon: Daemon, *days: str) -> None:
    daemon.deployment.clock.advance(minutes=1)
    daemon.deployment.deliver(bars(WEEKS, **label(*days)))
    daemon.deployment.ingest(*days)


def online(daemon: Daemon, view: FeatureView, symbol: str) -> tuple[Any, ...]:
    """Values and flags in Redis."""
    ((row,),) = daemon.platform.online.read([(view, view.feature_names)], [{"symbol": symbol}]).rows
    assert row is not None
    return (*row.values, row.flags)


def ledger(daemon: Daemon) -> int:
    return daemon.restatements.newest_publication()
