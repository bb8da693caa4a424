"""Dagster's freshness badge promises what the SLO promises, and no more."""

import itertools
from datetime import UTC, datetime

import pytest
from dagster._core.definitions.freshness import CronFreshnessPolicy, TimeWindowFreshnessPolicy
from dagster._utils.schedules import schedule_execution_time_iterator

from featurestore_dagster.calendars import calendar
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.model.feature_view import FeatureView, Stream
from featurestore_dagster.orchestration.assets.views import freshness_policy

WEEK = (datetime(2026, 3, 5, tzinfo=UTC), datetime(2026, 3, 13, tzinfo=UTC))


def week_of(cron: str, zone: str) -> list[datetime]:
    """Instants of a cron expression in a week in which the clocks change."""
    start, end = WEEK
    ticks = schedule_execution_time_iterator(start.timestamp(), cron, zone, ascending=True)
    return list(itertools.takewhile(lambda at: at < end, (at.astimezone(UTC) for at in ticks)))


EACH = pytest.mark.parametrize(
    ("view", "stream"), [pytest.param(v, s, id=f"{v.name}-{s.name}") for v in CATALOGUE.views for s in v.streams]
)


@EACH
def test_d5_the_badge_turns_red_a_slo_after_each_tick_and_at_no_other_time(view: FeatureView, stream: Stream) -> None:
    policy, zone, lag = freshness_policy(view, stream), calendar(stream.calendar).time_zone, view.slo_of(stream).max_lag
    ticks = week_of(stream.schedule, zone)
    hourly = stream.schedule.split()[0].isdecimal()
    if isinstance(policy, CronFreshnessPolicy):
        assert policy.timezone == zone
        start, end = WEEK
        deadlines = week_of(policy.deadline_cron, zone)
        if hourly:
            assert policy.lower_bound_delta == lag
            assert deadlines == [tick + lag for tick in ticks if start <= tick + lag < end]
        else:
            # One deadline an hour: each is preceded by ticks within the hour, and comes after the SLO of the last of them.
            assert all(any(deadline - policy.lower_bound_delta <= tick <= deadline - lag for tick in ticks) for deadline in deadlines)
    else:
        assert isinstance(policy, TimeWindowFreshnessPolicy)
        window = policy.fail_window.to_timedelta()
        assert window >= stream.timeframe.duration + lag
        rests = {later - earlier for earlier, later in itertools.pairwise(ticks)}
        assert max(rests) <= window, "the schedule itself rests longer than the badge allows"
