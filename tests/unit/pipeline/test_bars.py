"""Anchored adjustment and the flags of a bar, on hand-made series."""

from datetime import timedelta
from typing import Any

import polars as pl
import pytest

from featurestore_dagster.features.raw_tables import US_EQUITY_CORPORATE_ACTIONS
from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.pipeline.bars import adjusted_bars, flag_bars
from tests.unit.pipeline.frames import EQUITIES, bar, close_of, frame, intraday, keys_between, session_bars, split

DAYS = keys_between("2018-11-26", "2018-12-07")


def _actions(*rows: dict[str, Any], previous_close: float | None = None) -> pl.DataFrame:
    return frame(rows, US_EQUITY_CORPORATE_ACTIONS).with_columns(pl.lit(previous_close, pl.Float64).alias("previous_close"))


def _adjusted(rows: list[dict[str, Any]], *actions: dict[str, Any], previous_close: float | None = None) -> pl.DataFrame:
    return adjusted_bars(frame(rows), _actions(*actions, previous_close=previous_close))


def test_without_actions_adjusted_is_traded() -> None:
    bars = _adjusted(session_bars(DAYS, ["AAA"]))
    for name in ("open", "high", "low", "close", "volume"):
        assert bars[name].equals(bars[f"raw_{name}"].rename(name))
    assert bars["adjustment_factor"].unique().to_list() == [1.0]
    assert bars["bar_number"].to_list() == list(range(len(DAYS)))
    assert bars["action_known_at"].null_count() == len(DAYS)


def test_a_split_steps_at_its_ex_date_and_divides_volume_before() -> None:
    rows = [bar(day, close=100.0 if day < DAYS[4] else 50.0, volume=10.0 if day < DAYS[4] else 20.0) for day in DAYS]
    bars = _adjusted(rows, split(DAYS[4], "AAA", 2.0))
    assert bars["adjustment_factor"].to_list() == [1.0] * 4 + [2.0] * (len(DAYS) - 4)
    assert bars["close"].to_list() == [100.0] * len(DAYS)
    assert bars["volume"].to_list() == [10.0] * len(DAYS)
    assert bars["raw_close"].to_list()[3:5] == [100.0, 50.0]


def test_a_dividend_scales_prices_by_the_close_before_and_leaves_volume() -> None:
    dividend = split(DAYS[4], "AAA", 1.0) | {"action": "dividend", "ratio": None, "cash_amount": 5.0}
    bars = _adjusted(session_bars(DAYS, ["AAA"]), dividend, previous_close=100.0)
    assert bars["adjustment_factor"].to_list()[3:5] == [1.0, pytest.approx(1 / 0.95)]
    assert bars["volume"].equals(bars["raw_volume"].rename("volume"))


def test_a_dividend_whose_price_before_is_unknown_scales_nothing() -> None:
    dividend = split(DAYS[4], "AAA", 1.0) | {"action": "dividend", "ratio": None, "cash_amount": 5.0}
    assert _adjusted(session_bars(DAYS, ["AAA"]), dividend)["adjustment_factor"].unique().to_list() == [1.0]


def test_several_actions_of_a_day_and_of_days_multiply() -> None:
    dividend = split(DAYS[4], "AAA", 1.0) | {"action": "dividend", "ratio": None, "cash_amount": 50.0}
    actions = (split(DAYS[2], "AAA", 3.0), split(DAYS[4], "AAA", 2.0), dividend, split(DAYS[3], "BBB", 7.0))
    bars = _adjusted(session_bars(DAYS, ["AAA", "BBB"]), *actions, previous_close=100.0).filter(symbol="AAA")
    assert bars["adjustment_factor"].to_list()[1:5] == [1.0, 3.0, 3.0, 12.0]
    assert bars["split_factor"].to_list()[1:5] == [1.0, 3.0, 3.0, 6.0]


def test_a_later_action_changes_no_earlier_factor() -> None:
    rows = session_bars(DAYS, ["AAA"])
    early = _adjusted(rows[:5], split(DAYS[2], "AAA", 3.0))
    late = _adjusted(rows, split(DAYS[2], "AAA", 3.0), split(DAYS[7], "AAA", 2.0))
    assert late.head(5).equals(early)


def test_the_order_of_rows_means_nothing() -> None:
    rows, actions = session_bars(DAYS, ["AAA", "BBB"]), (split(DAYS[2], "AAA", 3.0), split(DAYS[4], "AAA", 2.0))
    assert _adjusted(rows[::-1], *actions[::-1]).equals(_adjusted(rows, *actions))


def test_a_bar_knows_when_its_factor_was_known() -> None:
    known = close_of(DAYS[-1]) + timedelta(days=3)
    bars = _adjusted(session_bars(DAYS, ["AAA"]), split(DAYS[2], "AAA", 3.0, known_at=known), split(DAYS[4], "AAA", 2.0))
    assert bars["action_known_at"].to_list() == [None, None] + [known] * (len(DAYS) - 2)


def _flags(rows: list[dict[str, Any]], *actions: dict[str, Any], flag: QualityFlag, dataset: Any = EQUITIES) -> list[int]:
    bars = flag_bars(_adjusted(rows, *actions), dataset)
    return [number for number, flags in enumerate(bars["flags"]) if flags & flag.value]


def test_no_volume_is_flagged_and_unknown_volume_is_not() -> None:
    rows = session_bars(DAYS, ["AAA"])
    rows[3]["volume"], rows[4]["volume"] = 0.0, None
    assert _flags(rows, flag=QualityFlag.ZERO_VOLUME) == [3]


def test_a_corporate_action_is_flagged_on_its_ex_date() -> None:
    assert _flags(session_bars(DAYS, ["AAA"]), split(DAYS[4], "AAA", 2.0), flag=QualityFlag.CORP_ACTION) == [4]
    assert (
        _flags(session_bars(DAYS, ["AAA"]), split(DAYS[0], "AAA", 2.0), flag=QualityFlag.CORP_ACTION) == []
    )  # nothing before to differ from


def test_a_missing_session_is_a_gap_and_a_holiday_is_none() -> None:
    rows = session_bars(DAYS, ["AAA"])
    assert _flags(rows, flag=QualityFlag.GAP_BEFORE) == []
    assert _flags([*rows[:4], *rows[6:]], flag=QualityFlag.GAP_BEFORE) == [4]


def test_flags_that_came_with_the_bar_stay() -> None:
    rows = [bar(day, flags=QualityFlag.IMPUTED.value) for day in DAYS]
    assert _flags(rows, flag=QualityFlag.IMPUTED) == list(range(len(DAYS)))


LONG = keys_between("2018-06-01", "2018-11-30")


def _quiet(closes: dict[int, float], volume: float = 1000.0) -> list[dict[str, Any]]:
    return [bar(day, close=closes.get(number, 100.0 + number * number * 13 % 11 / 5), volume=volume) for number, day in enumerate(LONG)]


def test_an_outlier_needs_sixty_returns_before_it() -> None:
    assert _flags(_quiet({60: 130.0}), flag=QualityFlag.OUTLIER) == [61]  # back, but not there
    assert _flags(_quiet({61: 130.0}), flag=QualityFlag.OUTLIER) == [61, 62]  # there and back


def test_a_return_on_an_ex_date_is_no_outlier() -> None:
    rows = [{**row, "close": row["close"] * (0.8 if number >= 80 else 1.0)} for number, row in enumerate(_quiet({}))]
    assert _flags(rows, flag=QualityFlag.OUTLIER) == [80]
    assert _flags(rows, split(LONG[80], "AAA", 1.25), flag=QualityFlag.OUTLIER) == []
    assert _flags(rows, split(LONG[80], "AAA", 1.01), flag=QualityFlag.OUTLIER) == []  # any action on the bar


def test_a_cheap_quiet_price_is_no_outlier_when_it_moves_a_tick() -> None:
    """The deviation of a constant price is zero; ten times two ticks is the least that counts."""
    flat = [bar(day, close=1.0 + (0.17 if number == 90 else 0.0)) for number, day in enumerate(LONG)]
    assert _flags(flat, flag=QualityFlag.OUTLIER) == []
    jump = [bar(day, close=1.0 + (0.3 if number == 90 else 0.0)) for number, day in enumerate(LONG)]
    assert _flags(jump, flag=QualityFlag.OUTLIER) == [90, 91]


def test_gaps_follow_the_grid_of_the_timeframe() -> None:
    ends = [close_of("2018-12-03") - timedelta(hours=hours) for hours in (3.5, 2.5, 0.5, 0)]
    rows = [bar("2018-12-03", event_timestamp=end, timeframe="1h") for end in ends]
    assert _flags(rows, flag=QualityFlag.GAP_BEFORE, dataset=intraday()) == [2]


def test_no_bars_are_no_problem() -> None:
    empty = flag_bars(_adjusted([]), EQUITIES)
    assert empty.is_empty()
