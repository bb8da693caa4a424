"""Quotes of a row's bar, by hand."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from featurestore_dagster.errors import MalformedDataError
from featurestore_dagster.indicators import quotes
from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS
from featurestore_dagster.model.time import Timeframe
from featurestore_dagster.pipeline.blocks.quotes import quote_windows

T = datetime(2024, 3, 5, 12, tzinfo=UTC)
BOOK = ([(99.95, 2.0), (99.9, 3.0), (99.5, 50.0)], [(100.05, 1.0), (100.1, 4.0), (100.5, 50.0)])
"""Mid 100, spread 0.1; two levels of each side within 10 bps, the second ones exactly on the bound."""

SPREAD, SPREAD_BPS, IMBALANCE, DEPTH, IMPACT = (
    indicator.feature()
    for indicator in (
        quotes.bid_ask_spread,
        quotes.bid_ask_spread_bps,
        quotes.order_book_imbalance,
        quotes.market_depth,
        quotes.price_impact_1pct,
    )
)
ALL = [SPREAD, SPREAD_BPS, IMBALANCE, DEPTH, IMPACT]


def quote(
    seconds: float, bids: Any = BOOK[0], asks: Any = BOOK[1], *, symbol: str = "AAA", late: float = 0.0, flags: int = 0
) -> dict[str, Any]:
    """A quote `seconds` before T, known `late` seconds after its event."""
    at = T - timedelta(seconds=seconds)
    return {
        "symbol": symbol,
        "event_timestamp": at,
        "known_at": at + timedelta(seconds=late),
        "flags": flags,
        "bids": bids if isinstance(bids, str) else json.dumps(bids),
        "asks": asks if isinstance(asks, str) else json.dumps(asks),
    }


def frame(*found: dict[str, Any]) -> pl.DataFrame:
    """Quotes as the block takes them."""
    times = {"event_timestamp": UTC_MICROSECONDS, "known_at": UTC_MICROSECONDS}
    return pl.DataFrame(
        list(found), schema={"symbol": pl.String, **times, "flags": pl.Int64, "bids": pl.String, "asks": pl.String}, orient="row"
    )


def rows(*symbols: str, at: datetime = T, dollars: float | None = 50_000.0) -> pl.DataFrame:
    """Feature rows at one instant, whose average daily dollar volume is known."""
    return pl.DataFrame(
        [(symbol, at, dollars) for symbol in symbols],
        schema={"symbol": pl.String, "event_timestamp": UTC_MICROSECONDS, "value:average_dollar_volume": pl.Float64},
        orient="row",
    )


def one(*found: dict[str, Any], timeframe: Timeframe = Timeframe.ONE_MINUTE, dollars: float | None = 50_000.0) -> dict[str, Any]:
    """The values of AAA at T."""
    row = quote_windows(ALL, rows("AAA", dollars=dollars), frame(*found), timeframe).row(0, named=True)
    return {name.removeprefix("value:"): value for name, value in row.items()}


def test_the_last_quote_by_hand() -> None:
    found = one(quote(20))
    assert found["bid_ask_spread"] == pytest.approx(0.1, abs=1e-12)
    assert found["order_book_imbalance"] == pytest.approx((55 - 55) / 110)
    assert found["market_depth"] == pytest.approx(99.95 * 2 + 99.9 * 3 + 100.05 * 1 + 100.1 * 4)
    # An order of 500: the bids give 199.9 + 299.7 and 0.4 of the third level, the asks 100.05 and 399.95 of the second.
    sold, bought = 2 + 3 + 0.4 / 99.5, 1 + 399.95 / 100.1
    assert found["price_impact_1pct"] == pytest.approx(1e4 * ((100 - 500 / sold) + (500 / bought - 100)) / 100 / 2)
    assert found["known:quotes"] == T - timedelta(seconds=20)
    assert found["flags:quotes"] == 0


def test_five_levels_count_for_the_imbalance() -> None:
    bids, asks = ([(100 - side * level, 1.0 + 10.0 * (level > 5)) for level in range(1, 8)] for side in (1, -1))
    assert one(quote(1, bids, asks[:1]))["order_book_imbalance"] == pytest.approx((5 - 1) / 6)


def test_spread_is_weighted_by_the_time_a_quote_holds() -> None:
    # Before the bar 100.1 - 99.9 (20 bps) until 40 s before its end, then 10 bps.
    found = one(quote(70, [(99.9, 1)], [(100.1, 1)]), quote(40))
    assert found["bid_ask_spread_bps"] == pytest.approx((20 * 20 + 10 * 40) / 60)


@pytest.mark.parametrize(("seconds", "expected"), [(30, 10.0), (29.9, None)])
def test_spread_needs_half_of_the_bar(seconds: float, expected: float | None) -> None:
    assert one(quote(seconds))["bid_ask_spread_bps"] == (expected if expected is None else pytest.approx(expected))


def test_a_quote_holds_at_most_a_minute() -> None:
    # Seven quotes 100 s apart cover 7 of 15 minutes, with one more 8.
    seven = [quote(120 + 100 * i) for i in range(7)]
    assert one(*seven, timeframe=Timeframe.FIFTEEN_MINUTES)["bid_ask_spread_bps"] is None
    assert one(*seven, quote(60), timeframe=Timeframe.FIFTEEN_MINUTES)["bid_ask_spread_bps"] == pytest.approx(10.0)


@pytest.mark.parametrize(("seconds", "stale"), [(60, False), (60.000001, True), (61, True)])
def test_an_old_quote_is_stale(seconds: float, stale: bool) -> None:
    found = one(quote(seconds), timeframe=Timeframe.FIFTEEN_MINUTES)
    assert [found[f.name] is None for f in (SPREAD, IMBALANCE, DEPTH, IMPACT)] == [stale] * 4
    assert found["flags:quotes"] == (QualityFlag.STALE_INPUT if stale else 0)


def test_no_quote_at_all_is_stale() -> None:
    found = one(quote(10, symbol="BBB"))
    assert [found[f.name] for f in ALL] == [None] * 5
    assert (found["flags:quotes"], found["known:quotes"]) == (QualityFlag.STALE_INPUT, None)


@pytest.mark.parametrize("ask", [99.95, 99.0])
def test_a_crossed_or_locked_book_has_no_values(ask: float) -> None:
    found = one(quote(50), quote(10, BOOK[0], [(ask, 1.0), (101.0, 9.0)]))
    assert [found[f.name] for f in (SPREAD, IMBALANCE, DEPTH, IMPACT)] == [None] * 4
    # It ended the quote before it, and holds no time itself.
    assert found["bid_ask_spread_bps"] == pytest.approx(10.0)
    assert found["flags:quotes"] == QualityFlag.CROSSED_BOOK


def test_a_book_that_ends_inside_the_band_is_partial() -> None:
    found = one(quote(10, BOOK[0], BOOK[1][:2]), dollars=1_000.0)
    assert found["market_depth"] is None
    assert found["price_impact_1pct"] is not None
    assert found["flags:quotes"] == QualityFlag.PARTIAL_BOOK


def test_a_book_too_small_for_the_order_is_partial() -> None:
    found = one(quote(10), dollars=1e9)
    assert found["market_depth"] is not None
    assert found["price_impact_1pct"] is None
    assert found["flags:quotes"] == QualityFlag.PARTIAL_BOOK


@pytest.mark.parametrize("dollars", [None, 0.0])
def test_impact_of_an_unknown_order_is_unknown(dollars: float | None) -> None:
    found = one(quote(10), dollars=dollars)
    assert (found["price_impact_1pct"], found["flags:quotes"]) == (None, 0)


def test_partial_book_is_said_only_of_what_needs_depth() -> None:
    found = quote_windows([SPREAD, IMBALANCE], rows("AAA"), frame(quote(10, BOOK[0][:1], BOOK[1][:1])), Timeframe.ONE_MINUTE)
    assert found["flags:quotes"].to_list() == [0]


def test_one_sided_books() -> None:
    found = one(quote(10, BOOK[0], []))
    assert [found[f.name] for f in (SPREAD, SPREAD_BPS, DEPTH, IMPACT)] == [None] * 4
    assert (found["order_book_imbalance"], found["flags:quotes"]) == (1.0, QualityFlag.PARTIAL_BOOK)
    assert one(quote(10, [], []))["order_book_imbalance"] is None


def test_what_was_not_known_is_not_seen() -> None:
    wide = ([(99.0, 1)], [(101.0, 1)])
    at_first, at_last = quote(20, *wide, late=5), quote(20, late=21)
    assert one(at_first, at_last)["bid_ask_spread"] == pytest.approx(2.0)
    later = quote_windows([SPREAD], rows("AAA", at=T + timedelta(seconds=1)), frame(at_first, at_last), Timeframe.ONE_MINUTE)
    assert later["value:bid_ask_spread"].to_list() == [pytest.approx(0.1)]
    assert one(at_first, quote(-1))["bid_ask_spread"] == pytest.approx(2.0)


def test_flags_of_the_bar_propagate() -> None:
    found = one(quote(300, flags=QualityFlag.RESTATED.value), quote(50, flags=QualityFlag.SIMULATED.value | QualityFlag.CLIPPED.value))
    assert found["flags:quotes"] == QualityFlag.SIMULATED


def test_symbols_and_instants_do_not_mix_in_any_order() -> None:
    found = [quote(seconds, symbol=symbol) for symbol in ("AAA", "BBB") for seconds in range(0, 400, 7)]
    instants = pl.concat([rows("BBB", "CCC", "AAA", at=T - timedelta(minutes=m)) for m in (0, 3, 1, 0, 2)])
    whole = quote_windows(ALL, instants, frame(*found), Timeframe.ONE_MINUTE)
    assert_frame_equal(whole.select(instants.columns), instants)
    shuffled = frame(*found).sample(fraction=1, shuffle=True, seed=1)
    assert quote_windows(ALL, instants, shuffled, Timeframe.ONE_MINUTE).equals(whole)
    alone = [quote_windows(ALL, row, frame(*found), Timeframe.ONE_MINUTE) for row in instants.iter_slices(1)]
    assert pl.concat(alone).equals(whole)
    assert whole.filter(pl.col("symbol") == "CCC")["flags:quotes"].unique().to_list() == [QualityFlag.STALE_INPUT]


def test_no_quotes_and_no_rows() -> None:
    assert quote_windows(ALL, rows("AAA"), frame(), Timeframe.ONE_MINUTE)["flags:quotes"].to_list() == [QualityFlag.STALE_INPUT]
    assert quote_windows(ALL, rows(), frame(quote(1)), Timeframe.ONE_MINUTE).is_empty()


@pytest.mark.parametrize("text", ["nonsense", "null", "[[1.0]]", "[[1.0, null]]", '[["1", "2"]]', "[[-1.0, 2.0]]", "[[1.0, -2.0]]", "{}"])
def test_a_malformed_book_is_refused(text: str) -> None:
    with pytest.raises(MalformedDataError, match=r"price, quantity"):
        one(quote(10, text))
