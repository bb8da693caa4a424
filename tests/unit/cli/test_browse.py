"""Names on the command line: what exists is shown, what does not is answered with the nearest that does."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from featurestore_dagster.cli.app import app
from featurestore_dagster.cli.browse import _entity
from featurestore_dagster.errors import UnknownNameError
from featurestore_dagster.features import CATALOGUE

RUNNER = CliRunner()


@pytest.fixture(autouse=True)
def nothing_to_connect(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A data folder of the test's own, in which no command starts a server."""
    monkeypatch.setenv("FEATURESTORE_DATA_FOLDER", str(tmp_path / "data"))
    yield
    assert not (tmp_path / "data" / "postgres").exists()


def test_list_has_every_view_service_and_dataset() -> None:
    listed = json.loads(RUNNER.invoke(app, ["list", "--json"], catch_exceptions=False).stdout)
    assert [view["view"] for view in listed["views"]] == [view.label for view in CATALOGUE.views]
    assert [view["version"] for view in listed["views"]] == [view.version for view in CATALOGUE.views]
    assert [(s["service"], s["features"]) for s in listed["services"]] == [(s.name, len(s.references)) for s in CATALOGUE.services]
    assert [dataset["dataset"] for dataset in listed["datasets"]] == [dataset.name for dataset in CATALOGUE.datasets]
    table = RUNNER.invoke(app, ["list"], env={"COLUMNS": "80"}, catch_exceptions=False).stdout
    assert max(map(len, table.splitlines())) <= 80


@pytest.mark.parametrize("name", ["momentum_features", "momentum_features@1", "momentum_features:rsi_14", "momentum_features@1:rsi_14"])
def test_info_takes_a_view_a_version_and_a_feature(name: str) -> None:
    rows = json.loads(RUNNER.invoke(app, ["info", name, "--json"], catch_exceptions=False).stdout)
    assert rows[0]["feature"] == "momentum_features:rsi_14"
    assert len(rows) == (1 if ":" in name else len(CATALOGUE.view("momentum_features").features))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "momentum_featurs"], "unknown view or service 'momentum_featurs'; nearest: momentum_features"),
        (["info", "daily_equity_servce"], "unknown view or service 'daily_equity_servce'; nearest: daily_equity_service"),
        (["info", "momentum_features@9"], "unknown view or service 'momentum_features@9'; nearest: momentum_features"),
        (["info", "momentum_features:rsi"], "unknown feature of view momentum_features 'rsi'; nearest: rsi_14"),
        (["get", "daily_equity_servce"], "unknown service or view:feature 'daily_equity_servce'; nearest: daily_equity_service"),
        (["get", "high_52w_position"], "unknown service or view:feature 'high_52w_position'; nearest: momentum_features:high_52w_position"),
        (["get", "momentum_features"], "unknown service or view:feature 'momentum_features'; nearest: momentum_features:"),
        (["get", "momentum_features:macdd"], "unknown feature of view momentum_features 'macdd'; nearest: macd"),
        (["get", "momentum_features@7:macd"], "unknown feature view 'momentum_features@7'; nearest: momentum_features@1"),
        (["get", "momentum_features:macd", "rsi_14"], "unknown feature reference .*'rsi_14'; nearest: .*:rsi_14"),
        (["get", "momentum_features:macd", "--timeframe", "60m"], "unknown timeframe '60m'; nearest: 5m, 1m"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_before_anything_is_connected(arguments: list[str], message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        RUNNER.invoke(app, arguments, catch_exceptions=False)


@pytest.mark.parametrize(
    ("symbol", "timeframe", "expected"),
    [
        ("AAPL", None, ("AAPL", "1d")),
        ("AAPL", "5m", ("AAPL", "5m")),
        ("BTCUSDT_1h", None, ("BTCUSDT", "1h")),
        ("BTCUSDT_1h", "1h", ("BTCUSDT", "1h")),
        ("BTC_USDT_1h", None, ("BTC_USDT", "1h")),
        ("BRK_B", None, ("BRK_B", "1d")),
        ("", None, ("", "1d")),
    ],
)
def test_an_entity_is_taken_apart_where_it_ends_in_a_timeframe(symbol: str, timeframe: str | None, expected: tuple[str, str]) -> None:
    assert _entity(symbol, timeframe) == expected


def test_a_shorthand_that_contradicts_the_option_is_refused() -> None:
    with pytest.raises(typer.BadParameter, match="--symbol BTCUSDT_1h says timeframe 1h, --timeframe says 5m"):
        _entity("BTCUSDT_1h", "5m")
