"""Declarations -> relations: what a dataset and a stream of a view have in common for writing, auditing and the ledger."""

import hashlib
from dataclasses import dataclass

import polars as pl

from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.feature_view import FeatureView, Stream
from featurestore_dagster.model.raw_table import Dataset
from featurestore_dagster.model.time import Timeframe
from featurestore_dagster.projections.postgres_table import feature_schema


@dataclass(frozen=True)
class Relation:
    """The rows of one Dagster asset: a slice (`scope_column` = `scope`) of a bitemporal table.

    `identity` names a row whatever its version; `known_at` is the column of the version's time; `values` are what versions differ in.
    `feature_set_version` is that of a view, None for a dataset. `timeframe` is that of the spine, whose anchors cut the computation into
    chunks.
    """

    name: str
    schema: str
    table: str
    scope_column: str
    scope: str
    identity: tuple[str, ...]
    known_at: str
    values: tuple[str, ...]
    frame_schema: dict[str, pl.DataType]
    calendar: str
    timeframe: Timeframe
    code_version: str
    feature_set_version: int | None

    @property
    def keys(self) -> tuple[str, ...]:
        """Identity without scope, event time and source: the business keys."""
        return tuple(name for name in self.identity if name not in (self.scope_column, "event_timestamp", "source", "feature_set_version"))


def dataset_relation(dataset: Dataset) -> Relation:
    """Relation `raw.<dataset>`."""
    schema = {name: dtype for name, dtype in dataset.table.schema.items() if name != "ingested_at"}
    return Relation(
        name=f"raw.{dataset.name}",
        schema="raw",
        table=dataset.table.name,
        scope_column="dataset",
        scope=dataset.name,
        identity=dataset.table.identity,
        known_at="known_at",
        values=tuple(column.name for column in dataset.table.columns if column.name not in dataset.table.key),
        frame_schema=schema,
        calendar=dataset.calendar,
        timeframe=dataset.timeframe,
        code_version="",
        feature_set_version=None,
    )


def stream_relation(view: FeatureView, stream: Stream) -> Relation:
    """Relation `features.<view>.<stream>` (`<view>@<version>` when superseded); its code version changes with a feature or a formula."""
    declared = [(feature.name, feature.formula, view.version) for feature in view.features]
    return Relation(
        name=f"features.{view.label}.{stream.name}",
        schema="features",
        table=view.name,
        scope_column="stream",
        scope=stream.name,
        identity=(*view.join_keys, "event_timestamp", "feature_set_version", "stream"),
        known_at="created_timestamp",
        values=view.feature_names,
        frame_schema=feature_schema(view),
        calendar=stream.calendar,
        timeframe=stream.inputs[0].timeframe,
        code_version=hashlib.sha256(repr(declared).encode()).hexdigest()[:16],
        feature_set_version=view.version,
    )


def relations(catalogue: Catalogue) -> dict[str, Relation]:
    """Every relation by name."""
    found = [dataset_relation(dataset) for dataset in catalogue.datasets]
    found += [stream_relation(view, stream) for view in catalogue.views for stream in view.streams]
    return {relation.name: relation for relation in found}
