"""Schedules: each calendar's path at the cadence of its streams, in the market's own time. A holiday starts nothing."""

import dagster as dg
import polars as pl

from featurestore_dagster.calendars import calendar
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS
from featurestore_dagster.orchestration.jobs import SLOW, MarketPath
from featurestore_dagster.orchestration.platform import Platform


def build_path_schedule(catalogue: Catalogue, path: MarketPath) -> dg.ScheduleDefinition:
    """Runs the path for the session of the newest bar, at every stream's cron.

    The last bar of a session ends with it, so the tick that serves it comes after the session: it is asked for up to the longest SLO, at
    most an hour, later. A holiday asks for nothing.
    """
    streams = path.streams(catalogue)
    crons = sorted({stream.schedule for _, stream in streams})
    timeframes = {stream.timeframe for _, stream in streams}
    longest_lag = min(max(view.slo_of(stream).max_lag for view, stream in streams), SLOW)
    market = calendar(path.calendar)

    @dg.schedule(
        name=f"{path.name}_schedule",
        cron_schedule=crons,
        execution_timezone=market.time_zone,
        job_name=path.name,
        description=f"{path.name} after each bar; nothing while the market is closed",
    )
    def path_schedule(context: dg.ScheduleEvaluationContext, platform: dg.ResourceParam[Platform]) -> dg.RunRequest | dg.SkipReason:
        now = platform.clock.now()
        newest = max(market.latest_bar_end(timeframe, now) for timeframe in timeframes)
        label = market.session_of(pl.Series([newest], dtype=UTC_MICROSECONDS))[0]
        if now > market.session(label).window_end + longest_lag:
            following = min(market.next_bar_end(timeframe, now) for timeframe in timeframes)
            return dg.SkipReason(f"calendar {path.calendar}: no bar since session {label}; the next one ends at {following.isoformat()}")
        tick = context.scheduled_execution_time.replace(second=0, microsecond=0)
        return dg.RunRequest(run_key=f"{label}:{tick.isoformat()}", partition_key=label.isoformat())

    return path_schedule
