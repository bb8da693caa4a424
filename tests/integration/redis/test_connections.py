"""Connections under stress: frozen and slow servers, too many callers, late answers, forks; for threads and for an event loop."""

import asyncio
import multiprocessing
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from math import inf

import polars as pl
import pytest
import redis
from pydantic import SecretStr

from featurestore_dagster.errors import StoreUnavailableError
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.settings import RedisSettings, Settings
from featurestore_dagster.stores.redis import OnlineRead, RedisStore, layout
from featurestore_dagster.stores.redis.wire import WAITS_ASLEEP, AsyncPool, Pool, Vigil, command

MakeRows = Callable[..., pl.DataFrame]

CLOSE = datetime(2018, 12, 31, 21, tzinfo=UTC)
VIEWS = tuple((CATALOGUE.view(name), CATALOGUE.view(name).feature_names) for name in ("momentum_features", "technical_indicators_view"))
ENTITIES = [{"symbol": symbol, "timeframe": "1d"} for symbol in ("AAPL", "IBM", "?")]

PAUSED_MILLISECONDS = 2_000
"""Redis has no way to end a pause early: it defers that command too."""


@pytest.fixture
def filled(store: RedisStore, make_rows: MakeRows) -> RedisStore:
    for view, names in VIEWS:
        rows = [
            {"symbol": symbol, "event_timestamp": CLOSE} | {name: base + number for number, name in enumerate(names)}
            for base, symbol in ((0.5, "AAPL"), (100.5, "IBM"))
        ]
        store.write(view, make_rows(view, *rows), 7, now=CLOSE)
    return store


@contextmanager
def dripping() -> Iterator[RedisSettings]:
    """A server that sends a byte of a long answer every 10 ms, whatever it is asked."""
    stopped = threading.Event()

    def serve() -> None:
        while True:
            try:
                accepted, _ = listening.accept()
            except OSError:
                return
            with accepted, suppress(OSError):
                accepted.sendall(b"$1000000\r\n")
                while not stopped.wait(0.01):
                    accepted.sendall(b"1")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        yield RedisSettings(port=listening.getsockname()[1], password=SecretStr(""))
        stopped.set()
        listening.shutdown(socket.SHUT_RDWR)
    thread.join()


def test_an_answer_that_comes_byte_by_byte_does_not_stretch_the_deadline() -> None:
    with dripping() as settings:
        began = time.monotonic()
        with pytest.raises(StoreUnavailableError, match=r"did not answer within 0.1 s"):
            RedisStore(settings, "p").read(VIEWS, ENTITIES, 0.1)
        with pytest.raises(StoreUnavailableError, match=r"did not answer within 0.1 s"):
            asyncio.run(RedisStore(settings, "p").read_async(VIEWS, ENTITIES, 0.1))
        assert time.monotonic() - began < 2


def test_what_comes_after_the_deadline_is_nobodys_answer(filled: RedisStore, client: redis.Redis) -> None:
    expected = filled.read(VIEWS, ENTITIES)
    assert [row is not None for row in expected.rows[0]] == [True, True]

    async def frozen() -> OnlineRead:
        await filled.read_async(VIEWS, ENTITIES)
        client.execute_command("CLIENT", "PAUSE", PAUSED_MILLISECONDS)
        with pytest.raises(StoreUnavailableError, match=r"within 0.02 s"):
            await filled.read_async(VIEWS, ENTITIES[::-1], 0.02)
        found = await filled.read_async(VIEWS, ENTITIES, 30.0)
        await filled.close_async()
        return found

    client.execute_command("CLIENT", "PAUSE", PAUSED_MILLISECONDS)
    with pytest.raises(StoreUnavailableError, match=r"within 0.02 s"):
        filled.read(VIEWS, ENTITIES[::-1], 0.02)
    assert not filled.warm_up(0.02)
    assert filled.warm_up(30.0)
    assert filled.read(VIEWS, ENTITIES) == expected
    assert asyncio.run(frozen()) == expected


def test_more_callers_than_connections_wait_for_one_within_their_deadline(settings: Settings, client: redis.Redis) -> None:
    get = command("GET", "key")
    client.set("key", "value")
    pool = Pool(settings.redis, 2)
    connections = len(client.client_list())
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda _: pool.exchange(get, 1, 5.0), range(400)))
    assert found == [[b"value"]] * 400
    assert len(client.client_list()) - connections <= 2
    client.execute_command("CLIENT", "PAUSE", PAUSED_MILLISECONDS)
    with ThreadPoolExecutor(4) as threads:
        errors = [call.exception() for call in [threads.submit(pool.exchange, get, 1, 0.2) for _ in range(4)]]
    assert {type(error) for error in errors} == {TimeoutError}
    assert pool.exchange(get, 1, 30.0) == [b"value"]
    pool.close()


def test_tasks_share_connections_too_and_one_pool_serves_one_loop_after_the_other(settings: Settings, client: redis.Redis) -> None:
    get = command("GET", "key")
    client.set("key", "value")
    pool = AsyncPool(settings.redis, 2)
    connections = len(client.client_list())

    async def many() -> list[list[bytes]]:
        found = await asyncio.gather(*(pool.exchange(get, 1, 5.0) for _ in range(100)))
        assert len(client.client_list()) - connections <= 2
        pool.close()
        return found

    assert [asyncio.run(many()) for _ in range(2)] == [[[b"value"]] * 100] * 2


@contextmanager
def far_away(seconds: float) -> Iterator[RedisSettings]:
    """A server that answers every command with +OK after some time, one caller at a time."""

    def serve() -> None:
        with suppress(OSError):
            while True:
                accepted, _ = listening.accept()
                with accepted:
                    while received := accepted.recv(65_536):
                        time.sleep(seconds)
                        accepted.sendall(b"+OK\r\n" * received.count(b"GET"))

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        yield RedisSettings(port=listening.getsockname()[1], password=SecretStr(""))
        listening.shutdown(socket.SHUT_RDWR)
    thread.join()


def test_a_wait_for_a_far_server_is_spent_asleep() -> None:
    get, reads = command("GET", "key"), 40
    with far_away(0.005) as settings:
        pool = Pool(settings, 1)
        began, used = time.monotonic(), time.thread_time()
        assert [pool.exchange(get, 1, 5.0) for _ in range(reads)] == [[b"OK"]] * reads
        assert time.monotonic() - began >= reads * 0.005
        assert time.thread_time() - used < reads * 0.005 / 2
        pool.close()


def test_a_wait_awake_ends_with_the_deadline_and_with_the_server() -> None:
    near, far = socket.socketpair()
    with near, far:
        vigil = Vigil(near.fileno())
        assert not vigil.arrived(time.monotonic() - 1)
        far.close()
        assert not any(vigil.arrived(inf) for _ in range(WAITS_ASLEEP))
        assert vigil.arrived(inf)  # the end can be received


def test_a_task_that_only_reads_leaves_the_loop_to_others(settings: Settings, client: redis.Redis) -> None:
    client.set("key", "value")
    get, reads, turns = command("GET", "key"), 200, 0

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async def both() -> None:
        pool, other = AsyncPool(settings.redis), asyncio.create_task(others())
        for _ in range(reads):
            assert await pool.exchange(get, 1, 5.0) == [b"value"]
        other.cancel()
        pool.close()

    asyncio.run(both())
    assert turns >= reads


def test_idle_connections_that_the_server_closed_are_made_again(filled: RedisStore, client: redis.Redis) -> None:
    expected = filled.read(VIEWS, ENTITIES)

    async def after_kill() -> OnlineRead:
        await filled.read_async(VIEWS, ENTITIES)
        client.client_kill_filter(_type="normal", skipme=True)
        found = await filled.read_async(VIEWS, ENTITIES, 30.0)
        await filled.close_async()
        return found

    client.client_kill_filter(_type="normal", skipme=True)
    assert filled.read(VIEWS, ENTITIES) == expected
    assert asyncio.run(after_kill()) == expected


def test_the_asynchronous_read_answers_the_same_also_for_rows_of_a_stock_client(filled: RedisStore, client: redis.Redis) -> None:
    (key,) = layout.entity_keys("featurestore", {"symbol": ["AAPL"]})
    view, _ = VIEWS[0]
    later = int(CLOSE.timestamp()) * 1_000_000 + 1
    client.hset(key, layout.timestamp_field(view.name), layout.encode_timestamp(later))  # type: ignore[arg-type]
    expected = filled.read(VIEWS, ENTITIES)
    assert expected.rows[0][0] is not None
    assert expected.rows[0][0][:2] == (later, None)

    async def read(*, coherent: bool) -> OnlineRead:
        found = await filled.read_async(VIEWS, ENTITIES, coherent=coherent)
        await filled.close_async()
        return found

    assert asyncio.run(read(coherent=False)) == asyncio.run(read(coherent=True)) == expected


def test_a_forked_process_does_not_share_its_parents_sockets(filled: RedisStore) -> None:
    expected = filled.read(VIEWS, ENTITIES)
    receiving, sending = multiprocessing.Pipe(duplex=False)

    def in_child() -> None:
        sending.send([filled.read(VIEWS, ENTITIES) == expected for _ in range(20)])

    child = multiprocessing.get_context("fork").Process(target=in_child)
    child.start()
    ours = [filled.read(VIEWS, ENTITIES) == expected for _ in range(20)]
    assert ours == receiving.recv() == [True] * 20
    child.join()
