"""Schedules: each calendar's path at the cadence of its streams, in the market's own time. A holiday starts nothing."""

from datetime import timedelta

import dagster as dg
import polars as pl
from dagster._core.storage.tags import PRIORITY_TAG
from dagster._utils.schedules import schedule_execution_time_iterator

from featurestore_dagster.calendars import calendar
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS
from featurestore_dagster.orchestration.jobs import SLOW, MarketPath
from featurestore_dagster.orchestration.platform import Platform

LIVE_PRIORITY = "10"
"""In Dagster's queue: before propagation, and before backfills, which have 0."""


def longest_lag(catalogue: Catalogue, path: MarketPath) -> timedelta:
    """How long after a session its path is still asked for: the longest SLO, at most an hour."""
    return min(max(view.slo_of(stream).max_lag for view, stream in path.streams(catalogue)), SLOW)


def build_path_schedule(catalogue: Catalogue, path: MarketPath) -> dg.ScheduleDefinition:
    """Runs the path for the session of the newest bar, at every stream's cron.

    The last bar of a session ends with it, so the tick that serves it comes after the session: it is asked for up to the longest SLO, at
    most an hour, later. A holiday asks for nothing.
    """
    streams = path.streams(catalogue)
    crons = sorted({stream.schedule for _, stream in streams})
    timeframes = {stream.timeframe for _, stream in streams}
    lag = longest_lag(catalogue, path)
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
        missed = schedule_execution_time_iterator(context.scheduled_execution_time.timestamp() + 1, crons, market.time_zone, ascending=True)
        if platform.clock.replayed is None and (later := next(missed)) <= now:
            # A daemon that was down hands in the ticks that it missed: the newest one asks for all that is new.
            return dg.SkipReason(
                f"missed: the tick of {later.isoformat()} asks for the same session, the propagation sensor for earlier ones"
            )
        newest = max(market.latest_bar_end(timeframe, now) for timeframe in timeframes)
        label = market.session_of(pl.Series([newest], dtype=UTC_MICROSECONDS))[0]
        if now > market.session(label).window_end + lag:
            following = min(market.next_bar_end(timeframe, now) for timeframe in timeframes)
            return dg.SkipReason(f"calendar {path.calendar}: no bar since session {label}; the next one ends at {following.isoformat()}")
        tick = context.scheduled_execution_time.replace(second=0, microsecond=0)
        return dg.RunRequest(run_key=f"{label}:{tick.isoformat()}", partition_key=label.isoformat(), tags={PRIORITY_TAG: LIVE_PRIORITY})

    return path_schedule
