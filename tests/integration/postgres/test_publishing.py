"""Publication in one transaction: several writers, ledger ids in commit order, and values that come back bit by bit."""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import polars as pl
import psycopg
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from featurestore_dagster.calendars import calendar
from featurestore_dagster.errors import StoreUnavailableError
from featurestore_dagster.features.equity_views import DAILY_OHLCV_STATS, TECHNICAL_INDICATORS_VIEW
from featurestore_dagster.features.raw_tables import FX_CANDLES_1H
from featurestore_dagster.projections.postgres_table import feature_schema
from featurestore_dagster.projections.relation import Relation, dataset_relation, stream_relation
from featurestore_dagster.stores.postgres import Ledger, PostgresStore, Publication
from featurestore_dagster.stores.postgres.connection import connect
from featurestore_dagster.stores.postgres.publishing import Writer, lock_table
from featurestore_dagster.stores.postgres.refused import REFUSED_SCHEMA
from tests.integration.postgres.conftest import MovingClock
from tests.unit.pipeline.frames import EQUITIES, MONDAY, bar, close_of, frame, keys_between, session_bars

EVER = datetime(1990, 1, 3, tzinfo=UTC), datetime(2040, 1, 1, tzinfo=UTC)
BARS = dataset_relation(EQUITIES)
FX = dataset_relation(FX_CANDLES_1H)
STATS = stream_relation(DAILY_OHLCV_STATS, DAILY_OHLCV_STATS.streams[0])


def _in_threads(*calls: Callable[[], object]) -> list[object]:
    """Run at the same time; results in order. An exception of any is raised here."""
    barrier = threading.Barrier(len(calls))
    results: list[object] = [None] * len(calls)
    failures: list[BaseException] = []

    def run(number: int, call: Callable[[], object]) -> None:
        try:
            barrier.wait(10)
            results[number] = call()
        except BaseException as error:  # noqa: BLE001 - raised again below
            failures.append(error)

    threads = [threading.Thread(target=run, args=item, daemon=True) for item in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
    assert not any(thread.is_alive() for thread in threads), "writers wait for each other"
    if failures:
        raise failures[0]
    return results


def _feature_rows(days: list[str], **other: Any) -> pl.DataFrame:
    schema = feature_schema(DAILY_OHLCV_STATS)
    rows = [
        {
            **dict.fromkeys(schema, 1.0),
            "symbol": "AAA",
            "event_timestamp": close_of(day),
            "created_timestamp": close_of(day),
            "flags": 0,
            "feature_set_version": 1,
            "stream": DAILY_OHLCV_STATS.streams[0].name,
        }
        | other
        for day in days
    ]
    return pl.DataFrame(rows, schema=schema)


def test_two_writers_of_the_same_rows_write_them_once(store: PostgresStore) -> None:
    rows = frame(session_bars([MONDAY]))
    results = _in_threads(*[lambda: store.publish(BARS, rows, [MONDAY])] * 3)
    published = [publication.rows_published for result in results for publication in result]  # type: ignore[attr-defined]
    assert sorted(published) == [0, 0, 5]
    assert store.read_raw(EQUITIES, *EVER).height == 5


def test_two_corrections_at_once_are_two_versions(store: PostgresStore, clock: MovingClock) -> None:
    store.publish(BARS, frame([bar(MONDAY)]), [MONDAY])
    now = clock.advance(hours=1)
    _in_threads(*(lambda close=close: store.publish(BARS, frame([bar(MONDAY, close=close)]), [MONDAY]) for close in (100.25, 100.5)))
    with connect(store.settings) as connection:
        versions = connection.execute("select close, known_at from raw.candles order by known_at").fetchall()
    assert [close for close, _ in versions[:1]] == [101.0]
    assert {close for close, _ in versions[1:]} == {100.25, 100.5}
    assert versions[1][1] == now
    assert versions[2][1] > now


def test_writers_of_one_table_make_its_new_years_without_waiting_for_each_other_forever(store: PostgresStore) -> None:
    """Both relations live in raw.candles, and each needs native partitions that the other is about to make."""
    years = range(2010, 2018)
    days = {year: keys_between(f"{year}-03-01", f"{year}-03-06")[0] for year in years}
    pairs = {
        year: (frame([bar(days[year])]), frame([bar(days[year], "EURUSD", dataset=FX_CANDLES_1H.name, timeframe="1h")])) for year in years
    }

    def write(relation: Relation, number: int) -> int:
        found = 0
        for year in years:
            rows = pairs[year][number]
            key = calendar(relation.calendar).session_of(rows["event_timestamp"])[0].isoformat()
            store.publish(relation, rows, [key])
            found += store.publish(relation, rows, [key])[0].rows_total
        return found

    assert _in_threads(lambda: write(BARS, 0), lambda: write(FX, 1)) == [len(years), len(years)]


def test_ledger_ids_appear_in_commit_order(store: PostgresStore) -> None:
    """The faster writer waits with its id until the slower one, which drew first, has committed."""
    other: list[list[Publication]] = []
    with connect(store.settings) as slow:
        lock_table(slow, BARS)
        writer = Writer(store.settings, slow, BARS, "slow", store.clock.now())
        (first,) = writer.publish(frame([bar(MONDAY)]), [MONDAY], None, {}, supersede=True)
        fast = threading.Thread(target=lambda: other.append(store.publish(STATS, _feature_rows([MONDAY]), [MONDAY], run_id="fast")))
        fast.start()
        deadline = time.monotonic() + 30
        while not slow.execute("select 1 from pg_locks where locktype = 'advisory' and not granted").fetchone():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert Ledger(store.settings).totals() == {}
        slow.commit()
    fast.join(30)
    ((second,),) = other
    assert first.publication_id is not None
    assert second.publication_id is not None
    assert first.publication_id < second.publication_id


def test_a_reader_that_remembers_the_last_id_misses_nothing(store: PostgresStore) -> None:
    days = keys_between("2018-06-01", "2018-06-29")
    seen: list[int] = []
    done = threading.Event()

    def watch() -> None:
        last = 0
        while not done.is_set() or len(seen) < 2 * len(days):
            with connect(store.settings) as connection:
                rows = connection.execute(
                    "select publication_id from ops.publications where publication_id > %s order by 1", [last]
                ).fetchall()
            seen.extend(number for (number,) in rows)
            last = seen[-1] if seen else 0

    def write(relation: Relation, rows: Callable[[list[str]], pl.DataFrame]) -> None:
        for day in days:
            store.publish(relation, rows([day]), [day])

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    _in_threads(lambda: write(BARS, lambda some: frame(session_bars(some))), lambda: write(STATS, _feature_rows))
    done.set()
    watcher.join(30)
    assert not watcher.is_alive()
    with connect(store.settings) as connection:
        every = [number for (number,) in connection.execute("select publication_id from ops.publications order by 1").fetchall()]
    assert seen == every
    assert len(every) == 2 * len(days)


def test_a_transaction_that_fails_at_its_end_leaves_nothing(store: PostgresStore) -> None:
    with connect(store.settings) as connection:
        connection.execute("alter table ops.quality_log add constraint full_disk check (false)")
    refused = pl.DataFrame({"partition_key": [MONDAY], "row": ["{}"], "reasons": [["why"]]})
    with pytest.raises(psycopg.errors.CheckViolation):
        store.publish(BARS, frame(session_bars([MONDAY])), [MONDAY], quarantined=refused)
    assert store.read_raw(EQUITIES, *EVER).is_empty()
    assert Ledger(store.settings).totals() == {}


def _publish_over_a_breaking_connection(store: PostgresStore) -> None:
    with connect(store.settings) as connection:
        lock_table(connection, BARS)
        writer = Writer(store.settings, connection, BARS, "", store.clock.now())
        writer.publish(frame(session_bars([MONDAY])), [MONDAY], None, {}, supersede=True)
        with connect(store.settings) as killer:
            killer.execute("select pg_terminate_backend(%s)", [connection.info.backend_pid])


def test_a_connection_broken_before_the_commit_leaves_nothing(store: PostgresStore) -> None:
    with pytest.raises(StoreUnavailableError):
        _publish_over_a_breaking_connection(store)
    assert store.read_raw(EQUITIES, *EVER).is_empty()
    (publication,) = store.publish(BARS, frame(session_bars([MONDAY])), [MONDAY])
    assert publication.rows_published == 5


def test_inputs_that_advance_are_recorded_without_rows(store: PostgresStore) -> None:
    rows = _feature_rows([MONDAY])
    (first,) = store.publish(STATS, rows, [MONDAY], inputs={MONDAY: {"raw.x": 1}})
    (same,) = store.publish(STATS, rows, [MONDAY], inputs={MONDAY: {"raw.x": 1}})
    (later,) = store.publish(STATS, rows, [MONDAY], inputs={MONDAY: {"raw.x": 2}})
    assert (first.rows_published, same.publication_id, later.rows_published) == (1, None, 0)
    assert later.publication_id is not None
    assert later.content_hash == first.content_hash
    state = Ledger(store.settings).partitions(STATS.name)[MONDAY]
    assert (state.inputs, state.rows_total, state.publication_id) == ({"raw.x": 2}, 1, later.publication_id)


def test_an_empty_partition_is_recorded_once(store: PostgresStore) -> None:
    (first,) = store.publish(BARS, frame([]), [MONDAY])
    (second,) = store.publish(BARS, frame([]), [MONDAY])
    assert first.publication_id is not None
    assert second.publication_id is None
    assert first.rows_total == 0


def test_the_quality_log_counts_flags(store: PostgresStore) -> None:
    days = [MONDAY, "2018-12-04"]
    rows = session_bars(days)
    store.publish(BARS, frame([{**row, "flags": number % 2 << 14} for number, row in enumerate(rows)]), days, run_id="flags")
    with connect(store.settings) as connection:
        log = connection.execute("select partition_key, outcome, flags from ops.quality_log where run_id = 'flags' order by 1").fetchall()
    assert log == [(MONDAY, "published", {"ZERO_VOLUME": 2}), ("2018-12-04", "published", {"ZERO_VOLUME": 3})]


def test_the_quality_log_keeps_the_null_shares_of_a_dataset(store: PostgresStore) -> None:
    """What `mostly_null` compares with: the newest audit of each of the last published partitions, blocked and empty ones left out."""
    days = [MONDAY, "2018-12-04", "2018-12-06"]
    rows = session_bars(days)
    store.publish(BARS, frame(rows), days)
    store.publish(BARS, frame([{**row, "volume": None if number < 2 else row["volume"]} for number, row in enumerate(rows[:10])]), days[:2])
    store.block(BARS, {"2018-12-07": []}, pl.DataFrame(schema=REFUSED_SCHEMA))
    store.publish(BARS, frame([]), ["2018-12-10"])
    ledger = Ledger(store.settings)
    shares = ledger.null_shares(BARS.name, "2018-12-31")
    assert [(line["volume"], line["close"], line["trade_count"]) for line in shares] == [(0.4, 0.0, 1.0), (0.0, 0.0, 1.0), (0.0, 0.0, 1.0)]
    assert [line["volume"] for line in ledger.null_shares(BARS.name, "2018-12-06", count=1)] == [0.0]
    assert ledger.null_shares(BARS.name, MONDAY) == []


finite = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=8)


@hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(symbol=texts, source=texts, numbers=st.tuples(finite, finite, finite, finite), volume=st.none() | finite)
@example(symbol="\\N", source='"', numbers=(5e-324, 1.7976931348623157e308, -0.0, 0.1), volume=None)
@example(symbol="a\nb\r\n,c", source="\\.", numbers=(1 / 3, 2**53 + 1.0, 1e22, 1e-7), volume=0.30000000000000004)
def test_values_come_back_bit_by_bit(
    store: PostgresStore, symbol: str, source: str, numbers: tuple[float, float, float, float], volume: float | None
) -> None:
    with connect(store.settings) as connection:
        connection.execute("truncate raw.candles, ops.publications")
    prices = dict(zip(("open", "high", "low", "close"), numbers, strict=True))
    written = frame([bar(MONDAY, symbol, source=source, volume=volume, **prices)])
    store.publish(BARS, written, [MONDAY])
    found = store.read_raw(EQUITIES, *EVER).drop("ingested_at")
    assert_frame_equal(found, written, check_exact=True)
    again = store.publish(BARS, written, [MONDAY])
    assert again[0].rows_published == 0


def test_microseconds_come_back(store: PostgresStore) -> None:
    instant = close_of(MONDAY).replace(microsecond=1)
    store.publish(BARS, frame([bar(MONDAY, known_at=instant)]), [MONDAY])
    assert store.read_raw(EQUITIES, *EVER)["known_at"].item() == instant
    assert store.read_raw(EQUITIES, *EVER, as_of=close_of(MONDAY)).is_empty()


def test_sources_with_the_same_known_at_are_ranked(store: PostgresStore) -> None:
    store.publish(BARS, frame([bar(MONDAY, source=source, close=close) for source, close in (("a", 100.0), ("b", 100.5))]), [MONDAY])
    assert store.read_raw(EQUITIES, *EVER, priority=["b", "a"])["source"].to_list() == ["b"]
    assert store.read_raw(EQUITIES, *EVER, priority=["a"])["source"].to_list() == ["a"]


def test_streams_of_a_view_are_read_apart(store: PostgresStore) -> None:
    view = TECHNICAL_INDICATORS_VIEW
    schema = feature_schema(view)
    for stream in view.streams[:2]:
        rows = pl.DataFrame(
            [
                dict.fromkeys(schema)
                | {
                    "symbol": "AAA",
                    "timeframe": stream.timeframe.value,
                    "event_timestamp": close_of(MONDAY),
                    "created_timestamp": close_of(MONDAY),
                }
                | {"flags": 0, "feature_set_version": 1, "stream": stream.name}
            ],
            schema=schema,
        )
        store.publish(stream_relation(view, stream), rows, [MONDAY])
    assert store.read_features(view, *EVER)["timeframe"].to_list() == ["1d", "1h"]
    assert store.read_features(view, *EVER, stream="fx_1h")["timeframe"].to_list() == ["1h"]
    assert store.read_features(view, *EVER, keys={"timeframe": ["1d"], "symbol": ["AAA", "x"]})["stream"].to_list() == ["us_equity_1d"]


def test_the_ledger_sums_up(store: PostgresStore) -> None:
    ledger, days = Ledger(store.settings), [MONDAY, "2018-12-04"]
    refused = pl.DataFrame({"partition_key": [MONDAY] * 2, "row": ['{"a": 1}', '{"a": 2}'], "reasons": [["x", "y"], ["x"]]})
    store.publish(BARS, frame(session_bars(days)), days, quarantined=refused, run_id="first")
    store.block(BARS, {"2018-12-06": [{"check": "row_count"}], "2018-12-07": []}, refused.clear(), "second")
    assert ledger.totals() == {BARS.name: {"partitions": 2, "rows_published": 10, "quarantined_open": 2, "blocked": 2}}
    assert ledger.written_by("first") == {"rows_published": 10, "partitions_published": 2, "rows_quarantined": 2}
    assert ledger.written_by("second") == {"rows_published": 0, "partitions_published": 0, "rows_quarantined": 0}
    assert ledger.blocked(BARS.name) == ledger.blocked()
    assert ledger.blocked("raw.other") == {}
    assert ledger.blocked() == {(BARS.name, "2018-12-06"): [{"check": "row_count"}], (BARS.name, "2018-12-07"): []}
    newest, oldest = ledger.quarantined(relation=BARS.name)
    assert (newest.row, newest.reasons, oldest.row, oldest.reasons) == ({"a": 2}, ["x"], {"a": 1}, ["x", "y"])
    assert [row.row for row in ledger.quarantined(quarantine_id=oldest.quarantine_id)] == [{"a": 1}]
    assert ledger.quarantined(relation="raw.other") == []
    assert len(ledger.quarantined(limit=1)) == 1
    ledger.mark_replayed([oldest.quarantine_id])
    assert [row.status for row in ledger.quarantined(status=None)] == ["open", "replayed"]
    assert store.watermarks(BARS)["watermark"].unique().to_list() == [close_of("2018-12-04")]
