"""The dbt project as Dagster sees it: specs, the cached manifest, and errors that say what to do."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from pydantic import SecretStr

from featurestore_dagster.errors import ConfigurationError, DeclarationError, StoreUnavailableError
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.features.macro_series import RELEASED_SERIES
from featurestore_dagster.features.raw_tables import US_MACRO
from featurestore_dagster.model.raw_table import Column
from featurestore_dagster.orchestration.assets.dbt import DBT, DbtRunner, build_dbt_assets
from featurestore_dagster.projections.dbt_contract import Mart, dbt_files
from featurestore_dagster.settings import PostgresSettings, RedisSettings, Settings

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def offline(tmp_path: Path) -> Settings:
    """Settings whose servers do not run."""
    return Settings(data_folder=tmp_path / "data", environment="test", services="embedded")


@pytest.mark.filterwarnings("ignore:sqlglotrs is deprecated:DeprecationWarning")
def test_specs_are_those_of_dagster_dbt(offline, project_dir):
    """Our specs spare the import of dagster_dbt; the events of a run carry its keys and names, so both must agree."""
    from dagster_dbt import DagsterDbtTranslator, dbt_assets

    runner = DbtRunner(offline, project_dir)
    ours = build_dbt_assets(runner)

    @dbt_assets(manifest=runner.manifest(), dagster_dbt_translator=DagsterDbtTranslator())
    def theirs():
        """Never run."""

    assert {spec.key: {dep.asset_key for dep in spec.deps} for spec in ours.specs} == {
        spec.key: {dep.asset_key for dep in spec.deps} for spec in theirs.specs
    }
    assert {spec.key: spec.blocking for spec in ours.check_specs} == {spec.key: spec.blocking for spec in theirs.check_specs}
    assert {"/".join(spec.key.path) for spec in ours.specs} == {
        "staging/stg_macro_observations", "staging/int_macro_vintages", "marts/macro_series",
    }  # fmt: skip
    assert {spec.group_name for spec in ours.specs} == {"macro"}
    assert all(spec.description and spec.owners and spec.kinds >= {"dbt", "postgres"} for spec in ours.specs)


def test_definitions_load_without_dagster_dbt_or_a_second_parse(offline, project_dir):
    DbtRunner(offline, project_dir).manifest()
    code = """
import subprocess, sys
from pathlib import Path
from featurestore_dagster.orchestration.assets import dbt
from featurestore_dagster.settings import Settings
sys.addaudithook(lambda event, arguments: event == "subprocess.Popen" and sys.exit(f"started {arguments}"))
dbt.build_dbt_assets(dbt.DbtRunner(Settings(data_folder=Path(sys.argv[1])), Path(sys.argv[2])))
print(sorted({"dagster_dbt", "dbt", "sqlglot", "pandas", "feast"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code, offline.data_folder, project_dir], capture_output=True, text=True, check=False)

    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr


def test_manifest_follows_the_project_and_goes_to_the_data_folder_when_the_project_is_read_only(offline, project_dir, tmp_path):
    project = shutil.copytree(project_dir, tmp_path / "dbt_project", ignore=shutil.ignore_patterns("target"))
    (project / "target").write_text("a file, so that no folder can be made here, whoever runs this")
    (project / "models" / "marts" / "added.sql").write_text("select 1 as one")
    (project / "models" / "marts" / "added.yml").write_text("models: [{name: added, columns: [{name: one, data_type: integer}]}]")

    manifest = DbtRunner(offline, project).manifest()

    assert "model.featurestore.added" in manifest["nodes"]
    assert [path.name for path in offline.data_folder.iterdir()] == ["dbt"]
    assert "model.featurestore.added" not in DbtRunner(offline, project_dir).manifest()["nodes"]


def test_project_parses_without_a_warning_or_a_download(project_dir, tmp_path):
    folders = ["--project-dir", project_dir, "--profiles-dir", project_dir, "--target-path", tmp_path, "--log-path", tmp_path]

    done = subprocess.run([*DBT, "--warn-error", "parse", *folders], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout
    assert not [name for name in ("packages.yml", "dependencies.yml") if (project_dir / name).exists()]


def test_broken_or_missing_project_is_a_configuration_error(offline, project_dir, tmp_path):
    project = shutil.copytree(project_dir, tmp_path / "dbt_project", ignore=shutil.ignore_patterns("target"))
    (project / "models" / "marts" / "macro_series.sql").write_text("select * from {{ ref('no_such_model') }}")

    with pytest.raises(ConfigurationError, match="no_such_model"):
        DbtRunner(offline, project).manifest()
    with pytest.raises(ConfigurationError, match=r"holds no dbt_project\.yml"):
        DbtRunner(offline, tmp_path / "elsewhere").manifest()


@pytest.mark.filterwarnings("ignore:sqlglotrs is deprecated:DeprecationWarning")
def test_unreachable_postgres_is_ours_to_report(offline, project_dir, tmp_path):
    nowhere = PostgresSettings(host=str(tmp_path), port=1)
    runner = DbtRunner(offline.with_connections(nowhere, RedisSettings()), project_dir)

    with pytest.raises(StoreUnavailableError, match="featurestore up"):
        next(runner.build(None))


@pytest.mark.parametrize("password", ["0123456789", """it's "5" {{ 7 * 6 }} %s \\ #"""])
def test_profile_takes_the_connection_from_the_settings_as_it_is(offline, project_dir, tmp_path, password):
    """Dbt renders profiles as templates, and would make a number of a password of digits."""
    code = """
import json, os, sys
from argparse import Namespace
from dbt.config.runtime import load_profile
from dbt.flags import set_from_args
from dbt_common.context import set_invocation_context
set_invocation_context(os.environ.copy())
set_from_args(Namespace(profiles_dir=sys.argv[1]), None)
credentials = load_profile(sys.argv[1], {}).credentials
print(json.dumps([credentials.host, credentials.port, credentials.user, credentials.password, credentials.database, credentials.sslmode]))
"""
    login = PostgresSettings(
        host=str(tmp_path), port=65432, user="o'brien 1", password=SecretStr(password), database="market.data", sslmode="require"
    )
    environment = offline.with_connections(login, RedisSettings()).child_environment()

    done = subprocess.run([sys.executable, "-c", code, project_dir], env=environment, capture_output=True, text=True, check=True)

    assert json.loads(done.stdout) == [str(tmp_path), 65432, "o'brien 1", password, "market.data", "require"]


def test_generated_files_are_those_of_the_declarations():
    """`source('raw', <dataset>)` reads the physical table of the dataset; the committed files are what the projection says."""
    files = dbt_files(CATALOGUE)

    assert set(files) == {
        "dbt_project/models/staging/sources.yml", "dbt_project/macros/macro_series_catalogue.sql",
        "dbt_project/models/marts/macro_series.yml",
    }  # fmt: skip
    for path, text in files.items():
        assert (REPOSITORY / path).read_text() == text


def test_every_listed_macro_series_is_declared():
    assert set(CATALOGUE.listings(US_MACRO)) <= set(RELEASED_SERIES)


def test_mart_key_must_be_a_column_without_null():
    nullable = Column("id", pl.String(), "identity", nullable=True)

    with pytest.raises(DeclarationError, match=r"mart m: key columns \['id'\]"):
        Mart("m", "a mart", key=("id",), alternate_key=("id",), columns=(nullable,))
