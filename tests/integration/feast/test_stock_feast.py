"""Stock Feast 0.67 beside us: its bytes are ours, its command accepts our declarations, and its SDK reads what was published."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import SecretStr

from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.redis import layout
from tests.integration.feast.conftest import REPOSITORY
from tests.integration.feast.publications import CODE, DAY, INTRADAY, MACRO, MINUTE, MOMENTUM, MONDAY, NOW, values

FEAST_SIDE = Path(__file__).with_name("feast_side.py")

AWKWARD = "p'a\"s,s=w: o#r\\d ${HOME}%41 @/é "

SAMPLES: dict[str, Any] = {
    "project": "featurestore",
    "entities": [{"symbol": "AAPL"}, {"timeframe": "1d", "symbol": "Ünï'; DROP"}, {"symbol": "", "portfolio": "GLOBAL", "a": "b"}],
    "fields": [f"{view.name}:{name}" for view in CATALOGUE.views for name in view.feature_names],
    "doubles": [1.5, 0.0, -0.0, None, 1e308, 5e-324],
    "integers": [0, 1, -1, 2**63 - 1, -(2**63), None],
    "instants": [
        "1970-01-01T00:00:00+00:00", "2018-12-31T21:00:00+00:00", "2023-11-14T22:13:20.500001+00:00", "1929-10-24T20:00:00.25+00:00",
    ],
}  # fmt: skip


def feast_side(request: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """Answer of a process that runs stock Feast."""
    answer: dict[str, Any] = json.loads(output_of([sys.executable, str(FEAST_SIDE)], environment, json.dumps(request)))
    return answer


def output_of(command: list[str], environment: Mapping[str, str], text: str = "") -> str:
    done = subprocess.run(command, input=text, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def stock() -> dict[str, Any]:
    """Feast's bytes of SAMPLES, and what it reads of credentials that are hard to quote."""
    settings = Settings(services="external")
    postgres = settings.postgres.model_copy(update={"password": SecretStr(AWKWARD)})
    redis = settings.redis.model_copy(update={"password": SecretStr(AWKWARD), "username": "true"})
    environment = settings.with_connections(postgres, redis).child_environment(os.environ)
    return feast_side({"layout": SAMPLES, "configuration": str(REPOSITORY)}, environment)


def test_our_bytes_are_those_of_feasts_own_functions(stock: Mapping[str, Any]) -> None:
    instants = pl.Series(SAMPLES["instants"]).str.to_datetime(time_unit="us", time_zone="UTC").dt.epoch("us").to_list()
    ours = {
        "keys": [
            key for entity in SAMPLES["entities"] for key in layout.entity_keys("featurestore", {name: [entity[name]] for name in entity})
        ],
        "fields": [layout.feature_field(view.name, name) for view in CATALOGUE.views for name in view.feature_names],
        "doubles": layout.encode_values(pl.Series(SAMPLES["doubles"], dtype=pl.Float64)),
        "integers": layout.encode_values(pl.Series(SAMPLES["integers"], dtype=pl.Int64)),
        "instants": [layout.encode_timestamp(instant) for instant in instants],
    }
    assert {part: [text.hex() for text in texts] for part, texts in ours.items()} == stock["layout"]


def test_t15_t16_the_command_and_the_sdk_work_on_our_stores(published: Settings, stock_repository: Path) -> None:
    environment = published.child_environment()
    feast_program = str(Path(sys.executable).with_name("feast"))
    offline_unreachable = environment | {"POSTGRES_PORT": "1"}  # nothing has to be inferred from the tables
    output_of([feast_program, "-c", str(stock_repository), "apply"], offline_unreachable)

    first = MOMENTUM.feature_names[0]
    momentum = [f"{MOMENTUM.name}:{name}" for name in MOMENTUM.feature_names]
    intraday = [f"{INTRADAY.name}:{name}" for name in INTRADAY.feature_names]
    macro = [f"{MACRO.name}:{name}" for name in MACRO.feature_names]
    pairs = [{"symbol": "AAPL", "timeframe": "1d"}, {"symbol": "EURUSD", "timeframe": "1h"}]
    minute_after = {"symbol": "AAPL", "event_timestamp": (MONDAY + MINUTE).isoformat()}
    times = [{"symbol": symbol, "event_timestamp": at.isoformat()} for symbol in ("AAPL", "IBM") for at in (MONDAY - DAY, NOW)]
    service = CATALOGUE.service("technical_indicators_service")
    answer = feast_side(
        {
            "repository": str(stock_repository),
            "commands": [["plan"], ["entities", "list"], ["feature-views", "list"], ["feature-services", "list"]],
            "online": [
                {"features": momentum, "entity_rows": [{"symbol": "AAPL"}, {"symbol": "IBM"}, {"symbol": "?"}]},
                {"service": service.name, "entity_rows": pairs},
                {"features": macro, "entity_rows": [{"portfolio": "GLOBAL"}]},
            ],
            "historical": [
                {"features": momentum, "entity_rows": times},
                {"features": momentum, "entity_rows": [minute_after], "known_only": True},
                {"features": intraday, "entity_rows": [pair | {"event_timestamp": NOW.isoformat()} for pair in pairs]},
                {"features": macro, "entity_rows": [{"portfolio": "GLOBAL", "event_timestamp": NOW.isoformat()}]},
            ],
        },
        environment,
    )
    plan, *listings = answer["commands"]
    assert "No changes" in plan
    declared: list[Sequence[Any]] = [CATALOGUE.entities, CATALOGUE.views, CATALOGUE.services]
    assert [item.name for listing, items in zip(listings, declared, strict=True) for item in items if item.name not in listing] == []
    newest_momentum = [values(MOMENTUM, 21), values(MOMENTUM, 30) | {first: None}, dict.fromkeys(MOMENTUM.feature_names)]
    assert answer["online"] == [
        by_column([{"symbol": "AAPL"}, {"symbol": "IBM"}, {"symbol": "?"}], newest_momentum),
        by_column(pairs, [values(INTRADAY, 40), values(INTRADAY, 50)]),
        by_column([{"portfolio": "GLOBAL"}], [values(MACRO, 2)]),
    ]
    assert isinstance(answer["online"][2][CODE][0], int)
    nothing = dict.fromkeys(MOMENTUM.feature_names)
    assert answer["historical"] == [
        [
            {"symbol": "AAPL"} | values(MOMENTUM, 10),
            {"symbol": "AAPL"} | values(MOMENTUM, 21),
            {"symbol": "IBM"} | nothing,
            {"symbol": "IBM"} | values(MOMENTUM, 30) | {first: None},
        ],
        [{"symbol": "AAPL"} | values(MOMENTUM, 20)],
        [pairs[0] | values(INTRADAY, 40), pairs[1] | values(INTRADAY, 50)],
        [{"portfolio": "GLOBAL"} | values(MACRO, 2)],
    ]


def by_column(entities: list[dict[str, str]], rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Columns of entity rows and their values, as Feast's `to_dict` shows them."""
    complete = [entity | row for entity, row in zip(entities, rows, strict=True)]
    return {name: [row[name] for row in complete] for name in complete[0]}


def test_the_configuration_carries_any_password(stock: Mapping[str, Any]) -> None:
    assert stock["configuration"] == {"offline": AWKWARD, "registry": AWKWARD, "online": AWKWARD, "online_user": "true"}
