"""Snapshots hold what was known at their time: a bar or a release that came later, or was corrected later, changes none before it."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from featurestore_dagster.features.macro_views import PORTFOLIO_MACRO_FEATURES as VIEW
from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.model.source import Listing
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.postgres.connection import connect
from tests.integration.pipeline.conftest import Deployment, MovingClock, with_listings
from tests.unit.pipeline.frames import bar, close_of, keys_between

DAYS = keys_between("2018-10-01", "2018-12-07")
THURSDAY, FRIDAY = DAYS[-2:]
HOUR = timedelta(hours=1)


def _bars(days: list[str], **closes: float) -> list[dict[str, Any]]:
    """SPX, a little higher every day, or as given by day (d_2018_12_06)."""
    rows = []
    for number, day in enumerate(days):
        close = closes.get("d_" + day.replace("-", "_"), 2700.0 + number)
        rows.append(bar(day, "SPX", open=close, high=close + 10, low=close - 10, close=close, volume=1000.0 + number))
    return rows


@pytest.fixture
def macro(fresh_database: Settings) -> Deployment:
    """One index, published until the last day, a mart with one VIX release a day, and the view over the last two days."""
    clock = MovingClock(close_of(FRIDAY) + 3 * HOUR)
    deployment = Deployment(fresh_database, with_listings({"SPX": Listing("SPX", date(2000, 1, 3))}), clock)
    with connect(fresh_database.postgres) as connection:
        connection.execute(
            "create table marts.macro_series (series_id text, observation_date date, event_timestamp timestamptz, known_at timestamptz,"
            " value double precision, batch_id bigint, flags bigint not null default 0)"
        )
    for number, day in enumerate(DAYS):
        _release(deployment, "VIXCLS", date.fromisoformat(day), close_of(day) + 16 * HOUR, 15.0 + number, batch=number + 1)
    deployment.deliver(_bars(DAYS))
    deployment.ingest(*DAYS)
    deployment.materialise(VIEW, THURSDAY, FRIDAY)
    return deployment


def _release(deployment: Deployment, series: str, observed: date, known: datetime, value: float, *, batch: int) -> None:
    with connect(deployment.settings.postgres) as connection:
        connection.execute("insert into marts.macro_series values (%s, %s, %s, %s, %s, %s)", [series, observed, known, known, value, batch])


def _at(deployment: Deployment, instant: datetime) -> dict[str, Any]:
    (row,) = deployment.features(VIEW).filter(event_timestamp=instant).rows(named=True)
    return row


def test_a_snapshot_sees_the_bar_from_its_close_on(macro: Deployment) -> None:
    rows = macro.features(VIEW)
    assert rows["event_timestamp"].dt.hour().to_list() == [15, 16, 17, 18, 19, 20, 21] * 2
    position = len(DAYS) - 1
    previous, last = 2700.0 + position - 1, 2700.0 + position
    assert _at(macro, close_of(FRIDAY) - HOUR / 2)["spy_return_1d"] == pytest.approx(previous / (previous - 1) - 1)
    assert _at(macro, close_of(FRIDAY))["spy_return_1d"] == pytest.approx(last / previous - 1)
    assert rows["created_timestamp"].equals(rows["event_timestamp"].rename("created_timestamp"))
    assert (rows["flags"] & QualityFlag.FALLBACK_SOURCE.value != 0).all()  # SPX stands in for SPY


def test_a_release_counts_from_the_instant_it_was_known(macro: Deployment) -> None:
    released = close_of(THURSDAY) + 16 * HOUR  # in the morning, before the open
    assert released < close_of(FRIDAY)
    rows = macro.features(VIEW).sort("event_timestamp")
    before = rows.filter(pl.col("event_timestamp") < released)["vix"].unique().to_list()
    after = rows.filter(pl.col("event_timestamp") >= released)["vix"].unique().to_list()
    assert after[0] == before[0] + 1


def test_a_series_without_release_is_null_and_flagged(macro: Deployment) -> None:
    row = _at(macro, close_of(FRIDAY))
    assert row["treasury_2y"] is None
    assert row["market_regime"] is None
    assert QualityFlag(row["flags"]) & QualityFlag.STALE_INPUT


def test_a_correction_of_a_bar_leaves_the_snapshots_before_it_as_they_were(macro: Deployment) -> None:
    published = macro.features(VIEW)
    corrected = macro.clock.advance(hours=40)
    macro.deliver(_bars(DAYS, d_2018_12_06=2600.0))
    macro.ingest(*DAYS)
    outcomes = macro.materialise(VIEW, THURSDAY, FRIDAY)
    assert all(outcome.audit is not None for outcome in outcomes)  # the input changed, so they were computed
    assert_frame_equal(macro.features(VIEW, all_versions=True), published)
    monday = "2018-12-10"
    macro.clock.advance(days=3)
    macro.deliver(_bars([*DAYS, monday], d_2018_12_06=2600.0))
    macro.ingest(monday)
    macro.materialise(VIEW, THURSDAY, FRIDAY, monday)
    assert_frame_equal(macro.features(VIEW, all_versions=True).head(published.height), published)
    row = _at(macro, close_of(monday))
    assert close_of(monday) > corrected
    assert row["spy_return_5d"] == pytest.approx((2700.0 + len(DAYS)) / (2700.0 + len(DAYS) - 5) - 1)
    assert QualityFlag(row["flags"]) & QualityFlag.RESTATED
    assert row["created_timestamp"] == close_of(monday)


def test_a_bar_that_came_late_is_in_the_snapshots_after_its_arrival_only(macro: Deployment) -> None:
    monday, tuesday = "2018-12-10", "2018-12-11"
    arrived = close_of(tuesday) - 2 * HOUR
    macro.clock.instant = close_of(tuesday) + 3 * HOUR
    late = _bars([*DAYS, monday, tuesday])
    late[-2] |= {"known_at": arrived, "known_at_basis": "observed"}
    macro.deliver(late)
    macro.ingest(monday, tuesday)
    macro.materialise(VIEW, monday, tuesday)
    last = 2700.0 + len(DAYS) - 1
    assert _at(macro, close_of(monday))["spy_return_1d"] == pytest.approx(last / (last - 1) - 1)
    assert _at(macro, arrived - HOUR / 2)["spy_return_1d"] == pytest.approx(last / (last - 1) - 1)
    assert _at(macro, arrived + HOUR / 2)["spy_return_1d"] == pytest.approx((last + 1) / last - 1)
    assert _at(macro, close_of(tuesday))["spy_return_1d"] == pytest.approx((last + 2) / (last + 1) - 1)


def test_no_snapshot_is_made_of_the_future(macro: Deployment) -> None:
    monday = "2018-12-10"
    macro.clock.instant = datetime(2018, 12, 10, 17, 45, tzinfo=UTC)
    macro.materialise(VIEW, monday)
    rows = macro.features(VIEW).filter(pl.col("event_timestamp").dt.date() == date(2018, 12, 10))
    assert rows["event_timestamp"].dt.strftime("%H:%M").to_list() == ["15:30", "16:30", "17:30"]
