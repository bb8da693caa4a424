"""A database with the raw tables, the dbt project over it, and a way to publish macro rows and run the build in Dagster."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import psycopg
import pytest

from featurestore_dagster.features.raw_tables import DATASETS, MACRO_OBSERVATIONS, RAW_TABLES
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.orchestration.assets.dbt import DbtRunner, build_dbt_assets
from featurestore_dagster.projections.dbt_contract import MACRO_SERIES
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.postgres.connection import connect, read_frame
from featurestore_dagster.stores.postgres.schema import ensure_yearly_partitions, statements

PROJECT_DIR = Path(__file__).parents[3] / "dbt_project"
RAW_CATALOGUE = Catalogue((), RAW_TABLES, DATASETS, (), (), ())


@dataclass
class MacroDatabase:
    """Raw macro rows in, mart rows out."""

    settings: Settings
    runner: DbtRunner
    downstream_runs: list[str] = field(default_factory=list)

    def insert(self, series_id: str, observed: date, released: datetime, value: float, known_at: datetime | None = None, **other: str) -> None:
        row = {
            "dataset": "us_macro", "source": "samples", "known_at_basis": "observed", "flags": 0, "batch_id": 1,
            "ingested_at": datetime(2030, 1, 1, tzinfo=UTC), "series_id": series_id, "observation_date": observed,
            "event_timestamp": released, "known_at": known_at or released, "value": value,
        } | other  # fmt: skip
        query = psycopg.sql.SQL("insert into raw.macro_observations ({}) values ({})").format(
            psycopg.sql.SQL(", ").join(map(psycopg.sql.Identifier, row)), psycopg.sql.SQL(", ").join(map(psycopg.sql.Placeholder, row))
        )
        with connect(self.settings.postgres) as connection:
            connection.execute(query, row)

    def mart(self) -> pl.DataFrame:
        query = "select * from marts.macro_series order by series_id, observation_date, vintage_number"
        return read_frame(self.settings.postgres, query, {}, MACRO_SERIES.schema)

    def build(self) -> dg.ExecuteInProcessResult:
        """Materialise a partition of the dataset, the models, and a partitioned view that depends on the mart, in one run."""
        partitions = dg.DailyPartitionsDefinition("2018-01-01", end_date="2018-01-10")

        @dg.asset(key=dg.AssetKey(["raw", "us_macro"]), partitions_def=partitions)
        def us_macro() -> None:
            """Upstream, already in the database."""

        @dg.asset(deps=[dg.AssetKey(["marts", "macro_series"])], partitions_def=partitions)
        def macro_view(context: dg.AssetExecutionContext) -> None:
            self.downstream_runs.append(context.partition_key)

        job = dg.define_asset_job("daily")
        definitions = dg.Definitions(
            [us_macro, build_dbt_assets(self.runner), macro_view], jobs=[job], resources={"dbt": self.runner}
        )
        return definitions.resolve_job_def("daily").execute_in_process(partition_key="2018-01-03", raise_on_error=False)


@pytest.fixture(scope="session")
def project_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with a target of its own, parsed once."""
    copy = tmp_path_factory.mktemp("dbt project") / "dbt_project"
    return shutil.copytree(PROJECT_DIR, copy, ignore=shutil.ignore_patterns("target", "logs"))


@pytest.fixture
def macro(empty_database: Settings, project_dir: Path) -> MacroDatabase:
    with connect(empty_database.postgres) as connection:
        for statement in statements(RAW_CATALOGUE, connection):
            connection.execute(statement)
        ensure_yearly_partitions(connection, "raw", MACRO_OBSERVATIONS.name, 2017, 2019)
    return MacroDatabase(empty_database, DbtRunner(empty_database, project_dir))
