"""How every benchmark prints what it measured, and on what: tables for people, JSON for `python -m benchmarks`. No clock belongs here."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Found = Sequence[Mapping[str, Any]] | Mapping[str, Any]
"""Rows with the same columns, or measures by name."""


def rows_of(found: Found) -> Sequence[Mapping[str, Any]]:
    """Rows to print; measures become the columns `measure` and `value`."""
    return [{"measure": name, "value": value} for name, value in found.items()] if isinstance(found, Mapping) else found


def machine() -> dict[str, Any]:
    """What a reader has to know of this machine; called before anything is measured."""
    return {"cores": os.cpu_count() or 0, "load average before": os.getloadavg()[0], "python": sys.version.split()[0]}


def memory(name: str) -> float:
    """MiB of this process under a name of /proc: VmHWM, the peak with mapped files, or RssAnon, what is allocated now.

    The peak of `resource.getrusage` begins with that of the process that started this one.
    """
    return float(Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0]) / 1024


def show(results: Mapping[str, Found], *, as_json: bool) -> None:
    """Print the tables, by title."""
    if as_json:
        print(json.dumps(results, indent=2))
        return
    console = Console(width=max(Console().width, 160))
    for title, found in results.items():
        rows = rows_of(found)
        table = Table(*(rows[0] if rows else ()), title=title, title_justify="left")
        for row in rows:
            table.add_row(*map(_cell, row.values()))
        console.print(table)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
