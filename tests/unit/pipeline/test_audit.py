"""The verdict on a chunk: completeness, staleness and thresholds, and that no row is lost between good and refused."""

import dataclasses
import json
from datetime import datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore_dagster.features.equity_views import MOMENTUM_FEATURES, TECHNICAL_INDICATORS_VIEW, US_EQUITY_1D
from featurestore_dagster.features.macro_views import PORTFOLIO_MACRO_FEATURES
from featurestore_dagster.features.raw_tables import US_EQUITY_CORPORATE_ACTIONS
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.model.raw_table import Dataset
from featurestore_dagster.model.time import Timeframe
from featurestore_dagster.pipeline.audit import Audit, audit_dataset, audit_stream
from featurestore_dagster.projections.postgres_table import feature_schema
from tests.unit.pipeline.frames import (
    EQUITIES,
    HOLIDAY,
    LISTED,
    MONDAY,
    NO_ACTIONS,
    NYSE,
    bar,
    close_of,
    frame,
    intraday,
    keys_between,
    session_bars,
    split,
)  # fmt: skip

TUESDAY = "2018-12-04"
LONG_AFTER = close_of("2018-12-14")
HOURLY = intraday()
SYMBOLS = list(LISTED)


def _audit(rows: list[dict[str, Any]], *keys: str, dataset: Dataset = EQUITIES, now: datetime = LONG_AFTER, **other: Any) -> Audit:
    given: dict[str, Any] = {"context": frame([]), "actions": NO_ACTIONS, "jumped": NO_ACTIONS, "listings": LISTED, "now": now} | other
    return audit_dataset(dataset, frame(rows), keys, **given)


def _hours(day: str, count: int, symbols: list[str] = SYMBOLS) -> list[dict[str, Any]]:
    ends = NYSE.bar_ends(HOURLY.timeframe, NYSE.session(close_of(day).date()).opens, close_of(day))[:count]
    return [
        bar(day, symbol, event_timestamp=end, known_at=end, timeframe="1h", volume=1000.0 + number)
        for number, end in enumerate(ends)
        for symbol in symbols
    ]


def _names(audit: Audit, key: str = MONDAY) -> dict[str, bool]:
    return {check.name.partition(":")[0]: check.blocking for check in audit.partitions[key].failed}


def test_a_whole_session_passes() -> None:
    audit = _audit(session_bars([MONDAY]), MONDAY)
    assert audit.partitions[MONDAY].failed == ()
    assert (audit.partitions[MONDAY].rows_good, audit.partitions[MONDAY].rows_expected) == (5, 5)
    assert audit.rows.height == 5


def test_a_feed_that_stopped_in_the_session_is_stale() -> None:
    """Six of seven hours are there, so the count is fine; the newest bar is not the one that the calendar owes."""
    audit = _audit(_hours(MONDAY, 6), MONDAY, dataset=HOURLY)
    assert _names(audit) == {"stale_partition": True}
    (check,) = audit.partitions[MONDAY].failed
    assert check.examples[0] == f"AAA {close_of(MONDAY).isoformat()}"
    assert audit.rows.is_empty()
    assert _names(_audit(_hours(MONDAY, 7), MONDAY, dataset=HOURLY)) == {}


def test_a_session_that_still_runs_owes_only_what_is_due() -> None:
    session = NYSE.session(close_of(MONDAY).date())
    now = session.opens + timedelta(hours=3, minutes=4)
    assert _names(_audit(_hours(MONDAY, 2), MONDAY, dataset=HOURLY, now=now)) == {}  # the third has five minutes of grace
    assert _names(_audit(_hours(MONDAY, 2), MONDAY, dataset=HOURLY, now=now + timedelta(minutes=1))) == {"stale_partition": True}


def test_half_of_the_rows_is_enough_and_less_is_not() -> None:
    rows = _hours(MONDAY, 7, ["AAA", "BBB"]) + _hours(MONDAY, 7, ["CCC"])[3:]
    assert len(rows) == 18  # of 35
    assert _names(_audit(rows, MONDAY, dataset=HOURLY)) == {"row_count": False}
    assert _names(_audit(rows[:17], MONDAY, dataset=HOURLY)) == {"row_count": True}


def test_four_fifths_of_the_rows_come_without_a_warning_about_their_number() -> None:
    rows = sorted(_hours(MONDAY, 7), key=lambda row: row["event_timestamp"])
    assert _names(_audit(rows[7:], MONDAY, dataset=HOURLY)) == {"calendar_gap": False}  # 28 of 35
    assert _names(_audit(rows[8:], MONDAY, dataset=HOURLY)) == {"row_count": False}


def test_a_fifth_more_rows_than_expected_is_a_warning() -> None:
    def unlisted(count: int) -> list[dict[str, Any]]:
        return [bar(MONDAY, f"ZZ{number}") for number in range(count)]

    many = {f"S{number:02}": dataclasses.replace(LISTED["AAA"], symbol=f"S{number:02}") for number in range(20)}
    rows = session_bars([MONDAY], many)
    assert "row_count" not in _names(_audit([*rows, *unlisted(4)], MONDAY, listings=many))
    assert _names(_audit([*rows, *unlisted(5)], MONDAY, listings=many))["row_count"] is False


def test_an_intraday_session_may_lack_a_twentieth_of_a_symbol() -> None:
    minutes = intraday(timeframe=Timeframe.ONE_MINUTE)
    ends = NYSE.bar_ends(minutes.timeframe, NYSE.session(close_of(MONDAY).date()).opens, close_of(MONDAY))
    rows = [
        bar(MONDAY, symbol, event_timestamp=end, known_at=end, timeframe="1m", volume=1000.0 + number)
        for symbol in SYMBOLS
        for number, end in enumerate(ends)
    ]
    assert len(rows) == 5 * 390
    assert _names(_audit(rows[19:], MONDAY, dataset=minutes)) == {}  # 4.9 % of AAA
    gap = _audit(rows[20:], MONDAY, dataset=minutes)
    assert _names(gap) == {"calendar_gap": False}
    assert gap.partitions[MONDAY].failed[0].rows == 20


def test_a_fifth_may_be_bad_and_more_may_not() -> None:
    rows = session_bars([MONDAY])
    one, two = [{**rows[0], "close": -1.0}, *rows[1:]], [{**row, "close": -1.0} for row in rows[:2]] + rows[2:]
    assert not _audit(one, MONDAY).partitions[MONDAY].blocked
    audit = _audit(two, MONDAY)
    assert _names(audit)["mostly_quarantined"]
    assert audit.rows.is_empty()
    assert audit.quarantined.height == 2


def test_rows_that_are_not_all_of_the_partition_are_judged_one_by_one() -> None:
    audit = _audit([bar(MONDAY), bar(MONDAY, "BBB", close=-1.0)], MONDAY, whole=False)
    assert not audit.partitions[MONDAY].blocked
    assert (audit.rows.height, audit.quarantined.height) == (1, 1)


def test_one_blocked_partition_does_not_hold_the_others() -> None:
    audit = _audit([*session_bars([MONDAY]), bar(TUESDAY)], MONDAY, TUESDAY)
    assert [audit.partitions[key].blocked for key in (MONDAY, TUESDAY)] == [False, True]
    assert audit.rows["event_timestamp"].unique().to_list() == [close_of(MONDAY)]


def test_a_symbol_is_expected_while_it_is_listed() -> None:
    until = {
        symbol: dataclasses.replace(listing, last=close_of(MONDAY).date()) if symbol == "EEE" else listing
        for symbol, listing in LISTED.items()
    }
    audit = _audit([*session_bars([MONDAY]), *session_bars([TUESDAY], SYMBOLS[:4])], MONDAY, TUESDAY, listings=until)
    assert [audit.partitions[key].rows_expected for key in (MONDAY, TUESDAY)] == [5, 4]
    assert _names(audit, TUESDAY) == {}


def test_rows_outside_the_partitions_are_a_programming_error() -> None:
    with pytest.raises(ValueError, match="1 rows lie outside the partitions asked for"):
        _audit([*session_bars([MONDAY]), bar(TUESDAY)], MONDAY)


def test_instants_of_a_holiday_belong_to_the_next_session() -> None:
    assert HOLIDAY not in keys_between(MONDAY, "2018-12-07")
    stray = bar(MONDAY, event_timestamp=close_of(TUESDAY) + timedelta(days=1), known_at=close_of(TUESDAY) + timedelta(days=1))
    audit = _audit([*session_bars(["2018-12-06"]), stray], "2018-12-06")
    (refused,) = audit.quarantined.rows(named=True)
    assert refused["partition_key"] == "2018-12-06"
    assert refused["reasons"] == ["out_of_session: no 1d bar of calendar XNYS ends then"]


STUCK = {"open": 100.0, "high": 100.0, "low": 100.0, "close": 100.0, "volume": 7.0}


@pytest.mark.parametrize(("published", "arriving", "refused"), [(0, 3, 0), (0, 4, 1), (1, 3, 1), (3, 3, 3), (25, 1, 1)])
def test_a_feed_that_repeats_itself_is_stuck(published: int, arriving: int, refused: int) -> None:
    """The first bar repeats nothing; the third repetition is one too many. Published bars before the chunk count."""
    days = keys_between("2018-10-01", "2018-12-14")[-published - arriving :]
    context = frame([bar(day, **STUCK) for day in days[:published]]).with_columns(ingested_at=pl.lit(LONG_AFTER))
    arrivals = [bar(day, **STUCK) for day in days[published:]]
    audit = _audit(arrivals, *days[published:], context=context, now=LONG_AFTER, listings={"AAA": LISTED["AAA"]})
    assert audit.quarantined.height == refused
    assert all(reasons[0].startswith("stuck_feed") for reasons in audit.quarantined["reasons"])


def test_bars_without_trade_may_repeat_longer() -> None:
    days = keys_between("2018-11-01", "2018-12-14")[:14]
    audit = _audit([bar(day, **STUCK | {"volume": 0.0}) for day in days], *days, listings={"AAA": LISTED["AAA"]})
    assert audit.quarantined.height == 2  # from the twelfth repetition on


@pytest.mark.parametrize("volume", [None, 7.0])
def test_an_index_without_volume_can_be_stuck_too(volume: float | None) -> None:
    days = keys_between("2018-11-01", "2018-12-14")[:20]
    audit = _audit([bar(day, **STUCK | {"volume": volume}) for day in days], *days, listings={"AAA": LISTED["AAA"]})
    assert audit.quarantined.height > 0


@pytest.mark.parametrize(
    ("close", "volume", "known", "refused"),
    [
        (50.0, 1000.0, [], 2),  # halves
        (200.0, 1000.0, [], 2),  # doubles: a reverse split
        (33.0, 1000.0, [], 2),  # near a third
        (58.0, 1000.0, [], 0),  # log return 0.55: between 3:2 and 2:1
        (75.0, 1000.0, [], 0),  # under the least jump
        (50.0, 20_000.0, [], 0),  # a crash trades far more
        (50.0, 1000.0, [split(TUESDAY, "AAA", 2.0)], 0),
        (50.0, 1000.0, [split(TUESDAY, "BBB", 2.0)], 2),
        (50.0, 1000.0, [split("2018-11-27", "AAA", 2.0)], 2),  # long before the jump
        (50.0, None, [], 2),
    ],
)
def test_a_jump_like_a_split(close: float, volume: float | None, known: list[dict[str, Any]], refused: int) -> None:
    days = [*keys_between("2018-11-26", TUESDAY), "2018-12-06"]
    level = {"open": 100.0, "high": 300.0, "low": 10.0}
    rows = [bar(day, **level, close=100.0 + number / 10) for number, day in enumerate(days[:-2])]
    rows += [bar(day, **level | {"open": close}, close=close + number, volume=volume) for number, day in enumerate(days[-2:])]
    actions = frame(known, dataset=US_EQUITY_CORPORATE_ACTIONS) if known else NO_ACTIONS
    audit = _audit(rows, *days, actions=actions, listings={"AAA": LISTED["AAA"]})
    assert audit.quarantined.height == refused


bad_values = st.sampled_from(
    [
        {},
        {},
        {},
        {"close": -1.0},
        {"close": float("nan")},
        {"high": 50.0},
        {"volume": -5.0},
        {"symbol": "ZZZ"},
        {"open": None},
        {"timeframe": "5m"},
    ]
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(SYMBOLS), st.sampled_from([MONDAY, TUESDAY]), bad_values, st.integers(0, 1)), max_size=14))
def test_no_row_is_lost(cells: list[tuple[str, str, dict[str, Any], int]]) -> None:
    """Each distinct row ends among the good or the refused, or its partition is blocked; the counts say so."""
    rows = [{**bar(day, symbol, volume=1000.0 + extra), **change} for symbol, day, change, extra in cells]
    audit = _audit(rows, MONDAY, TUESDAY)
    distinct = frame(rows).unique().height
    good = sum(part.rows_good for part in audit.partitions.values())
    assert good + audit.quarantined.height == distinct
    assert audit.quarantined.height == sum(part.rows_quarantined for part in audit.partitions.values())
    assert audit.rows.height == sum(part.rows_good for part in audit.partitions.values() if not part.blocked)
    assert audit.rows.select("symbol", "event_timestamp").is_duplicated().any() is False
    for text in audit.quarantined["row"]:
        assert set(json.loads(text)) == set(frame([]).columns)
    assert all(audit.quarantined["reasons"].list.len() > 0)


def _features(view: FeatureView, day: str, symbols: list[str] = SYMBOLS, **other: Any) -> list[dict[str, Any]]:
    base = dict.fromkeys(feature_schema(view)) | {
        "timeframe": "1d", "portfolio": "GLOBAL", "event_timestamp": close_of(day), "created_timestamp": close_of(day), "flags": 0,
        "feature_set_version": 1, "stream": view.streams[0].name,
    }  # fmt: skip
    return [{name: (base | {"symbol": symbol} | other)[name] for name in feature_schema(view)} for symbol in symbols]


def _audit_features(view: FeatureView, rows: list[dict[str, Any]], *keys: str, now: datetime = LONG_AFTER) -> Audit:
    return audit_stream(view, view.streams[0], pl.DataFrame(rows, schema=feature_schema(view)), keys, listings=LISTED, now=now)


def test_features_of_every_listed_symbol_pass() -> None:
    assert _audit_features(MOMENTUM_FEATURES, _features(MOMENTUM_FEATURES, MONDAY), MONDAY).partitions[MONDAY].failed == ()


def test_a_feature_out_of_range_is_quarantined_with_its_row() -> None:
    rows = [*_features(MOMENTUM_FEATURES, MONDAY, SYMBOLS[1:]), *_features(MOMENTUM_FEATURES, MONDAY, ["AAA"], rsi_14=101.0)]
    audit = _audit_features(MOMENTUM_FEATURES, rows, MONDAY)
    assert audit.quarantined["reasons"].to_list() == [["rsi_14: at_most_100"]]
    assert audit.rows.height == 4


@pytest.mark.parametrize(
    "flag", [QualityFlag.COMPUTATION_ERROR, QualityFlag.STUCK_FEED, QualityFlag.OUT_OF_SESSION, QualityFlag.TIMESTAMP_MISMATCH]
)
def test_a_row_with_a_quarantining_flag_is_never_published(flag: QualityFlag) -> None:
    view = TECHNICAL_INDICATORS_VIEW
    rows = [*_features(view, MONDAY, SYMBOLS[1:]), *_features(view, MONDAY, ["AAA"], flags=(flag | QualityFlag.LATE).value)]
    audit = _audit_features(view, rows, MONDAY)
    assert audit.quarantined["reasons"].to_list() == [[f"flags: {flag.name}"]]


def test_a_feature_of_the_future_is_quarantined() -> None:
    rows = _features(MOMENTUM_FEATURES, MONDAY)
    audit = _audit_features(MOMENTUM_FEATURES, rows, MONDAY, now=close_of(MONDAY) - timedelta(hours=1))
    assert audit.quarantined.height == 5
    assert audit.partitions[MONDAY].blocked


def test_no_features_of_a_session_whose_bars_are_due_is_blocked() -> None:
    assert _names(_audit_features(MOMENTUM_FEATURES, [], MONDAY)) == {"empty_partition": True}
    assert _names(_audit_features(MOMENTUM_FEATURES, [], MONDAY, now=close_of(MONDAY) + timedelta(hours=1))) == {}


def test_snapshots_are_expected_at_each_bar_end_of_the_session() -> None:
    view = PORTFOLIO_MACRO_FEATURES
    ends = NYSE.bar_ends(view.streams[0].timeframe, close_of(MONDAY) - timedelta(hours=7), close_of(MONDAY))
    rows = [row for end in ends for row in _features(view, MONDAY, ["AAA"], event_timestamp=end)]
    assert _names(_audit_features(view, rows, MONDAY)) == {}
    assert _names(_audit_features(view, rows[:-1], MONDAY)) == {"stale_partition": True}
    assert _names(_audit_features(view, rows[1:], MONDAY)) == {"calendar_gap": False}


def test_another_form_blocks_every_partition() -> None:
    rows = pl.DataFrame(_features(MOMENTUM_FEATURES, MONDAY), schema=feature_schema(MOMENTUM_FEATURES)).drop("macd")
    audit = audit_stream(MOMENTUM_FEATURES, US_EQUITY_1D, rows, [MONDAY, TUESDAY], listings=LISTED, now=LONG_AFTER)
    assert all(part.blocked for part in audit.partitions.values())
    assert audit.partitions[TUESDAY].failed[0].examples == ("column macd is missing",)
