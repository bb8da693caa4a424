"""Declarations -> `schemas/features.v1.json`: the JSON Schema (2020-12) of one published feature row, per view."""

from typing import Any

import polars as pl

from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.projections.postgres_table import feature_dtype


def json_schema(catalogue: Catalogue) -> dict[str, Any]:
    """Schema of a row as JSON object: one branch for each view, told apart by `view`."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "featurestore_dagster feature rows, contract v1",
        "oneOf": [{"$ref": f"#/$defs/{view.name}"} for view in catalogue.views],
        "$defs": {view.name: _row(view) for view in catalogue.views},
    }


def _row(view: FeatureView) -> dict[str, Any]:
    instant = {"type": "string", "format": "date-time"}
    features = {}
    for feature in view.features:
        declared = feature.indicator
        number = "integer" if feature_dtype(declared.unit) == pl.Int64 else "number"
        branch: dict[str, Any] = {"type": [number, "null"], "description": f"{feature.formula}; {declared.unit}"}
        if declared.minimum is not None:
            branch["minimum"] = declared.minimum
        if declared.maximum is not None:
            branch["maximum"] = declared.maximum
        features[feature.name] = branch
    properties = {
        "view": {"const": view.name},
        **{key: {"type": "string", "minLength": 1} for key in view.join_keys},
        "event_timestamp": instant,
        "created_timestamp": instant,
        **features,
        "flags": {"type": "integer", "minimum": 0},
        "feature_set_version": {"const": view.version},
    }
    return {
        "type": "object",
        "description": view.description,
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
