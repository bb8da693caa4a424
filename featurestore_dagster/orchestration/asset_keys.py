"""Names of the graph's nodes."""

import dagster as dg

from featurestore_dagster.model.feature_view import FeatureView, Stream
from featurestore_dagster.model.raw_table import Dataset

AUDIT = "audit"
"""Partitioned and blocking: the verdict before publication."""

DATA_FRESHNESS = "data_freshness"
"""Unpartitioned, posted by the sensor: the watermark against the calendar."""


def raw(dataset: Dataset) -> dg.AssetKey:
    """Asset of a dataset."""
    return dg.AssetKey(["raw", dataset.name])


def mart(name: str) -> dg.AssetKey:
    """Asset of a dbt mart."""
    return dg.AssetKey(["marts", name])


def mart_models(*names: str) -> dg.AssetSelection:
    """These marts with every model that they are built from."""
    return dg.AssetSelection.assets(*map(mart, names)).upstream() & dg.AssetSelection.key_prefixes(["staging"], ["marts"])


def stream(view: FeatureView, part: Stream) -> dg.AssetKey:
    """Asset of a stream: the view's name, the stream's where the view has several, and the version of a superseded view.

    One part: the graph shows the last one only.
    """
    parts = [view.name, *([part.name] if len(view.streams) > 1 else []), *([f"v{view.version}"] if view.is_superseded else [])]
    return dg.AssetKey("_".join(parts))


def online(view: FeatureView) -> dg.AssetKey:
    """Asset of a view's online rows."""
    return dg.AssetKey(["online", view.name])
