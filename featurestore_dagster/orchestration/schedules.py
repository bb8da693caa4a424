"""Schedules: each calendar's path at the cadence of its streams, in the market's own time. A holiday starts nothing."""

from collections.abc import Sequence
from datetime import datetime, timedelta

import dagster as dg
from dagster._core.storage.tags import PRIORITY_TAG
from dagster._utils.schedules import schedule_execution_time_iterator

from featurestore_dagster.calendars import calendar
from featurestore_dagster.calendars.exchange_hours import COLOMBIAN_PESO
from featurestore_dagster.features.services import OBSERVATION_15D
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.model.time import Clock
from featurestore_dagster.orchestration import asset_keys
from featurestore_dagster.orchestration.jobs import SLOW, MarketPath
from featurestore_dagster.orchestration.partitions import first_session, range_tags
from featurestore_dagster.orchestration.platform import Platform
from featurestore_dagster.serving.slo_state import stream_state

FALLBACK_CRON = "*/15 13-18 * * 1-5"
"""Of the peso's session, UTC."""

REFETCH_CRON = "0 6 * * *"
"""In the market's own time: before it opens, and after the night in which providers correct the day before."""

REFETCHED_SESSIONS = 5

LIVE_PRIORITY = "10"
"""In Dagster's queue: before propagation, and before backfills, which have 0."""

REFETCH_PRIORITY = "1"
"""After propagation, before backfills."""


def longest_lag(catalogue: Catalogue, path: MarketPath) -> timedelta:
    """How long after a session its path is still asked for: the longest SLO, at most an hour."""
    return min(max(view.slo_of(stream).max_lag for view, stream in path.streams(catalogue)), SLOW)


def build_path_schedule(catalogue: Catalogue, path: MarketPath) -> dg.ScheduleDefinition:
    """Runs the path for the session of the newest bar, at every stream's cron."""
    crons = sorted({stream.schedule for _, stream in path.streams(catalogue)})
    market = calendar(path.calendar)

    @dg.schedule(
        name=f"{path.name}_schedule",
        cron_schedule=crons,
        execution_timezone=market.time_zone,
        job_name=path.name,
        description=f"{path.name} after each bar; nothing while the market is closed",
    )
    def path_schedule(context: dg.ScheduleEvaluationContext, platform: dg.ResourceParam[Platform]) -> dg.RunRequest | dg.SkipReason:
        if later := _later_tick(context, crons, market.time_zone, platform.clock):
            # A daemon that was down hands in the ticks that it missed: the newest one asks for all that is new.
            return dg.SkipReason(f"missed: the tick of {later.isoformat()} asks for the session, the propagation sensor for earlier ones")
        return _live_run(context, catalogue, path, platform.clock.now())

    return path_schedule


def fallback_views(path: MarketPath) -> tuple[FeatureView, ...]:
    """Views on a path that are asked for once more when they are late: those of the trading agent's observation, in its market."""
    return OBSERVATION_15D.views if path.calendar == COLOMBIAN_PESO else ()


def build_fallback_schedule(catalogue: Catalogue, path: MarketPath) -> dg.ScheduleDefinition:
    """Runs the path again for the session of the newest bar while a view of the observation is late."""
    views = fallback_views(path)
    streams = [(view, stream) for view, stream in path.streams(catalogue) if view in views and catalogue.is_fed(stream)]

    @dg.schedule(
        name=f"{path.name}_fallback_schedule",
        cron_schedule=FALLBACK_CRON,
        execution_timezone="UTC",
        job_name=path.name,
        description=f"{path.name} once more while a view of {OBSERVATION_15D.name} is late",
    )
    def fallback_schedule(context: dg.ScheduleEvaluationContext, platform: dg.ResourceParam[Platform]) -> dg.RunRequest | dg.SkipReason:
        now = platform.clock.now()
        states = [stream_state(catalogue, platform.store, view, stream, now) for view, stream in streams]
        if not any(state.freshness.state.overdue for state in states):
            return dg.SkipReason(f"no view of {OBSERVATION_15D.name} on {path.name} is late")
        return _live_run(context, catalogue, path, now)

    return fallback_schedule


def build_refetch_schedule(catalogue: Catalogue, path: MarketPath) -> dg.ScheduleDefinition:
    """Fetches the raw rows of the last sessions that are over once more, each morning: providers correct bars for days after the close.

    Rows that come back as they were publish nothing; what was corrected, the propagation sensor follows.
    """
    market, assets = calendar(path.calendar), [asset_keys.raw(dataset) for dataset in path.delivered(catalogue)]

    @dg.schedule(
        name=f"{path.name}_refetch_schedule",
        cron_schedule=REFETCH_CRON,
        execution_timezone=market.time_zone,
        job_name=path.name,
        description=f"raw rows of {path.name} once more, of the last {REFETCHED_SESSIONS} sessions, for the corrections of providers",
    )
    def refetch_schedule(context: dg.ScheduleEvaluationContext, platform: dg.ResourceParam[Platform]) -> dg.RunRequest | dg.SkipReason:
        now = platform.clock.now()
        if later := _later_tick(context, [REFETCH_CRON], market.time_zone, platform.clock):
            return dg.SkipReason(f"missed: the tick of {later.isoformat()} asks for the last sessions")
        last = market.previous_sessions(market.session_at(now).label, 1)
        ended_at = market.session(last).window_end
        if ended_at <= now - timedelta(days=1):
            return dg.SkipReason(f"calendar {path.calendar}: session {last} ended at {ended_at.isoformat()} and was fetched again since")
        first = max(market.previous_sessions(last, REFETCHED_SESSIONS - 1), first_session(catalogue, path.calendar))
        return dg.RunRequest(
            run_key=f"refetch:{last}",
            asset_selection=assets,
            # Named, since the UI's preview would ask for none.
            asset_check_keys=[dg.AssetCheckKey(key, asset_keys.AUDIT) for key in assets],
            partition_key=last.isoformat() if first == last else None,
            tags={PRIORITY_TAG: REFETCH_PRIORITY, **range_tags(first.isoformat(), last.isoformat())},
        )

    return refetch_schedule


def _later_tick(context: dg.ScheduleEvaluationContext, crons: Sequence[str], time_zone: str, clock: Clock) -> datetime | None:
    """The first tick after the context's, when it is not in the future; None on a replayed clock, which ticks do not follow."""
    if clock.replayed is not None:
        return None
    since = context.scheduled_execution_time.timestamp() + 1
    later = next(schedule_execution_time_iterator(since, crons, time_zone, ascending=True))
    return later if later <= clock.now() else None


def _live_run(
    context: dg.ScheduleEvaluationContext, catalogue: Catalogue, path: MarketPath, now: datetime
) -> dg.RunRequest | dg.SkipReason:
    """The path for the session of the newest bar.

    The last bar of a session ends with it, so the tick that serves it comes after the session: it is asked for up to the longest SLO, at
    most an hour, later. A holiday asks for nothing.
    """
    market, timeframes = calendar(path.calendar), {stream.timeframe for _, stream in path.streams(catalogue)}
    newest = max(market.latest_bar_end(timeframe, now) for timeframe in timeframes)
    session = market.session_at(newest)
    if now > session.window_end + longest_lag(catalogue, path):
        following = min(market.next_bar_end(timeframe, now) for timeframe in timeframes)
        return dg.SkipReason(
            f"calendar {path.calendar}: no bar since session {session.label}; the next one ends at {following.isoformat()}"
        )
    tick = context.scheduled_execution_time.replace(second=0, microsecond=0)
    return dg.RunRequest(
        run_key=f"{session.label}:{tick.isoformat()}", partition_key=session.label.isoformat(), tags={PRIORITY_TAG: LIVE_PRIORITY}
    )
