"""The simulated market: the same whatever is asked for together, labelled, refused in production, with the statistics that it promises."""

import dataclasses
import json
from datetime import UTC, date, datetime, timedelta
from functools import cache

import numpy as np
import polars as pl
import pytest

from featurestore_dagster.errors import ConfigurationError
from featurestore_dagster.features.raw_tables import (
    COMPANY_FACTS,
    EVENTS,
    QUOTES,
    US_EQUITY_CANDLES_1D,
    US_EQUITY_CORPORATE_ACTIONS,
    US_MACRO,
)
from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.model.raw_table import Dataset
from featurestore_dagster.model.time import FrozenClock, Timeframe
from featurestore_dagster.projections.relation import dataset_relation
from featurestore_dagster.settings import Settings
from featurestore_dagster.sources.simulator import Fault, Simulation, Simulator, content_hash

DAILY, ACTIONS = US_EQUITY_CANDLES_1D, US_EQUITY_CORPORATE_ACTIONS
MINUTES = dataclasses.replace(DAILY, name="simulated_1m", timeframe=Timeframe.ONE_MINUTE)
BOOKS = dataclasses.replace(MINUTES, name="simulated_quotes", table=QUOTES, bars=False)
NEWS = dataclasses.replace(BOOKS, name="simulated_events", table=EVENTS, calendar="24/7")
FILINGS = dataclasses.replace(DAILY, name="simulated_facts", table=COMPANY_FACTS, bars=False)

YEAR = Simulation(date(2024, 1, 2), date(2024, 12, 31), symbol_count=400)
CLEAN = dataclasses.replace(YEAR, with_faults=False)
CLOCK = FrozenClock(datetime(2025, 6, 1, tzinfo=UTC))
EVER = (datetime(2023, 1, 1, tzinfo=UTC), datetime(2025, 5, 1, tzinfo=UTC))
WEEK = (datetime(2024, 3, 4, tzinfo=UTC), datetime(2024, 3, 9, tzinfo=UTC))
TWO_HOURS = (datetime(2024, 3, 4, tzinfo=UTC), datetime(2024, 3, 4, 16, tzinfo=UTC))


def _simulator(simulation: Simulation = YEAR, now: datetime = CLOCK.instant) -> Simulator:
    return Simulator(simulation, Settings(environment="test"), FrozenClock(now))


@cache
def _clean_year() -> pl.DataFrame:
    return _simulator(CLEAN).fetch(DAILY, *EVER)


def test_production_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="FEATURESTORE_ENVIRONMENT=production; allowed: development, test"):
        Simulator(YEAR, Settings(environment="production"), CLOCK)


@pytest.mark.parametrize("dataset", [US_MACRO, dataclasses.replace(DAILY, timeframe=Timeframe.ONE_HOUR)], ids=["macro", "1h"])
def test_what_is_not_simulated_is_refused(dataset: Dataset) -> None:
    with pytest.raises(ConfigurationError, match=r"not simulated; allowed:"):
        _simulator(dataclasses.replace(YEAR, symbol_count=1)).fetch(dataset, *WEEK)


@pytest.mark.parametrize(
    ("dataset", "span"),
    [(DAILY, EVER), (ACTIONS, EVER), (MINUTES, WEEK), (BOOKS, TWO_HOURS), (NEWS, WEEK), (FILINGS, EVER)],
    ids=["1d", "actions", "1m", "quotes", "events", "filings"],
)
def test_any_subset_and_order_of_symbols_gives_the_same_labelled_rows(dataset: Dataset, span: tuple[datetime, datetime]) -> None:
    simulator = _simulator(dataclasses.replace(YEAR, symbol_count=2 if dataset is BOOKS else 12))
    rows, symbols = simulator.fetch(dataset, *span), simulator.simulation.symbols
    assert not rows.is_empty()
    assert dict(rows.schema) == dataset_relation(dataset).frame_schema
    assert rows["source"].unique().to_list() == ["simulator"]
    assert rows["flags"].unique().to_list() == [QualityFlag.SIMULATED.value]
    again = [simulator.fetch(dataset, *span, [symbol]) for symbol in reversed(symbols)]
    joined = pl.concat(again).sort(*dataset.table.identity, "known_at", maintain_order=True)
    assert content_hash([joined]) == content_hash([rows])
    assert content_hash([_simulator(dataclasses.replace(simulator.simulation, seed=1)).fetch(dataset, *span)]) != content_hash([rows])


def test_any_span_of_time_gives_the_same_rows() -> None:
    simulator, symbols = _simulator(), YEAR.symbols[:3]
    middle = datetime(2024, 3, 6, 17, tzinfo=UTC)
    for dataset, span in ((DAILY, EVER), (MINUTES, WEEK)):
        halves = [simulator.fetch(dataset, start, end, symbols) for start, end in ((span[0], middle), (middle, span[1]))]
        assert (
            pl.concat(halves)
            .sort(*dataset.table.identity, "known_at", maintain_order=True)
            .equals(simulator.fetch(dataset, *span, symbols))
        )


def test_what_is_not_known_yet_is_not_delivered() -> None:
    now = datetime(2024, 3, 6, 17, tzinfo=UTC)
    rows = _simulator(now=now).fetch(MINUTES, *WEEK, YEAR.symbols[:3])
    assert rows["known_at"].max() <= now  # type: ignore[operator]
    assert rows["event_timestamp"].max() == now - timedelta(minutes=1)


def test_realised_volatility_is_the_target() -> None:
    """Median over symbols of realised over target, from the universe's own stream."""
    from featurestore_dagster.sources.simulator.daily import paths

    found = paths(CLEAN, CLEAN.symbols, "XNYS")
    adjusted = np.log(found.close * np.cumprod(found.split, axis=1))
    whole = found.listed.all(axis=1)
    ratio = np.diff(adjusted, axis=1).std(axis=1, ddof=1)[whole] * np.sqrt(252) / found.sigma[whole]
    assert adjusted.shape[1] >= 250
    assert 0.90 <= np.median(ratio) <= 1.10


def test_the_universe_has_the_shares_that_it_promises() -> None:
    """1 % appear and 0.5 % disappear in mid-sample."""
    many = Simulation(date(2024, 1, 2), date(2024, 1, 31), symbol_count=2000)
    listings = _simulator(many).source(DAILY).listings[DAILY.name]
    assert len(listings) == 2000
    assert 8 <= sum(listing.first > many.first for listing in listings) <= 34
    assert 2 <= sum(listing.last is not None and listing.last < date(2024, 1, 31) for listing in listings) <= 20


def test_bars_are_whole() -> None:
    rows = _clean_year()
    sound = (
        (pl.col("low") <= pl.min_horizontal("open", "close")) & (pl.col("high") >= pl.max_horizontal("open", "close")) & (pl.col("low") > 0)
    )
    assert rows.select(sound.all()).item()
    assert not rows.select(dataset_relation(DAILY).identity).is_duplicated().any()
    zero = rows.group_by("symbol").agg((pl.col("volume") == 0).mean().alias("share")).filter(pl.col("share") > 0)
    assert zero["share"].is_between(0.2, 0.4).all()
    assert 1 <= zero.height <= 12  # 1 % of 400 symbols


def test_a_split_moves_price_and_volume() -> None:
    simulator = _simulator(dataclasses.replace(CLEAN, symbol_count=1000))
    splits = simulator.fetch(ACTIONS, *EVER).filter(pl.col("action") == "split")
    assert 1 <= splits.height <= 12
    symbol, ratio, opens = splits.filter(pl.col("ratio") > 1).select("symbol", "ratio", "event_timestamp").row(0)
    bars = simulator.fetch(DAILY, opens - timedelta(days=60), opens + timedelta(days=60), [symbol]).with_columns(
        after=pl.col("event_timestamp") > opens
    )
    medians = bars.group_by("after").agg(pl.col("close", "volume").median()).sort("after")
    before, after = medians.rows(named=True)
    assert before["close"] / after["close"] == pytest.approx(ratio, rel=0.5)
    assert after["volume"] / before["volume"] == pytest.approx(ratio, rel=0.5)


def test_a_session_is_busy_at_both_ends_and_agrees_with_its_day() -> None:
    simulator, symbols = _simulator(CLEAN), CLEAN.symbols[:20]
    minutes = simulator.fetch(MINUTES, *WEEK, symbols)
    by_minute = minutes.group_by(pl.col("event_timestamp").dt.time().alias("minute")).agg(pl.col("volume").sum()).sort("minute")["volume"]
    assert by_minute.len() == 390
    midday = by_minute[180:210].sum()
    assert by_minute[:30].sum() > 1.5 * midday
    assert by_minute[-30:].sum() > 1.5 * midday
    sessions = minutes.group_by("symbol", pl.col("event_timestamp").dt.date().alias("day")).agg(
        pl.col("open").first(), pl.col("close").last(), (pl.col("trade_count") > 0).eq(pl.col("volume") > 0).all().alias("traded")
    )
    daily = simulator.fetch(DAILY, *WEEK, symbols).with_columns(pl.col("event_timestamp").dt.date().alias("day"))
    both = sessions.join(daily, on=["symbol", "day"], suffix="_daily")
    assert both.height == 100
    assert both["traded"].all()
    for name in ("open", "close"):
        assert both[name].equals(both[f"{name}_daily"].rename(name))


def test_books_have_five_levels_and_the_promised_spread() -> None:
    rows = _simulator(CLEAN).fetch(BOOKS, WEEK[0], WEEK[0] + timedelta(days=1), CLEAN.symbols[:3])
    assert rows.height == 3 * 390 * 60
    price = CLEAN.symbols[:3]
    for symbol in price:
        spreads = []
        for bids, asks in rows.filter(symbol=symbol).gather_every(97).select("bids", "asks").iter_rows():
            bid, ask = json.loads(bids), json.loads(asks)
            assert [len(bid), len(ask)] == [5, 5]
            assert all(
                low < high
                for low, high in zip([*[p for p, _ in reversed(bid)]], [*[p for p, _ in reversed(bid)][1:], ask[0][0]], strict=True)
            )
            assert bid[4][1] / bid[0][1] == pytest.approx(1.3**4, rel=0.05)
            middle = (bid[0][0] + ask[0][0]) / 2
            spreads.append((ask[0][0] - bid[0][0]) / max(0.01, middle * 4 * 1.5 / 1e4))
        assert 0.7 <= np.median(spreads) <= 1.3


def test_news_are_many_for_few_and_lean_towards_the_return() -> None:
    some = dataclasses.replace(CLEAN, symbol_count=150)
    rows = _simulator(some).fetch(NEWS, datetime(2024, 3, 1, tzinfo=UTC), datetime(2024, 4, 1, tzinfo=UTC))
    assert rows.height / (31 * 150) == pytest.approx(2, rel=0.1)
    assert rows.group_by("symbol").len()["len"].max() > 15 * 2 * 31  # type: ignore[operator]
    assert rows["score"].is_between(-1, 1).all()
    assert rows["event_id"].is_unique().all()
    assert rows["confidence"].mean() == pytest.approx(5 / 7, abs=0.01)
    lag = (rows["known_at"] - rows["event_timestamp"]).dt.total_microseconds() / 1e6
    assert lag.mean() == pytest.approx(60, rel=0.05)
    assert rows.select((pl.col("source_type") == "analyst").eq(pl.col("rating").is_not_null()).all()).item()


def test_filings_come_after_the_quarter_and_some_are_amended() -> None:
    rows = _simulator(CLEAN).fetch(FILINGS, *EVER, CLEAN.symbols[:100])
    first = rows.filter(~pl.col("form").str.ends_with("/A"))
    delay = (first["event_timestamp"].dt.date() - first["period_end"]).dt.total_days()
    assert (delay.min(), delay.max()) == (25, 45)
    amended = rows.filter(pl.col("form").str.ends_with("/A"))["accession"].n_unique()
    assert amended / first["accession"].n_unique() == pytest.approx(0.05, rel=0.5)


def test_the_truth_table_tells_what_was_done_to_the_bars() -> None:
    simulator, symbols = _simulator(), YEAR.symbols[:30]
    truth = simulator.faults(MINUTES, *WEEK, symbols)
    bars = 30 * 390 * 5
    counted = dict(truth.group_by("kind").len().iter_rows())
    assert counted[Fault.MISSING] / bars == pytest.approx(1e-3, rel=0.5)
    assert counted[Fault.LATE] / bars == pytest.approx(5e-3, rel=0.3)
    assert counted[Fault.OUT_OF_ORDER] / bars == pytest.approx(1e-2, rel=0.3)
    good, rows = _simulator(CLEAN).fetch(MINUTES, *WEEK, symbols), simulator.fetch(MINUTES, *WEEK, symbols)
    key = ["symbol", "event_timestamp"]
    absent = good.join(rows, on=key, how="anti").select(key)
    named = truth.filter(pl.col("kind").is_in([Fault.MISSING.value, Fault.GAP.value])).select(key)
    assert absent.sort(key).equals(named.sort(key))
    touched = pl.concat([rows.join(good, on=rows.columns, how="anti", nulls_equal=True), rows.filter(rows.is_duplicated())]).select(key)
    others = truth.filter(~pl.col("kind").is_in([Fault.MISSING.value, Fault.GAP.value])).select(key)
    assert touched.unique().join(others, on=key, how="anti").is_empty()
    assert others.join(touched, on=key, how="anti").is_empty()


def test_a_session_in_the_wrong_unit_is_named_as_one_batch() -> None:
    simulator = _simulator(dataclasses.replace(YEAR, first=date(2020, 1, 2), symbol_count=2))
    span = (datetime(2019, 1, 1, tzinfo=UTC), EVER[1])
    told = simulator.faults(DAILY, *span).filter(pl.col("kind") == Fault.WRONG_UNIT)["event_timestamp"]
    assert 1 <= told.len() <= 10
    early = simulator.fetch(DAILY, *span).filter(pl.col("event_timestamp").dt.year() == 1970)
    scaled = early["event_timestamp"].to_physical() * 1000
    assert set(scaled // 1_000_000_000) == set(told.to_physical() // 1_000_000_000)
