"""What has traded since the open and what is usual, against loops over sessions, and around short days and missing bars."""

from datetime import UTC, date, datetime, timedelta
from functools import reduce
from operator import or_

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from featurestore_dagster.calendars import calendar
from featurestore_dagster.indicators import intraday, volume
from featurestore_dagster.model.flags import PROPAGATED, QualityFlag
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS
from featurestore_dagster.model.time import Timeframe
from featurestore_dagster.pipeline.blocks.sessions import with_session_columns

SHORT_DAY, FIRST_DAY, LAST_DAY = date(2018, 7, 3), date(2018, 6, 1), date(2018, 7, 13)
ADDED = ["session", "session_minute", "session_volume", "raw_session_volume", "raw_session_turnover", "usual_session_volume"]
BEHIND = ["known:sessions", "flags:sessions"]


def half_hours(symbol: str = "AAA", seed: int = 0, *, vwap: bool = False) -> pl.DataFrame:
    """Every half-hour bar of XNYS in the days, with volumes of whole shares; a short day closes at 17:00 UTC."""
    ends = calendar("XNYS").bar_ends(Timeframe.FIFTEEN_MINUTES, datetime(2018, 6, 1, tzinfo=UTC), datetime(2018, 7, 14, tzinfo=UTC))
    draw = np.random.Generator(np.random.PCG64(seed))
    close = 100 + np.cumsum(draw.integers(-5, 6, ends.len())) / 10
    volumes = draw.integers(0, 1000, ends.len()).astype(np.float64)
    return pl.DataFrame({"symbol": symbol, "event_timestamp": ends, "raw_close": close, "raw_volume": volumes}).with_columns(
        (pl.col("raw_volume") / 2).alias("volume"),
        (pl.col("raw_close") + 0.3).alias("raw_high"),
        (pl.col("raw_close") - 0.1).alias("raw_low"),
        (pl.col("raw_close") + 0.05 if vwap else pl.lit(None, pl.Float64)).alias("bar_vwap"),
        (pl.col("event_timestamp") + pl.duration(seconds=draw.integers(0, 10, ends.len()))).alias("known_at"),
        pl.lit(None, UTC_MICROSECONDS).alias("action_known_at"),
        pl.lit(0, pl.Int64).alias("flags"),
    )


def at(frame: pl.DataFrame, instant: str, column: str) -> float | None:
    """The cell of the bar that ends at the instant."""
    value: float | None = frame.filter(pl.col("event_timestamp") == datetime.fromisoformat(instant).replace(tzinfo=UTC))[column].item()
    return value


def usual_by_loop(frame: pl.DataFrame) -> list[float | None]:
    """Mean over the 20 sessions before of the volume of bars that ended by the same minute."""
    days: dict[date, list[tuple[int, float]]] = {}
    found: list[float | None] = []
    for day, minute, traded, end in frame.select("session", "session_minute", "volume", "event_timestamp").iter_rows():
        days.setdefault(day, []).append((minute, traded))
        before = [days[key] for key in sorted(days)][:-1][-20:]
        closing = end == calendar("XNYS").session(day).closes
        sums = [sum(v for m, v in bars if m <= minute or closing) for bars in before]
        found.append(sum(sums) / 20 if len(sums) == 20 else None)
    return found


def test_sums_restart_with_each_session() -> None:
    frame = with_session_columns(half_hours(), "XNYS")
    for _, day in frame.group_by("session"):
        traded = day["raw_volume"].to_list()
        assert day["raw_session_volume"].to_list() == [sum(traded[: i + 1]) for i in range(len(traded))]
        assert day["session_volume"].to_list() == [sum(traded[: i + 1]) / 2 for i in range(len(traded))]
        typical = (day["raw_close"] * 3 + 0.2) / 3
        expected = [float((typical * day["raw_volume"])[: i + 1].sum()) for i in range(day.height)]
        assert day["raw_session_turnover"].to_list() == pytest.approx(expected, rel=1e-12)
    assert frame["session_minute"].to_list()[:26] == list(range(15, 391, 15))


def test_usual_volume_by_loop() -> None:
    frame = with_session_columns(half_hours(), "XNYS")
    expected = usual_by_loop(frame)
    assert frame["usual_session_volume"].to_list() == expected
    assert 0 < sum(value is None for value in expected) < len(expected) / 1.3


def test_usual_volume_with_missing_bars_by_loop() -> None:
    bars = half_hours().filter(pl.int_range(pl.len()).hash(seed=3) % 3 != 0)
    frame = with_session_columns(bars, "XNYS")
    assert frame["usual_session_volume"].to_list() == usual_by_loop(frame)


def behind_by_loop(frame: pl.DataFrame) -> list[tuple[datetime, int]]:
    """Greatest known-at and OR of flags: the session's bars so far, and those that ended by the same minute in 20 sessions before."""
    bars = frame.select("session", "session_minute", "known_at", "action_known_at", "flags", "event_timestamp").rows()
    days = sorted({bar[0] for bar in bars})
    found = []
    for day, minute, _, _, _, end in bars:
        window = days[max(days.index(day) - 20, 0) : days.index(day) + 1]
        closing = end == calendar("XNYS").session(day).closes
        read = [bar for bar in bars if bar[0] in window and (bar[1] <= minute or (closing and bar[0] != day))]
        known_at = max(instant for bar in read for instant in bar[2:4] if instant is not None)
        found.append((known_at, reduce(or_, (bar[4] for bar in read)) & PROPAGATED.value))
    return found


def test_late_and_flagged_bars_reach_the_rows_that_read_them_by_loop() -> None:
    place = pl.int_range(pl.len())
    bars = (
        half_hours()
        .filter(place.hash(seed=3) % 5 != 0)
        .with_columns(
            pl.when(place == 7).then(pl.col("known_at") + pl.duration(days=18)).otherwise("known_at").alias("known_at"),
            pl.when(place == 30).then(pl.col("known_at") + pl.duration(days=9)).alias("action_known_at"),
            pl.when(place % 150 == 20).then((QualityFlag.OUTLIER | QualityFlag.CLIPPED).value).otherwise(place % 201 // 200).alias("flags"),
        )
    )
    frame = with_session_columns(bars, "XNYS")
    assert frame.select(BEHIND).rows() == behind_by_loop(frame)
    assert set(frame["flags:sessions"]) == {0, QualityFlag.OUTLIER.value}


def test_closing_rows_agree_with_daily_bars() -> None:
    bars = half_hours()
    sessions = calendar("XNYS").sessions(FIRST_DAY, LAST_DAY)
    intraday_rows = with_session_columns(bars, "XNYS").join(sessions, on="session").filter(pl.col("event_timestamp") == pl.col("closes"))
    label = calendar("XNYS").session_of(bars["event_timestamp"])
    daily = (
        bars.with_columns(session=label)
        .group_by("symbol", "session", maintain_order=True)
        .agg(
            pl.col("event_timestamp", "raw_close", "bar_vwap").last(),
            pl.col("raw_high", "known_at", "action_known_at", "flags").max(),
            pl.col("raw_low").min(),
            pl.col("volume", "raw_volume").sum(),
        )
        .drop("session")
    )
    daily_rows = with_session_columns(daily, "XNYS")
    ratio = intraday.volume_ratio.feature().expression()
    found, expected = intraday_rows.select("session", ratio), daily_rows.select("session", ratio)
    assert found.equals(expected)
    assert SHORT_DAY in found.drop_nulls()["session"].to_list()
    traded = daily_rows["volume"]
    by_hand = [None if i < 20 else traded[i] / (sum(traded[i - 20 : i]) / 20) for i in range(traded.len())]
    assert expected["volume_ratio"].to_list() == by_hand


def test_vendor_vwap_is_used_while_every_bar_has_one() -> None:
    bars = half_hours(vwap=True)
    day, third = date(2018, 6, 4), datetime(2018, 6, 4, 14, 15, tzinfo=UTC)
    gap = (pl.col("event_timestamp") == third).alias("gap")
    frame = with_session_columns(bars.with_columns(bar_vwap=pl.when(~gap).then("bar_vwap")), "XNYS").filter(pl.col("session") == day)
    found = frame.select(intraday.vwap.feature().expression())["vwap"].to_list()
    vendor = (frame["bar_vwap"] * frame["raw_volume"])[:2].sum() / frame["raw_volume"][:2].sum()
    typical = ((frame["raw_close"] + 0.2 / 3) * frame["raw_volume"])[:3].sum() / frame["raw_volume"][:3].sum()
    assert found[1:3] == [pytest.approx(vendor, rel=1e-12), pytest.approx(typical, rel=1e-12)]
    other = with_session_columns(bars, "XNYS").filter(pl.col("session") != day).select(ADDED)
    assert frame.height == 26
    assert_frame_equal(
        with_session_columns(bars.with_columns(bar_vwap=pl.when(~gap).then("bar_vwap")), "XNYS")
        .filter(pl.col("session") != day)
        .select(ADDED),
        other,
        check_exact=True,
    )


def test_a_missing_volume_blanks_the_rest_of_its_session_and_what_looks_back_on_it() -> None:
    instant = datetime(2018, 6, 12, 18, 0, tzinfo=UTC)
    bars = half_hours().with_columns(pl.when(pl.col("event_timestamp") != instant).then(pl.col("volume", "raw_volume")))
    frame, whole = with_session_columns(bars, "XNYS"), with_session_columns(half_hours(), "XNYS")
    blank = (pl.col("session") == instant.date()) & (pl.col("event_timestamp") >= instant)
    for name in ("session_volume", "raw_session_volume", "raw_session_turnover"):
        assert frame.select((pl.col(name).is_null() == blank).all()).item(), name
    minute = frame.filter(pl.col("event_timestamp") == instant)["session_minute"].item()
    last = (pl.col("session_minute") >= minute) | (pl.col("session") == SHORT_DAY) & (pl.col("session_minute") == 210)
    looks_back = (pl.col("session") > instant.date()) & last & (pl.col("session") <= date(2018, 7, 11))
    assert frame.select(
        (
            (pl.col("usual_session_volume").is_null() & pl.Series(whole["usual_session_volume"].is_not_null()))
            == (looks_back & pl.Series(whole["usual_session_volume"].is_not_null()))
        ).all()
    ).item()


def test_symbols_do_not_mix_and_order_does_not_matter() -> None:
    alone = [half_hours("AAA", 1), half_hours("BBB", 2)[40:], half_hours("CCC", 3)]
    panel = pl.concat(alone).sample(fraction=1, shuffle=True, seed=4)
    found = with_session_columns(panel, "XNYS")
    assert_frame_equal(found.select(panel.columns), panel)
    for frame in alone:
        symbol = frame["symbol"][0]
        assert found.filter(pl.col("symbol") == symbol).sort("event_timestamp").equals(with_session_columns(frame, "XNYS"))


def test_the_first_twenty_sessions_before_a_chunk_are_enough() -> None:
    whole = with_session_columns(half_hours(), "XNYS")
    sessions = whole["session"].unique().sort().to_list()
    chunk = with_session_columns(half_hours().filter(whole["session"] >= sessions[5]), "XNYS")
    assert chunk.filter(pl.col("session") >= sessions[25]).equals(whole.filter(pl.col("session") >= sessions[25]))


def test_round_the_clock_sessions_end_at_midnight() -> None:
    ends = [datetime(2024, 1, 1, tzinfo=UTC) + timedelta(hours=h) for h in range(1, 30)]
    bars = pl.DataFrame({"symbol": "BTCUSDT", "event_timestamp": pl.Series(ends, dtype=pl.Datetime("us", "UTC"))}).with_columns(
        *(pl.lit(1.0).alias(name) for name in ("volume", "raw_volume", "raw_high", "raw_low", "raw_close", "bar_vwap")),
        *(pl.col("event_timestamp").alias(name) for name in ("known_at", "action_known_at")),
        pl.lit(0, pl.Int64).alias("flags"),
    )
    frame = with_session_columns(bars, "24/7")
    assert frame["session_volume"].to_list() == [*range(1, 25), *range(1, 6)]
    assert frame["session_minute"].to_list()[22:26] == [1380, 1440, 60, 120]


def test_no_bars() -> None:
    found = with_session_columns(half_hours().clear(), "XNYS")
    assert found.schema == with_session_columns(half_hours(), "XNYS").schema


def test_vwap_of_a_whole_day_is_the_rolling_one_over_its_bars() -> None:
    frame = with_session_columns(half_hours(), "XNYS").with_columns(pl.col(f"raw_{name}").alias(name) for name in ("high", "low", "close"))
    both = frame.select(
        "session_minute", "session", intraday.vwap.feature().expression(), volume.rolling_vwap.feature("vwap_26", n=26).expression()
    )
    closing = both.filter((pl.col("session_minute") == 390) & (pl.col("session") != SHORT_DAY))
    np.testing.assert_allclose(closing["vwap"].to_numpy(), closing["vwap_26"].to_numpy(), rtol=1e-12)
