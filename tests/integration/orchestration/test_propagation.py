"""The propagation sensor over a real ledger and a real Dagster instance: what is asked for, what the runs change, what a kill repeats."""

import io
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.events import DagsterEvent
from dagster._core.events.log import EventLogEntry
from dagster._core.execution.api import execute_run
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.storage.tags import AUTO_RETRY_RUN_ID_TAG, PARTITION_NAME_TAG, WILL_RETRY_TAG

from featurestore_dagster.features.equity_views import DAILY_OHLCV_STATS, MOMENTUM_FEATURES
from featurestore_dagster.features.raw_tables import US_EQUITY_CORPORATE_ACTIONS
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.orchestration import asset_keys, propagation
from featurestore_dagster.orchestration.assets.online import build_online_asset
from featurestore_dagster.orchestration.assets.raw import build_raw_asset
from featurestore_dagster.orchestration.assets.views import build_stream_asset
from featurestore_dagster.orchestration.drift import drift_checks
from featurestore_dagster.orchestration.jobs import build_path_job, paths
from featurestore_dagster.orchestration.launched_runs import PROCESS_TAG
from featurestore_dagster.orchestration.platform import Platform
from featurestore_dagster.orchestration.propagation import build_propagation_sensor
from featurestore_dagster.pipeline.publication import Pipeline
from featurestore_dagster.serving.online_sync import sync_view
from featurestore_dagster.serving.slo_state import stream_state
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.postgres.restatements import Restatements
from tests.integration.pipeline.conftest import Deployment, MovingClock, with_listings
from tests.unit.pipeline.frames import EQUITIES, LISTED, close_of, frame, keys_between, session_bars

ROOT = Path(__file__).parents[3]
PROCESS = "from featurestore_dagster.orchestration.launched_runs import process_identity as p; print(p(), flush=True); input()"
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
        jobs = {path.name: build_path_job(catalogue, path) for path in paths(catalogue)}
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

    def tick(self, *, crash: bool = False) -> list[dg.RunRequest]:
        """Requests of one tick that Dagster has not heard yet; after a crash nothing of it is stored."""
        context = dg.build_sensor_context(instance=self.instance, cursor=self.cursor, definitions=self.definitions)
        result = self.sensor(context, platform=self.platform)
        assert isinstance(result, dg.SensorResult)
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
            job = job.get_subset(asset_selection=set(request.asset_selection), asset_check_selection=set(request.asset_check_keys or ()))
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


@pytest.fixture
def daemon(fresh_database: Settings, instance: dg.DagsterInstance) -> Daemon:
    """Five weeks of bars and two views of them, in Postgres and Redis; the sensor has seen them."""
    catalogue: Catalogue = replace(with_listings(LISTED), datasets=(EQUITIES, US_EQUITY_CORPORATE_ACTIONS), views=VIEWS, services=())
    deployment = Deployment(fresh_database, catalogue, MovingClock(close_of(WEEKS[-1]) + timedelta(hours=1)))
    deployment.deliver(bars(WEEKS))
    deployment.ingest(*WEEKS, dataset=US_EQUITY_CORPORATE_ACTIONS)
    deployment.ingest(*WEEKS)
    daemon = Daemon(deployment, instance)
    for view in VIEWS:
        deployment.materialise(view, *WEEKS)
        sync_view(view, deployment.store, daemon.platform.online, deployment.clock.now())
    assert daemon.tick() == []
    return daemon


def _started(run: dg.DagsterRun) -> EventLogEntry:
    kind = dg.DagsterEventType.RUN_START.value
    event = DagsterEvent(kind, run.job_name, message="started")
    return EventLogEntry(None, 10, "", run.run_id, time.time(), None, run.job_name, event)


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


def test_d2_a_corrected_bar_of_last_month_reaches_exactly_its_dependents_and_redis(daemon: Daemon) -> None:
    momentum = VIEWS[1]
    before = {symbol: online(daemon, momentum, symbol) for symbol in LISTED}
    known = ledger(daemon)
    correct(daemon, CORRECTED)
    (request,) = daemon.tick()
    later = [key for key in WEEKS if key >= CORRECTED]
    assert (request.job_name, span(request)) == ("xnys_path", (later[0], later[-1]))
    assert {key.to_user_string() for key in request.asset_selection or ()} == {
        "daily_ohlcv_stats", "momentum_features", "online/daily_ohlcv_stats", "online/momentum_features",
    }  # fmt: skip
    assert daemon.run(request).is_success
    assert daemon.tick() == []
    written = daemon.deployment.query(
        "select relation, partition_key from ops.publications where publication_id > %s and rows_published > 0 and relation <> %s",
        known, "raw.us_equity_candles_1d",
    )  # fmt: skip
    assert {key for name, key in written if "ohlcv" in name} == {CORRECTED}
    # The RSI has its first value on the fifteenth day, and remembers everything from then on.
    assert {key for name, key in written if "momentum" in name} == {CORRECTED, *WEEKS[14:]}
    after = {symbol: online(daemon, momentum, symbol) for symbol in LISTED}
    assert [symbol for symbol in LISTED if after[symbol] != before[symbol]] == ["AAA"]
    assert after["AAA"][-1] & QualityFlag.RESTATED.value
    (restatement,) = daemon.restatements.requests()
    assert (restatement.status, restatement.partitions, restatement.finished_at is None) == ("done", len(later), False)
    (change,) = daemon.restatements.changes()
    assert (change["relation"], change["rows"], change["keys"]) == ("raw.us_equity_candles_1d", 1, ["AAA/1d"])
    assert set(change["touched"]) == {"features.daily_ohlcv_stats.us_equity_1d", "features.momentum_features.us_equity_1d"}


def test_a_restatement_equals_a_rebuild(daemon: Daemon) -> None:
    correct(daemon, LATER, CORRECTED)
    (request,) = daemon.tick()
    daemon.run(request)
    deployment = daemon.deployment
    restated = {view.name: (deployment.hashes(view), deployment.features(view).drop("created_timestamp", "flags")) for view in VIEWS}
    for view in VIEWS:
        deployment.query(f"delete from features.{view.name} returning 1")
    deployment.query("delete from ops.publications where starts_with(relation, 'features.') returning 1")
    for view in VIEWS:
        deployment.materialise(view, *WEEKS)
        hashes, rows = restated[view.name]
        assert deployment.hashes(view) == hashes
        assert deployment.features(view).drop("created_timestamp", "flags").equals(rows)


def test_d11_many_corrections_are_one_request_and_those_during_it_another(daemon: Daemon) -> None:
    correct(daemon, CORRECTED)
    correct(daemon, CORRECTED, LATER)
    (first,) = daemon.tick()
    assert span(first) == (CORRECTED, WEEKS[-1])
    daemon.run(first)
    correct(daemon, CORRECTED, LATER, WEEKS[20])
    correct(daemon, CORRECTED, LATER, WEEKS[20], WEEKS[22])
    (second,) = daemon.tick()
    assert span(second) == (WEEKS[20], WEEKS[-1])
    correct(daemon, CORRECTED, LATER, WEEKS[20], WEEKS[22], WEEKS[21])
    assert daemon.tick() == [], "a correction waits while its path has a request"
    daemon.run(second)  # it reads that correction too
    assert daemon.tick() == []
    assert [request.status for request in daemon.restatements.requests()] == ["done", "done"]
    assert all(outcome.unchanged for view in VIEWS for outcome in daemon.deployment.materialise(view, *WEEKS))


def test_a_publisher_that_still_runs_is_waited_for(daemon: Daemon, instance: dg.DagsterInstance) -> None:
    run = instance.create_run_for_job(daemon.definitions.resolve_job_def("xnys_path"))
    daemon.deployment.clock.advance(minutes=1)
    daemon.deployment.deliver(bars(WEEKS, **label(CORRECTED)))
    daemon.deployment.ingest(CORRECTED, run_id=run.run_id)
    assert daemon.tick() == [], "it may be about to compute the views itself"
    instance.report_run_failed(run)
    assert len(daemon.tick()) == 1


def test_a_publisher_that_was_killed_is_not_waited_for(daemon: Daemon, instance: dg.DagsterInstance) -> None:
    with subprocess.Popen([sys.executable, "-c", PROCESS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        identity = (process.stdout or io.StringIO()).readline().strip()
        tags = {PROCESS_TAG: identity}
        run = instance.create_run_for_job(daemon.definitions.resolve_job_def("xnys_path"), tags=tags)
        instance.handle_new_event(_started(run))
        daemon.deployment.clock.advance(minutes=1)
        daemon.deployment.deliver(bars(WEEKS, **label(CORRECTED)))
        daemon.deployment.ingest(CORRECTED, run_id=run.run_id)
        assert daemon.tick() == []
        process.kill()
        process.wait()
    assert len(daemon.tick()) == 1
    killed = instance.get_run_by_id(run.run_id)
    assert killed is not None
    assert killed.is_failure


def test_a_sensor_killed_before_dagster_heard_of_it_asks_again_and_two_daemons_ask_once(daemon: Daemon) -> None:
    correct(daemon, CORRECTED)
    assert daemon.tick(crash=True) == []
    (request,) = daemon.tick()
    other = Daemon(daemon.deployment, daemon.instance)
    # The second daemon's tick repeats the request under the same key: Dagster launches a key once.
    assert {again.run_key for again in other.tick()} == {request.run_key}
    daemon.run(request)
    assert [*daemon.tick(), *other.tick()] == []
    assert len(daemon.restatements.requests()) == 1


def test_a_run_that_died_is_asked_for_again_three_times(daemon: Daemon, instance: dg.DagsterInstance) -> None:
    correct(daemon, CORRECTED)
    requests = daemon.tick()
    for _ in range(3):
        (request,) = requests
        run = instance.create_run_for_job(daemon.definitions.resolve_job_def("xnys_path"), tags=request.tags)
        instance.report_run_failed(run)
        requests = daemon.tick()
    assert requests == []
    (restatement,) = daemon.restatements.requests()
    assert (restatement.status, restatement.attempts) == ("failed", 3)


def test_a_worker_that_dagster_replaces_is_not_asked_for_as_well(daemon: Daemon, instance: dg.DagsterInstance) -> None:
    correct(daemon, CORRECTED)
    (request,) = daemon.tick()
    job = daemon.definitions.resolve_job_def("xnys_path")
    location = RegisteredCodeLocationOrigin("featurestore_dagster")
    origin = RemoteJobOrigin(RemoteRepositoryOrigin(location, "__repository__"), "xnys_path")
    killed = instance.create_run_for_job(job, tags=request.tags, remote_job_origin=origin)
    instance.report_run_failed(killed)
    instance.add_run_tags(killed.run_id, {WILL_RETRY_TAG: "true"})
    assert daemon.tick() == []
    child = instance.create_run_for_job(job, tags=request.tags, remote_job_origin=origin)
    instance.add_run_tags(killed.run_id, {AUTO_RETRY_RUN_ID_TAG: child.run_id})
    assert daemon.tick() == []
    instance.report_run_failed(child)
    (again,) = daemon.tick()
    assert again.run_key != request.run_key


def test_a_block_under_a_clock_that_stands_still_ends_with_the_correction(daemon: Daemon, instance: dg.DagsterInstance) -> None:
    def block(run_id: str) -> None:
        daemon.deployment.query(
            "insert into ops.quality_log (relation, partition_key, outcome, checks, flags, run_id, logged_at)"
            " values (%s, %s, 'blocked', '[]', '{}', %s, %s) returning 1",
            "features.momentum_features.us_equity_1d", WEEKS[-1], run_id, daemon.deployment.clock.now(),
        )  # fmt: skip

    daemon.deployment.clock.advance(minutes=1)
    block("an earlier run")
    daemon.deployment.deliver(bars(WEEKS, **label(WEEKS[-1])))
    daemon.deployment.ingest(WEEKS[-1])
    (request,) = daemon.tick()
    assert asset_keys.stream(VIEWS[1], VIEWS[1].streams[0]) in (request.asset_selection or ())
    job = daemon.definitions.resolve_job_def("xnys_path")
    instance.report_run_failed(instance.create_run_for_job(job, tags=request.tags))
    (again,) = daemon.tick()
    refused = instance.create_run_for_job(job, tags=again.tags)
    block(refused.run_id)
    instance.report_run_failed(refused)
    assert daemon.tick() == [], "its own audit refused a partition, and would again"
    (restatement,) = daemon.restatements.requests()
    assert (restatement.status, restatement.attempts) == ("failed", 2)


def test_a_replayed_row_reaches_its_dependents(daemon: Daemon) -> None:
    day = WEEKS[-1]
    deployment = daemon.deployment
    deployment.clock.advance(minutes=1)
    changed = [row for row in bars(WEEKS, **label(day)) if row["symbol"] == "AAA" and row["event_timestamp"] == close_of(day)]
    assert not any(outcome.blocked for outcome in deployment.pipeline.replay(EQUITIES, frame(changed), "replay"))
    (request,) = daemon.tick()
    assert span(request) == (day, day)
    assert daemon.run(request).is_success


def test_a_blocked_partition_releases_nothing(daemon: Daemon) -> None:
    deployment = daemon.deployment
    deployment.deliver([{**row, "low": 1e9} for row in bars(WEEKS[-1:])])
    assert all(outcome.blocked for outcome in deployment.ingest(WEEKS[-1]))
    assert daemon.tick() == []


def test_a_long_correction_waits_for_a_person(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(propagation, "LONGEST_SESSIONS", 5)
    correct(daemon, CORRECTED)
    assert daemon.tick() == []
    (restatement,) = daemon.restatements.requests()
    assert (restatement.status, restatement.partitions) == ("waiting", len([key for key in WEEKS if key >= CORRECTED]))
    correct(daemon, CORRECTED, WEEKS[-1])
    (request,) = daemon.tick()
    assert span(request) == (WEEKS[-1], WEEKS[-1]), "a waiting request holds up no other"


@pytest.mark.parametrize(
    ("back_at", "missed"),
    [
        pytest.param("2018-12-12T10:00-05:00", ("2018-12-10", "2018-12-11"), id="two days"),
        pytest.param("2018-12-10T20:00-05:00", None, id="the session may still be asked for"),
        pytest.param("2018-12-09T12:00-05:00", None, id="a weekend"),
        pytest.param("2019-01-16T10:00-05:00", ("2018-12-10", "2019-01-15"), id="five weeks"),
        pytest.param("2019-02-20T10:00-05:00", None, id="ten weeks are no outage"),
    ],
)
def test_a_daemon_that_was_down_runs_the_missed_sessions_once(daemon: Daemon, back_at: str, missed: tuple[str, str] | None) -> None:
    daemon.deployment.clock.instant = datetime.fromisoformat(back_at).astimezone(UTC)
    requests = daemon.tick()
    assert [(request.job_name, span(request), request.asset_selection) for request in requests] == (
        [("xnys_path", missed, None)] if missed else []
    )
    assert daemon.tick() == []


def test_a_caught_up_session_equals_one_that_ran_in_time(daemon: Daemon) -> None:
    days = ["2018-12-10", "2018-12-11"]
    deployment = daemon.deployment
    deployment.deliver(bars([*WEEKS, *days]))
    deployment.clock.instant = close_of("2018-12-11") + timedelta(hours=14)
    (request,) = daemon.tick()
    assert daemon.run(request).is_success
    assert daemon.tick() == []
    caught_up = {view.name: deployment.hashes(view) for view in VIEWS}
    assert all(set(hashes) == {*WEEKS, *days} for hashes in caught_up.values())
    assert online(daemon, VIEWS[0], "AAA")[3] == deployment.bars().filter(symbol="AAA")["close"][-1]


def test_t10_d1_a_backfill_of_old_sessions_changes_neither_freshness_nor_redis(daemon: Daemon) -> None:
    deployment, view = daemon.deployment, VIEWS[0]
    old = keys_between("2018-10-29", "2018-11-02")
    deployment.deliver(bars([*old, *WEEKS]))
    before = [(online(daemon, view, symbol), view.name) for symbol in LISTED]
    state = stream_state(deployment.catalogue, deployment.store, view, view.streams[0], deployment.clock.now())
    assets = [asset_keys.raw(EQUITIES), asset_keys.stream(view, view.streams[0]), asset_keys.online(view)]
    tags = {"dagster/asset_partition_range_start": old[0], "dagster/asset_partition_range_end": old[-1]}
    backfill = dg.RunRequest(job_name="xnys_path", asset_selection=assets, tags=tags)
    assert daemon.run(backfill).is_success
    assert set(old) < set(deployment.hashes(view))
    assert [(online(daemon, view, symbol), view.name) for symbol in LISTED] == before
    assert stream_state(deployment.catalogue, deployment.store, view, view.streams[0], deployment.clock.now()) == state
    known = ledger(daemon)
    assert daemon.run(backfill).is_success
    assert ledger(daemon) == known, "the same backfill again finds nothing new"
    # The other view was not computed for these sessions; both read them for later ones, in the same chunk.
    asked = {(request.asset_selection[0].to_user_string(), span(request)) for request in daemon.tick() if request.asset_selection}
    assert asked == {("daily_ohlcv_stats", (WEEKS[0], WEEKS[-1])), ("momentum_features", (old[0], WEEKS[-1]))}


def test_a_publication_is_noticed_while_it_is_waited_for(daemon: Daemon) -> None:
    assert not daemon.restatements.await_publication(0)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(daemon.restatements.await_publication, 60)
        for number in range(len(WEEKS)):
            if waiting.done():
                break
            correct(daemon, *WEEKS[: number + 1])
        assert waiting.result()
