"""What is printed for people."""

from rich.console import Console

from featurestore_dagster.cli.output import rows_table


def test_counts_have_separators_and_numbers_that_are_typed_again_have_none() -> None:
    console = Console(width=80)
    with console.capture() as found:
        console.print(rows_table("Some", [{"id": 1234, "port": 8006, "rows": 5678, "seconds": None}]))
    assert [cell.strip() for cell in found.get().splitlines()[4].strip("│").split("│")] == ["1234", "8006", "5,678", "-"]
