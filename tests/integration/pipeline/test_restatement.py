"""Publication over time: recomputing writes nothing, corrections are versions, and dependents follow exactly."""

from datetime import timedelta
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from featurestore_dagster.features.equity_views import DAILY_OHLCV_STATS, MOMENTUM_FEATURES
from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.pipeline.bitemporal import join_visible
from tests.integration.pipeline.conftest import Deployment
from tests.unit.pipeline.frames import EQUITIES, MONDAY, close_of, keys_between, session_bars, split

WEEKS = keys_between("2018-11-05", "2018-12-07")
CORRECTED = WEEKS[10]


def _walk(days: list[str], **change: dict[str, Any]) -> list[dict[str, Any]]:
    """Prices that move; `change` replaces columns of AAA on a day (given as d_2018_12_03)."""
    rows = []
    for row in session_bars(days):
        step = (row["event_timestamp"].toordinal() * 7 + len(row["symbol"]) + ord(row["symbol"][0])) % 11
        moved = {name: row[name] + step for name in ("open", "high", "low", "close")}
        label = f"d_{row['event_timestamp']:%Y_%m_%d}"
        rows.append({**row, **moved, **(change.get(label, {}) if row["symbol"] == "AAA" else {})})
    return rows


def _label(day: str) -> str:
    return "d_" + day.replace("-", "_")


@pytest.fixture
def filled(deployment: Deployment) -> Deployment:
    """Five weeks of bars and two views of them."""
    deployment.deliver(_walk(WEEKS))
    deployment.ingest(*WEEKS)
    for view in (DAILY_OHLCV_STATS, MOMENTUM_FEATURES):
        deployment.materialise(view, *WEEKS)
    return deployment


def test_recomputing_writes_nothing(filled: Deployment) -> None:
    before = filled.query("select (select count(*) from ops.publications), (select count(*) from raw.candles)")
    hashes = filled.hashes(EQUITIES), filled.hashes(MOMENTUM_FEATURES)
    filled.clock.advance(days=1)
    outcomes = [*filled.ingest(*WEEKS), *filled.materialise(MOMENTUM_FEATURES, *WEEKS)]
    assert all(outcome.unchanged for outcome in outcomes)
    assert filled.query("select (select count(*) from ops.publications), (select count(*) from raw.candles)") == before
    assert (filled.hashes(EQUITIES), filled.hashes(MOMENTUM_FEATURES)) == hashes


def test_a_correction_is_a_new_version_that_no_earlier_instant_sees(filled: Deployment) -> None:
    before = filled.clock.now()
    arrived = filled.clock.advance(days=2)
    filled.deliver(_walk(WEEKS, **{_label(CORRECTED): {"close": 105.5, "high": 120.0, "low": 90.0}}))
    outcomes = filled.ingest(*WEEKS)
    assert [outcome.partition_key for outcome in outcomes if not outcome.unchanged] == [CORRECTED]
    mine = (pl.col("symbol") == "AAA") & (pl.col("event_timestamp") == close_of(CORRECTED))
    (now,) = filled.bars().filter(mine).rows(named=True)
    (then,) = filled.bars(as_of=before).filter(mine).rows(named=True)
    assert (now["close"], now["known_at"], now["flags"]) == (105.5, arrived, QualityFlag.RESTATED)
    assert (then["known_at"], then["flags"]) == (close_of(CORRECTED), 0)
    assert then["close"] != 105.5
    assert filled.bars().height == filled.bars(as_of=before).height


def test_exactly_the_dependents_follow_a_correction(filled: Deployment) -> None:
    values = filled.features(MOMENTUM_FEATURES)
    arrived = filled.clock.advance(days=2)
    filled.deliver(_walk(WEEKS, **{_label(CORRECTED): {"close": 105.5, "high": 120.0, "low": 90.0}}))
    filled.ingest(*WEEKS)
    outcomes = {outcome.partition_key: outcome for outcome in filled.materialise(MOMENTUM_FEATURES, *WEEKS)}
    later = [key for key in WEEKS if key >= CORRECTED]
    assert [key for key, outcome in outcomes.items() if outcome.audit is not None] == later
    # The corrected row is late now; of the later ones those change that have a value at all, from the fifteenth bar on.
    versions = filled.features(MOMENTUM_FEATURES, all_versions=True).filter(pl.col("symbol") == "AAA")
    twice = versions.group_by("event_timestamp").agg(pl.len(), pl.col("created_timestamp").max().alias("known"), pl.col("flags").last())
    restated = twice.filter(pl.col("len") == 2).sort("event_timestamp")
    assert restated["event_timestamp"].to_list() == [close_of(key) for key in (CORRECTED, *WEEKS[14:])]
    assert restated["known"].unique().to_list() == [arrived]
    assert (restated["flags"] & QualityFlag.RESTATED.value != 0).all()
    assert WEEKS.index(CORRECTED) < 14
    others = pl.col("symbol") != "AAA"
    assert_frame_equal(filled.features(MOMENTUM_FEATURES).filter(others), values.filter(others))


def test_what_was_read_before_a_correction_is_read_again(filled: Deployment) -> None:
    before = filled.clock.now()
    old = filled.features(DAILY_OHLCV_STATS)
    filled.clock.advance(days=2)
    filled.deliver(_walk(WEEKS, **{_label(key): {"close": 105.5, "high": 120.0, "low": 90.0} for key in (CORRECTED, WEEKS[-1])}))
    filled.ingest(*WEEKS)
    filled.materialise(DAILY_OHLCV_STATS, *WEEKS)
    versions = filled.features(DAILY_OHLCV_STATS, all_versions=True)
    asked = old.select("symbol", pl.lit(before).alias("at"), pl.col("event_timestamp").alias("bar")).unique()
    seen = join_visible(
        asked.with_columns(pl.col("bar").alias("at")), versions, keys=["symbol"], at="at", event_time="event_timestamp",
        known_at="created_timestamp",
    )  # fmt: skip
    assert_frame_equal(seen.select(old.columns).sort("symbol", "event_timestamp"), old.sort("symbol", "event_timestamp"))
    assert not filled.features(DAILY_OHLCV_STATS)["close"].equals(old["close"])


def test_a_late_bar_is_published_late_and_says_so(filled: Deployment) -> None:
    next_day = "2018-12-10"
    filled.deliver(_walk([*WEEKS, next_day])[:-1])  # EEE lacks its last bar
    filled.ingest(*WEEKS, next_day)
    filled.materialise(DAILY_OHLCV_STATS, next_day)
    (absent,) = filled.features(DAILY_OHLCV_STATS).filter(symbol="EEE", event_timestamp=close_of(next_day)).rows(named=True)
    assert absent["flags"] & QualityFlag.MISSING_OHLCV.value
    assert {absent[name] for name in DAILY_OHLCV_STATS.feature_names} == {None}
    late = _walk([*WEEKS, next_day])
    arrived = filled.clock.advance(hours=30)
    late[-1] |= {"known_at": arrived, "known_at_basis": "observed"}
    filled.deliver(late)
    filled.ingest(next_day)
    (outcome,) = filled.materialise(DAILY_OHLCV_STATS, next_day)
    assert outcome.publication is not None
    assert outcome.publication.rows_published == 1
    (row,) = filled.features(DAILY_OHLCV_STATS).filter(symbol="EEE", event_timestamp=close_of(next_day)).rows(named=True)
    assert row["created_timestamp"] == arrived
    assert QualityFlag(row["flags"]) & QualityFlag.LATE
    assert QualityFlag(row["flags"]) & QualityFlag.RESTATED  # of the row that said that the bar was missing
    assert row["close"] is not None


def test_a_bar_known_in_the_future_is_not_read_before(filled: Deployment) -> None:
    day = "2018-12-10"
    rows = _walk([day])
    known = filled.clock.now() + timedelta(hours=5)
    filled.deliver([*rows[:-1], {**rows[-1], "known_at": known, "known_at_basis": "observed"}])
    filled.ingest(day)
    assert filled.bars().filter(event_timestamp=close_of(day)).height == 4
    filled.clock.advance(hours=5)
    assert filled.bars().filter(event_timestamp=close_of(day)).height == 5


def test_a_corporate_action_that_arrives_late_makes_new_versions_and_old_ones_stay(filled: Deployment) -> None:
    """A split of 2:1 in the prices was known in the market, but here only three days later."""
    ex_date, before = WEEKS[-3], filled.clock.now()
    old = filled.features(MOMENTUM_FEATURES).filter(symbol="AAA")
    known = filled.clock.advance(days=3)
    filled.enter_actions(split(ex_date, "AAA", 1.05, known_at=known, known_at_basis="observed"))
    filled.materialise(MOMENTUM_FEATURES, *WEEKS)
    versions = filled.features(MOMENTUM_FEATURES, all_versions=True).filter(symbol="AAA")
    first = versions.filter(pl.col("created_timestamp") <= before)
    assert_frame_equal(first, old)
    second = versions.filter(pl.col("created_timestamp") > before)
    assert second["event_timestamp"].to_list() == [close_of(key) for key in WEEKS[-3:]]
    assert second["created_timestamp"].unique().to_list() == [known]
    assert (second["flags"] & QualityFlag.CORP_ACTION.value != 0).all()
    assert not second["momentum_1m"].equals(old.filter(pl.col("event_timestamp") >= close_of(ex_date))["momentum_1m"])


def test_an_old_action_corrected_rescales_the_forward_adjusted_close_from_then_on(filled: Deployment) -> None:
    filled.enter_actions(split(WEEKS[5], "AAA", 2.0))
    filled.materialise(DAILY_OHLCV_STATS, *WEEKS)
    factor = filled.features(DAILY_OHLCV_STATS).filter(symbol="AAA").select("event_timestamp", pl.col("adjusted_close") / pl.col("close"))
    assert factor["adjusted_close"].to_list() == [1.0] * 5 + [2.0] * (len(WEEKS) - 5)


def test_a_close_before_an_old_dividend_corrected_rescales_every_later_adjusted_close(deployment: Deployment) -> None:
    """The cumulative factor of a dividend holds the close before it, however long ago."""
    days = [*keys_between("2017-11-01", "2017-11-10"), MONDAY]
    ex_date, previous = days[5], days[4]
    deployment.deliver(_walk(days))
    deployment.ingest(*days)
    deployment.enter_actions(split(ex_date, "AAA", 1.0, action="dividend", ratio=None, cash_amount=10.0))
    deployment.materialise(DAILY_OHLCV_STATS, *days)
    deployment.clock.advance(days=1)
    deployment.deliver(_walk(days, **{_label(previous): {"close": 80.0, "low": 75.0}}))
    deployment.ingest(*days)
    deployment.materialise(DAILY_OHLCV_STATS, *days)
    last = deployment.features(DAILY_OHLCV_STATS).filter(symbol="AAA", event_timestamp=close_of(MONDAY)).row(0, named=True)
    assert last["adjusted_close"] / last["close"] == pytest.approx(1 / (1 - 10 / 80))


def test_older_vintages_that_come_after_newer_ones_are_quarantined(deployment: Deployment) -> None:
    """Inserting them would rewrite what was known; publishing them as the newest would be wrong."""
    newer = [
        {**row, "known_at": row["event_timestamp"] + timedelta(hours=9), "known_at_basis": "observed"} for row in session_bars([MONDAY])
    ]
    deployment.deliver(newer)
    deployment.ingest(MONDAY)
    bars = deployment.bars()
    deployment.deliver([{**row, "known_at": row["event_timestamp"], "close": 100.5} for row in newer])
    (outcome,) = deployment.ingest(MONDAY)
    assert outcome.publication is not None
    assert (outcome.publication.rows_published, outcome.publication.rows_quarantined) == (0, 5)
    assert all(row.reasons[0].startswith("known_at: an older vintage") for row in deployment.ledger.quarantined())
    assert deployment.bars().equals(bars)


def test_a_declared_change_recomputes_what_an_unchanged_input_would_skip(filled: Deployment) -> None:
    import dataclasses

    changed = dataclasses.replace(DAILY_OHLCV_STATS, version=2)
    outcomes = filled.materialise(changed, *WEEKS)
    assert all(outcome.publication and outcome.publication.rows_published == 5 for outcome in outcomes)
    assert filled.features(changed)["feature_set_version"].unique().to_list() == [2]
    assert filled.features(DAILY_OHLCV_STATS)["feature_set_version"].unique().to_list() == [1]


def test_the_ledger_says_what_a_publication_touched(filled: Deployment) -> None:
    filled.clock.advance(days=2)
    filled.deliver(_walk(WEEKS, **{_label(CORRECTED): {"close": 105.5, "high": 120.0, "low": 90.0}}))
    (publication,) = [o.publication for o in filled.ingest(*WEEKS, run_id="mend") if not o.unchanged]
    assert publication is not None
    ((changed, run_id, rows),) = filled.query(
        "select changed, run_id, rows_published from ops.publications where publication_id = %s", publication.publication_id
    )
    instant = close_of(CORRECTED).isoformat()
    assert changed == {"keys": [["AAA", "1d"]], "start": instant, "end": instant, "restated": 1}
    assert (run_id, rows) == ("mend", 1)
