"""Declarations -> `schemas/features.v1.json`, the JSON Schema (2020-12) of published rows and served vectors, and a sample of each.

Serving does not belong here.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl

from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.feature_service import FeatureService
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.model.indicator import Feature
from featurestore_dagster.projections.postgres_table import feature_dtype

INSTANT = {"type": "string", "format": "date-time"}
SAMPLE_INSTANT = datetime(2018, 12, 31, 21, tzinfo=UTC)
SAMPLE_KEYS = {"symbol": "AAPL", "timeframe": "1d", "portfolio": "GLOBAL"}


def json_schema(catalogue: Catalogue) -> dict[str, Any]:
    """Schema of a row or vector as JSON object: one branch for each view, told apart by `view`, and for each service by `service`."""
    definitions = {view.label: _row(view) for view in catalogue.views}
    definitions |= {f"{service.name}.vector": _vector(service) for service in catalogue.services if service.is_online}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "featurestore_dagster feature rows and vectors, contract v1",
        "oneOf": [{"$ref": f"#/$defs/{name}"} for name in definitions],
        "$defs": definitions,
    }


def samples(catalogue: Catalogue) -> dict[str, Any]:
    """An object for each branch of the schema, by the branch's name: values in the middle of their range, every third one NULL."""
    rows = {view.label: _sample_row(view) for view in catalogue.views}
    return rows | {f"{service.name}.vector": _sample_vector(service) for service in catalogue.services if service.is_online}


def _row(view: FeatureView) -> dict[str, Any]:
    properties = {
        "view": {"const": view.name},
        **{key: {"type": "string", "minLength": 1} for key in view.join_keys},
        "event_timestamp": INSTANT,
        "created_timestamp": INSTANT,
        **{feature.name: _value(feature) for feature in view.features},
        "flags": {"type": "integer", "minimum": 0},
        "feature_set_version": {"const": view.version},
    }
    return _object(view.description, properties)


def _value(feature: Feature) -> dict[str, Any]:
    declared = feature.indicator
    number = "integer" if feature_dtype(declared.unit) == pl.Int64 else "number"
    branch: dict[str, Any] = {"type": [number, "null"], "description": f"{feature.formula}; {declared.unit}"}
    if declared.minimum is not None:
        branch["minimum"] = declared.minimum
    if declared.maximum is not None:
        branch["maximum"] = declared.maximum
    return branch


def _vector(service: FeatureService) -> dict[str, Any]:
    names = [f"{view.label}:{feature.name}" for view, feature in service.references]
    flags = {"type": "array", "uniqueItems": True, "items": {"enum": [flag.name for flag in QualityFlag]}}
    modes = ["raw", "normalised"] if service.standardised else ["raw"]
    properties = {
        "service": {"const": service.name},
        "service_version": {"const": service.version},
        "mode": {"enum": modes},
        "entity": {
            "type": "object",
            "properties": {key: {"type": "string", "minLength": 1} for view in service.views for key in view.join_keys},
            "required": list(dict.fromkeys(key for view in service.views for key in view.join_keys)),
        },
        "as_of": INSTANT,
        "features": {"const": names},
        "values": {"type": "array", "items": {"type": ["number", "null"]}, "minItems": len(names), "maxItems": len(names)},
        "flags": flags,
        "clipped": {"type": "array", "uniqueItems": True, "items": {"enum": names}},
        "statistics_sha256": {"type": ["string", "null"], "pattern": "^[0-9a-f]{64}$"},
    }
    return _object(f"{service.description}, as a float32 vector in this order", properties)


def _object(description: str, properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "description": description,
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _sample_row(view: FeatureView) -> dict[str, Any]:
    return {
        "view": view.name,
        **{key: SAMPLE_KEYS.get(key, key) for key in view.join_keys},
        "event_timestamp": SAMPLE_INSTANT.isoformat(),
        "created_timestamp": (SAMPLE_INSTANT + timedelta(seconds=5)).isoformat(),
        **{feature.name: None if number % 3 == 2 else _sample_value(feature) for number, feature in enumerate(view.features)},
        "flags": 0,
        "feature_set_version": view.version,
    }


def _sample_value(feature: Feature) -> float | int:
    low, high = feature.indicator.minimum, feature.indicator.maximum
    if low is not None and high is not None:
        middle = (low + high) / 2
    else:
        middle = low + 1 if low is not None else high - 1 if high is not None else 0.25
    return int(middle) if feature_dtype(feature.indicator.unit) == pl.Int64 else float(middle)


def _sample_vector(service: FeatureService) -> dict[str, Any]:
    names = [f"{view.label}:{feature.name}" for view, feature in service.references]
    return {
        "service": service.name,
        "service_version": service.version,
        "mode": "raw",
        "entity": {key: SAMPLE_KEYS.get(key, key) for view in service.views for key in view.join_keys},
        "as_of": SAMPLE_INSTANT.isoformat(),
        "features": names,
        "values": [None if number % 3 == 2 else _sample_value(feature) for number, (_, feature) in enumerate(service.references)],
        "flags": ["LATE"],
        "clipped": [],
        "statistics_sha256": None,
    }
