"""CONTRIBUTING.md's walk-through, applied to a copy of the repository: its blocks fit the code, and what it says follows."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from featurestore_dagster.features.raw_tables import US_EQUITY_CANDLES_1D
from featurestore_dagster.model.time import FrozenClock
from featurestore_dagster.settings import Settings
from featurestore_dagster.sources import samples

PROJECT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^(New file|Edit) `([^`]+)`:\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PARTS = ("featurestore_dagster", "tests", "schemas", "dbt_project", "feature_repo", "pyproject.toml")
NOT_COPIED = shutil.ignore_patterns("__pycache__", "parse-*", "logs")
CLOCK = "2018-12-31T22:00:00Z"
SESSIONS = ("2018-01-02", "2018-12-31")

DERIVED = """
import json, sys
from datetime import date
import polars as pl
from featurestore_dagster import features
from featurestore_dagster.calendars import calendar
from featurestore_dagster.definitions import defs
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.pipeline.publication import Pipeline
from featurestore_dagster.projections.feast_objects import feast_objects
from featurestore_dagster.projections.pandera_schema import stream_schema
from featurestore_dagster.settings import Settings
from featurestore_dagster.sources import samples
from featurestore_dagster.stores.postgres import Ledger, PostgresStore

settings = Settings()
clock = settings.make_clock()
store = PostgresStore(settings.postgres, clock)
first, last = map(date.fromisoformat, sys.argv[1:3])
sessions = [day.isoformat() for day in calendar("XNYS").sessions(first, last)["session"]]
answer = {"package": features.__file__, "plan": store.plan(CATALOGUE)}
store.apply(CATALOGUE)
answer["drift"] = store.drift(CATALOGUE)
view, changed = CATALOGUE.view("trend_features"), CATALOGUE.view("momentum_features")
answer["look_back_bars"] = changed.feature("sma_distance_50").look_back_bars
columns = stream_schema(view, view.streams[0]).columns
answer["schema"] = {name: [str(column.dtype), sorted(check.name for check in column.checks)] for name, column in columns.items()}
graph = defs.resolve_asset_graph()
nodes = {key.to_user_string(): graph.get(key) for key in graph.get_all_asset_keys()}
answer["assets"] = {
    name: {
        "group": node.group_name,
        "checks": sorted(key.name for key in node.check_keys),
        "partitions": None if node.partitions_def is None else len(node.partitions_def.get_partition_keys()),
        "fresh": node.freshness_policy is not None,
        "columns": [column.name for column in node.metadata["dagster/column_schema"].columns] if node.partitions_def else [],
    }
    for name, node in nodes.items() if "trend_features" in name or name == "momentum_features_us_equity_1d"
}
answer["feast"] = sorted(field.name for field in feast_objects(CATALOGUE)["view_trend_features"].features)

fetch = lambda dataset, start, end: samples.fetch(dataset, start, end, clock=clock)
pipeline = Pipeline(CATALOGUE.with_sources(["samples"]), store, Ledger(settings.postgres), clock, fetch)
outcomes = []
for name in ("us_equity_corporate_actions", "us_equity_candles_1d"):
    outcomes += pipeline.ingest(CATALOGUE.dataset(name), sessions)
for computed in (view, changed):
    outcomes += pipeline.materialise(computed, computed.streams[0], sessions)
answer["blocked"] = [outcome.partition_key for outcome in outcomes if outcome.blocked]
end = calendar("XNYS").session(last).window_end
start = calendar("XNYS").session(first).window_start
for computed in (view, changed):
    rows = store.read_features(computed, start, end, keys={"symbol": ["SPX"]})
    texts = [pl.col(name).map_elements(lambda t: t.isoformat(), pl.String) for name in ("event_timestamp", "created_timestamp")]
    answer[computed.name] = rows.select(*texts, "sma_distance_50").rows()
print(json.dumps(answer))
"""
"""Run in the copy: everything that must follow from the declarations, and the published values of SPX."""

FETCHED = """
import json
from featurestore_dagster import sources
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.settings import Settings
vendor = CATALOGUE.source("vendor")
usual = CATALOGUE.with_sources(Settings().source_names)
print(json.dumps({"fetched": vendor.name in sources._FETCHERS, "usual": [source.name for source in usual.sources]}))
"""


def apply_block(root: Path, kind: str, name: str, body: str) -> None:
    """Write a new file, or make the edits of a diff whose old lines must stand in the file exactly once."""
    path = root / name
    if kind == "New file":
        assert not path.exists(), f"{name} exists already"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(body)
        return
    text = path.read_text()
    for hunk in body.split("@@\n")[1:]:
        lines = hunk.splitlines(keepends=True)
        assert {line[0] for line in lines} <= {" ", "+", "-"}
        old = "".join(line[1:] for line in lines if line[0] != "+")
        new = "".join(line[1:] for line in lines if line[0] != "-")
        assert text.count(old) == 1, f"{name} holds these lines {text.count(old)} times, the walk-through needs once:\n{old}"
        text = text.replace(old, new)
    path.write_text(text)


@pytest.fixture(scope="module")
def blocks() -> list[tuple[str, str, str]]:
    """(kind, path, body) of each block, in order."""
    return BLOCK.findall((PROJECT / "CONTRIBUTING.md").read_text())


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory, blocks: list[tuple[str, str, str]]) -> Path:
    """The repository with the walk-through applied."""
    root = tmp_path_factory.mktemp("a copy")
    for part in PARTS:
        if (PROJECT / part).is_dir():
            shutil.copytree(PROJECT / part, root / part, ignore=NOT_COPIED)
        else:
            shutil.copy(PROJECT / part, root / part)
    for kind, name, body in blocks:
        apply_block(root, kind, name, body)
    return root


def run(copy: Path, *arguments: str, settings: Settings | None = None) -> str:
    """Standard output of this interpreter in the copy, whose package hides ours; `settings` names the servers."""
    environment = os.environ | (settings.exports() | {"FEATURESTORE_SERVICES": "external"} if settings else {})
    environment |= {"PYTHONPATH": str(copy), "FEATURESTORE_CLOCK": CLOCK, "FEATURESTORE_DATA_FOLDER": str(copy / "data")}
    done = subprocess.run([sys.executable, *arguments], cwd=copy, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_walk_through_covers_indicator_view_and_source(blocks: list[tuple[str, str, str]]) -> None:
    text = (PROJECT / "CONTRIBUTING.md").read_text()
    assert len(blocks) == text.count("\nNew file `") + text.count("\nEdit `")
    folders = {Path(name).parent.name for kind, name, _ in blocks if kind == "New file"}
    assert folders == {"features", "sources", "vendor"}


def test_an_indicator_is_one_file_and_one_line(blocks: list[tuple[str, str, str]]) -> None:
    indicators, views, oracles = blocks[:3]
    assert indicators[:2] == ("Edit", "featurestore_dagster/indicators/momentum.py")
    assert views[:2] == ("Edit", "featurestore_dagster/features/equity_views.py")
    assert [line[0] for line in views[2].splitlines() if line[0] in "+-"] == ["+"]
    assert oracles[1].startswith("tests/"), "beside them only the reference that proves it"


def test_its_code_keeps_the_rules(copy: Path, blocks: list[tuple[str, str, str]]) -> None:
    names = sorted({name for _, name, _ in blocks if name.endswith(".py")})
    run(copy, "-m", "ruff", "check", *names)
    run(copy, "-m", "ruff", "format", "--check", *names)


def test_everything_follows_from_indicator_and_view(copy: Path, fresh_database: Settings) -> None:
    derived: dict[str, Any] = json.loads(run(copy, "-c", DERIVED, *SESSIONS, settings=fresh_database))

    assert Path(derived["package"]).is_relative_to(copy)
    plan = "\n".join(derived["plan"])
    assert 'alter table "features"."momentum_features" add column "sma_distance_50" double precision' in plan
    assert 'create table "features"."trend_features"' in plan
    assert derived["drift"] == []
    assert derived["look_back_bars"] == 49
    assert derived["schema"]["sma_distance_50"] == ["Float64", ["at_least_-1", "finite"]]

    asset = derived["assets"]["trend_features"]
    assert asset["group"] == "indicators"
    assert asset["checks"] == ["audit", "data_freshness", "drift"]
    assert asset["partitions"] > 5000
    assert asset["fresh"]
    assert {"sma_distance_50", "sma_distance_200", "adx_14"} <= set(asset["columns"])
    assert "sma_distance_50" in derived["assets"]["momentum_features_us_equity_1d"]["columns"]
    assert derived["assets"]["online/trend_features"]["group"] == "online"
    assert derived["feast"] == ["adx_14", "sma_distance_200", "sma_distance_50"]

    assert derived["blocked"] == []
    expected = sma_distances()
    for name in ("trend_features", "momentum_features"):
        found = derived[name]
        assert [row[0] for row in found] == [instant for instant, _ in expected]
        assert [row[1] for row in found] == [row[0] for row in found], "first vintages are known from the bar's end on"
        assert [row[2] for row in found] == [pytest.approx(value, abs=1e-12) for _, value in expected]


def sma_distances() -> list[tuple[str, float | None]]:
    """Event time and distance of SPX from its 50-bar average in plain Python; None while 2018 has fewer bars."""
    clock = FrozenClock(pl.Series([CLOCK]).str.to_datetime(time_zone="UTC")[0])
    rows = samples.fetch(US_EQUITY_CANDLES_1D, clock.instant.replace(month=1, day=1), clock.instant, clock=clock).filter(symbol="SPX")
    closes = rows["close"].to_list()
    averages = [None] * 49 + [sum(closes[i - 49 : i + 1]) / 50 for i in range(49, len(closes))]
    distances = [None if average is None else close / average - 1 for close, average in zip(closes, averages, strict=True)]
    return list(zip([instant.isoformat() for instant in rows["event_timestamp"]], distances, strict=True))


def test_generate_writes_the_documents(copy: Path) -> None:
    run(copy, "-m", "featurestore_dagster.cli", "generate")
    dictionary = (copy / "docs" / "data_dictionary.md").read_text()
    assert "### trend_features" in dictionary
    assert "| sma_distance_200 | fraction | -1.. | bars | 199 | 199 | close / mean(close, n) - 1 (n=200) | TA-Lib SMA |" in dictionary
    schema = json.loads((copy / "schemas" / "features.v1.json").read_text())["$defs"]
    assert schema["trend_features"]["properties"]["sma_distance_50"]["minimum"] == -1
    assert "sma_distance_50" in schema["momentum_features"]["required"]
    assert schema["momentum_features"]["properties"]["feature_set_version"] == {"const": 1}


def test_the_indicator_passes_oracle_and_contract(copy: Path) -> None:
    report = run(
        copy, "-m", "pytest", "tests/unit/indicators/test_oracle_parity.py", "tests/contract/test_indicators.py", "-k", "sma_distance"
    )
    passed = re.search(r"(\d+) passed", report)
    assert passed
    assert int(passed[1]) > 7, "seven real series, and the contract"


def test_the_source_is_fetched_and_parses_its_payload(copy: Path) -> None:
    assert json.loads(run(copy, "-c", FETCHED)) == {"fetched": True, "usual": ["samples", "files"]}
    report = run(copy, "-m", "pytest", "tests/contract/test_providers.py", "-k", "vendor", "-p", "no:cacheprovider")
    assert re.search(r"^\d\d passed", report, re.MULTILINE), report
