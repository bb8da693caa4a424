"""A sync in whose midst Redis is flushed or the writer dies, and a Redis put back to an older snapshot: the next sync heals both."""

from collections.abc import Callable, Iterator, Sequence
from datetime import date
from itertools import islice
from typing import Any

import pytest
import redis

from featurestore_dagster.errors import StoreUnavailableError
from featurestore_dagster.features.equity_views import DAILY_OHLCV_STATS, MOMENTUM_FEATURES
from featurestore_dagster.model.source import Listing
from featurestore_dagster.serving.client_base import PROJECT
from featurestore_dagster.serving.online_sync import sync_views
from featurestore_dagster.stores.redis import Change, RedisStore, writing
from featurestore_dagster.stores.redis.writing import Batch
from tests.integration.pipeline.conftest import Deployment, with_listings
from tests.unit.pipeline.frames import LISTED, keys_between, session_bars

VIEWS = (DAILY_OHLCV_STATS, MOMENTUM_FEATURES)
DAYS = keys_between("2018-12-03", "2018-12-07")


class Online:
    """Redis, and syncs of two views to it, an entity in each batch."""

    def __init__(self, deployment: Deployment, client: redis.Redis) -> None:
        self.deployment = deployment
        self.client = client
        self.store = RedisStore(deployment.settings.redis, PROJECT)

    def publish(self, days: Sequence[str], close: float) -> None:
        """Bars with this close, and what is computed from them."""
        self.deployment.deliver(session_bars(days, close=close))
        outcomes = self.deployment.ingest(*days)
        for view in VIEWS:
            outcomes += self.deployment.materialise(view, *days)
        assert not any(outcome.blocked for outcome in outcomes)

    def sync(self) -> None:
        sync_views(VIEWS, self.deployment.store, self.store, self.deployment.clock.now(), self.deployment.catalogue)

    def contents(self) -> dict[bytes, Any]:
        kinds = {key: self.client.type(key) for key in self.client.scan_iter()}
        return {key: self.client.hgetall(key) if kind == b"hash" else self.client.get(key) for key, kind in kinds.items()}

    def snapshot(self) -> dict[bytes, bytes]:
        """All keys, each as it stands in an RDB file."""
        return {key: self.client.dump(key) for key in self.client.scan_iter()}

    def put_back(self, snapshot: dict[bytes, bytes]) -> None:
        self.client.flushall()
        for key, payload in snapshot.items():
            self.client.restore(key, 0, payload)

    def disturb(self, monkeypatch: pytest.MonkeyPatch, batches: int, disturbance: Callable[[], Any]) -> None:
        """Let it come in the midst of the next sync, after so many batches were laid out."""
        original = self.store._batches

        def disturbed(changes: Sequence[Change]) -> Iterator[Batch]:
            monkeypatch.delattr(self.store, "_batches")
            found = original(changes)
            yield from islice(found, batches)
            disturbance()
            yield from found

        monkeypatch.setattr(self.store, "_batches", disturbed)


@pytest.fixture
def online(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> Iterator[Online]:
    monkeypatch.setattr(writing, "ROWS_PER_BATCH", len(VIEWS))
    with redis.Redis.from_url(deployment.settings.redis.url) as client:
        client.flushall()
        found = Online(deployment, client)
        yield found
        found.store.close()


def die() -> None:
    raise KeyboardInterrupt


def test_after_any_disturbance_the_next_sync_leaves_the_rows_of_an_undisturbed_one(online: Online, monkeypatch: pytest.MonkeyPatch) -> None:
    online.publish(DAYS[:3], 101.0)
    online.sync()
    older = online.snapshot()
    before = online.contents()
    online.publish(DAYS[2:], 101.5)
    online.deployment.catalogue = with_listings(LISTED | {"EEE": Listing("EEE", date(2000, 1, 3), date(2018, 12, 6))})
    online.sync()
    expected = online.contents()
    entities = [key for key in before if b"symbol\x02" in key]
    assert len(entities) == len(LISTED)
    assert sum(expected.get(key) != before[key] for key in entities) == len(LISTED)
    assert sum(key in expected for key in entities) == len(LISTED) - 1

    online.put_back(older)
    assert online.contents() == before
    online.sync()
    assert online.contents() == expected, "after an older snapshot"

    for disturbance, error in ((online.client.flushall, StoreUnavailableError), (die, KeyboardInterrupt)):
        for start in ({}, older):
            for batches in range(len(LISTED)):
                online.put_back(start)
                online.disturb(monkeypatch, batches, disturbance)
                with pytest.raises(error):
                    online.sync()
                online.sync()
                assert online.contents() == expected
