"""A provider corrects a session that is over: the next morning's fetch brings it, and the propagation sensor follows."""

from datetime import UTC, datetime
from typing import Any

import dagster as dg

from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.orchestration import asset_keys
from featurestore_dagster.orchestration.jobs import MarketPath
from featurestore_dagster.orchestration.schedules import REFETCHED_SESSIONS, build_refetch_schedule
from tests.integration.orchestration.conftest import VIEWS, WEEKS, Daemon, bars, label, ledger, online
from tests.unit.pipeline.frames import EQUITIES

PATH = MarketPath("XNYS")
CORRECTED, TOO_OLD = WEEKS[-REFETCHED_SESSIONS], WEEKS[-REFETCHED_SESSIONS - 1]
MORNING = datetime(2018, 12, 8, 11, tzinfo=UTC)


def refetch(daemon: Daemon, morning: datetime) -> dg.RunRequest:
    """What the schedule asks for, and its run."""
    daemon.deployment.clock.instant = morning
    schedule: Any = build_refetch_schedule(daemon.deployment.catalogue, PATH)
    context = dg.build_schedule_context(scheduled_execution_time=morning)
    request = schedule._execution_fn.decorated_fn(context, platform=daemon.platform)
    assert isinstance(request, dg.RunRequest)
    assert daemon.run(request.with_replaced_attrs(job_name=PATH.name)).is_success
    return request


def published(daemon: Daemon, since: int) -> set[tuple[Any, ...]]:
    return set(
        daemon.deployment.query(
            "select relation, partition_key from ops.publications where publication_id > %s and rows_published > 0", since
        )
    )


def test_a_late_correction_of_a_provider_is_fetched_and_reaches_redis(daemon: Daemon) -> None:
    momentum = VIEWS[1]
    before, known = online(daemon, momentum, "AAA"), ledger(daemon)
    daemon.deployment.deliver(bars(WEEKS, **label(CORRECTED, TOO_OLD)))

    request = refetch(daemon, MORNING)

    assert set(request.asset_selection or ()) == {asset_keys.raw(dataset) for dataset in daemon.deployment.catalogue.datasets}
    assert published(daemon, known) == {(f"raw.{EQUITIES.name}", CORRECTED)}
    (propagated,) = daemon.tick()
    assert daemon.run(propagated).is_success
    after = online(daemon, momentum, "AAA")
    assert after != before
    assert after[-1] & QualityFlag.RESTATED.value


def test_a_morning_without_corrections_publishes_nothing(daemon: Daemon) -> None:
    known = ledger(daemon)
    refetch(daemon, MORNING)
    assert published(daemon, known) == set()
    assert daemon.tick() == []
