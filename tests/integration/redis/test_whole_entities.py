"""Entities that Redis does not hold are laid down whole, by RESTORE: the same as field by field, whatever the server and others do."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest
import redis
from pydantic import SecretStr

from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.redis import Change, RedisStore, layout
from featurestore_dagster.stores.redis.writing import Batch

MakeRows = Callable[..., pl.DataFrame]

CLOSE = datetime(2018, 12, 31, 21, tzinfo=UTC)
NOW = CLOSE + timedelta(hours=1)
MINUTE = timedelta(minutes=1)
VECTORS, INTRADAY = CATALOGUE.view("feature_vectors"), CATALOGUE.view("technical_indicators_view")
MOMENTUM = CATALOGUE.view("momentum_features")
LONG_NAMED = replace(MOMENTUM, name="a_view_whose_name_makes_a_timestamp_field_of_exactly_64_byte")
VIEWS = (VECTORS, INTRADAY, MOMENTUM, LONG_NAMED)
ENTITIES = 400


def rows_of(make_rows: MakeRows, view: FeatureView, first: int = 0, event: datetime = CLOSE) -> pl.DataFrame:
    """Rows of many entities: most have no NULL, some have the same, a few have others; codes of several lengths, and two event times."""
    rows = []
    for number in range(first, ENTITIES):
        values: dict[str, Any] = {
            feature.name: 10 ** (number % 3) * (-1) ** (number % 40 == 0) if feature.indicator.unit == "code" else number + place / 8
            for place, feature in enumerate(view.features)
        }
        if number % 5 == 0:
            values[view.feature_names[0]] = None
        if number % 97 == 0:
            values[view.feature_names[-1 - number % 3]] = None
        fraction = timedelta(microseconds=number % 2)
        rows.append({"symbol": f"S{number}", "event_timestamp": event - fraction, "created_timestamp": event, "flags": number} | values)
    return make_rows(view, *rows)


def contents(client: redis.Redis) -> dict[bytes, Any]:
    return {key: client.hgetall(key) for key in client.scan_iter(count=1000, _type="hash")}


def together(store: RedisStore, make_rows: MakeRows, views: Sequence[FeatureView], event: datetime = CLOSE) -> list[int]:
    """Write all views at once, each from another entity on; returns how many were written."""
    changes = [Change(view, rows_of(make_rows, view, 20 * number, event), 1) for number, view in enumerate(views)]
    return [written.entities_written for written in store.write_together(changes, NOW)]


def calls(client: redis.Redis, name: str) -> int:
    return int(client.info("commandstats").get(f"cmdstat_{name}", {"calls": 0})["calls"])


@pytest.fixture
def field_by_field(settings: Settings, client: redis.Redis) -> Iterator[RedisStore]:
    """A store of a user to whom RESTORE is forbidden."""
    client.acl_setuser("clerk", enabled=True, passwords="+secret", keys="*", commands=["+@all", "-restore"])
    clerk = RedisStore(settings.redis.model_copy(update={"username": "clerk", "password": SecretStr("secret")}), "featurestore")
    yield clerk
    clerk.close()
    client.acl_deluser("clerk")


def test_whole_entities_hold_what_is_written_field_by_field_and_view_by_view(
    store: RedisStore, field_by_field: RedisStore, client: redis.Redis, make_rows: MakeRows
) -> None:
    assert len(layout.timestamp_field(LONG_NAMED.name)) == layout.COMPACT_BYTES
    expected_written = [ENTITIES - 20 * number for number in range(len(VIEWS))]
    client.config_resetstat()
    assert together(store, make_rows, VIEWS) == expected_written
    assert calls(client, "restore") > ENTITIES
    whole = contents(client)
    feasts = [key for key in whole if not key.startswith(b"featurestore:")]
    assert {client.object("encoding", key) for key in feasts} <= {b"ziplist", b"listpack"}

    client.flushall()
    client.config_resetstat()
    assert together(field_by_field, make_rows, VIEWS) == expected_written
    assert calls(client, "hset") > ENTITIES
    assert contents(client) == whole

    client.flushall()
    for number, view in enumerate(VIEWS):  # the second view of an entity finds it there
        store.write(view, rows_of(make_rows, view, 20 * number), 1, now=NOW)
    assert contents(client) == whole
    entities = [{"symbol": f"S{number}", "timeframe": "1d"} for number in range(ENTITIES)]
    found = store.read([(MOMENTUM, MOMENTUM.feature_names)], entities).rows
    assert sum(row is not None for (row,) in found) == ENTITIES - 40
    rows = rows_of(make_rows, MOMENTUM, 40)
    assert [row.values for (row,) in found if row] == rows.select(MOMENTUM.feature_names).rows()


def test_redis_keeps_a_whole_entity_as_one_that_was_written_field_by_field(
    store: RedisStore, client: redis.Redis, make_rows: MakeRows
) -> None:
    """To the byte: else one of its versions might find in the one what it does not find in the other."""
    store.write(VECTORS, rows_of(make_rows, VECTORS), 1, now=NOW)
    key, values = next((key, values) for key, values in contents(client).items() if not key.startswith(b"featurestore:"))
    whole = client.dump(key)
    client.delete(key)
    client.hset(key, items=[part for pair in values.items() for part in pair])
    assert client.dump(key) == whole


def test_what_another_client_creates_meanwhile_is_kept(
    store: RedisStore, client: redis.Redis, make_rows: MakeRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    (key,) = layout.entity_keys("featurestore", {"symbol": ["S0"]})
    decide = Batch.transaction

    def slow(batch: Batch, answers: Sequence[Any], *, restores: bool) -> tuple[bytes, int, list[int]]:
        decided = decide(batch, answers, restores=restores)
        monkeypatch.undo()
        client.hset(key, "_ts:of_another", "1")
        return decided

    monkeypatch.setattr(Batch, "transaction", slow)
    assert together(store, make_rows, [MOMENTUM]) == [ENTITIES]
    assert client.hget(key, "_ts:of_another") == b"1"
    assert client.hlen(key) == len(MOMENTUM.features) + 2
    (((row,),)) = store.read([(MOMENTUM, MOMENTUM.feature_names)], [{"symbol": "S0"}]).rows
    assert row is not None
    assert row.known_microseconds == int(CLOSE.timestamp()) * 1_000_000


def test_rows_that_redis_holds_bit_by_bit_are_not_written_again(store: RedisStore, client: redis.Redis, make_rows: MakeRows) -> None:
    views = (MOMENTUM, LONG_NAMED)
    assert together(store, make_rows, views) == [ENTITIES, ENTITIES - 20]
    client.config_resetstat()
    assert together(store, make_rows, views) == [ENTITIES, ENTITIES - 20]
    assert [calls(client, name) for name in ("hset", "exec")] == [2, 0], "a filler for each view"
    assert together(store, make_rows, views, CLOSE - MINUTE) == [0, 0]
    assert [calls(client, name) for name in ("hset", "exec")] == [4, 0]
    assert together(store, make_rows, views, CLOSE + MINUTE) == [ENTITIES, ENTITIES - 20]
    assert calls(client, "hset") >= ENTITIES


def test_entities_of_which_some_are_there_keep_what_they_hold(store: RedisStore, client: redis.Redis, make_rows: MakeRows) -> None:
    """The last batches are not as empty as the ones before."""
    store.write(MOMENTUM, rows_of(make_rows, MOMENTUM, ENTITIES - 150), 1, now=NOW)
    (key,) = layout.entity_keys("featurestore", {"symbol": [f"S{ENTITIES - 1}"]})
    client.hset(key, "_ts:of_another", "1")
    older = rows_of(make_rows, MOMENTUM, event=CLOSE - MINUTE)
    assert store.write(MOMENTUM, older, 2, now=NOW).entities_skipped == 150
    assert client.hget(key, "_ts:of_another") == b"1"
    found = store.read([(MOMENTUM, MOMENTUM.feature_names)], [{"symbol": f"S{number}"} for number in (0, ENTITIES - 2)]).rows
    events = [row.event_microseconds for (row,) in found if row]
    assert events[1] - events[0] == MINUTE // timedelta(microseconds=1)


def test_a_change_that_replaces_is_written_over_anything(store: RedisStore, make_rows: MakeRows) -> None:
    store.write(MOMENTUM, rows_of(make_rows, MOMENTUM, event=CLOSE + MINUTE), 1, now=NOW)
    (written,) = store.write_together([Change(MOMENTUM, rows_of(make_rows, MOMENTUM), 1, replaces=True)], NOW)
    assert written.entities_written == ENTITIES
    (((row,),)) = store.read([(MOMENTUM, MOMENTUM.feature_names)], [{"symbol": "S2"}]).rows
    assert row is not None
    assert row.event_microseconds == int(CLOSE.timestamp()) * 1_000_000
