"""A reader pays for nothing that it does not use: reads of every kind, in a process of their own."""

import subprocess
import sys

from featurestore_dagster.settings import Settings

READS = """
import sys
from datetime import UTC, datetime
import polars as pl
from featurestore_dagster.serving.client import FeatureStoreClient
from featurestore_dagster.serving.policy import ReadPolicy

client, at = FeatureStoreClient(), datetime(2018, 12, 31, 21, tzinfo=UTC)
row = {"symbol": "SPX", "timeframe": "1d", "portfolio": "GLOBAL"}
client.get_online_features("daily_equity_service", [row], policy=ReadPolicy(deadline_seconds=20))
client.get_online_features("daily_equity_service", [row], as_of_timestamp=at)
entities = pl.DataFrame({**row, "event_timestamp": [at]}, schema_overrides={"event_timestamp": pl.Datetime("us", "UTC")})
assert client.get_historical_features(entities, "daily_equity_service").height == 1
assert client.get_feature_freshness()
sys.exit(", ".join(sorted({"feast", "pandas", "dagster", "pandera", "exchange_calendars"} & sys.modules.keys())) or 0)
"""

IMPORT = """
import sys
import featurestore_dagster.serving.client, featurestore_dagster.serving.async_client
drivers = {"psycopg", "psycopg_pool", "psutil", "pydantic", "numpy", "pyarrow", "httpx", "prometheus_client", "fastapi"}
frameworks = {"feast", "pandas", "dagster", "pandera", "exchange_calendars"}
sys.exit(", ".join(sorted((drivers | frameworks) & sys.modules.keys())) or 0)
"""


def test_importing_the_clients_loads_no_drivers_and_no_frameworks() -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", IMPORT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_t17_reads_of_every_kind_import_no_feast_and_no_pandas(fresh_database: Settings) -> None:
    settings = fresh_database.model_copy(update={"clock": "2018-12-31T22:00:00Z", "services": "external"})
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", READS], capture_output=True, text=True, env=settings.child_environment(), check=False
    )
    assert done.returncode == 0, done.stderr
