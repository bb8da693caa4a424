"""The checks against the simulator's truth table: every fault that they cover is found, and almost nothing else is."""

import dataclasses
from datetime import UTC, date, datetime
from functools import cache

import polars as pl
import pytest

from featurestore_dagster.features.raw_tables import US_EQUITY_CANDLES_1D, US_EQUITY_CORPORATE_ACTIONS
from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.model.raw_table import Dataset
from featurestore_dagster.model.time import FrozenClock, Timeframe
from featurestore_dagster.pipeline.audit import Audit, audit_dataset
from featurestore_dagster.pipeline.bars import with_missing_bars
from featurestore_dagster.pipeline.market_checks import duplicates
from featurestore_dagster.projections.relation import dataset_relation
from featurestore_dagster.settings import Settings
from featurestore_dagster.sources.simulator import Fault, Simulation, Simulator
from featurestore_dagster.stores.postgres.versions import new_versions, newest
from tests.unit.pipeline.frames import NO_ACTIONS, NYSE, frame, keys_between

DAILY = US_EQUITY_CANDLES_1D
MINUTES = dataclasses.replace(DAILY, name="simulated_1m", timeframe=Timeframe.ONE_MINUTE)
NOW = datetime(2025, 6, 1, tzinfo=UTC)
PERIODS = {DAILY.name: (date(2023, 1, 3), date(2024, 12, 31), 200), MINUTES.name: (date(2024, 3, 4), date(2024, 3, 8), 60)}
KEY = ["symbol", "event_timestamp"]


@dataclasses.dataclass(frozen=True)
class Case:
    """A simulated feed and what the audit made of it; sessions in the wrong unit are left out of `truth`."""

    dataset: Dataset
    delivered: pl.DataFrame
    truth: pl.DataFrame
    audit: Audit
    missing: pl.DataFrame

    def faults(self, *kinds: Fault) -> pl.DataFrame:
        return self.truth.filter(pl.col("kind").is_in([kind.value for kind in kinds]))


@cache
def _case(name: str) -> Case:
    dataset = {DAILY.name: DAILY, MINUTES.name: MINUTES}[name]
    first, last, symbols = PERIODS[name]
    simulator = Simulator(Simulation(first, last, seed=7, symbol_count=symbols), Settings(environment="test"), FrozenClock(NOW))
    sessions = NYSE.sessions(first, last)
    span = sessions["window_start"][0], sessions["window_end"][-1]
    listings = {listing.symbol: listing for listing in simulator.source(dataset).listings[name]}
    delivered, truth = simulator.fetch(dataset, *span), simulator.faults(dataset, *span)
    broken = truth.filter(pl.col("kind") == Fault.WRONG_UNIT)["event_timestamp"].dt.date()
    intact = delivered.filter(pl.col("event_timestamp") > span[0])
    truth = truth.filter(~pl.col("event_timestamp").dt.date().is_in(broken.implode()))
    keys = [key for key in keys_between(first.isoformat(), last.isoformat()) if date.fromisoformat(key) not in set(broken)]
    actions = simulator.fetch(US_EQUITY_CORPORATE_ACTIONS, *span)
    audit = audit_dataset(dataset, intact, keys, context=frame([]).clear(), actions=actions, jumped=NO_ACTIONS, listings=listings, now=NOW)
    rows = with_missing_bars(newest(dataset_relation(dataset), intact), dataset, listings.values(), *span, NOW)
    absent = rows.filter(pl.col("flags") == QualityFlag.MISSING_OHLCV.value, ~pl.col("event_timestamp").dt.date().is_in(broken.implode()))
    return Case(dataset, intact, truth, audit, absent)


def _refused(case: Case, *reasons: str) -> pl.DataFrame:
    """symbol and event_timestamp of refused rows whose reason begins so."""
    begins = pl.any_horizontal(pl.col("reasons").list.eval(pl.element().str.starts_with(reason)).list.any() for reason in reasons)
    rows = case.audit.quarantined.filter(begins)["row"].str.json_decode(pl.Struct({"symbol": pl.String, "event_timestamp": pl.String}))
    return rows.struct.unnest().with_columns(pl.col("event_timestamp").str.to_datetime(time_zone="UTC", time_unit="us"))


def _assert_found(hits: pl.DataFrame, faults: pl.DataFrame, others: pl.DataFrame | None = None) -> None:
    """Recall 100 %, of incidents; precision 99 % or more, of bars; `others` are faults that may be hit too."""
    assert not faults.is_empty()
    found = faults.join(hits, on=KEY, how="semi")
    incidents = ["symbol", "kind", "incident"]
    assert faults.select(incidents).unique().join(found, on=incidents, how="anti").is_empty()
    explained = faults if others is None else pl.concat([faults, others])
    assert hits.join(explained, on=KEY, how="semi").height >= 0.99 * hits.height


both = pytest.mark.parametrize("name", PERIODS)


@both
def test_missing_bars_and_gaps(name: str) -> None:
    case = _case(name)
    faults = case.faults(Fault.MISSING, Fault.GAP)
    _assert_found(case.missing, faults)
    assert case.missing.height == faults.height
    assert case.missing.select(pl.col("open", "high", "low", "close", "volume").is_null().all()).row(0) == (True,) * 5


@both
def test_order_of_prices(name: str) -> None:
    case = _case(name)
    _assert_found(_refused(case, "ohlc_order"), case.faults(Fault.OHLC))


@both
def test_stuck_feeds(name: str) -> None:
    case = _case(name)
    _assert_found(_refused(case, "stuck_feed"), case.faults(Fault.STUCK))


@both
def test_spikes_that_revert(name: str) -> None:
    """A correction by half a per cent makes a quiet minute an outlier that the next one reverts."""
    case = _case(name)
    hits = case.audit.rows.filter(pl.col("flags") & QualityFlag.OUTLIER.value != 0)
    _assert_found(hits, case.faults(Fault.SPIKE), case.faults(Fault.RESTATED))


@both
def test_restatements_and_duplicates(name: str) -> None:
    case = _case(name)
    clean, contradictions = duplicates(case.dataset, case.delivered)
    assert contradictions.is_empty()
    _assert_found(case.delivered.filter(case.delivered.is_duplicated()), case.faults(Fault.DUPLICATE))
    assert case.delivered.height - clean.height == case.faults(Fault.DUPLICATE).height
    versions, _ = new_versions(dataset_relation(case.dataset), clean, clean.clear(), NOW)
    restated = versions.filter(pl.col("flags") & QualityFlag.RESTATED.value != 0)
    _assert_found(restated, case.faults(Fault.RESTATED))


@both
def test_nothing_else_is_refused(name: str) -> None:
    """Nor is any partition blocked: the faults are few."""
    case = _case(name)
    refused = case.audit.quarantined.height
    explained = case.faults(Fault.OHLC, Fault.STUCK)
    known = _refused(case, "").join(explained, on=KEY, how="semi").height
    assert known >= 0.99 * refused
    assert [key for key, part in case.audit.partitions.items() if part.blocked] == []


def test_a_batch_in_the_wrong_unit_is_blocked() -> None:
    simulation = Simulation(date(2020, 1, 2), date(2024, 12, 31), seed=7, symbol_count=3)
    simulator = Simulator(simulation, Settings(environment="test"), FrozenClock(NOW))
    span = datetime(2019, 12, 31, tzinfo=UTC), NOW
    wrong = simulator.faults(DAILY, *span).filter(pl.col("kind") == Fault.WRONG_UNIT)["event_timestamp"]
    listings = {listing.symbol: listing for listing in simulator.source(DAILY).listings[DAILY.name]}
    for instant in wrong:
        session = NYSE.session(instant.date())
        rows = simulator.fetch(DAILY, session.window_start, session.window_end)
        key = instant.date().isoformat()
        audit = audit_dataset(DAILY, rows, [key], context=rows.clear(), actions=NO_ACTIONS, jumped=NO_ACTIONS, listings=listings, now=NOW)
        (check,) = audit.partitions[key].failed
        assert (check.name, check.blocking) == ("epoch_unit: event times cannot be instants", True)
        assert "multiplied by 1000" in check.examples[0]
    assert wrong.len() >= 1
