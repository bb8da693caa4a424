"""Bad input: refused with its reason, nothing lost, and what was good before goes on being read."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import polars as pl
import pytest

from featurestore_dagster.errors import RefusedError, UnknownPartitionError
from featurestore_dagster.features.equity_views import DAILY_OHLCV_STATS
from tests.integration.pipeline.conftest import Deployment
from tests.unit.pipeline.frames import EQUITIES, HOLIDAY, MONDAY, bar, close_of, frame, keys_between, session_bars, split

NAN, INFINITY = float("nan"), float("inf")
WEEK = keys_between("2018-12-03", "2018-12-07")

BAD_ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "low above close": ({"low": 101.5}, "ohlc_order: low above open or close"),
    "high below low": ({"high": 98.0}, "ohlc_order: high below open or close"),
    "close above high": ({"close": 103.0}, "ohlc_order: high below open or close"),
    "close below low": ({"close": 98.0}, "ohlc_order: low above open or close"),
    "price zero": ({"low": 0.0}, "low: positive"),
    "price negative": ({"close": -1.0}, "close: positive"),
    "volume negative": ({"volume": -1.0}, "volume: not_negative"),
    "NaN": ({"close": NAN}, "close: finite"),
    "infinity": ({"high": INFINITY}, "high: finite"),
    "infinite volume": ({"volume": INFINITY}, "volume: finite"),
    "no price": ({"open": None}, "open: not_nullable"),
    "no symbol": ({"symbol": None}, "symbol: not_nullable"),
    "unknown symbol": ({"symbol": "ZZZ"}, "unknown_symbol: not listed for us_equity_candles_1d"),
    "symbol with quotes": ({"symbol": "A\"'A"}, "unknown_symbol: not listed for us_equity_candles_1d"),
    "symbol with a statement": ({"symbol": "'; DROP TABLE raw.candles; --"}, "unknown_symbol: not listed for us_equity_candles_1d"),
    "symbol with a NUL": ({"symbol": "A\x00A"}, "unknown_symbol: not listed for us_equity_candles_1d"),
    "another timeframe": ({"timeframe": "1h"}, "timeframe: not 1d"),
    "off the grid": ({"event_timestamp": close_of(MONDAY) - timedelta(hours=1)}, "out_of_session: no 1d bar of calendar XNYS ends then"),
    "known before it happened": ({"known_at": close_of(MONDAY) - timedelta(hours=1)}, "known_at: known before it happened"),
}


@pytest.mark.parametrize(("change", "reason"), [pytest.param(*case, id=name) for name, case in BAD_ROWS.items()])
def test_a_bad_row_is_quarantined_and_the_others_are_published(deployment: Deployment, change: dict[str, Any], reason: str) -> None:
    good = session_bars([MONDAY], ["BBB", "CCC", "DDD", "EEE"])
    deployment.deliver([*good, bar(MONDAY, "AAA", **change)])
    (outcome,) = deployment.ingest(MONDAY, run_id="first")
    assert not outcome.blocked
    assert deployment.bars()["symbol"].to_list() == ["BBB", "CCC", "DDD", "EEE"]
    (refused,) = deployment.ledger.quarantined()
    assert reason in refused.reasons
    assert (refused.relation, refused.partition_key, refused.status) == ("raw.us_equity_candles_1d", MONDAY, "open")
    for name, value in change.items():
        kept = refused.row[name]
        assert kept == (value.replace("\x00", "\ufffd") if isinstance(value, str) else value) or kept == str(value)
    assert reason in {check.name for check in outcome.audit.failed}  # type: ignore[union-attr]


def test_several_faults_of_a_row_are_all_named(deployment: Deployment) -> None:
    deployment.deliver([*session_bars([MONDAY], ["BBB", "CCC", "DDD", "EEE"]), bar(MONDAY, close=-1.0, volume=-1.0, symbol="ZZZ")])
    deployment.ingest(MONDAY)
    (refused,) = deployment.ledger.quarantined()
    assert {"close: positive", "volume: not_negative"} <= set(refused.reasons)


def test_a_bar_from_the_future_is_quarantined(deployment: Deployment) -> None:
    deployment.clock.instant = close_of(MONDAY) - timedelta(hours=2)
    early = close_of(MONDAY) - timedelta(hours=3)
    deployment.deliver([bar(MONDAY), *(bar(MONDAY, symbol, event_timestamp=early) for symbol in ("BBB", "CCC", "DDD", "EEE"))])
    (outcome,) = deployment.ingest(MONDAY)
    future = [row for row in deployment.ledger.quarantined() if row.row["symbol"] == "AAA"]
    assert [reason.split(":")[0] for reason in future[0].reasons] == ["future_row"]
    assert outcome.blocked  # every row was bad
    assert deployment.bars().is_empty()


def test_equal_copies_of_a_row_are_one_row(deployment: Deployment) -> None:
    rows = session_bars([MONDAY])
    deployment.deliver([*rows, rows[0], rows[0]])
    (outcome,) = deployment.ingest(MONDAY)
    assert outcome.audit is not None
    assert (outcome.audit.rows_good, outcome.audit.rows_quarantined) == (5, 0)
    assert deployment.bars().height == 5


def test_contradicting_copies_are_both_quarantined(deployment: Deployment) -> None:
    rows = session_bars([MONDAY, "2018-12-04"])
    extra = [bar(MONDAY, "AAA", close=100.5, volume=1.0), bar(MONDAY, "AAA", close=101.5, volume=1.0)]
    catalogue_rows = [row for row in rows if (row["symbol"], row["event_timestamp"]) != ("AAA", close_of(MONDAY))]
    deployment.deliver([*catalogue_rows, *extra])
    first, second = deployment.ingest(MONDAY, "2018-12-04")
    # Two of six rows: more than the fifth that is allowed.
    assert first.blocked
    assert not second.blocked
    refused = deployment.ledger.quarantined()
    assert sorted(row.row["close"] for row in refused) == [100.5, 101.5]
    assert all(row.reasons == ["duplicate_key: the same key with different values"] for row in refused)


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        (lambda rows: rows.drop("close"), "column close is missing"),
        (lambda rows: rows.drop("event_timestamp"), "column event_timestamp is missing"),
        (lambda rows: rows.with_columns(vwap=pl.lit(1.0)), "column vwap is not declared"),
        (lambda rows: rows.with_columns(pl.col("close").cast(pl.String)), "column close is String, declared Float64"),
        (lambda rows: rows.with_columns(pl.col("event_timestamp").dt.replace_time_zone(None)), "column event_timestamp is Datetime"),
        (lambda rows: rows.with_columns(event_timestamp=pl.lit(None, pl.Datetime("us", "UTC"))), "event_timestamp is NULL in 5 of 5 rows"),
    ],
    ids=["missing", "no time", "extra", "retyped", "naive time", "NULL time"],
)
def test_another_form_blocks_the_partition(deployment: Deployment, broken: Callable[[pl.DataFrame], pl.DataFrame], complaint: str) -> None:
    rows = frame(session_bars([MONDAY]))
    deployment.deliver(broken(rows))
    (outcome,) = deployment.ingest(MONDAY)
    assert outcome.blocked
    (check,) = deployment.ledger.blocked()["raw.us_equity_candles_1d", MONDAY]
    assert check["check"].startswith("schema")
    assert any(complaint in example for example in check["examples"])
    assert deployment.bars().is_empty()
    deployment.deliver(rows)
    assert not deployment.ingest(MONDAY)[0].blocked
    assert deployment.ledger.blocked() == {}


def test_an_empty_partition_of_an_open_day_is_blocked(deployment: Deployment) -> None:
    (outcome,) = deployment.ingest(MONDAY)
    assert outcome.blocked
    (check,) = deployment.ledger.blocked()["raw.us_equity_candles_1d", MONDAY]
    assert check["check"] == "empty_partition: the session was open and rows are due"
    assert check["rows"] == 5
    assert f"AAA {close_of(MONDAY).isoformat()}" in check["examples"]


def test_before_the_bars_are_due_an_empty_partition_is_fine(deployment: Deployment) -> None:
    deployment.clock.instant = close_of(MONDAY) + timedelta(minutes=30)
    (outcome,) = deployment.ingest(MONDAY)
    assert not outcome.blocked
    assert outcome.unchanged


def test_a_range_across_a_holiday_has_no_partition_for_it(deployment: Deployment) -> None:
    assert HOLIDAY not in WEEK
    deployment.deliver(session_bars(WEEK))
    outcomes = deployment.ingest(*WEEK)
    assert [outcome.partition_key for outcome in outcomes] == ["2018-12-03", "2018-12-04", "2018-12-06", "2018-12-07"]
    assert not any(outcome.blocked for outcome in outcomes)


@pytest.mark.parametrize("key", [HOLIDAY, "2018-12-08", "2018-13-45", "", "yesterday", "'; DROP TABLE raw.candles; --", "1890-01-02"])
def test_d14_a_key_that_is_no_session_is_refused_before_anything_is_done(deployment: Deployment, key: str) -> None:
    deployment.deliver(session_bars([MONDAY]))
    with pytest.raises(UnknownPartitionError, match="no session of calendar XNYS") as raised:
        deployment.ingest(MONDAY, key)
    assert repr(key) in str(raised.value)
    assert deployment.bars().is_empty()
    with pytest.raises(UnknownPartitionError):
        deployment.materialise(DAILY_OHLCV_STATS, MONDAY, key)
    assert deployment.ledger.totals() == {}


def test_a_partition_without_most_of_its_symbols_is_blocked_and_with_few_missing_published(deployment: Deployment) -> None:
    deployment.deliver([*session_bars([MONDAY], ["AAA", "BBB"]), *session_bars(["2018-12-04"], ["AAA", "BBB", "CCC"])])
    first, second = deployment.ingest(MONDAY, "2018-12-04")
    assert [check.name for check in first.audit.failed] == ["row_count: most expected rows are missing"]  # type: ignore[union-attr]
    assert first.blocked
    (gap,) = second.audit.failed  # type: ignore[union-attr]
    assert (gap.name, gap.rows, gap.blocking) == ("row_count: fewer than 80% of the expected rows came", 2, False)
    assert gap.examples[0].startswith("DDD ")
    assert deployment.bars().height == 3


def test_a_mostly_quarantined_partition_is_blocked_with_every_bad_row_kept(deployment: Deployment) -> None:
    bad = [bar(MONDAY, symbol, close=-1.0) for symbol in ("AAA", "BBB")]
    deployment.deliver([*bad, *session_bars([MONDAY], ["CCC", "DDD", "EEE"])])
    (outcome,) = deployment.ingest(MONDAY)
    assert outcome.blocked
    assert "mostly_quarantined" in {check.name for check in outcome.audit.failed if check.blocking}  # type: ignore[union-attr]
    assert sorted(row.row["symbol"] for row in deployment.ledger.quarantined()) == ["AAA", "BBB"]
    assert deployment.bars().is_empty()


def test_d3_the_last_good_rows_stay_readable_after_a_blocked_partition(deployment: Deployment) -> None:
    deployment.deliver(session_bars([MONDAY]))
    deployment.ingest(MONDAY)
    deployment.materialise(DAILY_OHLCV_STATS, MONDAY)
    bars, features = deployment.bars(), deployment.features(DAILY_OHLCV_STATS)
    deployment.deliver([bar(MONDAY, symbol, close=-1.0) for symbol in ("AAA", "BBB", "CCC")])
    deployment.clock.advance(hours=1)
    assert deployment.ingest(MONDAY)[0].blocked
    assert deployment.bars().equals(bars)
    (again,) = deployment.materialise(DAILY_OHLCV_STATS, MONDAY)
    assert again.unchanged
    assert deployment.features(DAILY_OHLCV_STATS).equals(features)
    assert deployment.ledger.blocked().keys() == {("raw.us_equity_candles_1d", MONDAY)}


def test_nothing_downstream_is_published_of_a_partition_that_never_was_good(deployment: Deployment) -> None:
    deployment.deliver(session_bars(["2018-11-30"]))
    deployment.ingest("2018-11-30", MONDAY)
    first, second = deployment.materialise(DAILY_OHLCV_STATS, "2018-11-30", MONDAY)
    assert not first.blocked
    assert second.blocked
    assert deployment.features(DAILY_OHLCV_STATS)["event_timestamp"].unique().to_list() == [close_of("2018-11-30")]


def test_a_mended_row_supersedes_its_quarantined_one(deployment: Deployment) -> None:
    good = session_bars([MONDAY], ["BBB", "CCC", "DDD", "EEE"])
    deployment.deliver([*good, bar(MONDAY, close=-1.0)])
    deployment.ingest(MONDAY)
    deployment.ingest(MONDAY)
    (refused,) = deployment.ledger.quarantined()  # the same bad row twice is one line
    deployment.deliver([*good, bar(MONDAY)])
    deployment.ingest(MONDAY)
    assert deployment.ledger.quarantined() == []
    (closed,) = deployment.ledger.quarantined(status=None)
    assert (closed.quarantine_id, closed.status) == (refused.quarantine_id, "superseded")
    assert deployment.bars().height == 5


def test_a_quarantined_row_is_replayed_when_what_it_lacked_is_known(deployment: Deployment) -> None:
    """The split of one symbol is not known yet; the others go on, and its row is published unchanged later."""
    days = keys_between("2018-11-26", MONDAY)
    level = {"open": 1000.0, "high": 1010.0, "low": 990.0, "close": 1000.0}
    others = session_bars(days, ["BBB", "CCC", "DDD", "EEE"], **level)
    deployment.deliver([*others, *session_bars(days[:-1], ["AAA"], **level), bar(MONDAY, "AAA", open=100.0, close=100.0)])
    deployment.ingest(*days)
    (refused,) = deployment.ledger.quarantined()
    assert refused.reasons[0].startswith("split_like_jump")
    row = frame([bar(MONDAY, "AAA", open=100.0, close=100.0)])
    (again,) = deployment.pipeline.replay(EQUITIES, row)
    assert again.audit is not None
    assert again.audit.rows_quarantined == 1
    deployment.enter_actions(split(MONDAY, "AAA", 10.0))
    (outcome,) = deployment.pipeline.replay(EQUITIES, row)
    assert outcome.audit is not None
    assert outcome.audit.rows_quarantined == 0
    deployment.ledger.mark_replayed([refused.quarantine_id])
    assert deployment.ledger.quarantined() == []
    assert deployment.bars().filter(symbol="AAA")["close"].to_list()[-1] == 100.0
    assert deployment.bars().filter(pl.col("event_timestamp") == close_of(MONDAY)).height == 5


def test_rows_of_a_blocked_partition_are_not_replayed_alone(deployment: Deployment) -> None:
    """Its good rows were never published: publishing a few would make it look whole."""
    deployment.deliver([*(bar(MONDAY, symbol, close=-1.0) for symbol in ("AAA", "BBB")), *session_bars([MONDAY], ["CCC", "DDD", "EEE"])])
    deployment.ingest(MONDAY)
    with pytest.raises(RefusedError, match="materialise them again"):
        list(deployment.pipeline.replay(EQUITIES, frame([bar(MONDAY)])))
    assert deployment.bars().is_empty()
    assert deployment.ledger.blocked()


def test_a_series_stays_refused_after_an_unexplained_jump_into_the_next_chunk(deployment: Deployment) -> None:
    """The jump is in one year, the next year is another chunk, and the price has meanwhile drifted away from any split ratio."""
    old, new = keys_between("2017-12-26", "2017-12-29"), keys_between("2018-01-02", "2018-01-04")
    level = {"open": 1000.0, "high": 1010.0, "low": 990.0, "close": 1000.0}
    halved = {name: value / 2 for name, value in level.items()}
    drifted = {name: value * 0.58 for name, value in level.items()}
    steady = session_bars([*old, *new], ["BBB", "CCC", "DDD", "EEE"], **level)
    jump = [*session_bars(old[:2], ["AAA"], **level), *session_bars(old[2:], ["AAA"], **halved), *session_bars(new, ["AAA"], **drifted)]
    deployment.deliver([*steady, *jump])
    assert not any(outcome.blocked for outcome in deployment.ingest(*old, *new))
    assert deployment.bars().filter(symbol="AAA").height == 2
    assert {row.partition_key for row in deployment.ledger.quarantined()} == {*old[2:], *new}
    deployment.enter_actions(split(old[2], "AAA", 2.0))
    deployment.ingest(*new)  # the later chunk alone: the action explains the jump before it
    assert deployment.bars().filter(symbol="AAA").height == 2 + len(new)
    deployment.ingest(*old)
    assert deployment.bars().filter(symbol="AAA").height == len(old) + len(new)
    assert deployment.ledger.quarantined() == []
