"""What one snapshot reads through several connections is of one instant, and the server's errors come through."""

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from featurestore_dagster.errors import ConfigurationError
from featurestore_dagster.projections.postgres_table import feature_schema
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.postgres.bulk import snapshot
from tests.integration.point_in_time.history_cases import FIRST, LAST, NOW, VIEW, put, random_case

COLUMNS = list(feature_schema(VIEW))
EARLY, LATE = FIRST - timedelta(days=400), NOW
HALF = datetime(2018, 11, 27, 12, tzinfo=UTC)
ORDER = ["symbol", "timeframe", "event_timestamp", "created_timestamp"]


@pytest.mark.parametrize("instants", [[EARLY, LATE], [EARLY, HALF, LATE], [EARLY, FIRST, HALF, LAST, LATE]])
def test_what_is_published_meanwhile_is_not_seen(fresh_database: Settings, instants: list[datetime]) -> None:
    versions = random_case(seed=1, version_count=300, asked_count=0).versions
    put(fresh_database, versions[:200])
    with snapshot(fresh_database.postgres) as source:
        source.published_days(VIEW)
        put(fresh_database, versions[200:])
        found = source.versions(VIEW, COLUMNS, instants, {})
        assert_frame_equal(found.sort(ORDER), versions[:200].sort(ORDER))
        one = source.versions(VIEW, COLUMNS, instants, {"symbol": ["A"]})
        assert_frame_equal(one.sort(ORDER), versions[:200].filter(symbol="A").sort(ORDER))
    with snapshot(fresh_database.postgres) as source:
        assert source.versions(VIEW, COLUMNS, instants, {}).height == versions.height


def test_an_instant_between_belongs_to_one_half(fresh_database: Settings) -> None:
    versions = random_case(seed=2, version_count=300, asked_count=0).versions
    put(fresh_database, versions)
    event = versions["event_timestamp"].sort()[150]
    with snapshot(fresh_database.postgres) as source:
        found = source.versions(VIEW, COLUMNS, [EARLY, event, LATE], {})
        assert_frame_equal(found.sort(ORDER), versions.sort(ORDER))
        assert source.versions(VIEW, COLUMNS, [EARLY, event], {}).select(pl.col("event_timestamp").max() < event).item()


def test_a_missing_table_is_said_whichever_connection_finds_it(empty_database: Settings) -> None:
    for instants in ([EARLY, LATE], [EARLY, HALF, LATE]):
        with pytest.raises(ConfigurationError, match="featurestore apply"), snapshot(empty_database.postgres) as source:
            source.versions(VIEW, COLUMNS, instants, {})
