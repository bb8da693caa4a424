"""The check `drift` as Dagster runs it: a warning with a plot when the newest quarter is unlike the year before, and never a failure."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import dagster as dg
import numpy as np
import polars as pl
import pytest

from featurestore_dagster.calendars import calendar
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.features.equity_views import MOMENTUM_FEATURES
from featurestore_dagster.model.drift import drift_windows
from featurestore_dagster.orchestration import asset_keys, retries
from featurestore_dagster.orchestration.drift import DRIFT, build_drift_job, build_drift_schedule, drift_checks
from featurestore_dagster.orchestration.platform import Platform
from featurestore_dagster.orchestration.sensors import freshness_checks
from featurestore_dagster.projections.postgres_table import feature_schema
from featurestore_dagster.projections.relation import stream_relation
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.embedded import processes

NOW = datetime(2018, 12, 31, 22, tzinfo=UTC)
STREAM = MOMENTUM_FEATURES.streams[0]
SMALL = replace(CATALOGUE, views=(replace(MOMENTUM_FEATURES, streams=(STREAM,)),), services=())
VIEW = SMALL.views[0]
SYMBOLS = 5


def published(platform: Platform, shift: float) -> int:
    """Rows of all sessions that the check reads: every feature is normal noise, moved by `shift` deviations in the newest window."""
    windows, market = drift_windows(STREAM.timeframe), calendar(STREAM.calendar)
    last = NOW.date()
    first = market.previous_sessions(last, windows.reference_sessions + windows.current_sessions - 1)
    sessions = market.sessions(first, last)
    count = sessions.height
    assert count == windows.reference_sessions + windows.current_sessions
    draw = np.random.default_rng(7)
    parts = []
    for number in range(SYMBOLS):
        moved = np.where(np.arange(count) >= windows.reference_sessions, shift, 0.0)
        values = {name: draw.normal(0, 1, count) + moved for name in VIEW.feature_names}
        parts.append(pl.DataFrame({"symbol": [f"S{number}"] * count, "event_timestamp": sessions["closes"], **values}))
    schema = feature_schema(VIEW)
    rows = pl.concat(parts).with_columns(
        (pl.col("event_timestamp") + timedelta(minutes=15)).alias("created_timestamp"),
        flags=pl.lit(0),
        feature_set_version=pl.lit(VIEW.version),
        stream=pl.lit(STREAM.name),
    )
    relation = stream_relation(VIEW, STREAM)
    keys = [session.isoformat() for session in sessions["session"]]
    platform.store.publish(relation, rows.select(list(schema)).cast(schema), keys)  # type: ignore[arg-type]
    return count


@pytest.mark.parametrize(("shift", "passes"), [(0.0, True), (1.5, False)])
def test_a_shift_is_a_warning_with_its_picture(fresh_database: Settings, shift: float, passes: bool) -> None:
    platform = Platform(fresh_database.model_copy(update={"clock": NOW.isoformat()}), SMALL)
    count = published(platform, shift)
    job = build_drift_job(SMALL)
    definitions = dg.Definitions(
        assets=[dg.AssetSpec(asset_keys.stream(VIEW, STREAM))],
        asset_checks=drift_checks(SMALL),
        jobs=[job],
        schedules=[build_drift_schedule(job)],
        resources={"platform": platform},
    )
    done = definitions.resolve_job_def("drift_job").execute_in_process()
    assert done.success, "a warning fails no run"
    (evaluation,) = done.get_asset_check_evaluations()
    assert (evaluation.check_name, evaluation.passed, evaluation.severity, evaluation.blocking) == (
        DRIFT, passes, dg.AssetCheckSeverity.WARN, False,
    )  # fmt: skip
    found = {name: value.value for name, value in evaluation.metadata.items()}
    assert found["rows_current"] == SYMBOLS * drift_windows(STREAM.timeframe).current_sessions
    assert found["rows_current"] + found["rows_reference"] == SYMBOLS * count
    assert (found["drifted"] > 0) == (not passes)
    assert (found["greatest_psi"] > 1) == (not passes)
    assert found["features"].count("data:image/svg+xml;base64,") == len(VIEW.features)
    assert ("PSI" in (evaluation.description or "")) == (not passes)


def test_checks_wait_for_a_store_that_is_away(fresh_database: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "MAXIMUM_RETRIES", 1)  # each waits seconds of real time
    away = fresh_database.postgres.model_copy(update={"port": processes.free_port()})
    platform = Platform(fresh_database.model_copy(update={"clock": NOW.isoformat(), "postgres_connection": away}), SMALL)
    checks = [*drift_checks(SMALL), *freshness_checks(SMALL)]
    definitions = dg.Definitions(
        asset_checks=checks,
        jobs=[dg.define_asset_job("checks", selection=dg.AssetSelection.checks(*checks), executor_def=dg.in_process_executor)],
        resources={"platform": platform},
    )
    result = definitions.resolve_job_def("checks").execute_in_process(raise_on_error=False)
    assert not result.success
    repeated = [event.step_key for event in result.all_events if event.event_type == dg.DagsterEventType.STEP_UP_FOR_RETRY]
    assert len(repeated) == len(checks)
