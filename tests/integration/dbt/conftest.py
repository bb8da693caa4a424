"""A database with the raw tables, the dbt project over it, and a way to add macro rows and run the build in Dagster."""

import shutil
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
from psycopg import sql

from featurestore_dagster.features.raw_tables import MACRO_OBSERVATIONS
from featurestore_dagster.orchestration.assets.dbt import DbtRunner, build_dbt_assets
from featurestore_dagster.projections.dbt_contract import MACRO_SERIES_MART
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.postgres.connection import connect, read_frame
from featurestore_dagster.stores.postgres.schema import ensure_yearly_partitions

REPOSITORY = Path(__file__).parents[3]
PARTITION = "2018-01-03"


@dataclass
class MacroDatabase:
    """Raw macro rows in, mart rows out."""

    settings: Settings
    runner: DbtRunner
    views_run: list[str] = field(default_factory=list)

    def insert(self, series_id: str, observed: date, released: datetime, value: float, **other: object) -> None:
        row = {
            "dataset": "us_macro",
            "series_id": series_id,
            "observation_date": observed,
            "value": value,
            "event_timestamp": released,
            "source": "samples",
            "known_at": released,
            "known_at_basis": "observed",
            "flags": 0,
            "ingested_at": datetime(2030, 1, 1, tzinfo=UTC),
            "batch_id": 1,
        } | other
        names, values = map(sql.Identifier, row), map(sql.Placeholder, row)
        query = sql.SQL("insert into raw.macro_observations ({}) values ({})").format(sql.SQL(", ").join(names), sql.SQL(", ").join(values))
        with connect(self.settings.postgres) as connection:
            connection.execute(query, row)

    def mart(self) -> pl.DataFrame:
        query = "select * from marts.macro_series order by series_id, observation_date, known_at"
        return read_frame(self.settings.postgres, query, {}, MACRO_SERIES_MART.schema)

    def build(self) -> dg.ExecuteInProcessResult:
        """One run of a partition of the dataset, the unpartitioned models, and a partitioned view that depends on the mart."""
        partitions = dg.DailyPartitionsDefinition("2018-01-01", end_date="2018-01-10")

        @dg.asset(key=dg.AssetKey(["raw", "us_macro"]), partitions_def=partitions)
        def us_macro() -> None:
            """Already in the database."""

        @dg.asset(deps=[dg.AssetKey(["marts", "macro_series"])], partitions_def=partitions)
        def macro_view(context: dg.AssetExecutionContext) -> None:
            self.views_run.append(context.partition_key)

        assets = [us_macro, build_dbt_assets(self.runner), macro_view]
        definitions = dg.Definitions(assets, jobs=[dg.define_asset_job("daily")], resources={"dbt": self.runner})
        return definitions.resolve_job_def("daily").execute_in_process(partition_key=PARTITION, raise_on_error=False)


@pytest.fixture(scope="session")
def project_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project whose target is written once a session; its path has a space."""
    copy = tmp_path_factory.mktemp("with space") / "dbt_project"
    return shutil.copytree(REPOSITORY / "dbt_project", copy, ignore=shutil.ignore_patterns("target", "logs"))


@pytest.fixture
def macro(fresh_database: Settings, project_dir: Path) -> MacroDatabase:
    with connect(fresh_database.postgres) as connection:
        ensure_yearly_partitions(connection, "raw", MACRO_OBSERVATIONS.name, 2017, 2019)
    return MacroDatabase(fresh_database, DbtRunner(fresh_database, project_dir))
