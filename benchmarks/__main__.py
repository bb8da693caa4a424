"""`python -m benchmarks`: every benchmark, one after the other, and `docs/benchmarks.md` with what they found.

What each measures, and how, is in its own module. `python -m benchmarks online http` runs these two and leaves the rest of the page.
What else is given is passed on to them, as in `python -m benchmarks history_size --folder data`.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
BENCHMARKS = (
    "online",
    "http",
    "point_in_time",
    "history_size",
    "universe",
    "indicators",
    "events",
    "path",
    "freshness",
    "restatement",
    "backfill",
)
HEAD = """# Benchmarks

What the commands printed when `make bench` last wrote this page. Machines are noisy: compare ratios, and look at the
load average. Every command has `--help`.
"""


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)} (default: all)")
    options, passed_on = parser.parse_known_args()
    names = options.names or BENCHMARKS
    if unknown := set(names) - set(BENCHMARKS):
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    written = PAGE.read_text() if PAGE.exists() else ""
    parts = dict(re.findall(r"^(## `python -m benchmarks\.\w+`)\n(.*?)(?=^## |\Z)", written, re.MULTILINE | re.DOTALL))
    console = Console(stderr=True)
    for name in names:
        console.print(f"measuring {name} ...")
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}", "--json", *passed_on], check=True, stdout=subprocess.PIPE, text=True
        )
        parts[f"## `python -m benchmarks.{name}`"] = (
            "\n" + "\n".join(map(_table, *zip(*json.loads(done.stdout).items(), strict=True))) + "\n"
        )
    ordered = [(head, parts[head]) for head in (f"## `python -m benchmarks.{name}`" for name in BENCHMARKS) if head in parts]
    PAGE.write_text(HEAD + "".join(f"\n{head}\n{body.rstrip()}\n" for head, body in ordered))
    console.print(f"wrote {PAGE.relative_to(Path.cwd()) if PAGE.is_relative_to(Path.cwd()) else PAGE}")


def _table(title: str, found: list[dict[str, Any]] | dict[str, Any]) -> str:
    rows = found if isinstance(found, list) else [{"measure": name, "value": value} for name, value in found.items()]
    if not rows:
        return f"{title}: nothing\n"
    lines = [f"**{title}**", "", "| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
    lines += [
        "| " + " | ".join(f"{value:,.3f}" if isinstance(value, float) else str(value) for value in row.values()) + " |" for row in rows
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
