"""A scrape over collectors that answer, fail and hang: each is its own misfortune."""

import logging
import queue
import threading
from collections.abc import Iterable

import pytest
from prometheus_client import CollectorRegistry

from featurestore_dagster.errors import StoreUnavailableError
from featurestore_dagster.monitoring import metrics
from featurestore_dagster.monitoring.collectors import Family, scalar
from featurestore_dagster.monitoring.exporter import Scrape, Worker
from featurestore_dagster.stores.embedded import processes


def keys() -> Iterable[Family]:
    return [scalar(metrics.REDIS_KEYS, {(): 3.0})]


def up(registry: CollectorRegistry, name: str) -> float | None:
    return registry.get_sample_value(metrics.COLLECTOR_UP.name, {"collector": name})


def test_one_that_hangs_is_down_and_comes_back_and_holds_up_no_other() -> None:
    release, begun = threading.Event(), threading.Event()
    calls: list[int] = []

    def hangs() -> Iterable[Family]:
        calls.append(1)
        begun.set()
        release.wait()
        return [scalar(metrics.REDIS_MEMORY_USED, {(): float(len(calls))})]

    registry = CollectorRegistry()
    registry.register(Scrape({"good": keys, "hanging": hangs}, patience_seconds=0.2))
    for _ in range(2):  # the second scrape does not start it again
        seen = {family.name: family for family in registry.collect()}
        assert metrics.REDIS_KEYS.name in seen
        assert metrics.REDIS_MEMORY_USED.name not in seen
        assert {sample.labels["collector"]: sample.value for sample in seen[metrics.COLLECTOR_UP.name].samples} == {"good": 1, "hanging": 0}
    assert begun.is_set()
    assert len(calls) == 1
    release.set()
    assert processes.wait_until(lambda: up(registry, "hanging") == 1, 60)
    assert len(calls) >= 2, "the answer to the first scrape was not given to a later one"


def test_one_that_is_always_too_slow_is_down_at_every_scrape() -> None:
    gate: queue.SimpleQueue[None] = queue.SimpleQueue()

    def slow() -> Iterable[Family]:
        gate.get()
        return keys()

    worker = Worker("slow", slow)
    for _ in range(3):
        answer = worker.ask()
        assert worker.take(answer) is None
        gate.put(None)
        assert answer.result(60), "after its scrape and before the next one"


def test_one_that_fails_is_down_and_is_logged_once_for_each_reason(caplog: pytest.LogCaptureFixture) -> None:
    errors: list[Exception] = [StoreUnavailableError("no Redis"), StoreUnavailableError("no Redis"), ValueError("a defect")]

    def fails() -> Iterable[Family]:
        if errors:
            raise errors.pop(0)
        return keys()

    registry = CollectorRegistry()
    registry.register(Scrape({"redis": fails}))
    with caplog.at_level(logging.INFO, logger="featurestore_dagster.monitoring.exporter"):
        assert [up(registry, "redis") for _ in range(5)] == [0, 0, 0, 1, 1]
    assert [record.getMessage() for record in caplog.records] == [
        "collector redis: StoreUnavailableError: no Redis",
        "collector redis: ValueError: a defect",
        "collector redis answers again",
    ]
    assert [record.exc_info is not None for record in caplog.records] == [False, True, False]
