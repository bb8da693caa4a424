"""The online store on a real Redis: what wins, what is refused, what is remembered, and what happens when Redis or a writer fails."""

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import polars as pl
import pytest
import redis
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import SecretStr

from featurestore_dagster.errors import ConfigurationError, MalformedDataError, StoreUnavailableError
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.redis import ABSENT, RedisStore, StoredRow, layout
from featurestore_dagster.stores.redis.store import EPOCH
from featurestore_dagster.stores.redis.writing import Batch, Change

MakeRows = Callable[..., pl.DataFrame]

NOW = datetime(2018, 12, 31, 22, tzinfo=UTC)
CLOSE = datetime(2018, 12, 31, 21, tzinfo=UTC)
DAY = timedelta(days=1)
VIEW = CATALOGUE.view("momentum_features")
FEATURE = VIEW.feature_names[0]
INTRADAY = CATALOGUE.view("technical_indicators_view")
MACRO = CATALOGUE.view("portfolio_macro_features")
STATISTICS = CATALOGUE.view("daily_ohlcv_stats")
(AAPL,) = layout.entity_keys("featurestore", {"symbol": ["AAPL"]})


def value_of(store: RedisStore, symbol: str = "AAPL", view: FeatureView = VIEW) -> float | int | None:
    row = one(store, view, view.feature_names[:1], symbol)
    return None if row is None or row.values == (ABSENT,) else row.values[0]  # type: ignore[return-value]


def one(store: RedisStore, view: FeatureView, names: Sequence[str], symbol: str = "AAPL") -> StoredRow | None:
    return store.read([(view, names)], [{"symbol": symbol}]).rows[0][0]


def microseconds(instant: datetime) -> int:
    return (instant - EPOCH) // timedelta(microseconds=1)


def test_what_was_written_is_read_back_for_all_views_in_one_call(store: RedisStore, make_rows: MakeRows) -> None:
    written = {}
    for view in CATALOGUE.views:
        values = {
            feature.name: number if feature.indicator.unit == "code" else number + 0.1 for number, feature in enumerate(view.features)
        } | {view.feature_names[-1]: None}
        row = {"symbol": "Ünï'; DROP", "event_timestamp": CLOSE, "created_timestamp": CLOSE + timedelta(microseconds=7), "flags": 1 << 23}
        result = store.write(view, make_rows(view, row | values), 5, now=NOW)
        assert (result.entities_written, result.watermark, store.publication_id(view)) == (1, CLOSE, 5)
        assert result.bytes_used > 0
        written[view.name] = values
    entity = {"symbol": "Ünï'; DROP", "timeframe": "1d", "portfolio": "GLOBAL"}
    requests = [(view, view.feature_names) for view in CATALOGUE.views]
    found = store.read(requests, [entity, entity | {"symbol": "?", "portfolio": "?"}])
    assert [
        row and dict(zip(view.feature_names, row.values, strict=True)) for (view, _), row in zip(requests, found.rows[0], strict=True)
    ] == [written[view.name] for view in CATALOGUE.views]
    assert {row and row[:3] for row in found.rows[0]} == {(microseconds(CLOSE), microseconds(CLOSE) + 7, 1 << 23)}
    assert [row and row.stream for row in found.rows[0]] == [view.streams[0].name for view in CATALOGUE.views]
    assert found.rows[1] == [None] * len(requests)
    assert set(found.publication_ids) == {5}


def test_feasts_hash_stays_compact_and_ours_a_table_under_the_limits_of_a_redis_that_nobody_configured(
    store: RedisStore, client: redis.Redis, make_rows: MakeRows
) -> None:
    configured = client.config_get("hash-max-ziplist-*")
    client.config_set("hash-max-ziplist-value", layout.COMPACT_BYTES)
    client.config_set("hash-max-ziplist-entries", 512)
    try:
        for view in (VIEW, STATISTICS):
            values = dict.fromkeys(view.feature_names, 1.5)
            store.write(view, make_rows(view, {"symbol": "AAPL", "event_timestamp": CLOSE} | values), 1, now=NOW)
        assert client.object("encoding", AAPL) in (b"ziplist", b"listpack")
        assert {client.object("encoding", key) for key in client.keys("featurestore:rows:*")} == {b"hashtable"}
    finally:
        for name, value in configured.items():
            client.config_set(name, value)


@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.tuples(st.sampled_from("AB"), st.integers(0, 3), st.integers(0, 3)), max_size=5), max_size=5))
def test_the_newest_event_then_the_newest_knowledge_wins_in_any_order(
    store: RedisStore, client: redis.Redis, make_rows: MakeRows, batches: list[list[tuple[str, int, int]]]
) -> None:
    client.flushall()
    for number, batch in enumerate(batches):
        rows = [
            {
                "symbol": symbol,
                "event_timestamp": CLOSE - (4 - event) * DAY,
                "created_timestamp": CLOSE - (4 - event) * DAY + timedelta(hours=known),
                FEATURE: event * 10.0 + known,
            }
            for symbol, event, known in batch
        ]
        store.write(VIEW, make_rows(VIEW, *rows), number, now=NOW)
    newest: dict[str, tuple[int, int]] = {}
    for symbol, event, known in (row for batch in batches for row in batch):
        newest[symbol] = max(newest.get(symbol, (event, known)), (event, known))
    for symbol in "AB":
        expected = newest[symbol][0] * 10.0 + newest[symbol][1] if symbol in newest else None
        assert value_of(store, symbol) == expected


def test_times_before_1970_follow_the_same_rule(store: RedisStore, make_rows: MakeRows) -> None:
    old = datetime(1929, 10, 24, 20, tzinfo=UTC)
    for number, (event, value) in enumerate([(old, 1.0), (old + DAY, 2.0), (old, 3.0), (old + DAY, 4.0)]):
        store.write(VIEW, make_rows(VIEW, {"symbol": "AAPL", "event_timestamp": event, FEATURE: value}), number, now=NOW)
    assert value_of(store) == 4.0


def test_rows_dated_after_now_are_refused_by_event_and_by_knowledge(store: RedisStore, make_rows: MakeRows) -> None:
    rows = make_rows(
        VIEW,
        {"symbol": "EVENT", "event_timestamp": NOW + 300 * DAY, FEATURE: 1.0},
        {"symbol": "KNOWN", "event_timestamp": CLOSE, "created_timestamp": NOW + timedelta(microseconds=1), FEATURE: 1.0},
        {"symbol": "FINE", "event_timestamp": NOW, FEATURE: 1.0},
    )
    result = store.write(VIEW, rows, 1, now=NOW)
    assert (result.entities_refused_future, result.entities_written, result.watermark) == (2, 1, NOW)
    assert [value_of(store, symbol) for symbol in ("EVENT", "KNOWN", "FINE")] == [None, None, 1.0]


def test_a_retracted_entity_disappears_and_its_other_views_stay(store: RedisStore, client: redis.Redis, make_rows: MakeRows) -> None:
    for view in (VIEW, STATISTICS):
        rows = make_rows(view, *({"symbol": s, "event_timestamp": CLOSE, view.feature_names[0]: 1.0} for s in ("AAPL", "IBM")))
        store.write(view, rows, 1, now=NOW)
    retracted = pl.DataFrame({"symbol": ["AAPL", "NEVER"]})
    result = store.write(VIEW, make_rows(VIEW), 2, retracted=retracted, now=NOW)
    assert (result.entities_deleted, result.entities_written, result.watermark) == (1, 0, None)
    assert [value_of(store, "AAPL"), value_of(store, "AAPL", STATISTICS), value_of(store, "IBM")] == [None, 1.0, 1.0]
    store.write(STATISTICS, make_rows(STATISTICS), 2, retracted=retracted, now=NOW)
    assert client.keys("*AAPL*") == []


def written_by_stock(client: redis.Redis, event: datetime, value: float) -> None:
    """What a stock Feast client leaves of momentum's first feature."""
    client.hset(
        AAPL,
        mapping={
            layout.timestamp_field(VIEW.name): layout.encode_timestamp(microseconds(event)),
            layout.feature_field(VIEW.name, FEATURE): layout.encode_values(pl.Series([value]))[0],
        },
    )


def test_a_stock_client_that_wrote_after_us_is_seen_and_not_overwritten_by_older_rows(
    store: RedisStore, client: redis.Redis, make_rows: MakeRows
) -> None:
    row = {"symbol": "AAPL", "event_timestamp": CLOSE, FEATURE: 1.0, "flags": 1}
    store.write(VIEW, make_rows(VIEW, row), 1, now=NOW)
    stock_event = CLOSE + timedelta(minutes=1)
    written_by_stock(client, stock_event, 2.0)
    names = (FEATURE, VIEW.feature_names[1])
    stored = one(store, VIEW, names)
    assert stored == (microseconds(stock_event), None, 0, VIEW.streams[0].name, (2.0, None), False)
    client.hdel(AAPL, layout.feature_field(VIEW.name, names[1]))
    assert one(store, VIEW, names[::-1]) == (microseconds(stock_event), None, 0, VIEW.streams[0].name, (ABSENT, 2.0), False)
    assert store.write(VIEW, make_rows(VIEW, row | {"created_timestamp": NOW}), 2, now=NOW).entities_skipped == 1
    assert store.write(VIEW, make_rows(VIEW, row | {"event_timestamp": stock_event, FEATURE: 3.0}), 3, now=NOW).entities_written == 1
    assert value_of(store) == 3.0


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda rows: rows.drop(FEATURE), f"{FEATURE}: missing"),
        (lambda rows: rows.with_columns(pl.col(FEATURE).cast(pl.Float32)), f"{FEATURE}: Float32, not Float64"),
        (lambda rows: rows.with_columns(pl.col("event_timestamp").dt.replace_time_zone(None)), "event_timestamp: Datetime"),
        (lambda rows: rows.with_columns(symbol=pl.lit(None, pl.String)), "symbol: 1 NULLs"),
    ],
)
def test_a_malformed_frame_is_refused_whole(
    store: RedisStore, client: redis.Redis, make_rows: MakeRows, change: Callable[[pl.DataFrame], pl.DataFrame], complaint: str
) -> None:
    rows = make_rows(VIEW, {"symbol": "AAPL", "event_timestamp": CLOSE, FEATURE: 1.0})
    with pytest.raises(MalformedDataError, match=complaint):
        store.write(VIEW, change(rows), 1, now=NOW)
    assert client.dbsize() == 0


def disturb(monkeypatch: pytest.MonkeyPatch, store: RedisStore, disturbance: Callable[[], Any]) -> None:
    """Run `disturbance` once, in the midst of the store's next write."""
    original = store._batches

    def disturbed(changes: Sequence[Change]) -> Iterator[Batch]:
        monkeypatch.undo()
        batches = original(changes)
        yield from islice(batches, 3)
        disturbance()
        yield from batches

    monkeypatch.setattr(store, "_batches", disturbed)


def many(make_rows: MakeRows, value: float = 1.0) -> pl.DataFrame:
    return make_rows(VIEW, *({"symbol": f"S{number}", "event_timestamp": CLOSE, FEATURE: value} for number in range(1200)))


def test_a_write_that_dies_is_not_remembered_and_a_repetition_finishes_it(
    store: RedisStore, make_rows: MakeRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die() -> None:
        raise KeyboardInterrupt

    disturb(monkeypatch, store, die)
    with pytest.raises(KeyboardInterrupt):
        store.write(VIEW, many(make_rows), 1, now=NOW)
    assert store.publication_id(VIEW) is None
    assert store.write(VIEW, many(make_rows), 1, now=NOW).entities_written == 1200
    assert [value_of(store, symbol) for symbol in ("S0", "S1199")] == [1.0, 1.0]
    assert store.publication_id(VIEW) == 1


def test_a_flush_during_the_first_write_is_noticed(
    store: RedisStore, client: redis.Redis, make_rows: MakeRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    disturb(monkeypatch, store, client.flushall)
    with pytest.raises(StoreUnavailableError, match="was flushed, or another writer"):
        store.write(VIEW, many(make_rows), 1, now=NOW)
    assert store.publication_id(VIEW) is None


def test_what_a_second_writer_may_have_undone_is_applied_again(
    store: RedisStore, settings: Settings, make_rows: MakeRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = RedisStore(settings.redis, "featurestore")
    store.write(VIEW, many(make_rows), 10, now=NOW)
    disturb(monkeypatch, store, lambda: other.write(VIEW, many(make_rows), 12, now=NOW))
    with pytest.raises(StoreUnavailableError, match="another writer"):
        store.write(VIEW, many(make_rows), 11, retracted=pl.DataFrame({"symbol": ["S0"]}), now=NOW)
    assert store.publication_id(VIEW) == 11
    other.close()


def test_writers_at_the_same_time_leave_the_newest_row_of_every_entity(
    settings: Settings, client: redis.Redis, make_rows: MakeRows
) -> None:
    def frame(writer: int, turn: int) -> pl.DataFrame:
        return make_rows(
            VIEW,
            *(
                {"symbol": f"S{n}", "event_timestamp": CLOSE - ((n + writer + turn) % 5) * DAY, FEATURE: float((n + writer + turn) % 5)}
                for n in range(300)
            ),
        )

    def work(writer: int) -> None:
        own = RedisStore(settings.redis, "featurestore")
        for turn in range(4):
            try:
                own.write(VIEW, frame(writer, turn), writer, now=NOW)
            except StoreUnavailableError:
                disturbed.append(writer)
        own.close()

    disturbed: list[int] = []
    threads = [threading.Thread(target=work, args=(writer,)) for writer in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store = RedisStore(settings.redis, "featurestore")
    found = store.read([(VIEW, (FEATURE,))], [{"symbol": f"S{n}"} for n in range(300)])
    assert {row and row.values for (row,) in found.rows} == {(0.0,)}
    store.close()


def test_the_remembered_publication_goes_with_a_flush(store: RedisStore, client: redis.Redis, make_rows: MakeRows) -> None:
    assert store.publication_id(VIEW) is None
    store.write(VIEW, make_rows(VIEW), 42, now=NOW)
    assert store.publication_id(VIEW) == 42
    client.flushall()
    assert store.publication_id(VIEW) is None


def test_teardown_deletes_this_project_only(store: RedisStore, settings: Settings, client: redis.Redis, make_rows: MakeRows) -> None:
    neighbours = [RedisStore(settings.redis, project) for project in ("my_featurestore", "*")]
    row = make_rows(VIEW, {"symbol": "AAPL", "event_timestamp": CLOSE, FEATURE: 1.0})
    for online in (store, *neighbours):
        online.write(VIEW, row, 1, now=NOW)
    client.set("unrelated:featurestore", "1")
    assert store.teardown([VIEW, INTRADAY]) == 1
    assert [value_of(store), *map(value_of, neighbours)] == [None, 1.0, 1.0]
    assert [online.publication_id(VIEW) for online in (store, *neighbours)] == [None, 1, 1]
    assert neighbours[1].teardown([VIEW]) == 1
    assert client.get("unrelated:featurestore") == b"1"
    for online in neighbours:
        online.close()


def test_a_wrong_password_is_a_configuration_error_that_does_not_print_it(settings: Settings) -> None:
    store = RedisStore(settings.redis.model_copy(update={"password": SecretStr("not-the-password")}), "featurestore")
    with pytest.raises(ConfigurationError, match=rf"{settings.redis.host}:{settings.redis.port}.*REDIS_PASSWORD") as caught:
        store.publication_id(VIEW)
    assert "not-the-password" not in str(caught.value)


def test_a_dead_redis_is_reported_by_its_address(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    store = RedisStore(settings.redis.model_copy(update={"port": port}), "featurestore")
    with pytest.raises(StoreUnavailableError, match=f"Redis at 127.0.0.1:{port}"):
        store.read([(VIEW, (FEATURE,))], [{"symbol": "AAPL"}])


def test_a_frozen_redis_costs_no_more_than_the_deadline(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        frozen = settings.redis.model_copy(update={"port": silent.getsockname()[1], "password": SecretStr("")})
        store = RedisStore(frozen, "featurestore")
        started = time.monotonic()
        with pytest.raises(StoreUnavailableError, match=r"did not answer within 0.05 s"):
            store.read([(VIEW, (FEATURE,))], [{"symbol": "AAPL"}], 0.05)
        assert time.monotonic() - started < 2


def test_a_restarted_connection_is_made_again(store: RedisStore, client: redis.Redis, make_rows: MakeRows) -> None:
    store.write(VIEW, make_rows(VIEW, {"symbol": "AAPL", "event_timestamp": CLOSE, FEATURE: 1.0}), 1, now=NOW)
    assert value_of(store) == 1.0
    client.client_kill_filter(_type="normal", skipme=True)
    assert value_of(store) == 1.0
