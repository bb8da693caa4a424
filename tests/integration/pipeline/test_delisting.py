"""A symbol whose listing ends leaves Redis, and no repetition of the sync brings it back; history stays readable."""

from datetime import date

from featurestore_dagster.features.equity_views import DAILY_OHLCV_STATS as VIEW
from featurestore_dagster.model.source import Listing
from featurestore_dagster.serving.client_base import PROJECT
from featurestore_dagster.serving.online_sync import sync_view
from featurestore_dagster.stores.redis import RedisStore
from tests.integration.pipeline.conftest import Deployment, with_listings
from tests.unit.pipeline.frames import LISTED, keys_between, session_bars

DAYS = keys_between("2018-12-03", "2018-12-07")


def test_a_delisted_symbol_leaves_redis(deployment: Deployment) -> None:
    online = RedisStore(deployment.settings.redis, PROJECT)
    deployment.deliver(session_bars(DAYS))
    deployment.ingest(*DAYS)
    deployment.materialise(VIEW, *DAYS)

    def served(listings: dict[str, Listing]) -> set[str]:
        sync_view(VIEW, deployment.store, online, deployment.clock.now(), with_listings(listings))
        found = online.read([(VIEW, VIEW.feature_names)], [{"symbol": symbol} for symbol in LISTED])
        return {symbol for symbol, (row,) in zip(LISTED, found.rows, strict=True) if row is not None}

    assert served(dict(LISTED)) == set(LISTED)
    ended = LISTED | {"AAA": Listing("AAA", date(2000, 1, 3), date(2018, 12, 6))}
    assert served(ended) == set(LISTED) - {"AAA"}
    online.teardown((VIEW,))
    assert served(ended) == set(LISTED) - {"AAA"}
    assert deployment.features(VIEW).filter(symbol="AAA").height == len(DAYS)
