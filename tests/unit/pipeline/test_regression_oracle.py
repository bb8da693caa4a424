"""What the market checks and the bar flags find on the bundled real series: feature dictionary, section 6."""

from datetime import UTC, datetime, timedelta
from functools import cache

import polars as pl
import pytest

from featurestore_dagster.features.raw_tables import (
    CANDLES,
    FX_CANDLES_1H,
    US_EQUITY_CANDLES_1D,
    US_EQUITY_CORPORATE_ACTIONS,
    US_MACRO,
)
from featurestore_dagster.features.sources import SAMPLES
from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS, Dataset
from featurestore_dagster.model.source import Listing
from featurestore_dagster.model.time import FrozenClock, Timeframe
from featurestore_dagster.pipeline.audit import audit_dataset
from featurestore_dagster.pipeline.bars import adjusted_bars, flag_bars
from featurestore_dagster.pipeline.market_checks import duplicates, row_reasons
from featurestore_dagster.projections.relation import dataset_relation
from featurestore_dagster.sources import samples
from tests.unit.pipeline.frames import NO_ACTIONS, NYSE, keys_between

CLOCK = FrozenClock(datetime(2018, 12, 31, 22, tzinfo=UTC))
BEGINNING = datetime(1990, 1, 2, tzinfo=UTC)
LISTINGS = {listing.symbol: listing for listing in SAMPLES.listings[US_EQUITY_CANDLES_1D.name]}
HOUR = timedelta(hours=1)


@cache
def _sample(dataset: Dataset) -> pl.DataFrame:
    return samples.fetch(dataset, BEGINNING, CLOCK.instant, clock=CLOCK)


@cache
def _eurusd() -> pl.DataFrame:
    from backtesting.test import EURUSD

    ends = pl.Series(EURUSD.index.to_numpy().astype("datetime64[us]")).dt.replace_time_zone("UTC") + HOUR
    rows = pl.DataFrame(
        {"event_timestamp": ends, **{name: EURUSD[name.capitalize()].to_numpy() for name in ("open", "high", "low", "close", "volume")}}
    )
    return rows.select(
        dataset=pl.lit(FX_CANDLES_1H.name), symbol=pl.lit("EURUSD"), timeframe=pl.lit("1h"),
        **{name: pl.col(name).cast(pl.Float64) for name in ("open", "high", "low", "close", "volume")},
        adjusted_close=pl.lit(None, pl.Float64), trade_count=pl.lit(None, pl.Float64),
        bar_vwap=pl.lit(None, pl.Float64), event_timestamp=pl.col("event_timestamp"), source=pl.lit("files"),
        known_at=pl.col("event_timestamp"), known_at_basis=pl.lit("assumed"), flags=pl.lit(0, pl.Int64),
    )  # fmt: skip


def _refused(rows: pl.DataFrame, actions: pl.DataFrame) -> pl.DataFrame:
    """symbol, session and reason of every refused row."""
    found = row_reasons(US_EQUITY_CANDLES_1D, rows, rows.clear(), actions, NO_ACTIONS, LISTINGS, CLOCK.instant)
    sessions = rows.select("symbol", pl.col("event_timestamp").dt.date().alias("session")).with_row_index("row")
    return found.join(sessions, on="row").sort("symbol", "session")


def _first_refused(rows: pl.DataFrame, actions: pl.DataFrame) -> dict[str, str]:
    found = _refused(rows, actions)
    assert found["reason"].str.starts_with("split_like_jump").all()
    return {symbol: str(session) for symbol, session in found.group_by("symbol").agg(pl.col("session").min()).iter_rows()}


def test_the_only_jumps_like_a_split_are_the_three_splits() -> None:
    """Each one is found when only it is unknown, and nothing else: not the real crash of AAPL on 2000-09-29."""
    candles, actions = _sample(US_EQUITY_CANDLES_1D), _sample(US_EQUITY_CORPORATE_ACTIONS)
    assert _first_refused(candles, NO_ACTIONS) == {"AAPL": "2000-06-21", "MSFT": "2003-02-18"}
    splits = actions.filter(pl.col("action") == "split").select("symbol", pl.col("event_timestamp").dt.date().cast(pl.String)).rows()
    assert splits == [("AAPL", "2000-06-21"), ("AAPL", "2005-02-28"), ("MSFT", "2003-02-18")]
    for symbol, day in splits:
        others = actions.filter((pl.col("symbol") != symbol) | (pl.col("event_timestamp").dt.date().cast(pl.String) != day))
        assert _first_refused(candles, others) == {symbol: day}


def test_known_actions_explain_every_jump() -> None:
    assert _refused(_sample(US_EQUITY_CANDLES_1D), _sample(US_EQUITY_CORPORATE_ACTIONS)).is_empty()


def test_the_crash_of_apple_trades_far_more_than_a_split() -> None:
    """2000-09-29: the close halves, as a 2:1 split does; only the traded value tells them apart."""
    apple = _sample(US_EQUITY_CANDLES_1D).filter(pl.col("symbol") == "AAPL", pl.col("event_timestamp").dt.year() == 2000)
    after = apple.filter(pl.col("event_timestamp").dt.date() > datetime(2000, 6, 21, tzinfo=UTC).date())
    assert _refused(after, NO_ACTIONS).is_empty()
    crash = pl.col("event_timestamp").dt.date() == datetime(2000, 9, 29, tzinfo=UTC).date()
    quiet = after.with_columns(pl.when(crash).then(pl.col("volume") / 10).otherwise("volume").alias("volume"))
    assert _first_refused(quiet, NO_ACTIONS) == {"AAPL": "2000-09-29"}


def test_real_bars_pass_every_other_check() -> None:
    """Checks 2, 3, 4, 5, 6, 9: no hit; and check 8: no session is missing."""
    keys = keys_between("1999-01-04", "2018-12-31")
    rows = _sample(US_EQUITY_CANDLES_1D)
    audit = audit_dataset(
        US_EQUITY_CANDLES_1D, rows, keys, context=rows.clear(), actions=_sample(US_EQUITY_CORPORATE_ACTIONS), jumped=NO_ACTIONS,
        listings=LISTINGS,
        now=CLOCK.instant + 2 * HOUR,
    )  # fmt: skip
    assert audit.quarantined.is_empty()
    assert [part.failed for part in audit.partitions.values() if part.failed] == []
    assert audit.rows.height == rows.height == sum(part.rows_expected or 0 for part in audit.partitions.values())


@pytest.mark.parametrize("dataset", [US_EQUITY_CORPORATE_ACTIONS, US_MACRO])
def test_real_actions_and_macro_series_pass(dataset: Dataset) -> None:
    rows = _sample(dataset)
    keys = sorted(set(NYSE.session_of(rows["event_timestamp"]).cast(pl.String)))
    audit = audit_dataset(dataset, rows, keys, context=rows.clear(), actions=NO_ACTIONS, jumped=NO_ACTIONS, listings={}, now=CLOCK.instant)
    assert audit.rows.height == rows.height > 0
    assert not any(part.failed for part in audit.partitions.values())


def test_real_hourly_bars_pass_but_two_after_the_week_has_ended() -> None:
    """The vendor has a quarter of an hour of ticks after Friday 17:00 New York on two days: no session owns them."""
    rows = _eurusd()
    listings = {"EURUSD": Listing("EURUSD", rows["event_timestamp"][0].date())}
    found = row_reasons(FX_CANDLES_1H, rows, rows.clear(), NO_ACTIONS, NO_ACTIONS, listings, CLOCK.instant)
    assert found["reason"].str.starts_with("out_of_session").all()
    assert rows["event_timestamp"].gather(found["row"]).dt.strftime("%F %H:%M").to_list() == ["2017-10-06 22:00", "2017-10-20 22:00"]
    assert duplicates(FX_CANDLES_1H, rows)[1].is_empty()


def _flagged(rows: pl.DataFrame, actions: pl.DataFrame, dataset: Dataset, flag: QualityFlag) -> dict[str, list[str]]:
    previous = rows.select("symbol", "event_timestamp", "close").sort("symbol", "event_timestamp")
    closes = actions.sort("event_timestamp").join_asof(
        previous.sort("event_timestamp").rename({"close": "previous_close"}), on="event_timestamp", by="symbol",
        allow_exact_matches=False, check_sortedness=False,
    )  # fmt: skip
    bars = flag_bars(adjusted_bars(rows, closes), dataset)
    hits = bars.filter(pl.col("flags") & flag.value != 0).select("symbol", pl.col("event_timestamp").dt.date().cast(pl.String))
    return {str(symbol): frame["event_timestamp"].to_list() for (symbol,), frame in hits.partition_by("symbol", as_dict=True).items()}


def test_outliers_of_daily_series() -> None:
    """The dictionary counts on log_ret_1 as traded; the ex-dates among them are no outliers once the actions are known."""
    candles, actions = _sample(US_EQUITY_CANDLES_1D), _sample(US_EQUITY_CORPORATE_ACTIONS)
    as_traded = _flagged(candles, NO_ACTIONS, US_EQUITY_CANDLES_1D, QualityFlag.OUTLIER)
    assert {symbol: len(as_traded.get(symbol, [])) for symbol in ("AAPL", "MSFT", "IBM", "GOOG")} == {
        "AAPL": 3,
        "MSFT": 4,
        "IBM": 1,
        "GOOG": 0,
    }
    assert as_traded["SPX"] == ["2007-02-27", "2018-02-05"]
    explained = {"AAPL": {"2000-06-21", "2005-02-28"}, "MSFT": {"2003-02-18", "2004-11-15"}}
    assert _flagged(candles, actions, US_EQUITY_CANDLES_1D, QualityFlag.OUTLIER) == {
        symbol: [day for day in days if day not in explained.get(symbol, set())] for symbol, days in as_traded.items()
    }


def test_outliers_of_hourly_series() -> None:
    found = _flagged(_eurusd(), NO_ACTIONS, FX_CANDLES_1H, QualityFlag.OUTLIER)
    assert {symbol: len(days) for symbol, days in found.items()} == {"EURUSD": 11}


def test_bars_without_trade() -> None:
    found = _flagged(_sample(US_EQUITY_CANDLES_1D), _sample(US_EQUITY_CORPORATE_ACTIONS), US_EQUITY_CANDLES_1D, QualityFlag.ZERO_VOLUME)
    assert {symbol: len(days) for symbol, days in found.items()} == {"IXIC": 2}


def test_corporate_actions_are_flagged_on_their_ex_dates() -> None:
    actions = _sample(US_EQUITY_CORPORATE_ACTIONS)
    found = _flagged(_sample(US_EQUITY_CANDLES_1D), actions, US_EQUITY_CANDLES_1D, QualityFlag.CORP_ACTION)
    expected = (
        actions.select("symbol", pl.col("event_timestamp").dt.date().cast(pl.String)).unique().sort("symbol", "event_timestamp").rows()
    )
    assert [(symbol, day) for symbol in sorted(found) for day in found[symbol]] == expected
    assert {"2000-06-21", "2005-02-28", "2012-08-09"} < set(found["AAPL"])


def test_no_sample_has_a_gap() -> None:
    actions = _sample(US_EQUITY_CORPORATE_ACTIONS)
    assert _flagged(_sample(US_EQUITY_CANDLES_1D), actions, US_EQUITY_CANDLES_1D, QualityFlag.GAP_BEFORE) == {}
    holed = _sample(US_EQUITY_CANDLES_1D).filter(pl.col("event_timestamp").dt.date().cast(pl.String) != "2010-05-06")
    gaps = _flagged(holed, actions, US_EQUITY_CANDLES_1D, QualityFlag.GAP_BEFORE)
    assert {day for days in gaps.values() for day in days} == {"2010-05-07"}
    assert sorted(gaps) == ["AAPL", "GOOG", "IBM", "IXIC", "MSFT", "SPX"]


def test_the_frames_are_those_of_the_declarations() -> None:
    assert dict(_sample(US_EQUITY_CANDLES_1D).schema) == dataset_relation(US_EQUITY_CANDLES_1D).frame_schema
    assert _eurusd().schema["event_timestamp"] == UTC_MICROSECONDS
    assert FX_CANDLES_1H.table is CANDLES
    assert FX_CANDLES_1H.timeframe is Timeframe.ONE_HOUR
