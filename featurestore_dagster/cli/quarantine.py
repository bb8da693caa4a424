"""Commands over refused rows: list, show, replay."""

import json
from typing import Annotated

import polars as pl
import typer

from featurestore_dagster.cli.operate import connected
from featurestore_dagster.cli.output import AsJson, console, print_json, print_rows
from featurestore_dagster.errors import RefusedError
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.projections.relation import dataset_relation
from featurestore_dagster.settings import Settings
from featurestore_dagster.sources import fetch
from featurestore_dagster.stores.postgres import Ledger, PostgresStore, QuarantinedRow

app = typer.Typer(help="Rows that the audit refused, and blocked partitions.", no_args_is_help=True)


@app.command(name="list")
def list_rows(
    relation: Annotated[str | None, typer.Option(help="Only this relation, for example raw.us_equity_candles_1d.")] = None,
    status: Annotated[str, typer.Option(help="open, replayed, superseded or all.")] = "open",
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 50,
    as_json: bool = AsJson,
) -> None:
    """Refused rows, newest first, and the partitions that are blocked now.

    Example: `featurestore quarantine list --relation raw.us_equity_candles_1d`
    """
    with connected(Settings()) as settings:
        ledger = Ledger(settings.postgres)
        rows = ledger.quarantined(relation=relation, status=None if status == "all" else status, limit=limit)
        blocked = [
            {"relation": name, "partition": key, "checks": "; ".join(f"{check['check']} ({check['rows']})" for check in checks)}
            for (name, key), checks in ledger.blocked().items()
            if relation in (None, name)
        ]
    if as_json:
        print_json({"rows": [vars(row) for row in rows], "blocked": blocked})
        return
    print_rows("Blocked partitions", blocked, empty="none")
    print_rows("Quarantined rows", [_line(row) for row in rows], empty="none")


@app.command()
def show(quarantine_id: Annotated[int, typer.Argument(help="Id from `list`.")]) -> None:
    """One refused row in full, as JSON.

    Example: `featurestore quarantine show 12`
    """
    with connected(Settings()) as settings:
        print_json(vars(_one(Ledger(settings.postgres), quarantine_id)))


@app.command()
def replay(quarantine_ids: Annotated[list[int], typer.Argument(help="Ids from `list`.")], as_json: bool = AsJson) -> None:
    """Audit refused rows again with what is known now, and publish those that pass. Exit code 1 when any is refused again.

    Example: `featurestore quarantine replay 12 13`
    """
    from featurestore_dagster.pipeline.publication import Pipeline

    with connected(Settings()) as settings:
        clock, ledger = settings.make_clock(), Ledger(settings.postgres)
        store = PostgresStore(settings.postgres, clock)
        catalogue = CATALOGUE.with_sources(settings.source_names)
        pipeline = Pipeline(catalogue, store, ledger, clock, lambda d, s, e: fetch(d, s, e, settings=settings, clock=clock))
        rows = [_one(ledger, number) for number in quarantine_ids]
        refused = 0
        for name in sorted({row.relation for row in rows}):
            schema, _, dataset_name = name.partition(".")
            if schema != "raw":
                raise RefusedError(f"rows of {name} are computed: mend their inputs and materialise the partition again")
            dataset = CATALOGUE.dataset(dataset_name)
            mine = [row for row in rows if row.relation == name]
            frame = _frame(mine, dataset_relation(dataset).frame_schema)
            outcomes = list(pipeline.replay(dataset, frame, "replay"))
            again = sum(outcome.audit.rows_quarantined for outcome in outcomes if outcome.audit)
            refused += again
            if not again:
                ledger.mark_replayed([row.quarantine_id for row in mine])
    result = {"replayed": len(rows) - refused, "refused_again": refused}
    if as_json:
        print_json(result)
    else:
        console.print(f"replayed {result['replayed']}, refused again {refused}; run `featurestore materialize` for what depends on them")
    raise typer.Exit(1 if refused else 0)


def _one(ledger: Ledger, quarantine_id: int) -> QuarantinedRow:
    found = ledger.quarantined(quarantine_id=quarantine_id, status=None)
    if not found:
        raise RefusedError(f"no quarantined row has id {quarantine_id}; `featurestore quarantine list --status all` shows them")
    return found[0]


def _line(row: QuarantinedRow) -> dict[str, object]:
    return {
        "id": row.quarantine_id,
        "relation": row.relation,
        "partition": row.partition_key,
        "reasons": "; ".join(row.reasons),
        "row": json.dumps({name: row.row[name] for name in list(row.row)[1:8]}),
    }


def _frame(rows: list[QuarantinedRow], schema: dict[str, pl.DataType]) -> pl.DataFrame:
    texts = pl.DataFrame(
        [{name: None if row.row[name] is None else str(row.row[name]) for name in schema} for row in rows],
        schema=dict.fromkeys(schema, pl.String),
    )
    return texts.with_columns(
        pl.col(name).str.to_datetime(time_unit="us", time_zone="UTC") if isinstance(dtype, pl.Datetime) else pl.col(name).cast(dtype)
        for name, dtype in schema.items()
    )
