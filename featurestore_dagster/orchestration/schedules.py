"""Schedules: each calendar's path at the cadence of its streams, in the market's own time. A holiday starts nothing."""

import dagster as dg
import polars as pl

from featurestore_dagster.calendars import calendar
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS
from featurestore_dagster.orchestration.jobs import path_name, path_streams
from featurestore_dagster.orchestration.platform import Platform


def build_path_schedule(catalogue: Catalogue, calendar_name: str) -> dg.ScheduleDefinition:
    """Runs the calendar's path for the session of the newest bar, at every stream's cron.

    The last bar of a session ends with it, so the tick that serves it comes after the session: it is asked for up to the longest SLO later.
    """
    streams = path_streams(catalogue, calendar_name)
    crons = sorted({stream.schedule for _, stream in streams})
    timeframes = {stream.timeframe for _, stream in streams}
    longest_lag = max(view.slo.max_lag for view, _ in streams)
    market = calendar(calendar_name)

    @dg.schedule(
        name=f"{path_name(calendar_name)}_schedule",
        cron_schedule=crons,
        execution_timezone=market.time_zone,
        job_name=path_name(calendar_name),
        description=f"The path of calendar {calendar_name} after each bar; nothing while the market is closed",
    )
    def path_schedule(context: dg.ScheduleEvaluationContext, platform: dg.ResourceParam[Platform]) -> dg.RunRequest | dg.SkipReason:
        now = platform.clock.now()
        newest = max(market.latest_bar_end(timeframe, now) for timeframe in timeframes)
        label = market.session_of(pl.Series([newest], dtype=UTC_MICROSECONDS))[0]
        if now > market.session(label).window_end + longest_lag:
            following = min(market.next_bar_end(timeframe, now) for timeframe in timeframes)
            return dg.SkipReason(f"calendar {calendar_name}: no bar since session {label}; the next one ends at {following.isoformat()}")
        tick = context.scheduled_execution_time.replace(second=0, microsecond=0)
        return dg.RunRequest(run_key=f"{label}:{tick.isoformat()}", partition_key=label.isoformat())

    return path_schedule
