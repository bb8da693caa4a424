"""Dagster's freshness badge promises what the SLO promises, and no more."""

import itertools
from datetime import UTC, datetime, timedelta

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


@pytest.mark.parametrize(("view", "stream"), [pytest.param(v, s, id=f"{v.name}-{s.name}") for v in CATALOGUE.views for s in v.streams])
def test_the_badge_turns_red_a_slo_after_each_tick_and_at_no_other_time(view: FeatureView, stream: Stream) -> None:
    policy, zone, lag = freshness_policy(view, stream), calendar(stream.calendar).time_zone, view.slo.max_lag
    ticks = week_of(stream.schedule, zone)
    if isinstance(policy, CronFreshnessPolicy):
        assert (policy.timezone, policy.lower_bound_delta) == (zone, lag)
        start, end = WEEK
        assert week_of(policy.deadline_cron, zone) == [tick + lag for tick in ticks if start <= tick + lag < end]
    else:
        assert isinstance(policy, TimeWindowFreshnessPolicy)
        assert (policy.fail_window.to_timedelta(), policy.warn_window and policy.warn_window.to_timedelta()) == (
            stream.timeframe.duration + lag,
            lag,
        )
        rests = {later - earlier for earlier, later in itertools.pairwise(ticks)}
        assert max(rests) <= policy.fail_window.to_timedelta(), "the schedule itself rests longer than the badge allows"
        assert rests == {timedelta(hours=1)}
