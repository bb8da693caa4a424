"""Feature values as they were known at an instant: the historical engine. Online vectors do not belong here."""

from featurestore_dagster.serving.point_in_time.output import Manifest
from featurestore_dagster.serving.point_in_time.reader import Detail, Label, PointInTimeReader, Retrieval

__all__ = ["Detail", "Label", "Manifest", "PointInTimeReader", "Retrieval"]
