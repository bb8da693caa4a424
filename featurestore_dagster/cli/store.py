"""Commands over the stores and the generated files: apply, plan, teardown, audit, generate."""

from pathlib import Path
from typing import Annotated

import typer

from featurestore_dagster import calendars
from featurestore_dagster.cli.operate import connected
from featurestore_dagster.cli.output import AsJson, console, print_json
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.projections.formulas import FORMULAS_FILE, formulas_file
from featurestore_dagster.projections.generated_files import generated_files
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.postgres import PostgresStore
from featurestore_dagster.stores.redis import RedisStore

PROJECT_ROOT = Path(__file__).parent.parent.parent


def apply(as_json: bool = AsJson) -> None:
    """Create what the declarations need in Postgres. Repeating it does nothing.

    Example: `featurestore apply`
    """
    with connected(Settings()) as settings:
        done = PostgresStore(settings.postgres, settings.make_clock()).apply(CATALOGUE)
    _print_statements(done, as_json=as_json, none="nothing to do: the database is as declared", some="applied")


def plan(as_json: bool = AsJson) -> None:
    """The SQL that `apply` would run.

    Example: `featurestore plan`
    """
    with connected(Settings()) as settings:
        todo = PostgresStore(settings.postgres, settings.make_clock()).plan(CATALOGUE)
    _print_statements(todo, as_json=as_json, none="nothing to do: the database is as declared", some="would run")


def teardown(yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False) -> None:
    """Delete every published row, the ledger, the quarantine and the online values. Asks first.

    Example: `featurestore teardown --yes`
    """
    from featurestore_dagster.serving.client_base import PROJECT

    with connected(Settings()) as settings:
        postgres, redis = settings.postgres, settings.redis
        where = f"{postgres.database} at {postgres.host}:{postgres.port} and Redis at {redis.host}:{redis.port}"
        if not yes and not typer.confirm(f"Delete all data of ours in {where}?"):
            console.print("nothing was deleted")
            raise typer.Exit(1)
        dropped = PostgresStore(settings.postgres, settings.make_clock()).teardown()
        entities = RedisStore(settings.redis, PROJECT).teardown(CATALOGUE.views)
    console.print(f"dropped schemas {', '.join(dropped) or 'none'}; deleted {entities} online entities")


def generate(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit code 1 when a file differs.")] = False, as_json: bool = AsJson
) -> None:
    """Write the files that are derived: data dictionary, JSON Schema, dbt sources and contracts, sessions of the exchanges, formulas.

    A formula that changed under its view's version is refused, and nothing is written.

    Example: `featurestore generate --check`
    """
    expected = _generated()
    different = _outdated(PROJECT_ROOT, expected)
    if not check:
        for name in different:
            path = PROJECT_ROOT / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(expected[name])
    if as_json:
        print_json({"different": different, "written": not check})
    else:
        verb = "differs from the declarations: run `featurestore generate`" if check else "written"
        for name in different:
            console.print(f"{name} {verb}", highlight=False)
        if not different:
            console.print("all generated files are up to date")
    raise typer.Exit(1 if check and different else 0)


def outdated(root: Path) -> list[str]:
    """Generated files that are missing or differ from the declarations."""
    return _outdated(root, _generated())


def _generated() -> dict[str, str]:
    formulas = PROJECT_ROOT / FORMULAS_FILE
    committed = formulas.read_text() if formulas.exists() else "{}"
    return {
        FORMULAS_FILE: formulas_file(CATALOGUE, committed),
        **generated_files(CATALOGUE),
        **calendars.generated_files(CATALOGUE),
    }


def _outdated(root: Path, expected: dict[str, str]) -> list[str]:
    return [name for name, text in expected.items() if not (root / name).exists() or (root / name).read_text() != text]


def _print_statements(statements: list[str], *, as_json: bool, none: str, some: str) -> None:
    if as_json:
        print_json(statements)
    elif not statements:
        console.print(none)
    else:
        console.print(f"{some} {len(statements)} statements:")
        for statement in statements:
            typer.echo(f"{statement};")
