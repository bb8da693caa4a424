"""Stores that are killed while a request waits for their answer: the next tier's value, or a refusal in time; and both come back."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress

import psycopg
import pytest

from featurestore_dagster.errors import NoTierAnsweredError
from featurestore_dagster.serving.answer import OnlineFeatures
from featurestore_dagster.serving.client import FeatureStoreClient
from featurestore_dagster.serving.policy import ReadPolicy
from featurestore_dagster.stores.embedded import processes
from tests.integration.serving.conftest import ENTITIES, NOW, REFERENCES, VIEWS, Served
from tests.integration.serving.test_ladder import BRIEF, HANG_SECONDS, content, tiers

PATIENT = ReadPolicy(deadline_seconds=25)
READERS = 4


def read(client: FeatureStoreClient, policy: ReadPolicy = PATIENT) -> OnlineFeatures:
    return client.get_online_features(REFERENCES, ENTITIES, policy=policy)


@contextmanager
def reading(client: FeatureStoreClient) -> Iterator[list[Future[OnlineFeatures]]]:
    """Reads that have begun; the block ends with all of them."""
    with ThreadPoolExecutor(READERS) as pool:
        asked = [pool.submit(read, client) for _ in range(READERS)]
        assert processes.wait_until(lambda: all(one.running() or one.done() for one in asked), HANG_SECONDS)
        yield asked


def recovered(client: FeatureStoreClient, tier: str) -> OnlineFeatures:
    until = time.monotonic() + 60
    while True:
        try:
            answer = read(client, BRIEF)
        except NoTierAnsweredError:
            assert time.monotonic() < until
            continue
        if tiers(answer) == {tier}:
            return answer
        assert time.monotonic() < until


def test_a_redis_killed_while_it_is_asked_is_answered_by_postgres(served: Served) -> None:
    with served.client() as client:
        before = read(client)
        threads = threading.active_count()
        with served.frozen("redis"):
            with reading(client) as asked:
                served.kill("redis")
            assert [tiers(one.result()) for one in asked] == [{"postgres"}] * READERS
        assert all(content(one.result()) == content(before) for one in asked)
        assert threading.active_count() <= threads + 2
        served.services.start()
        served.sync()
        assert content(recovered(client, "redis")) == content(before)


def test_a_postgres_killed_while_it_is_asked_is_a_refusal_and_comes_back(served: Served) -> None:
    with served.client() as client:
        before = read(client)
        with served.redis() as plain:
            plain.flushall()
        waits = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
        with suppress(psycopg.OperationalError), served.store_connection() as holder, served.store_connection() as watching:
            watching.autocommit = True
            for view in VIEWS:
                holder.execute(f'lock table features."{view.name}" in access exclusive mode')  # type: ignore[arg-type]
            with reading(client) as asked:
                assert processes.wait_until(lambda: watching.execute(waits).fetchone() != (0,), HANG_SECONDS)
                began = time.monotonic()
                served.kill("postgres")
                for one in asked:
                    with pytest.raises(NoTierAnsweredError, match=r"postgres: .*raw: "):
                        one.result()
                assert time.monotonic() - began < HANG_SECONDS
        served.services.start()
        assert content(recovered(client, "postgres")) == content(before)


def test_with_both_stores_dead_the_refusal_names_both_and_both_come_back(served: Served) -> None:
    with served.client() as client:
        before = read(client)
        served.kill("postgres")
        assert tiers(read(client, BRIEF)) == {"redis"}, "what is served needs no Postgres"
        served.kill("redis")
        threads, began = threading.active_count(), time.monotonic()
        for _ in range(20):
            with pytest.raises(NoTierAnsweredError, match=r"redis: .*postgres: .*raw: "):
                read(client, BRIEF)
        assert time.monotonic() - began < 20 * HANG_SECONDS
        assert threading.active_count() <= threads + 2
        served.services.start()
        served.sync()
        assert content(recovered(client, "redis")) == content(before)


def test_dead_from_the_start_a_client_refuses_and_serves_when_they_come(served: Served) -> None:
    served.kill("redis")
    served.kill("postgres")
    with served.client(NOW) as client:
        with pytest.raises(NoTierAnsweredError):
            read(client, BRIEF)
        served.services.start()
        served.sync()
        assert tiers(recovered(client, "redis")) == {"redis"}
