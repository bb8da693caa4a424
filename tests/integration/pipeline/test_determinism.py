"""The same inputs give the same bits: one by one, in any order, in a range, and after a kill."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from psycopg import sql

from featurestore_dagster.features.equity_views import DAILY_OHLCV_STATS, MOMENTUM_FEATURES, TECHNICAL_INDICATORS_VIEW
from featurestore_dagster.features.raw_tables import US_EQUITY_CANDLES_1D, US_EQUITY_CORPORATE_ACTIONS
from featurestore_dagster.features.sources import SAMPLES
from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.model.time import FrozenClock
from featurestore_dagster.pipeline import publication
from featurestore_dagster.projections.relation import dataset_relation, stream_relation
from featurestore_dagster.sources import samples
from featurestore_dagster.stores.postgres.connection import connect
from featurestore_dagster.stores.postgres.publishing import LEDGER_LOCK
from tests.integration.pipeline.conftest import EVER, Deployment, with_listings
from tests.unit.pipeline.frames import LISTED, close_of, keys_between, session_bars, split

ROOT = Path(__file__).parents[3]
LISTINGS = {listing.symbol: listing for listing in SAMPLES.listings[US_EQUITY_CANDLES_1D.name]}
NOW = FrozenClock(datetime(2018, 12, 31, 22, tzinfo=UTC))
VIEWS = (DAILY_OHLCV_STATS, MOMENTUM_FEATURES, TECHNICAL_INDICATORS_VIEW)
HISTORY = keys_between("2003-06-02", "2005-03-31")
COMPUTED = [*keys_between("2004-12-27", "2005-01-07"), *keys_between("2005-02-24", "2005-03-03")]
"""Two chunks, a hole in the second, and a split after the hole."""
IN_FIRST_CHUNK = sum(key < "2004-12-31" for key in COMPUTED)
"""The window of 31 December ends in New York, hours into the next year."""


@pytest.fixture
def real(deployment: Deployment) -> Deployment:
    """Real prices with their actions, published; no features yet."""
    deployment.catalogue = with_listings(LISTINGS)
    for dataset in (US_EQUITY_CORPORATE_ACTIONS, US_EQUITY_CANDLES_1D):
        deployment.deliver(samples.fetch(dataset, *EVER, clock=NOW), dataset)
        deployment.ingest(*HISTORY, dataset=dataset)
    return deployment


def _forget(deployment: Deployment) -> None:
    """An empty feature store over the same raw rows."""
    with connect(deployment.settings.postgres) as connection:
        for view in VIEWS:
            connection.execute(sql.SQL("truncate {}").format(sql.Identifier("features", view.name)))
        connection.execute("delete from ops.publications where starts_with(relation, 'features.')")


def test_one_by_one_in_random_order_equals_a_range(real: Deployment) -> None:
    for view in VIEWS:
        assert not any(outcome.blocked for outcome in real.materialise(view, *COMPUTED))
    whole = {view.name: (real.hashes(view), real.features(view)) for view in VIEWS}
    assert all(len(hashes) == len(COMPUTED) == len(set(hashes.values())) for hashes, _ in whole.values())
    _forget(real)
    shuffled = random.Random(7).sample(COMPUTED, len(COMPUTED))
    for view in VIEWS:
        for key in shuffled:
            real.materialise(view, key)
        hashes, rows = whole[view.name]
        assert real.hashes(view) == hashes
        assert real.features(view).equals(rows)  # bit by bit


def test_symbols_in_groups_equal_all_symbols_at_once(real: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values, hashes, ledger and quality log; also when nothing is new, and when a part of it is."""
    log = (
        "select partition_key, outcome, flags from ops.quality_log join (select max(quality_log_id) as quality_log_id from ops.quality_log"
        " group by relation, partition_key) newest using (quality_log_id) where starts_with(relation, 'features.') order by 1"
    )
    ledger = (
        "select partition_key, rows_published, rows_total, content_hash, min_event_timestamp, max_event_timestamp, changed, inputs"
        " from ops.publications where starts_with(relation, 'features.') order by partition_key, publication_id"
    )
    real.materialise(MOMENTUM_FEATURES, *COMPUTED)
    whole = (
        real.features(MOMENTUM_FEATURES),
        real.query(ledger),
        real.query(log),
        real.query("select * from ops.watermarks order by entity"),
    )
    _forget(real)
    with connect(real.settings.postgres) as connection:
        connection.execute("delete from ops.watermarks")
    monkeypatch.setattr(publication, "ROWS_COMPUTED", 2 * len(COMPUTED))
    real.materialise(MOMENTUM_FEATURES, *COMPUTED)
    in_groups = (
        real.features(MOMENTUM_FEATURES),
        real.query(ledger),
        real.query(log),
        real.query("select * from ops.watermarks order by entity"),
    )
    assert in_groups[0].equals(whole[0])  # bit by bit
    assert in_groups[1:] == whole[1:]
    lost = ("AAPL", close_of(COMPUTED[-1]))
    with connect(real.settings.postgres) as connection:
        connection.execute("delete from ops.publications where starts_with(relation, 'features.')")
        connection.execute("delete from features.momentum_features where symbol = %s and event_timestamp = %s", lost)
    outcomes = real.materialise(MOMENTUM_FEATURES, *COMPUTED)
    assert [outcome.publication and outcome.publication.rows_published for outcome in outcomes] == [0] * (len(COMPUTED) - 1) + [1]
    assert real.features(MOMENTUM_FEATURES).equals(whole[0])
    assert {
        key: content
        for key, *_, content in real.query(
            "select partition_key, content_hash from ops.publications where starts_with(relation, 'features.') order by publication_id"
        )
    } == {line[0]: line[3] for line in whole[1]}


def test_a_partition_is_blocked_over_all_groups(real: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most bars of the last session are missing, of which the first group knows nothing."""
    with connect(real.settings.postgres) as connection:
        connection.execute("delete from raw.candles where event_timestamp = %s and symbol > 'AAPL'", [close_of(COMPUTED[-1])])
    whole = real.materialise(MOMENTUM_FEATURES, *COMPUTED)
    assert [outcome.partition_key for outcome in whole if outcome.blocked] == [COMPUTED[-1]]
    rows = real.features(MOMENTUM_FEATURES)
    _forget(real)
    monkeypatch.setattr(publication, "ROWS_COMPUTED", 1)
    in_groups = real.materialise(MOMENTUM_FEATURES, *COMPUTED)
    assert [outcome.audit for outcome in in_groups] == [outcome.audit for outcome in whole]
    assert real.features(MOMENTUM_FEATURES).equals(rows)


def test_bars_fetched_session_by_session_equal_one_fetch(real: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    bars = real.bars(US_EQUITY_CANDLES_1D).drop("ingested_at")
    relation = dataset_relation(US_EQUITY_CANDLES_1D)
    states = {key: (state.content_hash, state.rows_total) for key, state in real.ledger.partitions(relation.name).items()}
    with connect(real.settings.postgres) as connection:
        connection.execute("truncate raw.candles")
        connection.execute("delete from ops.publications where relation = %s", [relation.name])
    monkeypatch.setattr(publication, "ROWS_FETCHED", 200)
    assert not any(outcome.blocked for outcome in real.ingest(*HISTORY, dataset=US_EQUITY_CANDLES_1D))
    assert real.bars(US_EQUITY_CANDLES_1D).drop("ingested_at").equals(bars)
    assert {key: (state.content_hash, state.rows_total) for key, state in real.ledger.partitions(relation.name).items()} == states


def test_a_day_computed_again_gives_the_same_bits(real: Deployment) -> None:
    """Also where nothing is compared with what is stored: the values, not only the decision to write nothing."""
    pipeline, stream = real.pipeline, MOMENTUM_FEATURES.streams[0]
    real.materialise(MOMENTUM_FEATURES, *COMPUTED)
    stored = real.features(MOMENTUM_FEATURES)
    for key in ("2004-12-31", "2005-01-03", "2005-02-28"):
        session = pipeline._range(stream_relation(MOMENTUM_FEATURES, stream), [key])
        again = pipeline.inputs.compute(MOMENTUM_FEATURES, stream, *session, chunk_start=session[0])
        assert again.height == 6
        assert stored.filter(pl.col("event_timestamp").is_in(again["event_timestamp"].implode())).equals(again)


def test_anchored_adjustment_through_the_whole_path(real: Deployment) -> None:
    """Golden values of the feature dictionary on the adjusted basis: samples, actions, adjustment, computation, publication."""
    real.materialise(TECHNICAL_INDICATORS_VIEW, "2005-03-10")
    real.materialise(DAILY_OHLCV_STATS, "2005-02-25", "2005-02-28")
    row = real.features(TECHNICAL_INDICATORS_VIEW).filter(symbol="AAPL").row(0, named=True)
    assert row["ema_20"] == pytest.approx(41.65700575, rel=1e-9)
    assert row["rsi_14"] == pytest.approx(44.28989529, rel=1e-9)
    before, after = real.features(DAILY_OHLCV_STATS).filter(symbol="AAPL").sort("event_timestamp").iter_rows(named=True)
    assert after["adjusted_close"] / before["adjusted_close"] - 1 == pytest.approx(0.008203168895, rel=1e-9)
    assert after["close"] / before["close"] - 1 == pytest.approx(-0.4958984156, rel=1e-9)  # as traded, and so served
    assert QualityFlag(row["flags"]) & QualityFlag.CORP_ACTION


def test_a_dividend_in_the_anchored_adjustment(deployment: Deployment) -> None:
    deployment.catalogue = with_listings(LISTINGS)
    days = keys_between("2012-08-01", "2012-08-09")
    for dataset in (US_EQUITY_CORPORATE_ACTIONS, US_EQUITY_CANDLES_1D):
        deployment.deliver(samples.fetch(dataset, *EVER, clock=NOW), dataset)
        deployment.ingest(*days, dataset=dataset)
    deployment.materialise(DAILY_OHLCV_STATS, *days)
    before, after = deployment.features(DAILY_OHLCV_STATS).filter(symbol="AAPL").sort("event_timestamp").tail(2).iter_rows(named=True)
    assert after["adjusted_close"] / before["adjusted_close"] - 1 == pytest.approx(0.005703083229, rel=1e-9)


BACKFILL = """
import sys
from datetime import UTC, datetime
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.model.time import FrozenClock
from featurestore_dagster.pipeline.publication import Pipeline
from featurestore_dagster.settings import PostgresSettings
from featurestore_dagster.sources import samples
from featurestore_dagster.stores.postgres import Ledger, PostgresStore

postgres = PostgresSettings()
clock = FrozenClock(datetime(2018, 12, 31, 22, tzinfo=UTC))
store, ledger = PostgresStore(postgres, clock), Ledger(postgres)
pipeline = Pipeline(CATALOGUE.with_sources(["samples"]), store, ledger, clock, lambda d, s, e: samples.fetch(d, s, e, clock=clock))
name, *keys = sys.argv[1:]
if name in {dataset.name for dataset in CATALOGUE.datasets}:
    outcomes = pipeline.ingest(CATALOGUE.dataset(name), keys)
else:
    view = CATALOGUE.view(name)
    outcomes = pipeline.materialise(view, view.streams[0], keys)
for outcome in outcomes:
    print(outcome.partition_key, flush=True)
"""


@pytest.fixture
def start(real: Deployment) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a process that ingests a dataset or materialises a view of the samples."""
    started: list[subprocess.Popen[str]] = []

    def run(name: str, keys: list[str]) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", BACKFILL, name, *keys]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=real.settings.child_environment(), cwd=ROOT))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def _waits_for_the_ledger(deployment: Deployment) -> bool:
    return bool(
        deployment.query(
            "select 1 from pg_locks where locktype = 'advisory' and not granted and classid = %s and objid = %s",
            *divmod(LEDGER_LOCK, 2**32),
        )
    )


def test_killed_inside_a_publication_nothing_of_it_is_left(real: Deployment, start: Callable[..., subprocess.Popen[str]]) -> None:
    real.materialise(MOMENTUM_FEATURES, *COMPUTED)
    undisturbed = real.hashes(MOMENTUM_FEATURES)
    _forget(real)
    with connect(real.settings.postgres) as holder:
        holder.execute("select pg_advisory_lock(%s)", [LEDGER_LOCK])
        process = start(MOMENTUM_FEATURES.name, COMPUTED)
        deadline = time.monotonic() + 60
        while not _waits_for_the_ledger(real):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert real.features(MOMENTUM_FEATURES).is_empty()
    assert real.hashes(MOMENTUM_FEATURES) == {}
    assert real.query("select count(*) from ops.quality_log where starts_with(relation, 'features.momentum') and run_id = ''")[0][0] == len(
        COMPUTED
    )
    assert start(MOMENTUM_FEATURES.name, COMPUTED).wait() == 0
    assert real.hashes(MOMENTUM_FEATURES) == undisturbed


def test_killed_between_chunks_a_second_run_finishes(real: Deployment, start: Callable[..., subprocess.Popen[str]]) -> None:
    real.materialise(MOMENTUM_FEATURES, *COMPUTED)
    undisturbed, rows = real.hashes(MOMENTUM_FEATURES), real.features(MOMENTUM_FEATURES)
    _forget(real)
    process = start(MOMENTUM_FEATURES.name, COMPUTED)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == COMPUTED[0]  # the first chunk is out
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert set(COMPUTED[:IN_FIRST_CHUNK]) <= set(real.hashes(MOMENTUM_FEATURES))
    outcomes = real.materialise(MOMENTUM_FEATURES, *COMPUTED)
    assert all(outcome.unchanged for outcome in outcomes[:IN_FIRST_CHUNK])
    assert real.hashes(MOMENTUM_FEATURES) == undisturbed
    assert real.features(MOMENTUM_FEATURES).equals(rows)


DAYS = keys_between("2017-12-27", "2018-01-05")
SYMBOLS = ("AAA", "BBB", "CCC")


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[str, int, str | None]]:
    """Steps in any order: ingest one or more days with the next prices, materialise some, enter a split."""
    step = st.tuples(
        st.sampled_from(["ingest", "materialise", "correct", "split"]), st.integers(0, len(DAYS) - 1), st.sampled_from(SYMBOLS)
    )
    return draw(st.lists(step, max_size=12))


@hypothesis_settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=histories())
def test_any_order_of_events_ends_like_a_rebuild(deployment: Deployment, steps: list[tuple[str, int, str]]) -> None:
    _wipe(deployment)
    deployment.catalogue = with_listings({symbol: LISTED[symbol] for symbol in SYMBOLS})
    bars = {(row["symbol"], row["event_timestamp"]): row for row in session_bars(DAYS, SYMBOLS)}
    splits: dict[str, dict[str, Any]] = {}
    for kind, number, symbol in steps:
        deployment.clock.advance(minutes=1)
        day = DAYS[number]
        if kind == "correct":
            bars[symbol, close_of(day)]["close"] = 99.5 + (deployment.clock.instant.minute % 5) / 2
        elif kind == "split":
            splits[symbol] = split(day, symbol, 1.25, known_at=deployment.clock.now(), known_at_basis="observed")
            deployment.enter_actions(splits[symbol])
        elif kind == "ingest":
            deployment.deliver(bars.values())
            deployment.ingest(*DAYS[: number + 1])
        else:
            deployment.materialise(DAILY_OHLCV_STATS, *DAYS[number:])
    deployment.deliver(bars.values())
    deployment.clock.advance(minutes=1)
    deployment.ingest(*DAYS)
    deployment.materialise(DAILY_OHLCV_STATS, *DAYS)
    raw, values = deployment.bars(), deployment.features(DAILY_OHLCV_STATS)
    _forget(deployment)
    deployment.materialise(DAILY_OHLCV_STATS, *DAYS)
    rebuilt = deployment.features(DAILY_OHLCV_STATS)
    restated, late = QualityFlag.RESTATED.value, QualityFlag.LATE.value
    comparable = [pl.exclude("created_timestamp", "flags"), pl.col("flags") & ~restated & ~late]
    assert_frame_equal(values.select(comparable), rebuilt.select(comparable), rel_tol=1e-9)
    assert raw.height == len(DAYS) * len(SYMBOLS)
    # Whoever replays the versions in the order in which they were known ends at the same rows.
    latest = values.select("symbol", "event_timestamp", "created_timestamp")
    assert latest["created_timestamp"].max() <= deployment.clock.now()  # type: ignore[operator]


def _wipe(deployment: Deployment) -> None:
    with connect(deployment.settings.postgres) as connection:
        connection.execute(
            "truncate raw.candles, raw.corporate_actions, features.daily_ohlcv_stats, ops.publications, ops.quarantine, ops.quality_log"
        )
    deployment.delivered.clear()
