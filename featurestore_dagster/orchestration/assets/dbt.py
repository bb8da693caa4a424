"""dbt's models as one unpartitioned Dagster step, its tests as blocking asset checks.

What the models compute belongs to `dbt_project`; reading the mart, auditing and publishing it to the view's own asset: dbt writes a model
before it tests it. `import dagster_dbt` costs as much as the rest of the code location together, so the specs are read from dbt's
manifest here and dagster_dbt is imported by the step only; a contract test holds both to the same keys and checks.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
from packaging.version import Version
from psycopg import sql

from featurestore_dagster.errors import ConfigurationError
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.embedded import running_settings
from featurestore_dagster.stores.postgres.connection import connect

if TYPE_CHECKING:
    from dagster_dbt.core.dbt_cli_event import DbtCliEventMessage

GROUP = "macro"
OWNERS = ["team:market-data"]
POOL = "dbt"
"""dbt renames tables into place, so one build at a time."""

DBT = (sys.executable, "-c", "from dbt.cli.main import cli; cli()")
"""dbt of this interpreter, wherever PATH points."""

EXAMPLE_ROWS = 10
PARTIAL_PARSE = "partial_parse.msgpack"


@dataclass(frozen=True)
class DbtRunner:
    """The dbt project in `project_dir`, run against the Postgres of `settings`; Dagster's resource `dbt`."""

    settings: Settings
    project_dir: Path

    @property
    def _connected(self) -> Settings:
        """Settings of the servers that run now: the definitions may have been loaded before they started."""
        return running_settings(self.settings)

    def manifest(self) -> dict[str, Any]:
        """What dbt knows of the project as it is now: parsed on first need, then found by the content of the project's files.

        It is kept in the project's folder `target`, or in the data folder where the project is read-only. Needs no server.

        Raises:
            ConfigurationError: The project is missing or does not parse (the message is dbt's), or neither folder can be written.
        """
        manifest: dict[str, Any] = json.loads((self._parsed_folder() / "manifest.json").read_bytes())
        return manifest

    def build(self, context: dg.AssetExecutionContext) -> Iterator[dg.Output[None] | dg.MaterializeResult[None] | dg.AssetCheckResult]:
        """Run `dbt build`: an output for each model written, a check result for each test run.

        A build costs seconds, and most bars bring no macro release: when neither the project nor the rows that it reads changed since the
        last build that passed, what that build left is confirmed instead.

        Raises:
            StoreUnavailableError: Postgres does not answer.
            ConfigurationError: Postgres refuses the login.
            dagster.Failure: A test failed (never retried), or dbt did.
        """
        built_from = self._built_from()  # also says what an unreachable server is, which dbt would wrap into text
        if built_from == self._last_build():
            yield from self._confirm(built_from)
            return
        from dagster_dbt import DagsterDbtTranslator, DbtCliInvocation

        with tempfile.TemporaryDirectory(prefix="featurestore-dbt-") as folder:
            target = Path(folder)
            parsed = self._parsed_folder() / PARTIAL_PARSE
            shutil.copy(parsed, target)
            translator = DagsterDbtTranslator()
            invocation = DbtCliInvocation.run(
                args=[*DBT, "--log-format", "json", "build", *self._options(target)],
                env=self._connected.child_environment(),
                manifest={},
                dagster_dbt_translator=translator,
                project_dir=self.project_dir,
                target_path=target,
                raise_on_error=False,
                context=context,
                adapter=None,
                cli_version=Version(importlib.metadata.version("dbt-core")),
            )
            # dbt rewrites its artifacts as it ends, so they are read when it has ended.
            messages = [message for message in invocation.stream_raw_events() if message.is_result_event]
            # dbt parses anew when the connection is not the one it parsed with: the next run has the same one and is spared that.
            with contextlib.suppress(OSError):
                Path(shutil.copy(target / PARTIAL_PARSE, parsed.with_suffix(f".{target.name}"))).replace(parsed)
            # The run's own manifest names the database that dbt wrote to; the cached one may have been parsed for another.
            manifest = invocation.get_artifact("manifest.json") if messages else {}
            failed, all_passed = [], True
            for message in messages:
                for event in message.to_default_asset_events(manifest, translator, context, target):
                    if isinstance(event, dg.Output):
                        # The definition's column schema has the descriptions too, and the contract holds the types to it.
                        metadata = {name: value for name, value in event.metadata.items() if name != "dagster/column_schema"}
                        yield event.with_metadata({**metadata, **_row_count(message)})
                    elif isinstance(event, dg.AssetCheckResult) and event.passed:
                        yield event
                    elif isinstance(event, dg.AssetCheckResult):
                        all_passed = False
                        yield event.with_metadata({**event.metadata, **self._failing_rows(manifest, message, target)})
                        if event.severity is dg.AssetCheckSeverity.ERROR:
                            failed.append(f"{event.check_name}: {message}")
            if failed:
                raise dg.Failure(f"dbt tests failed, and no model after them was built: {'; '.join(failed)}", allow_retries=False)
            error = invocation.get_error()
            if error is not None:
                raise error
            if all_passed:
                self._remember(built_from)

    def _built_from(self) -> str:
        """What a build depends on, as text: the project's content, and the rows of the raw table."""
        with connect(self._connected.postgres) as connection:
            rows = connection.execute("select count(*), coalesce(max(batch_id), 0) from raw.macro_observations").fetchone()
        return f"project {self._content_hash()}, rows and newest batch {rows}"

    def _last_build(self) -> str | None:
        """What the mart was built from: a comment on the table, which goes with the table when dbt replaces it."""
        with connect(self._connected.postgres) as connection:
            row = connection.execute("select obj_description(to_regclass('marts.macro_series'))").fetchone()
        return None if row is None else row[0]

    def _remember(self, built_from: str) -> None:
        with connect(self._connected.postgres) as connection:
            connection.execute(sql.SQL("comment on table marts.macro_series is {}").format(sql.Literal(built_from)))

    def _confirm(self, built_from: str) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
        nodes = self.manifest()["nodes"]
        metadata = {"unchanged": f"as built before from {built_from}"}
        models = {name: set(node["depends_on"]["nodes"]) for name, node in nodes.items() if node["resource_type"] == "model"}
        for name in TopologicalSorter({name: needed & models.keys() for name, needed in models.items()}).static_order():
            yield dg.MaterializeResult(asset_key=_asset_key(nodes[name]), metadata=metadata)
        for node in nodes.values():
            if node["resource_type"] == "test":
                key = _asset_key(nodes[node["attached_node"]])
                yield dg.AssetCheckResult(asset_key=key, check_name=node["name"], passed=True, metadata=metadata)

    def _parsed_folder(self) -> Path:
        if not (self.project_dir / "dbt_project.yml").is_file():
            raise ConfigurationError(f"{self.project_dir} holds no dbt_project.yml; it is the folder dbt_project of the repository")
        homes = (self.project_dir / "target", self.settings.data_folder / "dbt")
        name = self._content_hash()
        for home in homes:
            if (home / name).is_dir():
                return home / name
        with _scratch_folder(homes) as scratch:
            parsed, kept = Path(scratch) / name, Path(scratch).parent / name
            command = [*DBT, "--quiet", "parse", *self._options(parsed)]
            done = subprocess.run(command, cwd=self.project_dir, capture_output=True, text=True, check=False)
            if done.returncode:
                raise ConfigurationError(f"dbt cannot parse {self.project_dir}: {done.stdout.strip()} {done.stderr.strip()}")
            try:
                parsed.rename(kept)
            except OSError:
                # Another process was quicker with the same content: its result serves as well.
                if not kept.is_dir():
                    raise
        return kept

    def _options(self, target: Path) -> list[str]:
        folders = {"--project-dir": self.project_dir, "--profiles-dir": self.project_dir, "--target-path": target, "--log-path": target}
        return [str(part) for option in folders.items() for part in option]

    def _content_hash(self) -> str:
        digest = hashlib.sha256()
        for distribution in ("dbt-core", "dbt-postgres"):
            digest.update(importlib.metadata.version(distribution).encode())
        files = [path for folder in ("models", "macros") for path in (self.project_dir / folder).rglob("*.*")]
        for path in sorted([*self.project_dir.glob("*.yml"), *files]):
            digest.update(f"\0{path.relative_to(self.project_dir)}\0".encode() + path.read_bytes())
        return digest.hexdigest()[:16]

    def _failing_rows(self, manifest: Mapping[str, Any], message: "DbtCliEventMessage", target: Path) -> dict[str, dg.TableMetadataValue]:
        """The first rows that a failed test selects, every value as text."""
        test = manifest["nodes"][message.raw_event["data"]["node_info"]["unique_id"]]
        compiled = target / "compiled" / test["package_name"] / test["original_file_path"] / test["path"]
        if not compiled.is_file():
            return {}
        query = sql.SQL("select * from ({}) as failing limit {}").format(
            sql.SQL(compiled.read_text()),  # the text of our own test, as dbt compiled it
            sql.Literal(EXAMPLE_ROWS),
        )
        with connect(self._connected.postgres) as connection, connection.execute(query) as cursor:
            names = [column.name for column in cursor.description or ()]
            rows = [dict(zip(names, map(str, row), strict=True)) for row in cursor]
        schema = dg.TableSchema([dg.TableColumn(name) for name in names])
        return {"failing_rows": dg.MetadataValue.table([dg.TableRecord(row) for row in rows], schema=schema)}


def build_dbt_assets(runner: DbtRunner) -> dg.AssetsDefinition:
    """The step that builds all models: assets `staging/*` and `marts/*` in group macro, needing the resource `dbt`.

    The models are one unit: materialising a mart alone from old staging rows has no use.
    """
    manifest = runner.manifest()
    models = [node for node in manifest["nodes"].values() if node["resource_type"] == "model"]
    tests = [node for node in manifest["nodes"].values() if node["resource_type"] == "test"]

    @dg.multi_asset(
        name="dbt_build",
        specs=[_asset_spec(manifest, model) for model in models],
        check_specs=[_check_spec(manifest, test) for test in tests],
        pool=POOL,
    )
    def dbt_build(context: dg.AssetExecutionContext, dbt: dg.ResourceParam[DbtRunner]) -> Iterator[Any]:
        yield from dbt.build(context)

    return dbt_build


def _scratch_folder(homes: Iterable[Path]) -> tempfile.TemporaryDirectory[str]:
    """A new folder in the first of `homes` that can be written."""
    for home in homes:
        with contextlib.suppress(OSError):
            home.mkdir(parents=True, exist_ok=True)
            return tempfile.TemporaryDirectory(prefix="parse-", dir=home)
    raise ConfigurationError(f"cannot write to {' or '.join(map(str, homes))}; set FEATURESTORE_DATA_FOLDER to a writable folder")


def _asset_spec(manifest: Mapping[str, Any], model: Mapping[str, Any]) -> dg.AssetSpec:
    columns = [
        dg.TableColumn(name, type=column["data_type"] or "?", description=column["description"], constraints=_constraints(column))
        for name, column in model["columns"].items()
    ]
    return dg.AssetSpec(
        _asset_key(model),
        deps=[_dependency(manifest, unique_id) for unique_id in model["depends_on"]["nodes"]],
        description=model["description"],
        metadata={"dagster/column_schema": dg.TableSchema(columns), "dagster/table_name": f"{model['schema']}.{model['alias']}"},
        group_name=GROUP,
        owners=OWNERS,
        kinds={"dbt", "postgres", model["config"]["materialized"]},
        code_version=model["checksum"]["checksum"][:16],
        skippable=True,
    )


def _check_spec(manifest: Mapping[str, Any], test: Mapping[str, Any]) -> dg.AssetCheckSpec:
    return dg.AssetCheckSpec(
        test["name"],
        asset=_asset_key(manifest["nodes"][test["attached_node"]]),
        description=test["description"] or None,
        blocking=test["config"]["severity"].lower() == "error",
    )


def _asset_key(node: Mapping[str, Any]) -> dg.AssetKey:
    return dg.AssetKey([node["source_name"] if node["resource_type"] == "source" else node["schema"], node["name"]])


def _dependency(manifest: Mapping[str, Any], unique_id: str) -> dg.AssetDep:
    if unique_id in manifest["sources"]:
        # Datasets are partitioned by session and models are not: a new session is what asks for a build.
        return dg.AssetDep(_asset_key(manifest["sources"][unique_id]), partition_mapping=dg.LastPartitionMapping())
    return dg.AssetDep(_asset_key(manifest["nodes"][unique_id]))


def _constraints(column: Mapping[str, Any]) -> dg.TableColumnConstraints:
    return dg.TableColumnConstraints(nullable="not_null" not in {constraint["type"] for constraint in column["constraints"]})


def _row_count(message: "DbtCliEventMessage") -> dict[str, int]:
    """Rows written, from Postgres' command tag (`INSERT 0 1305`, `SELECT 1305`); a view has none."""
    tag = re.fullmatch(r"(?:INSERT 0|SELECT) (\d+)", message.raw_event["data"]["status"])
    return {"dagster/row_count": int(tag.group(1))} if tag else {}
