"""Declarations -> pandera schemas: types, NULLs and ranges of a relation's frame.

Checks that need a calendar, another row or another table do not belong here (see `pipeline.market_checks`).
"""

from collections.abc import Callable

import pandera.polars as pa
import polars as pl

from featurestore_dagster.model.feature_view import FeatureView, Stream
from featurestore_dagster.model.indicator import Indicator
from featurestore_dagster.model.raw_table import Dataset
from featurestore_dagster.model.units import Unit
from featurestore_dagster.projections.relation import dataset_relation, stream_relation

RANGE_TOLERANCE = 1e-9
"""An oscillator may leave its range by a rounding error."""


def _predicate(name: str, good: Callable[[pl.Expr], pl.Expr]) -> pa.Check:
    return pa.Check(lambda data: data.lazyframe.select(good(pl.col(data.key))), name=name, ignore_na=True)


def _at_least(low: float) -> Callable[[pl.Expr], pl.Expr]:
    return lambda column: column >= low - RANGE_TOLERANCE * max(1, abs(low))


def _at_most(high: float) -> Callable[[pl.Expr], pl.Expr]:
    return lambda column: column <= high + RANGE_TOLERANCE * max(1, abs(high))


FINITE = _predicate("finite", lambda column: column.is_finite())
POSITIVE = _predicate("positive", lambda column: column > 0)
NOT_NEGATIVE = _predicate("not_negative", lambda column: column >= 0)


def dataset_schema(dataset: Dataset) -> pa.DataFrameSchema:
    """Schema of a dataset's canonical frame; prices are finite and positive, quantities not negative."""
    relation = dataset_relation(dataset)
    checks = {Unit.PRICE: [FINITE, POSITIVE], Unit.QUANTITY: [FINITE, NOT_NEGATIVE], Unit.RATIO: [FINITE, POSITIVE]}
    declared = {column.name: column for column in dataset.table.all_columns}
    columns = {}
    for name, dtype in relation.frame_schema.items():
        column = declared[name]
        default = [FINITE] if dtype.is_float() else []
        columns[name] = pa.Column(dtype, nullable=column.nullable, checks=checks.get(column.unit, default) if column.unit else default)
    return pa.DataFrameSchema(columns, strict=True, name=relation.name)


def stream_schema(view: FeatureView, stream: Stream) -> pa.DataFrameSchema:
    """Schema of a view's frame; features are finite and inside their declared range, NULL allowed."""
    relation, features = stream_relation(view, stream), {feature.name: feature.indicator for feature in view.features}
    columns = {
        name: pa.Column(dtype, nullable=name in features, checks=_range_checks(features[name], dtype) if name in features else [])
        for name, dtype in relation.frame_schema.items()
    }
    return pa.DataFrameSchema(columns, strict=True, name=relation.name)


def _range_checks(declared: Indicator, dtype: pl.DataType) -> list[pa.Check]:
    checks = [FINITE] if dtype.is_float() else []
    if declared.minimum is not None:
        checks.append(_predicate(f"at_least_{declared.minimum:g}", _at_least(declared.minimum)))
    if declared.maximum is not None:
        checks.append(_predicate(f"at_most_{declared.maximum:g}", _at_most(declared.maximum)))
    return checks


def structure(schema: pa.DataFrameSchema, frame: pl.DataFrame) -> list[str]:
    """Missing, undeclared and retyped columns, a sentence each; a frame with any cannot be judged row by row."""
    complaints = [f"column {name} is missing" for name in schema.columns if name not in frame.columns]
    complaints += [f"column {name} is not declared" for name in frame.columns if name not in schema.columns]
    complaints += [
        f"column {name} is {frame.schema[name]}, declared {column.dtype}"
        for name, column in schema.columns.items()
        if name in frame.columns and column.dtype is not None and not column.dtype.check(_pandera_type(frame.schema[name]))
    ]
    return complaints


def violations(schema: pa.DataFrameSchema, frame: pl.DataFrame) -> pl.DataFrame:
    """Values that break a rule of the schema; the frame has its structure.

    Returns:
        One line per failed value: `row` (UInt32, position in `frame`), `reason` (text).
    """
    none = pl.DataFrame(schema={"row": pl.UInt32, "reason": pl.String})
    if frame.is_empty():
        return none
    try:
        schema.validate(frame, lazy=True)
    except pa.errors.SchemaErrors as errors:
        cases: pl.DataFrame = errors.failure_cases
        return cases.select(
            pl.col("index").cast(pl.UInt32).alias("row"), pl.format("{}: {}", pl.col("column"), pl.col("check")).alias("reason")
        ).unique(maintain_order=True)
    return none


def _pandera_type(dtype: pl.DataType) -> object:
    return pa.Column(dtype).dtype
