"""Redis knows how new each stream of a view is, heals with the rows, and never goes back."""

from featurestore_dagster.features.equity_views import DAILY_OHLCV_STATS as VIEW
from featurestore_dagster.serving.client_base import PROJECT
from featurestore_dagster.serving.online_sync import sync_view
from featurestore_dagster.stores.redis import RedisStore
from tests.integration.pipeline.conftest import Deployment
from tests.unit.pipeline.frames import close_of, keys_between, session_bars

DAYS = keys_between("2018-12-03", "2018-12-10")
STREAM = VIEW.streams[0].name


def test_a_stream_has_the_watermark_of_its_newest_row(deployment: Deployment) -> None:
    online = RedisStore(deployment.settings.redis, PROJECT)
    deployment.deliver(session_bars(DAYS))
    deployment.ingest(*DAYS)

    def served(*days: str) -> list[object]:
        deployment.materialise(VIEW, *days)
        sync_view(VIEW, deployment.store, online, deployment.clock.now(), deployment.catalogue)
        return list(online.watermarks([(VIEW, STREAM), (VIEW, "no_stream")]))

    assert online.watermarks([(VIEW, STREAM)]) == [None]
    assert served(*DAYS[2:4]) == [close_of(DAYS[3]), None]
    assert served(*DAYS[:2]) == [close_of(DAYS[3]), None], "old days"
    online.teardown((VIEW,))
    assert online.watermarks([(VIEW, STREAM)]) == [None]
    assert served(DAYS[4]) == [close_of(DAYS[4]), None], "healed"
