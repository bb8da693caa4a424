"""`featurestore audit`: whether configuration and stores are as declared, and whether what is served is what would be computed."""

from dataclasses import asdict
from typing import Annotated

import typer

from featurestore_dagster.cli.operate import connected
from featurestore_dagster.cli.output import AsJson, console, errors, print_json, print_rows
from featurestore_dagster.cli.store import PROJECT_ROOT
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.settings import Settings

MISMATCHES_SHOWN = 50

app = typer.Typer(invoke_without_command=True)


@app.callback()
def audit(context: typer.Context, as_json: bool = AsJson) -> None:
    """Check configuration, both stores, registry, tables and generated files against the declarations. Exit code 1 when any fails.

    Example: `featurestore audit`, `featurestore audit parity --view momentum_features`
    """
    context.default_map = {"parity": {"as_json": as_json}}
    if context.invoked_subcommand is not None:
        return
    from featurestore_dagster.cli.findings import findings

    with connected(Settings()) as settings:
        found = findings(settings, PROJECT_ROOT)
    if as_json:
        print_json([asdict(finding) for finding in found])
    else:
        print_rows("Audit", [{**asdict(finding), "passed": "pass" if finding.passed else "FAIL"} for finding in found])
    raise typer.Exit(0 if all(finding.passed for finding in found) else 1)


@app.command()
def parity(
    views: Annotated[list[str] | None, typer.Option("--view", help="A view; repeat for several. Default: all that are online.")] = None,
    sample: Annotated[int, typer.Option(min=1, max=1000, help="Entities of each view, at most.")] = 5,
    seed: Annotated[int, typer.Option(help="Equal seeds sample equal entities.")] = 0,
    as_json: bool = AsJson,
) -> None:
    """Compare served vectors with the published rows and with a recomputation from raw data as known then. Exit code 1 on a difference.

    Example: `featurestore audit parity --view momentum_features --sample 20`
    """
    from featurestore_dagster.serving.client_base import PROJECT
    from featurestore_dagster.serving.parity import parity as compare
    from featurestore_dagster.serving.redis_tier import RedisTier
    from featurestore_dagster.stores.redis import RedisStore

    with connected(Settings()) as settings:
        online = RedisStore(settings.redis, PROJECT)
        try:
            with errors.status("comparing") as shown:
                found = compare(
                    CATALOGUE.with_sources(settings.source_names),
                    settings.postgres,
                    RedisTier(online),
                    settings.make_clock().now(),
                    views=[CATALOGUE.view(name) for name in views] if views else CATALOGUE.views,
                    sample=sample,
                    seed=seed,
                    progress=lambda view: shown.update(f"comparing {view}"),
                )
        finally:
            online.close()
    if as_json:
        print_json(asdict(found) | {"is_equal": found.is_equal})
    else:
        print_rows("Differences", [asdict(mismatch) for mismatch in found.mismatches[:MISMATCHES_SHOWN]], empty="none")
        for reason in found.unproven:
            errors.print(f"not compared: {reason}", markup=False)
        console.print(
            f"{found.vectors} vectors of {found.views} views, {found.values} values: {len(found.mismatches)} differences",
            highlight=False,
        )
    raise typer.Exit(0 if found.is_equal else 1)
