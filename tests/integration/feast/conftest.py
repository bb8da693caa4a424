"""Our Feast repository as stock Feast would have it, and what is published in it."""

from pathlib import Path

import pytest

from featurestore_dagster.settings import Settings
from tests.integration.feast.publications import (
    CORRECTED,
    FRIDAY,
    INTRADAY,
    MACRO,
    MOMENTUM,
    MONDAY,
    publish,
    sync,
    values,
)

REPOSITORY = Path(__file__).parents[3] / "feature_repo"
PLUG_INS = {
    "redis": "featurestore_dagster.feast_stores.online_store.BitemporalOnlineStore",
    "postgres": "featurestore_dagster.feast_stores.offline_store.BitemporalOfflineStore",
}


@pytest.fixture(scope="session")
def stock_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of feature_repo with Feast's own stores: two lines differ."""
    folder = tmp_path_factory.mktemp("stock") / "feature_repo"
    folder.mkdir()
    for path in REPOSITORY.iterdir():
        if path.is_file():
            text = path.read_text()
            if path.name == "feature_store.yaml":
                for stock, plug_in in PLUG_INS.items():
                    assert plug_in in text
                    text = text.replace(plug_in, stock)
            (folder / path.name).write_text(text)
    return folder


@pytest.fixture
def published(fresh_database: Settings) -> Settings:
    """Three views published and synced: a correction, a NULL, two streams, a composite key and a code among them."""
    aapl = {"symbol": "AAPL"}
    publish(
        fresh_database, MOMENTUM, "us_equity_1d", MONDAY,
        aapl | {"event_timestamp": FRIDAY} | values(MOMENTUM, 10),
        aapl | {"event_timestamp": MONDAY} | values(MOMENTUM, 20),
        {"symbol": "IBM", "event_timestamp": MONDAY} | values(MOMENTUM, 30) | {MOMENTUM.feature_names[0]: None},
    )  # fmt: skip
    corrected = aapl | {"event_timestamp": MONDAY, "created_timestamp": CORRECTED} | values(MOMENTUM, 21)
    publish(
        fresh_database, MOMENTUM, "us_equity_1d", CORRECTED,
        corrected,
        {"symbol": "IBM", "event_timestamp": MONDAY} | values(MOMENTUM, 30) | {MOMENTUM.feature_names[0]: None},
    )  # fmt: skip
    publish(fresh_database, INTRADAY, "us_equity_1d", MONDAY, aapl | {"timeframe": "1d", "event_timestamp": MONDAY} | values(INTRADAY, 40))
    publish(
        fresh_database, INTRADAY, "fx_1h", MONDAY,
        {"symbol": "EURUSD", "timeframe": "1h", "event_timestamp": FRIDAY} | values(INTRADAY, 50),
    )  # fmt: skip
    publish(fresh_database, MACRO, MACRO.streams[0].name, MONDAY, {"portfolio": "GLOBAL", "event_timestamp": MONDAY} | values(MACRO, 2))
    for view in (MOMENTUM, INTRADAY, MACRO):
        sync(fresh_database, view)
    return fresh_database
