"""The propagation sensor over a real ledger and a real Dagster instance: what is asked for, what the runs change, what a kill repeats."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.storage.tags import AUTO_RETRY_RUN_ID_TAG, WILL_RETRY_TAG

from featurestore_dagster.definitions import build_definitions
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.orchestration import asset_keys, propagation
from featurestore_dagster.orchestration.jobs import paths
from featurestore_dagster.orchestration.platform import Platform
from featurestore_dagster.projections.relation import stream_relation
from featurestore_dagster.serving.slo_state import stream_state
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.embedded import processes
from featurestore_dagster.stores.postgres.restatements import REQUESTED, Restatement, Restatements
from tests.integration.orchestration.conftest import (
    CORRECTED,
    LATER,
    VIEWS,
    WEEKS,
    Daemon,
    bars,
    correct,
    label,
    ledger,
    online,
    span,
)
from tests.unit.pipeline.frames import EQUITIES, LISTED, close_of, frame, keys_between


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


def test_a_views_online_rows_do_not_wait_for_the_next_view(daemon: Daemon, instance: dg.DagsterInstance) -> None:
    correct(daemon, CORRECTED)
    (request,) = daemon.tick()
    run = daemon.run(request)
    starts = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_START)
    views = ["daily_ohlcv_stats", "momentum_features"]
    assert [entry.step_key for entry in starts] == [step for view in views for step in (view, f"online__{view}")]


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


def test_a_publication_between_the_look_and_the_wait_is_noticed(daemon: Daemon) -> None:
    looked_at = ledger(daemon)
    assert not daemon.restatements.await_publication(looked_at, 0.1)
    correct(daemon, CORRECTED)
    assert daemon.restatements.await_publication(looked_at, 60)


def test_a_tick_that_waits_asks_for_what_is_published_meanwhile(daemon: Daemon) -> None:
    watching = propagation.build_propagation_sensor(daemon.deployment.catalogue, daemon.jobs, watch_seconds=60)
    waits = "select 1 from pg_stat_activity where datname = current_database() and query like 'select coalesce(max(publication_id)%%'"
    with ThreadPoolExecutor(1) as thread:
        tick = thread.submit(daemon.tick, sensor=watching)
        assert processes.wait_until(lambda: bool(daemon.deployment.query(waits)), 60)
        correct(daemon, CORRECTED)
        (request,) = tick.result(60)
    assert span(request)[0] == CORRECTED
    assert daemon.tick() == []


def test_a_macro_revision_asks_for_the_mart_in_a_way_that_dagster_can_run(fresh_database: Settings, instance: dg.DagsterInstance) -> None:
    definitions = build_definitions(fresh_database.model_copy(update={"clock": "2018-12-31T22:00:00Z"}))
    platform = Platform(fresh_database, CATALOGUE)
    sensor = definitions.resolve_sensor_def("propagation_sensor")
    for path in paths(CATALOGUE):
        streams = [pair for pair in path.streams(CATALOGUE) if pair[0].mart]
        if not streams:
            continue
        wanted = Restatement(
            restatement_id=0, job=path.name, status=REQUESTED, relations=[stream_relation(*pair).name for pair in streams],
            first_partition=CORRECTED, last_partition=LATER, partitions=2, causes={"raw.us_macro": 1}, last_publication_id=1,
            attempts=1, changed_at=close_of(LATER), requested_at=close_of(LATER), finished_at=None, run_id=None,
        )  # fmt: skip
        Restatements(fresh_database.postgres).add([wanted], path.name, 1)
    context = dg.build_sensor_context(instance=instance, definitions=definitions)
    result = sensor(context, platform=platform)
    assert isinstance(result, dg.SensorResult)
    assert result.run_requests
    for request in result.run_requests:
        assert asset_keys.mart("macro_series") in (request.asset_selection or ())
        checks = set(request.asset_check_keys or ())
        job = definitions.resolve_job_def(str(request.job_name)).get_subset(
            asset_selection=set(request.asset_selection or ()), asset_check_selection=checks
        )
        assert dg.AssetCheckKey(asset_keys.mart("macro_series"), "macro_series_unique") in checks
        assert job.asset_layer.asset_graph.asset_check_keys >= checks
