"""Schedules: each calendar's path at the cadence of its streams, in the market's own time. A holiday starts nothing."""

import dagster as dg
import polars as pl

from featurestore_dagster.calendars import calendar
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS
from featurestore_dagster.orchestration.jobs import path_name, path_streams
from featurestore_dagster.orchestration.platform import Platform


def build_path_schedule(catalogue: Catalogue, calendar_name: str) -> dg.ScheduleDefinition:
    """Runs the calendar's path for the newest session that has begun, at every stream's cron."""
    crons = sorted({stream.schedule for _, stream in path_streams(catalogue, calendar_name)})
    market = calendar(calendar_name)

    @dg.schedule(
        name=f"{path_name(calendar_name)}_schedule",
        cron_schedule=crons,
        execution_timezone=market.time_zone,
        job_name=path_name(calendar_name),
        description=f"The path of calendar {calendar_name} after each bar; nothing on days without a session",
    )
    def path_schedule(context: dg.ScheduleEvaluationContext, platform: dg.ResourceParam[Platform]) -> dg.RunRequest | dg.SkipReason:
        now = platform.clock.now()
        label = market.session_of(pl.Series([now], dtype=UTC_MICROSECONDS))[0]
        session = market.session(label)
        if now < session.opens:
            return dg.SkipReason(f"calendar {calendar_name} has no session now: the next one, {label}, opens {session.opens.isoformat()}")
        tick = context.scheduled_execution_time.replace(second=0, microsecond=0)
        return dg.RunRequest(run_key=f"{label}:{tick.isoformat()}", partition_key=label.isoformat())

    return path_schedule
