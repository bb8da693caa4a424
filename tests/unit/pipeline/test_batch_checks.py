"""Checks on a whole batch, and the bars beside a bar: by hand, at their limits, and on the two real histories of GOOG."""

import dataclasses
from collections.abc import Callable
from datetime import date, datetime, timedelta
from typing import Any

import polars as pl
import pytest

from featurestore_dagster.features.raw_tables import MARKET_EVENTS
from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.model.raw_table import Dataset
from featurestore_dagster.model.source import Listing
from featurestore_dagster.model.time import FrozenClock, Timeframe
from featurestore_dagster.pipeline.audit import Audit, audit_dataset
from featurestore_dagster.pipeline.bars import adjusted_bars, flag_bars, with_missing_bars
from featurestore_dagster.pipeline.batch_checks import source_conflicts, source_pairs
from featurestore_dagster.pipeline.expectations import GRACE
from featurestore_dagster.sources import samples
from tests.unit.pipeline.frames import (
    EQUITIES,
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
)

TUESDAY = "2018-12-04"
LONG_AFTER = close_of("2018-12-14")
DAYS = keys_between("2018-08-01", "2018-12-04")
ONE = {"AAA": LISTED["AAA"]}


def _audit(rows: list[dict[str, Any]], *keys: str, dataset: Dataset = EQUITIES, now: datetime = LONG_AFTER, **other: Any) -> Audit:
    given: dict[str, Any] = {"context": frame([]), "actions": NO_ACTIONS, "jumped": NO_ACTIONS, "listings": LISTED, "now": now} | other
    return audit_dataset(dataset, frame(rows, dataset), keys, **given)


def _names(audit: Audit, key: str = TUESDAY) -> dict[str, bool]:
    return {check.name.partition(":")[0]: check.blocking for check in audit.partitions[key].failed}


def _context(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return frame(rows).with_columns(ingested_at=pl.lit(LONG_AFTER))


@pytest.mark.parametrize("factor", [1e-3, 1e-6, 1e3])
def test_event_times_in_another_unit_block_the_batch(factor: float) -> None:
    rows = frame(session_bars([MONDAY])).with_columns(
        (pl.col("event_timestamp").to_physical() * factor).cast(pl.Int64).cast(pl.Datetime("us", "UTC")).alias("event_timestamp")
    )
    audit = audit_dataset(
        EQUITIES, rows, [MONDAY], context=frame([]), actions=NO_ACTIONS, jumped=NO_ACTIONS, listings=LISTED, now=LONG_AFTER
    )
    (check,) = audit.partitions[MONDAY].failed
    assert check.name.startswith("epoch_unit")
    assert check.blocking
    assert f"multiplied by {1 / factor:g}" in check.examples[0]
    assert audit.rows.is_empty()


def test_an_instant_that_no_calendar_knows_blocks_the_batch() -> None:
    odd = bar(MONDAY, event_timestamp=datetime.fromisoformat("1985-02-02T21:00:00+00:00"))
    (check,) = _audit([*session_bars([MONDAY]), odd], MONDAY).partitions[MONDAY].failed
    assert check.examples == ("event_timestamp of 1 of 6 rows lies outside calendar XNYS",)


@pytest.mark.parametrize(("future", "blocked"), [(1, False), (2, True)])
def test_a_hundredth_may_lie_in_the_future(future: int, blocked: bool) -> None:
    symbols = {f"S{number:03}": dataclasses.replace(LISTED["AAA"], symbol=f"S{number:03}") for number in range(101)}
    now = close_of(TUESDAY) - timedelta(minutes=5)
    rows = [*session_bars([TUESDAY], list(symbols)[:future])]
    rows += [bar(TUESDAY, symbol, event_timestamp=now, timeframe="1m", volume=float(n)) for n, symbol in enumerate(list(symbols)[future:])]
    minutes = intraday(timeframe=Timeframe.ONE_MINUTE)
    rows = [{**row, "timeframe": "1m"} for row in rows]
    audit = _audit(rows, TUESDAY, dataset=minutes, now=now, listings=symbols)
    assert audit.quarantined.height == future
    assert ("future_rows" in _names(audit)) is blocked


def test_publishers_clocks_may_run_ahead_by_five_minutes() -> None:
    def event(minutes: int) -> dict[str, Any]:
        at = LONG_AFTER + timedelta(minutes=minutes)
        return {
            "dataset": MARKET_EVENTS.name, "event_id": f"e{minutes}", "symbol": "AAA", "source_type": "news", "headline_hash": None,
            "score": 0.1, "confidence": 0.5, "firm": None, "rating": None, "event_timestamp": at, "source": "news", "known_at": at,
            "known_at_basis": "observed", "flags": 0,
        }  # fmt: skip

    audit = _audit([event(4), event(6)], LONG_AFTER.date().isoformat(), dataset=MARKET_EVENTS)
    (reasons,) = audit.quarantined["reasons"]
    assert [reason.partition(":")[0] for reason in reasons] == ["future_row"]
    assert '"e6"' in audit.quarantined["row"][0]


NONE = {"volume": 0.0}


@pytest.mark.parametrize(
    ("history", "missing", "blocked"),
    [
        ([], 5, False),  # nothing to compare with
        ([{}, {"trade_count": 1.0}], 5, False),  # the column is new
        ([NONE], 1, False),  # a fifth is allowed
        ([NONE], 2, True),
        ([{"volume": 0.2}] * 3, 3, False),  # exactly three times
        ([{"volume": 0.1}] * 3, 2, True),
        ([{"volume": 0.9}, NONE, NONE], 2, True),  # the median decides
        ([NONE] * 30 + [{"volume": 0.9}] * 11, 2, False),  # the last twenty count
    ],
)
def test_a_column_that_is_suddenly_mostly_null_blocks(history: list[dict[str, float]], missing: int, blocked: bool) -> None:
    rows = [{**row, "volume": None if number < missing else row["volume"]} for number, row in enumerate(session_bars([TUESDAY]))]
    audit = _audit(rows, TUESDAY, null_history=history)
    assert _names(audit) == ({"mostly_null": True} if blocked else {})


def test_a_batch_becomes_history_for_the_next_one() -> None:
    days = DAYS[-4:]
    rows = [{**row, "adjusted_close": 1.0 if row["event_timestamp"] < close_of(days[2]) else None} for row in session_bars(days)]
    audit = _audit(rows, *days)
    assert [audit.partitions[day].blocked for day in days] == [False, False, True, True]


@pytest.mark.parametrize(("factor", "off", "blocked"), [(100.0, 5, True), (0.01, 3, True), (100.0, 2, False), (49.0, 5, False)])
def test_prices_in_another_unit_block(factor: float, off: int, blocked: bool) -> None:
    """Against published bars, and against the last accepted batch: the second wrong day is not compared with the first."""
    scaled = {name: value * factor for name, value in (("open", 100.0), ("high", 102.0), ("low", 99.0), ("close", 101.0))}
    days = DAYS[-2:]
    rows = [row | (scaled if number < off else {}) for day in days for number, row in enumerate(session_bars([day]))]
    audit = _audit(rows, *days, context=_context(session_bars(DAYS[-5:-2])))
    assert [("units" in _names(audit, day)) for day in days] == [blocked, blocked]


def test_a_provider_that_silently_repeats_yesterday_is_blocked() -> None:
    yesterday = session_bars([DAYS[-2]])
    again = [row | {"event_timestamp": close_of(TUESDAY), "known_at": close_of(TUESDAY)} for row in yesterday]
    for audit in (_audit(again, TUESDAY, context=_context(yesterday)), _audit([*yesterday, *again], *DAYS[-2:])):
        (check,) = audit.partitions[TUESDAY].failed
        assert (check.name, check.blocking, check.rows) == ("stuck_feed: most bars repeat the session before", True, 5)
        assert check.examples == ("AAA", "BBB", "CCC", "DDD", "EEE")
    two = [*again[:2], *session_bars([TUESDAY])[2:]]
    assert _names(_audit(two, TUESDAY, context=_context(yesterday))) == {}
    three = [*again[:3], *session_bars([TUESDAY])[3:]]
    assert _names(_audit(three, TUESDAY, context=_context(yesterday))) == {"stuck_feed": True}


def test_an_intraday_feed_that_repeats_yesterday_is_blocked() -> None:
    hourly, symbols = intraday(), ["AAA"]

    def hours(day: str, change: float) -> list[dict[str, Any]]:
        session = NYSE.session(date.fromisoformat(day))
        ends = NYSE.bar_ends(hourly.timeframe, session.opens, session.closes)
        return [
            bar(day, symbol, event_timestamp=end, known_at=end, timeframe="1h", volume=1000.0 + number + change)
            for number, end in enumerate(ends)
            for symbol in symbols
        ]

    for change, expected in ((0.0, {"stuck_feed": True}), (0.5, {})):
        audit = _audit([*hours(DAYS[-2], 0.0), *hours(TUESDAY, change)], *DAYS[-2:], dataset=hourly, listings=ONE)
        assert _names(audit) == expected


def _quiet(closes: dict[str, float], days: list[str] = DAYS) -> list[dict[str, Any]]:
    def one(number: int, day: str) -> dict[str, Any]:
        close = closes.get(day, 100.0 + number * number * 13 % 11 / 5)
        return bar(day, close=close, high=max(close, 102.5), low=min(close, 99.0), volume=1000.0 + number)

    return [one(number, day) for number, day in enumerate(days)]


SPIKE = DAYS[-10]


@pytest.mark.parametrize(
    ("closes", "taken_back"),
    [
        ({SPIKE: 130.0}, True),
        ({SPIKE: 300.0}, True),  # like a split, but no split reverts
        ({SPIKE: 130.0, DAYS[-9]: 104.0}, False),  # 15 % are left
        ({SPIKE: 101.9}, False),
        ({DAYS[-1]: 130.0}, False),  # nobody knows yet
    ],
)
def test_an_outlier_that_the_next_bar_reverts_is_taken_back(closes: dict[str, float], taken_back: bool) -> None:
    audit = _audit(_quiet(closes), *DAYS, listings=ONE)
    assert audit.quarantined.is_empty()
    flagged = audit.rows.filter(pl.col("flags") & QualityFlag.OUTLIER.value != 0)["event_timestamp"].to_list()
    assert flagged == ([close_of(SPIKE)] if taken_back else [])
    bars = flag_bars(adjusted_bars(audit.rows, NO_ACTIONS.with_columns(previous_close=pl.lit(None, pl.Float64))), EQUITIES)
    assert bars.height == len(DAYS) - taken_back
    after = bars.filter(pl.col("event_timestamp") == close_of(DAYS[-9]))
    assert bool(after["flags"].item() & QualityFlag.GAP_BEFORE.value) is taken_back


def test_a_published_outlier_that_today_reverts_is_named() -> None:
    rows = _quiet({DAYS[-2]: 130.0})
    audit = _audit(rows[-1:], TUESDAY, context=_context(rows[:-1]), listings=ONE)
    (check,) = audit.partitions[TUESDAY].failed
    assert (check.name.partition(":")[0], check.blocking) == ("reverted_outlier", False)
    assert check.examples == (f"AAA {close_of(DAYS[-2]).isoformat()}",)
    again = _audit(rows[-2:-1], DAYS[-2], context=_context([*rows[:-2], rows[-1]]), listings=ONE)
    assert again.rows["flags"].to_list() == [QualityFlag.OUTLIER.value]


def test_a_refused_jump_that_the_next_session_reverts_does_not_close_the_series() -> None:
    rows = _quiet({})
    jumped = pl.DataFrame(
        {"symbol": ["AAA"], "event_timestamp": [close_of(DAYS[-3])]}, schema=NO_ACTIONS.select("symbol", "event_timestamp").schema
    )

    def refused(before: list[dict[str, Any]], *arriving: dict[str, Any]) -> int:
        keys = [row["event_timestamp"].date().isoformat() for row in arriving]
        return _audit(list(arriving), *keys, context=_context(before), jumped=jumped, listings=ONE).quarantined.height

    assert refused(rows[:-3], rows[-2], rows[-1]) == 0  # the very next bar is back
    assert refused(rows[:-3], rows[-1]) == 1  # a later one proves nothing
    assert refused(rows[:-3], rows[-2] | {"open": 60.0, "close": 60.0, "low": 60.0}) == 1
    assert refused([*rows[:-3], rows[-2]], rows[-1]) == 0  # it was opened before


def _pair(close: float, volume: float = 1000.0, **other: Any) -> list[dict[str, Any]]:
    primary = session_bars([TUESDAY])
    second = bar(
        TUESDAY, source="other", close=close, high=max(close, 102.0), low=min(close, 99.0), volume=primary[0]["volume"] * volume / 1000.0
    )
    return [*primary, second | other]


@pytest.mark.parametrize(
    ("close", "volume", "market", "names"),
    [
        (101.5, 1000.0, "us_equity", {}),
        (101.6, 1000.0, "us_equity", {"cross_source": False}),
        (101.6, 1000.0, "crypto", {}),
        (102.1, 1000.0, "crypto", {"cross_source": False}),
        (101.0, 1240.0, "us_equity", {}),
        (101.0, 1260.0, "us_equity", {"cross_source_volume": False}),
        (101.0, 790.0, "us_equity", {"cross_source_volume": False}),
    ],
)
def test_two_sources_that_disagree(close: float, volume: float, market: str, names: dict[str, bool]) -> None:
    dataset = dataclasses.replace(EQUITIES, market=market)
    audit = _audit(_pair(close, volume), TUESDAY, dataset=dataset, priority=["files", "other"])
    assert _names(audit) == names
    flags = dict(audit.rows.filter(symbol="AAA").select("source", "flags").iter_rows())
    assert flags == {"files": 0, "other": QualityFlag.FALLBACK_SOURCE.value if "cross_source" in names else 0}


def test_the_source_named_first_is_the_primary_one() -> None:
    pairs = source_pairs(EQUITIES, frame(_pair(103.0)), ["other", "files"])
    assert pairs.select("source", "primary").rows() == [("files", "other")]
    assert source_pairs(EQUITIES, frame(session_bars([TUESDAY])), []).is_empty()


def test_two_real_histories_of_one_share() -> None:
    """bokeh's and backtesting's GOOG: 72 closes differ, none by half a per cent; one counts volume in another unit."""
    from backtesting.test import GOOG

    ours = samples.fetch(EQUITIES, datetime.fromisoformat("2004-01-01T00:00:00+00:00"), LONG_AFTER, clock=FrozenClock(LONG_AFTER)).filter(
        symbol="GOOG"
    )
    columns = {name.lower(): GOOG[name].to_numpy().astype(float) for name in ("Open", "High", "Low", "Close", "Volume")}
    theirs = ours.drop(columns).join(
        pl.DataFrame({"day": pl.Series(GOOG.index.to_numpy().astype("datetime64[us]")).cast(pl.Date), **columns}),
        left_on=pl.col("event_timestamp").dt.date(),
        right_on="day",
    )
    rows = pl.concat([ours, theirs.with_columns(source=pl.lit("backtesting")).select(ours.columns)])
    pairs = source_pairs(EQUITIES, rows, ["backtesting", "samples"])
    assert pairs.height == 2148
    assert pairs.filter(pl.col("close_difference") > 1e-9).height == 72
    assert pairs["close_difference"].max() == pytest.approx(0.0044, abs=1e-4)
    assert not pairs["differs"].any()
    (checks,) = source_conflicts(pairs.with_columns(partition_key=pl.lit("all"))).values()
    assert [check.name.partition(":")[0] for check in checks] == ["cross_source_volume"]
    assert checks[0].examples == ("median ratio 1.998",)


@pytest.mark.parametrize(("timeframe", "length"), [(Timeframe.ONE_DAY, None), (Timeframe.ONE_HOUR, 7)])
def test_a_bar_is_missing_from_the_end_of_its_grace_on(timeframe: Timeframe, length: int | None) -> None:
    dataset = dataclasses.replace(intraday(timeframe=timeframe), latency=timedelta(seconds=7))
    session = NYSE.session(date.fromisoformat(MONDAY))
    ends = NYSE.bar_ends(timeframe, session.opens - timedelta(microseconds=1), session.closes)
    rows = frame([bar(MONDAY, "AAA", event_timestamp=end, timeframe=timeframe.value) for end in ends[1:]])
    due = ends[0] + timedelta(seconds=7) + GRACE[timeframe]
    span = session.window_start, session.window_end

    def missing(now: datetime) -> pl.DataFrame:
        return with_missing_bars(rows, dataset, ONE.values(), *span, now).filter(pl.col("flags") == QualityFlag.MISSING_OHLCV.value)

    assert missing(due - timedelta(microseconds=1)).is_empty()
    (line,) = missing(due).rows(named=True)
    assert (line["symbol"], line["timeframe"], line["event_timestamp"], line["known_at"]) == ("AAA", timeframe.value, ends[0], due)
    assert all(line[name] is None for name in ("open", "high", "low", "close", "volume"))


def test_bars_are_missed_while_a_symbol_is_listed() -> None:
    listings = [Listing("AAA", date.fromisoformat(DAYS[1]), date.fromisoformat(DAYS[2])), Listing("BBB", date.fromisoformat(DAYS[3]))]
    span = close_of(DAYS[0]) - timedelta(hours=1), close_of(DAYS[3])
    rows = with_missing_bars(frame([bar(DAYS[1])]), EQUITIES, listings, *span, LONG_AFTER)
    assert rows.select("symbol", "event_timestamp").rows() == [
        ("AAA", close_of(DAYS[1])),
        ("AAA", close_of(DAYS[2])),
        ("BBB", close_of(DAYS[3])),
    ]
    assert rows.columns == frame([]).columns


def test_the_order_of_rows_means_nothing_to_a_batch() -> None:
    check: Callable[[pl.DataFrame], Audit] = lambda rows: audit_dataset(  # noqa: E731 - one expression, used twice
        EQUITIES, rows, DAYS, context=frame([]), actions=NO_ACTIONS, jumped=NO_ACTIONS, listings=ONE, now=LONG_AFTER
    )
    rows = frame(_quiet({SPIKE: 130.0}))
    one, other = check(rows), check(rows.reverse())
    assert one.partitions == other.partitions
    assert one.rows.sort("event_timestamp").equals(other.rows.sort("event_timestamp"))
