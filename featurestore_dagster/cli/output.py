"""Printing: tables for people, JSON for programs. What is printed belongs to the commands."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

console = Console()
errors = Console(stderr=True)

NEVER_WRAPPED = {
    "feature", "state", "status", "unit", "since", "told", "passed", "newest_row", "next_due", "online", "due", "lag",
    "objective", "overdue", "of", "budget_left",
}  # fmt: skip

NUMBERS_THAT_NAME = {"id", "process_id", "port"}
"""They are typed again, so that they have no thousands' separators."""

AsJson = typer.Option(False, "--json", help="Print JSON instead of a table.")


def print_json(value: object) -> None:
    """Indented JSON; instants in ISO 8601, paths and durations as text."""
    typer.echo(json.dumps(value, indent=2, default=lambda found: found.isoformat() if isinstance(found, datetime) else str(found)))


def print_rows(title: str, rows: Sequence[Mapping[str, Any]], *, empty: str = "nothing") -> None:
    """A table whose columns are the keys of the first row."""
    if rows:
        console.print(rows_table(title, rows))
    else:
        console.print(f"{title}: {empty}", highlight=False)


def rows_table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """What `print_rows` prints; there is a row."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for place, name in enumerate(rows[0]):
        table.add_column(
            name.replace("_", " "),
            justify="right" if all(isinstance(row[name], int | float | None) for row in rows) else "left",
            overflow="fold",
            no_wrap=place == 0 or name in NEVER_WRAPPED,
        )
    for row in rows:
        table.add_row(*(str(value) if name in NUMBERS_THAT_NAME and value is not None else _cell(value) for name, value in row.items()))
    return table


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.6g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
