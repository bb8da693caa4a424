"""The published contract: every sample keeps it, and what breaks it is refused."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jsonschema
import pytest

from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.feature_service import FeatureService
from featurestore_dagster.projections.generated_files import generated_files
from featurestore_dagster.projections.json_schema import json_schema, samples

TECHNICAL = CATALOGUE.view("technical_indicators_view")
WITH_NORMALISED = replace(
    CATALOGUE,
    services=(
        *CATALOGUE.services,
        FeatureService("toy_service", "A toy", views=(TECHNICAL,), version=3, standardised=("macd", "atr"), bounds={"rsi_14": 50.0}),
    ),
)
SAMPLES = samples(WITH_NORMALISED)
VALIDATOR = jsonschema.Draft202012Validator(json_schema(WITH_NORMALISED), format_checker=jsonschema.FormatChecker())


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema(CATALOGUE))


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_keeps_the_contract_and_matches_its_own_branch_alone(name: str) -> None:
    VALIDATOR.validate(SAMPLES[name])
    branches = json_schema(WITH_NORMALISED)["$defs"]
    matching = [branch for branch, schema in branches.items() if jsonschema.Draft202012Validator(schema).is_valid(SAMPLES[name])]
    assert matching == [name]


def changed(name: str, change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    sample = copy.deepcopy(SAMPLES[name])
    change(sample)
    return sample


ROW, VECTOR = "technical_indicators_view", "toy_service.vector"
BROKEN: dict[str, dict[str, Any]] = {
    "a feature is missing": changed(ROW, lambda row: row.pop("macd")),
    "a feature nobody declared": changed(ROW, lambda row: row.update(rsi_99=1.0)),
    "a value outside its range": changed(ROW, lambda row: row.update(rsi_14=100.5)),
    "text for a number": changed(ROW, lambda row: row.update(rsi_14="50")),
    "an empty key": changed(ROW, lambda row: row.update(symbol="")),
    "another version": changed(ROW, lambda row: row.update(feature_set_version=99)),
    "negative flags": changed(ROW, lambda row: row.update(flags=-1)),
    "a view that does not exist": changed(ROW, lambda row: row.update(view="nothing")),
    "too few values": changed(VECTOR, lambda vector: vector["values"].pop()),
    "too many values": changed(VECTOR, lambda vector: vector["values"].append(1.0)),
    "another order": changed(VECTOR, lambda vector: vector["features"].reverse()),
    "another contract version": changed(VECTOR, lambda vector: vector.update(service_version=2)),
    "an unknown flag": changed(VECTOR, lambda vector: vector["flags"].append("FINE")),
    "a mode that the service does not have": changed(
        "technical_indicators_service.vector", lambda vector: vector.update(mode="normalised")
    ),
    "statistics without a hash": changed(VECTOR, lambda vector: vector.update(statistics_sha256="yes")),
    "an entity without its key": changed(VECTOR, lambda vector: vector["entity"].pop("symbol")),
}


@pytest.mark.parametrize("instance", BROKEN.values(), ids=BROKEN.keys())
def test_what_breaks_the_contract_is_refused(instance: dict[str, Any]) -> None:
    assert not VALIDATOR.is_valid(instance)


def test_every_view_and_online_service_has_a_branch_and_a_sample_file() -> None:
    expected = {view.label for view in CATALOGUE.views} | {f"{s.name}.vector" for s in CATALOGUE.services if s.is_online}
    assert set(json_schema(CATALOGUE)["$defs"]) == expected
    files = {name.removeprefix("schemas/samples/").removesuffix(".json") for name in generated_files(CATALOGUE) if "samples/" in name}
    assert files == expected


def test_two_versions_of_a_view_have_a_branch_each() -> None:
    old, new = TECHNICAL.superseded(), replace(TECHNICAL, version=2, features=TECHNICAL.features[1:])
    others = tuple(view for view in CATALOGUE.views if view.name != TECHNICAL.name)
    both = Catalogue(CATALOGUE.entities, CATALOGUE.raw_tables, CATALOGUE.datasets, CATALOGUE.sources, (*others, old, new), ())
    validator, rows = jsonschema.Draft202012Validator(json_schema(both)), samples(both)
    for label, version in (("technical_indicators_view@1", 1), ("technical_indicators_view", 2)):
        assert rows[label]["feature_set_version"] == version
        validator.validate(rows[label])
