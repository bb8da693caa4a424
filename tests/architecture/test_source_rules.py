"""Rules of the house that neither ruff nor import-linter can state, read from the source text."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path, PurePath

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "featurestore_dagster"
MODULES = {str(path.relative_to(PACKAGE)): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
TESTS = {str(path.relative_to(ROOT / "tests")): ast.parse(path.read_text()) for path in sorted((ROOT / "tests").rglob("*.py"))}

ONLY_IN = {
    "dagster": ("orchestration/", "definitions.py", "launch.py", "code_server.py"),
    "dagster_dbt": ("orchestration/assets/dbt.py",),
    "dagster_postgres": ("orchestration/event_log.py",),
    "exchange_calendars": ("calendars/exchange_hours.py",),
    "feast": ("projections/feast_objects.py", "feast_stores/"),
    "httpx": ("sources/http.py",),
    "pandas": (),
    "pandera": ("projections/pandera_schema.py",),
    "psycopg": ("feast_stores/", "stores/", "supervisor/probes.py", "orchestration/assets/dbt.py"),
    "psycopg2": (),
    "redis": ("supervisor/probes.py",),
    "typer": ("cli/",),
}
"""Who may import a framework, also inside functions; whatever the layers, so that replacing one touches one place."""

VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "base", "core", "manager"}
LONGEST_FILE = 400


def uses(tree: ast.AST, wanted: set[str]) -> Iterator[tuple[int, str]]:
    """Line and dotted name of each use of a name, as `os.environ`, also where it was imported from its module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name) and (name := ast.unparse(node)) in wanted:
            yield node.lineno, name
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, name) for alias in node.names if (name := f"{node.module}.{alias.name}") in wanted)


def imports(tree: ast.AST) -> set[str]:
    """Top-level packages that are imported, wherever in the file."""
    named = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return {name.partition(".")[0] for name in named | {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}}


@pytest.mark.parametrize(
    ("wanted", "allowed"),
    [
        pytest.param({"os.environ", "os.environb", "os.getenv", "os.putenv"}, {"settings.py"}, id="the environment"),
        pytest.param(
            {"datetime.now", "datetime.utcnow", "datetime.today", "date.today", "datetime.datetime.now", "datetime.date.today"},
            {"model/time.py"},
            id="the machine's clock",
        ),
        pytest.param({"print"}, set(), id="standard output"),
    ],
)
def test_only_one_module_reaches_for(wanted: set[str], allowed: set[str]) -> None:
    found = {f"{name}:{line} {use}" for name, tree in MODULES.items() if name not in allowed for line, use in uses(tree, wanted)}
    assert found == set()
    assert all(any(uses(MODULES[name], wanted)) for name in allowed), "the rule looks for a name that its own module does not use"


@pytest.mark.parametrize(("framework", "allowed"), ONLY_IN.items(), ids=ONLY_IN)
def test_a_framework_is_imported_only_in_its_place(framework: str, allowed: tuple[str, ...]) -> None:
    users = {name for name, tree in MODULES.items() if framework in imports(tree)}
    assert {name for name in users if not name.startswith(allowed or ("nowhere",))} == set()
    assert all(any(name.startswith(place) for name in users) for place in allowed), "this place does not need it any more"


def test_every_package_says_its_role() -> None:
    folders = {path.parent.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")}
    for folder in folders:
        tree = MODULES.get(str(folder / "__init__.py"))
        assert tree is not None, f"{folder} has no __init__.py"
        assert ast.get_docstring(tree), f"{folder}/__init__.py has no docstring"


def test_files_are_short_and_named_for_what_they_hold() -> None:
    lines = {name: len((PACKAGE / name).read_text().splitlines()) for name in MODULES}
    assert {name: count for name, count in lines.items() if count > LONGEST_FILE} == {}
    assert {name for name in MODULES if VAGUE_NAMES & set(PurePath(name).with_suffix("").parts)} == set()


def test_every_file_of_the_package_is_installed_with_it() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["featurestore_dagster"]
    data = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in {".py", ".pyc"}]
    assert [str(path) for path in data if not any(path.match(pattern) for pattern in patterns)] == []
    assert [pattern for pattern in patterns if not any(path.match(pattern) for path in data)] == []


def test_nothing_is_mocked_or_skipped() -> None:
    wanted = {"pytest.skip", "pytest.importorskip", "pytest.mark.skip", "pytest.mark.skipif", "pytest.mark.xfail", "pytest.xfail"}
    found = [f"{name}:{line} {use}" for name, tree in TESTS.items() for line, use in uses(tree, wanted)]
    found += [f"{name} imports {package}" for name, tree in TESTS.items() for package in imports(tree) & {"mock", "pytest_mock"}]
    found += [f"{name}:{line} {use}" for name, tree in TESTS.items() for line, use in uses(tree, {"unittest.mock", "unittest.mock.patch"})]
    assert found == []


def test_unit_tests_lie_in_the_folder_of_what_they_test() -> None:
    parts = {PurePath(name).parts[0].removesuffix(".py") for name in MODULES}
    folders = {path.name for path in (ROOT / "tests" / "unit").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders - parts == set()


def test_no_file_names_a_machine_or_a_package_index() -> None:
    own = {".git", ".venv", ".featurestore", "target", "__pycache__", "build", "dist", ".hypothesis"}
    caches = {".pytest_cache", ".mypy_cache", ".ruff_cache", ".import_linter_cache"}
    forbidden = re.compile(r"[^\w./](/(?:Users|[r]oot|[w]ork)/\w+)|(p[y]pi\.\w+|python[h]osted\.\w+)")  # brackets: it must not find itself
    found = []
    for path in ROOT.rglob("*"):
        relative = path.relative_to(ROOT)
        if (own | caches) & set(relative.parts) or not path.is_file() or path.suffix in {".png", ".pyc", ".parquet"}:
            continue
        found += [f"{relative}: {match[0]}" for match in forbidden.finditer(path.read_bytes().decode(errors="replace"))]
    assert found == []
