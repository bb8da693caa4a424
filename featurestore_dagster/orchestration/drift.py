"""The check `drift` of every stream: a warning with a plot, evaluated by a job of its own, since it reads a year and blocks nothing."""

from datetime import date, datetime
from typing import Any

import dagster as dg
import polars as pl
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from featurestore_dagster.calendars import calendar
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.drift import NULL_INCREASE, PSI_THRESHOLD, DriftWindows, drift_windows
from featurestore_dagster.model.feature_view import FeatureView, Stream
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS
from featurestore_dagster.orchestration import asset_keys, presentation
from featurestore_dagster.orchestration.platform import Platform
from featurestore_dagster.orchestration.retries import retried
from featurestore_dagster.pipeline.drift import feature_drift, reference_statistics

DRIFT = "drift"
DRIFT_JOB = "drift_job"
DAILY = "30 5 * * *"
"""Between the sessions of America and Europe, UTC."""


def drift_checks(catalogue: Catalogue) -> list[dg.AssetChecksDefinition]:
    """The check of every stream; unpartitioned, so that its index becomes a plot over time."""
    return [_drift_check(view, stream) for view in catalogue.views for stream in view.streams]


def drift_selection(catalogue: Catalogue) -> dg.AssetSelection:
    """All of them, to run or to leave out."""
    keys = (asset_keys.stream(view, stream) for view in catalogue.views for stream in view.streams)
    return dg.AssetSelection.checks(*(dg.AssetCheckKey(key, DRIFT) for key in keys))


def build_drift_job(catalogue: Catalogue) -> UnresolvedAssetJobDefinition:
    """Every drift check, in one process."""
    return dg.define_asset_job(
        DRIFT_JOB,
        selection=drift_selection(catalogue),
        executor_def=dg.in_process_executor,
        description="Compares the newest values of every feature with those before: warnings, nothing is blocked",
    )


def build_drift_schedule(job: UnresolvedAssetJobDefinition) -> dg.ScheduleDefinition:
    """Once a day."""
    return dg.ScheduleDefinition(name="drift_schedule", job=job, cron_schedule=DAILY, execution_timezone="UTC")


def _drift_check(view: FeatureView, stream: Stream) -> dg.AssetChecksDefinition:
    windows = drift_windows(stream.timeframe)

    @dg.asset_check(
        asset=asset_keys.stream(view, stream),
        name=DRIFT,
        description=(
            f"The last {windows.current_sessions} sessions are like the {windows.reference_sessions} before them: PSI up to "
            f"{PSI_THRESHOLD:g}, at most {NULL_INCREASE:.0%} more NULLs. A warning; nothing is blocked"
        ),
    )
    def drift(context: dg.AssetCheckExecutionContext, platform: dg.ResourceParam[Platform]) -> dg.AssetCheckResult:
        now = platform.clock.now()
        start, middle = _window_bounds(stream, windows, now)
        with retried(context.op_execution_context.retry_number):
            rows = platform.store.read_features(view, start, now, stream=stream.name)
        is_current = pl.col("event_timestamp") > middle
        current = rows.filter(is_current)
        found = feature_drift(view, reference_statistics(rows.filter(~is_current), view.feature_names), current)
        drifted = [feature for feature in found if feature.reasons]
        indices = [feature.psi for feature in found if feature.psi is not None]
        metadata: dict[str, Any] = {
            "drifted": len(drifted),
            "rows_current": current.height,
            "rows_reference": rows.height - current.height,
            "current_from": middle.isoformat(),
            "reference_from": start.isoformat(),
            "features": presentation.drift_table(found),
        }
        if indices:
            metadata["greatest_psi"] = max(indices)
        return dg.AssetCheckResult(
            passed=not drifted,
            severity=dg.AssetCheckSeverity.WARN,
            description="; ".join(f"{feature.feature}: {', '.join(feature.reasons)}" for feature in drifted)
            or ("nothing drifted" if indices else "too few values to judge more than the NULLs"),
            metadata=metadata,
        )

    return drift


def _window_bounds(stream: Stream, windows: DriftWindows, now: datetime) -> tuple[datetime, datetime]:
    """Begin of the reference window, and of the current one."""
    market = calendar(stream.calendar)
    newest: date = market.session_of(pl.Series([now], dtype=UTC_MICROSECONDS))[0]
    middle = market.previous_sessions(newest, windows.current_sessions - 1)
    return market.session(market.previous_sessions(middle, windows.reference_sessions)).window_start, market.session(middle).window_start
