"""The command tree, put together from its modules."""

import typer

from featurestore_dagster.cli import (
    alerts,
    audit,
    backfill,
    browse,
    demo,
    exporter,
    feast,
    freshness,
    normalisation,
    operate,
    quarantine,
    restatements,
    serve,
    store,
)

app = typer.Typer(
    name="featurestore",
    help="Feature platform for market data: point-in-time true, audited before publication, fresh by the exchange calendar.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
)

app.command()(demo.demo)
app.command()(operate.up)
app.command()(operate.down)
app.command()(operate.status)
app.command()(freshness.freshness)
app.command()(freshness.slo)
app.command()(serve.serve)
app.command()(exporter.exporter)
app.command()(store.apply)
app.command()(store.plan)
app.command()(operate.materialize)
app.command()(backfill.backfill)
app.command(name="list")(browse.list_declarations)
app.command()(browse.info)
app.command()(browse.get)
app.command(name="fit-normalisation")(normalisation.fit_normalisation)
app.command()(store.teardown)
app.command()(store.generate)
app.command()(browse.env)
app.add_typer(alerts.app, name="alerts")
app.add_typer(audit.app, name="audit")
app.add_typer(quarantine.app, name="quarantine")
app.add_typer(restatements.app, name="restatements")
app.command(name="feast", context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})(feast.feast)
