"""The documentation against the code: links, commands, options, targets, variables and the form of the decisions."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
from typer.core import TyperGroup

from featurestore_dagster.cli.app import app
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.pipeline import market_checks
from featurestore_dagster.projections.dbt_contract import MARTS
from featurestore_dagster.settings import Settings

PROJECT = Path(__file__).resolve().parents[2]
PAGES = [path for path in (*PROJECT.glob("*.md"), *PROJECT.glob("docs/**/*.md")) if path.name != "data_dictionary.md"]
DECISIONS = sorted(path for path in PROJECT.glob("docs/adr/*.md") if path.name != "README.md")

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^ *```(\w*)[^\n]*\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
CALL = re.compile(r"(?:^|[\s/$(\"])featurestore ((?:[a-z]+|--)[^`|#\n)]*)")
PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))


def prose(text: str) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", text)


def shell(text: str) -> str:
    """The fenced shell blocks of a page."""
    return "\n".join(body for language, body in FENCE.findall(text) if language == "bash")


def anchors(path: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> Iterator[str]:
    """Relative links whose file or heading does not exist."""
    for target in LINK.findall(prose(page.read_text())):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists() or not path.is_relative_to(PROJECT) or (anchor and anchor not in anchors(path)):
            yield target


def calls(text: str) -> list[str]:
    """What follows `featurestore` in spans and shell blocks."""
    return [call.strip() for code in (*SPAN.findall(prose(text)), *shell(text).splitlines()) for call in CALL.findall(code)]


def complaint(call: str) -> str | None:
    """Why a documented call of `featurestore` would be refused as usage; None when it would not."""
    command = typer.main.get_command(app)
    words = shlex.split(call.replace("...", ""))
    while words and isinstance(command, TyperGroup) and not words[0].startswith("--"):
        if (found := command.commands.get(words[0])) is None:
            return f"{words[0]} is none of {sorted(command.commands)}"
        command, words = found, words[1:]
    if command.name == "feast":
        return None
    options = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    unknown = [word for word in words if word.startswith("--") and word.partition("=")[0] not in options]
    return f"{command.name} has no option {unknown}" if unknown else None


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):.*## ", (PROJECT / "Makefile").read_text(), re.MULTILINE))


@PAGE
def test_relative_links_resolve(page: Path) -> None:
    assert list(broken_links(page)) == []


@PAGE
def test_documented_commands_exist(page: Path) -> None:
    assert [f"{call}: {why}" for call in calls(page.read_text()) if (why := complaint(call))] == []


@PAGE
def test_documented_make_targets_exist(page: Path) -> None:
    text = page.read_text()
    code = (*SPAN.findall(prose(text)), *shell(text).splitlines())
    assert {target for line in code for target in re.findall(r"(?:^|\s)make ([a-z]+)\b", line)} <= make_targets()


@PAGE
def test_documented_variables_exist(page: Path) -> None:
    named = set(re.findall(r"\b((?:FEATURESTORE|POSTGRES|REDIS)_[A-Z_]+[A-Z])\b", page.read_text()))
    assert named <= set(Settings.variables())


@PAGE
def test_python_blocks_compile(page: Path) -> None:
    for language, body in FENCE.findall(page.read_text()):
        if language == "python":
            compile(body, str(page), "exec")


def test_every_command_is_in_the_readme() -> None:
    readme = (PROJECT / "README.md").read_text()
    table = "\n".join(line for line in readme.splitlines() if line.startswith("| `featurestore "))
    named = {word for line in table.splitlines() for word in re.findall(r"`(?:featurestore )?([a-z-]+)", line.split("|")[1])}
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    assert set(group.commands) <= named


def test_the_two_commands_of_the_readme_are_make_targets() -> None:
    section = re.search(r"## Two commands\n(.*?)\n## ", (PROJECT / "README.md").read_text(), re.DOTALL)
    assert section
    commands = [line.split()[:2] for line in shell(section[1]).splitlines()]
    assert commands == [["make", "demo"], ["make", "test"]]
    assert {"demo", "test"} <= make_targets()
    assert "make test" in (PROJECT / ".ci" / "run").read_text()


@pytest.mark.parametrize("decision", DECISIONS, ids=lambda path: path.stem)
def test_a_decision_has_its_three_sections_on_one_page(decision: Path) -> None:
    text = decision.read_text()
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences"]
    assert re.match(rf"# {decision.name[:4]} \w", text)
    assert len(text.splitlines()) <= 60
    assert f"]({decision.name})" in (PROJECT / "docs" / "adr" / "README.md").read_text()


def test_decisions_are_numbered_without_gaps() -> None:
    assert [int(path.name[:4]) for path in DECISIONS] == list(range(1, len(DECISIONS) + 1))


def test_every_package_is_in_the_architecture() -> None:
    folder = PROJECT / "featurestore_dagster"
    parts = {path.stem for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()} - {"__init__"}
    section = re.search(r"## Packages\n(.*?)\n## ", (PROJECT / "docs" / "architecture.md").read_text(), re.DOTALL)
    assert section
    assert set(re.findall(r"^\| `(\w+)` \|", section[1], re.MULTILINE)) == parts


def test_the_picture_shows_every_dataset_view_and_mart() -> None:
    picture = (PROJECT / "docs" / "images" / "graph.svg").read_text()
    shown = set(re.findall(r">([\w/]+)</text>", picture))
    views = {view.name for view in CATALOGUE.views}
    assert shown >= {
        *(dataset.name for dataset in CATALOGUE.datasets),
        *views,
        *(f"online/{view.name}" for view in CATALOGUE.views if view.online),
    }
    assert shown >= {mart.name for mart in MARTS}
    for view in CATALOGUE.views:
        assert re.search(rf">{view.name}</text>\s*<text[^>]*>{len(view.features)} features", picture), view.name


def test_row_checks_of_the_manual_are_those_of_the_code() -> None:
    source = "".join(path.read_text() for path in Path(market_checks.__file__).parent.glob("*.py"))
    manual = re.search(r"\| check \| means \| blocks \|\n(.*?)\n\n", (PROJECT / "docs/how-to/operate.md").read_text(), re.DOTALL)
    assert manual
    for name in SPAN.findall("\n".join(line.split("|")[1] for line in manual[1].splitlines())):
        assert re.search(rf"\"{name}\b", source), f"no check {name} in the code"


def test_licence_is_apache_with_our_authors() -> None:
    text = (PROJECT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in text
    assert "Copyright The featurestore_dagster authors" in text
    assert "END OF TERMS AND CONDITIONS" in text
