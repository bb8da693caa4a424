"""Which sessions were missed, and which runs a set of stale partitions makes."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

import pytest

from featurestore_dagster.calendars import MarketCalendar, calendar
from featurestore_dagster.features.equity_views import DAILY_OHLCV_STATS, MOMENTUM_FEATURES, TA_GRID_1D
from featurestore_dagster.features.training_views import COMPREHENSIVE_FEATURES_VIEW
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.orchestration import propagation
from featurestore_dagster.orchestration.propagation import MOST_BLOCKS, blocks, missed_sessions
from featurestore_dagster.pipeline.staleness import StaleStream
from tests.unit.pipeline.frames import keys_between

HOUR = timedelta(hours=1)
MONTH = keys_between("2018-11-01", "2018-12-07")


def audits(**days: str) -> dict[str, datetime]:
    """Last audits, given as d_2018_11_23="18:30" or with a date in front; UTC."""
    found = {}
    for name, at in days.items():
        key = name[2:].replace("_", "-")
        found[key] = datetime.fromisoformat(f"{at if 'T' in at else f'{key}T{at}'}+00:00")
    return found


@pytest.mark.parametrize(
    ("calendar_name", "audited", "now", "missed"),
    [
        pytest.param("XNYS", {}, "2018-11-30T12:00", [], id="nobody ever asked for it"),
        pytest.param("XNYS", audits(d_2018_11_23="18:30"), "2018-11-26T12:00", [], id="a half day, audited after its early close"),
        pytest.param("XNYS", audits(d_2018_11_23="17:30"), "2018-11-24T12:00", ["2018-11-23"], id="a half day, audited before it"),
        pytest.param("XNYS", audits(d_2018_11_20="22:00"), "2018-11-23T12:00", ["2018-11-21"], id="a holiday is not missed"),
        pytest.param("XNYS", audits(d_2018_12_04="22:00"), "2018-12-06T12:00", [], id="a day of mourning is not missed"),
        pytest.param("XNYS", audits(d_2026_03_06="21:30"), "2026-03-10T05:30", ["2026-03-09"], id="summer time begins"),
        pytest.param("XNYS", audits(d_2026_03_06="21:30"), "2026-03-10T04:30", [], id="summer time begins; not yet over for an hour"),
        pytest.param("XNYS", audits(d_2026_10_30="20:30"), "2026-11-03T06:30", ["2026-11-02"], id="summer time ends"),
        pytest.param("XNYS", audits(d_2026_10_30="20:30"), "2026-11-03T05:30", [], id="summer time ends; not yet over for an hour"),
        pytest.param("FX", audits(d_2026_10_29="2026-10-30T21:02"), "2026-11-02T23:30", ["2026-11-01"], id="FX's Sunday of 25 hours"),
        pytest.param(
            "24/7", audits(d_2026_03_07="12:00"), "2026-03-09T02:00", ["2026-03-07", "2026-03-08"], id="a clock that never changes"
        ),
        pytest.param(
            "XNYS", audits(d_2018_11_20="22:00", d_2018_11_26="16:00"), "2018-11-26T16:30", ["2018-11-21", "2018-11-23"],
            id="a hole before a session that runs",
        ),
        pytest.param("XNYS", audits(d_2018_11_26="22:00"), "2018-11-20T12:00", [], id="the clock jumped back"),
    ],
)  # fmt: skip
def test_missed_sessions(calendar_name: str, audited: dict[str, datetime], now: str, missed: list[str]) -> None:
    assert missed_sessions(calendar(calendar_name), audited, datetime.fromisoformat(f"{now}+00:00"), HOUR) == missed


def stale(view: FeatureView, keys: Iterable[str]) -> StaleStream:
    return StaleStream(view, view.streams[0], tuple(keys))


def described(parts: Iterable[StaleStream]) -> list[tuple[Any, ...]]:
    return [(block.partitions[0], block.partitions[-1], {view.name for view, _ in block.streams}) for block in blocks(parts)]


def test_streams_that_are_stale_together_share_a_run() -> None:
    assert described([stale(DAILY_OHLCV_STATS, MONTH[3:]), stale(MOMENTUM_FEATURES, MONTH[3:])]) == [
        (MONTH[3], MONTH[-1], {"daily_ohlcv_stats", "momentum_features"})
    ]


def test_no_run_holds_a_session_or_a_view_that_is_not_stale() -> None:
    holes = [*MONTH[:2], *MONTH[5:9]]
    assert described([stale(DAILY_OHLCV_STATS, holes), stale(TA_GRID_1D, MONTH[5:9])]) == [
        (MONTH[0], MONTH[1], {"daily_ohlcv_stats"}),
        (MONTH[5], MONTH[8], {"daily_ohlcv_stats", "ta_grid_1d"}),
    ]


def test_a_holiday_is_no_hole() -> None:
    week = keys_between("2018-11-19", "2018-11-26")
    assert described([stale(MOMENTUM_FEATURES, week)]) == [("2018-11-19", "2018-11-26", {"momentum_features"})]


def test_a_view_that_joins_others_runs_with_them() -> None:
    assert described(
        [stale(COMPREHENSIVE_FEATURES_VIEW, MONTH[4:6]), stale(MOMENTUM_FEATURES, MONTH[3:9]), stale(TA_GRID_1D, MONTH[:2])]
    ) == [
        (MONTH[0], MONTH[1], {"ta_grid_1d"}),
        (MONTH[3], MONTH[8], {"comprehensive_features_view", "momentum_features"}),
    ]


def test_a_view_that_joins_others_runs_apart_from_them_where_sessions_are_apart() -> None:
    years = keys_between("2009-01-02", "2018-12-31")
    stale_parts = [stale(view, [years[0], years[-1]]) for view in (COMPREHENSIVE_FEATURES_VIEW, MOMENTUM_FEATURES)]
    both = {"comprehensive_features_view", "momentum_features"}
    assert described(stale_parts) == [(years[0], years[0], both), (years[-1], years[-1], both)]
    adjoining = [stale(COMPREHENSIVE_FEATURES_VIEW, MONTH[4:6]), stale(MOMENTUM_FEATURES, [*MONTH[6:8], *MONTH[10:]])]
    assert described(adjoining) == [(MONTH[4], MONTH[7], both), (MONTH[10], MONTH[-1], {"momentum_features"})]


def test_the_calendar_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def counted(name: str) -> MarketCalendar:
        asked.append(name)
        return calendar(name)

    monkeypatch.setattr(propagation, "calendar", counted)
    assert len(blocks([stale(MOMENTUM_FEATURES, MONTH[::3]), stale(TA_GRID_1D, MONTH)])) == len(MONTH[::3]) + 1 <= MOST_BLOCKS
    assert asked == ["XNYS"]


def test_alternating_sessions_are_few_runs_of_stale_sessions_only() -> None:
    year = keys_between("2017-01-03", "2017-12-29")
    holes = [*year[:100:2], *year[150::2]]
    found = blocks([stale(MOMENTUM_FEATURES, holes), stale(TA_GRID_1D, year[:1])])
    assert len(found) == MOST_BLOCKS
    assert [key for block in found for key in block.partitions] == holes, "gaps count for no request's length"
    assert not any(block.partitions[0] <= year[125] <= block.partitions[-1] for block in found), "the widest gap is kept"
    assert [{view.name for view, _ in block.streams} for block in found].count({"momentum_features"}) >= MOST_BLOCKS - 1
