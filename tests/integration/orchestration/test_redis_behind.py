"""Publications that Redis lacks when nobody is about to sync them: the propagation sensor asks for the sync, once."""

import dagster as dg
import redis

from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.orchestration import asset_keys
from featurestore_dagster.settings import RedisSettings
from featurestore_dagster.stores.redis import RedisStore
from tests.integration.orchestration.conftest import CORRECTED, LATER, VIEWS, WEEKS, Daemon, correct, online
from tests.unit.pipeline.frames import LISTED


def values(daemon: Daemon) -> list[tuple[object, ...]]:
    return [online(daemon, view, symbol) for view in VIEWS for symbol in LISTED]


def selected(requests: list[dg.RunRequest], *views: FeatureView) -> bool:
    return [set(request.asset_selection or ()) for request in requests] == [{asset_keys.online(view) for view in views}]


def test_what_a_dead_worker_published_and_did_not_sync_reaches_redis(daemon: Daemon) -> None:
    before = values(daemon)
    correct(daemon, CORRECTED, LATER)
    for view in VIEWS:
        daemon.deployment.materialise(view, *WEEKS)
    assert values(daemon) == before
    (request,) = requests = daemon.tick()
    assert selected(requests, *VIEWS)
    assert daemon.run(request).is_success
    changed = [now != then for now, then in zip(values(daemon), before, strict=True)]
    assert changed == [view is VIEWS[1] and symbol == "AAA" for view in VIEWS for symbol in LISTED]
    assert daemon.tick() == []


def test_a_flushed_redis_is_filled_again(daemon: Daemon) -> None:
    before = values(daemon)
    settings = daemon.deployment.settings.redis
    with redis.Redis.from_url(settings.url) as client:
        client.flushdb()
    (request,) = requests = daemon.tick()
    assert selected(requests, *VIEWS)
    assert daemon.tick() == [], "it was asked for already"
    assert daemon.run(request).is_success
    assert values(daemon) == before
    assert daemon.tick() == []


def test_what_a_run_may_be_about_to_sync_is_left_to_it(daemon: Daemon) -> None:
    daemon.platform.online.forget(VIEWS[0])
    job = daemon.definitions.resolve_job_def("xnys_path")
    run = daemon.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
    assert daemon.tick() == []
    daemon.instance.report_run_failed(run)
    requests = daemon.tick()
    assert selected(requests, VIEWS[0])


def test_a_redis_that_is_away_stops_no_propagation(daemon: Daemon) -> None:
    vars(daemon.platform)["online"] = RedisStore(RedisSettings(port=1), "featurestore")
    assert daemon.tick() == []
    correct(daemon, CORRECTED)
    (request,) = daemon.tick()
    assert asset_keys.stream(VIEWS[0], VIEWS[0].streams[0]) in set(request.asset_selection or ())
