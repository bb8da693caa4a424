"""Vectors of a service from real Redis and Postgres: raw, normalised by statistics that were fitted here, and printed."""

import hashlib
import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jsonschema
import polars as pl
import pytest
from typer.testing import CliRunner

from featurestore_dagster.cli.app import app
from featurestore_dagster.errors import ConfigurationError, NullFeaturesError, RefusedError, UnknownNameError
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.features.equity_views import TECHNICAL_INDICATORS_VIEW as VIEW
from featurestore_dagster.model.feature_service import FeatureService
from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.model.time import FrozenClock
from featurestore_dagster.projections.json_schema import json_schema
from featurestore_dagster.projections.postgres_table import feature_schema
from featurestore_dagster.projections.relation import stream_relation
from featurestore_dagster.serving.client import FeatureStoreClient
from featurestore_dagster.serving.client_base import PROJECT
from featurestore_dagster.serving.online_sync import sync_view
from featurestore_dagster.serving.vector import VectorMode
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.postgres import PostgresStore
from featurestore_dagster.stores.redis import RedisStore
from tests.unit.pipeline.frames import close_of, keys_between

SERVICE = FeatureService(
    "toy_vector",
    "A toy",
    views=(VIEW,),
    selection=tuple((VIEW.name, name) for name in ("atr", "macd", "rsi_14")),
    version=4,
    standardised=("atr", "macd"),
    bounds={"rsi_14": 60.0},
)
WITH_TOY = replace(CATALOGUE, services=(*CATALOGUE.services, SERVICE))
DAYS = keys_between("2018-11-01", "2018-12-31")
START, TRAINED_TO, NOW = datetime(2018, 10, 31, tzinfo=UTC), close_of(DAYS[29]), datetime(2018, 12, 31, 22, tzinfo=UTC)
AAA = {"symbol": "AAA", "timeframe": "1d"}


def features(number: int, symbol: str) -> dict[str, float | None]:
    scale = 1.0 if symbol == "AAA" else 3.0
    return {
        "rsi_14": 50.0 + number % 20,
        "macd": math.sin(number) * scale,
        "atr": scale * (1 + number % 7),
        "ema_20": None,
        "bollinger_bands_position": 0.5,
        "volume_sma_ratio": 1.0,
    }


def row(number: int, day: str, symbol: str, **other: Any) -> dict[str, Any]:
    close = close_of(day)
    times = {"event_timestamp": close, "created_timestamp": close + timedelta(minutes=1)}
    fixed = {"symbol": symbol, "timeframe": "1d", "flags": 0, "feature_set_version": VIEW.version, "stream": "us_equity_1d"}
    return {**fixed, **times, **features(number, symbol), **other}


@pytest.fixture
def published(fresh_database: Settings, tmp_path: Path) -> Settings:
    """Two symbols over two months; BBB's last MACD is NULL, AAA's last ATR is far out and its row late."""
    store = PostgresStore(fresh_database.postgres, FrozenClock(NOW))
    relation = stream_relation(VIEW, VIEW.streams[0])
    rows = [row(number, day, symbol) for number, day in enumerate(DAYS) for symbol in ("AAA", "BBB")]
    rows[-2] |= {"atr": 1000.0, "rsi_14": 75.0, "flags": QualityFlag.LATE.value}
    rows[-1] |= {"macd": None}
    store.publish(relation, pl.DataFrame(rows, schema=feature_schema(VIEW)), DAYS)
    sync_view(VIEW, store, RedisStore(fresh_database.redis, PROJECT), NOW)
    return fresh_database.model_copy(update={"data_folder": tmp_path / "data", "clock": NOW.isoformat()})


@pytest.fixture
def client(published: Settings) -> FeatureStoreClient:
    return FeatureStoreClient(published, WITH_TOY)


def test_a_raw_vector_is_the_stored_row_in_the_services_order(client: FeatureStoreClient) -> None:
    vector = client.get_feature_vector("toy_vector", AAA)
    assert vector.features == ("technical_indicators_view:atr", "technical_indicators_view:macd", "technical_indicators_view:rsi_14")
    assert vector.values.to_list() == pytest.approx([1000.0, math.sin(len(DAYS) - 1), 75.0], rel=1e-6)
    assert (vector.flags, vector.as_of, vector.mode) == (("LATE",), NOW, VectorMode.RAW)
    assert client.get_feature_vector("toy_vector", AAA, as_of_timestamp=NOW).values.equals(vector.values)
    validator = jsonschema.Draft202012Validator(json_schema(WITH_TOY), format_checker=jsonschema.FormatChecker())
    validator.validate(json.loads(json.dumps(vector.to_dict())))


def test_statistics_come_from_the_training_range_alone_and_are_frozen(client: FeatureStoreClient) -> None:
    path = client.fit_normalisation("toy_vector", START, TRAINED_TO, symbols=["AAA"])
    assert path == client.statistics_path("toy_vector")
    text = path.read_text()
    # The last session's row became known a minute after the range ended.
    used = [features(number, "AAA") for number, day in enumerate(DAYS) if close_of(day) + timedelta(minutes=1) <= TRAINED_TO]
    assert len(used) == 29
    fitted = {feature["name"]: feature for feature in json.loads(text)["features"]}
    for name in ("atr", "macd"):
        values = pl.Series([values[name] for values in used])
        assert fitted[name] == {
            "name": name,
            "mean": pytest.approx(values.mean()),
            "standard_deviation": pytest.approx(values.std(ddof=1)),
            "count": 29,
        }
    assert json.loads(text)["symbols"] == ["AAA"]
    with pytest.raises(RefusedError, match="statistics are frozen"):
        client.fit_normalisation("toy_vector", START, NOW)
    assert path.read_text() == text
    everyone = json.loads(client.fit_normalisation("toy_vector", START, TRAINED_TO, path=path.with_name("all.json")).read_text())
    assert everyone["symbols"] == ["AAA", "BBB"]
    assert everyone["features"][0]["count"] == 58


def test_a_normalised_vector_names_its_statistics_and_what_was_clipped(client: FeatureStoreClient) -> None:
    with pytest.raises(ConfigurationError, match="fit them with"):
        client.get_feature_vector("toy_vector", AAA, mode=VectorMode.NORMALISED)
    path = client.fit_normalisation("toy_vector", START, TRAINED_TO)
    vector = client.get_feature_vector("toy_vector", AAA, mode=VectorMode.NORMALISED)
    _, macd = json.loads(path.read_text())["features"]
    expected = (math.sin(len(DAYS) - 1) - macd["mean"]) / macd["standard_deviation"]
    assert vector.values.to_list() == pytest.approx([5.0, expected, 60.0], rel=1e-6)
    assert vector.clipped == ("technical_indicators_view:atr", "technical_indicators_view:rsi_14")
    assert vector.flags == ("LATE", "CLIPPED")
    assert vector.statistics_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    jsonschema.Draft202012Validator(json_schema(WITH_TOY)).validate(json.loads(json.dumps(vector.to_dict())))
    with pytest.raises(ConfigurationError, match="declares no standardised features"):
        client.get_feature_vector("technical_indicators_service", AAA, mode=VectorMode.NORMALISED, allow_null=True)


def test_a_null_or_absent_value_is_an_error_that_names_it(client: FeatureStoreClient) -> None:
    with pytest.raises(NullFeaturesError, match=r"1 features are NULL: technical_indicators_view:macd \(NULL_VALUE\)"):
        client.get_feature_vector("toy_vector", AAA | {"symbol": "BBB"})
    assert client.get_feature_vector("toy_vector", AAA | {"symbol": "BBB"}, allow_null=True).values.null_count() == 1
    with pytest.raises(NullFeaturesError, match=r"3 features are NULL: .*\(NOT_FOUND\)"):
        client.get_feature_vector("toy_vector", AAA | {"symbol": "nobody"})
    with pytest.raises(UnknownNameError, match="unknown feature service 'toy_vectr'; nearest: toy_vector"):
        client.get_feature_vector("toy_vectr", AAA)


def test_get_prints_the_vector_in_order_with_its_nulls(published: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**published.exports(), "FEATURESTORE_SERVICES": "external", "FEATURESTORE_CLOCK": NOW.isoformat()}.items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(app, ["get", "technical_indicators_service", "--symbol", "BBB_1d"], env={"COLUMNS": "100"})
    assert result.exit_code == 0, result.output
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.output.splitlines() if line.startswith("│")]
    assert [(number, name) for number, name, *_ in lines] == [
        (str(number), name) for number, name in enumerate(VIEW.feature_names, start=1)
    ]
    by_name = {name: (value, status) for _, name, value, _, status in lines}
    assert by_name["macd"] == by_name["ema_20"] == ("NULL", "NULL_VALUE")
    assert by_name["rsi_14"][1] == "PRESENT"
