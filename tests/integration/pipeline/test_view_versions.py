"""Two versions of a view with different formulas, side by side: published, read as of, compared, and served; on real Postgres and Redis."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import polars as pl
import pytest

from featurestore_dagster.errors import NotOnlineError, UnknownNameError
from featurestore_dagster.features.equity_views import MOMENTUM_FEATURES
from featurestore_dagster.indicators.momentum import ret
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.feature_service import FeatureService
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.projections.feast_objects import feast_objects
from featurestore_dagster.serving.answer import Status
from featurestore_dagster.serving.client import FeatureStoreClient
from featurestore_dagster.serving.client_base import PROJECT
from featurestore_dagster.serving.online_sync import sync_view
from featurestore_dagster.serving.policy import ReadPolicy
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.redis import RedisStore
from tests.integration.pipeline.conftest import Deployment, with_listings
from tests.unit.pipeline.frames import LISTED, close_of, keys_between, session_bars

DAYS = keys_between("2018-12-03", "2018-12-14")
LAST = close_of(DAYS[-1])
V1 = replace(
    MOMENTUM_FEATURES, name="toy_view", description="A toy", features=(ret.feature("change", k=1), ret.feature("gone", k=2)), aliases=()
)
V2 = replace(V1, version=2, features=(ret.feature("change", k=5), ret.feature("added", k=3)))


def catalogue(*views: FeatureView) -> Catalogue:
    trained = replace(V1, name="trained_view", online=False)
    services = (FeatureService("newest", "newest toy", views=(views[0],)), FeatureService("training", "offline", views=(trained,)))
    return replace(with_listings(LISTED), views=(*views, trained), services=services)


@dataclass
class Toy:
    """A deployment that first knew version 1 only, and then both."""

    deployment: Deployment
    closes: list[float]

    def declare(self, *views: FeatureView) -> None:
        self.deployment.catalogue = catalogue(*views)
        self.deployment.store.apply(self.deployment.catalogue)

    def sync(self, view: FeatureView) -> None:
        sync_view(view, self.deployment.store, self.online, self.deployment.clock.now())

    @property
    def online(self) -> RedisStore:
        return RedisStore(self.deployment.settings.redis, PROJECT)

    @property
    def client(self) -> FeatureStoreClient:
        settings = self.deployment.settings.model_copy(update={"clock": self.deployment.clock.now().isoformat()})
        return FeatureStoreClient(settings, self.deployment.catalogue)

    def change(self, k: int) -> float:
        """Return over the last k sessions."""
        return self.closes[-1] / self.closes[-1 - k] - 1

    def served(self, reference: str) -> tuple[float | int | None, Status, str]:
        with self.client as client:
            value = client.get_online_features([reference], [{"symbol": "AAA"}], policy=ReadPolicy(deadline_seconds=20)).rows[0].values[0]
        return value.value, value.status, value.tier


@pytest.fixture
def toy(empty_database: Settings) -> Toy:
    deployment = Deployment(empty_database, catalogue(V1))
    deployment.clock.instant = LAST + timedelta(hours=3)
    closes = [101.0 + 0.25 * number for number in range(len(DAYS))]
    toy = Toy(deployment, closes)
    toy.declare(V1)
    for day, close in zip(DAYS, closes, strict=True):
        deployment.deliver([*session_bars([day], open=close - 1, high=close + 1, low=close - 2, close=close)])
        assert not deployment.ingest(day)[0].blocked
    assert not any(outcome.blocked for outcome in deployment.materialise(V1, *DAYS))
    toy.sync(V1)
    return toy


def newest(rows: pl.DataFrame, name: str) -> float:
    return rows.filter(pl.col("symbol") == "AAA").sort("event_timestamp")[name].to_list()[-1]  # type: ignore[no-any-return]


def test_both_are_published_and_read_each_by_its_name(toy: Toy) -> None:
    before = toy.deployment.features(V1)
    assert newest(before, "change") == pytest.approx(toy.change(1))
    old = V1.superseded()
    toy.declare(V2, old)
    assert toy.deployment.store.drift(toy.deployment.catalogue) == []
    assert toy.deployment.store.apply(toy.deployment.catalogue) == []
    assert not any(outcome.blocked for outcome in toy.deployment.materialise(V2, *DAYS))

    assert toy.deployment.features(old).equals(before)
    both = toy.deployment.features(V2)
    assert (newest(both, "change"), newest(both, "added")) == (pytest.approx(toy.change(5)), pytest.approx(toy.change(3)))
    assert both.columns.count("gone") == 0

    entities = pl.DataFrame({"symbol": ["AAA"], "event_timestamp": [toy.deployment.clock.now()]})
    frame = toy.client.get_historical_features(entities, ["toy_view@1:change", "toy_view:change", "toy_view@2:added", "toy_view@1:gone"])
    assert frame.columns == ["symbol", "event_timestamp", "toy_view@1__change", "toy_view__change", "toy_view__added", "toy_view@1__gone"]
    assert frame.row(0)[2:] == (
        pytest.approx(toy.change(1)), pytest.approx(toy.change(5)), pytest.approx(toy.change(3)), pytest.approx(toy.change(2))
    )  # fmt: skip
    with pytest.raises(UnknownNameError, match="unknown feature of view toy_view 'gone'"):
        toy.client.get_historical_features(entities, ["toy_view:gone"])


def test_each_version_has_its_own_ledger_and_hashes_and_recomputing_writes_nothing(toy: Toy) -> None:
    alone = toy.deployment.hashes(V1)
    old = V1.superseded()
    toy.declare(V2, old)
    toy.deployment.materialise(V2, *DAYS)
    again = toy.deployment.materialise(old, *DAYS)
    assert all(outcome.unchanged for outcome in again)
    assert toy.deployment.hashes(old) == alone
    assert set(toy.deployment.hashes(V2)) == set(alone)
    assert not set(toy.deployment.hashes(V2).values()) & set(alone.values())
    states = toy.deployment.ledger.partitions("features.toy_view.us_equity_1d")
    assert {state.rows_total for state in states.values()} == {len(LISTED)}


def test_redis_holds_the_newest_only_and_the_older_comes_from_postgres(toy: Toy) -> None:
    assert toy.served("toy_view:change") == (pytest.approx(toy.change(1)), Status.PRESENT, "redis")
    toy.declare(V2, V1.superseded())
    toy.sync(V2)
    assert toy.served("toy_view:change") == (None, Status.NOT_FOUND, "redis"), "version 1 was served under the name of version 2"
    toy.deployment.materialise(V2, *DAYS)
    toy.sync(V2)
    assert toy.served("toy_view:change") == (pytest.approx(toy.change(5)), Status.PRESENT, "redis")
    assert toy.served("toy_view@1:change") == (pytest.approx(toy.change(1)), Status.PRESENT, "postgres")
    both = ["toy_view@1:change", "toy_view:change"]
    answer = toy.client.get_online_features(both, [{"symbol": "AAA"}], policy=ReadPolicy(deadline_seconds=20)).rows[0]
    assert [value.reference for value in answer.values] == ["toy_view@1:change", "toy_view:change"]
    assert [value.value for value in answer.values] == [pytest.approx(toy.change(1)), pytest.approx(toy.change(5))]


def test_the_newest_replaces_a_row_of_the_older_that_was_known_later(toy: Toy) -> None:
    """A correction of version 1 is known later than the first row of version 2, whose event time is the same."""
    toy.declare(V2, V1.superseded())
    toy.deployment.materialise(V2, *DAYS)
    corrected = toy.deployment.features(V1).filter(pl.col("event_timestamp") == LAST)
    late = corrected.with_columns(pl.col("created_timestamp") + timedelta(hours=1), pl.lit(9.0).alias("change"))
    toy.online.write(V1, late, 10_000, now=toy.deployment.clock.now())
    (held,) = toy.online.read([(V1, ("change",))], [{"symbol": "AAA"}]).rows
    assert held[0] is not None
    assert held[0].values == (9.0,)
    toy.sync(V2)
    assert toy.served("toy_view:change")[0] == pytest.approx(toy.change(5))


def test_a_view_for_training_only_is_never_read_online(toy: Toy) -> None:
    for asked in ("training", ["trained_view:change", "toy_view:change"]):
        with pytest.raises(NotOnlineError, match="trained_view is for training only"):
            toy.client.get_online_features(asked, [{"symbol": "AAA"}])
    with pytest.raises(NotOnlineError):
        toy.client.get_feature_vector("training", {"symbol": "AAA"})
    then: datetime = toy.deployment.clock.now()
    assert toy.client.get_online_features("training", [{"symbol": "AAA"}], then).rows[0].values[0].status is Status.NOT_FOUND


def test_stock_feast_sees_the_newest_only() -> None:
    objects = feast_objects(catalogue(V2, V1.superseded()))
    assert [field.name for field in objects["view_toy_view"].features] == ["change", "added"]
    assert objects["view_toy_view"].online
    assert not objects["view_trained_view"].online
    assert len([name for name in objects if name.startswith("view_toy")]) == 1
