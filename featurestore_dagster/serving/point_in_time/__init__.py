"""Feature values as they were known at an instant: the historical engine. Online vectors do not belong here."""

from featurestore_dagster.serving.point_in_time.entities import Entities
from featurestore_dagster.serving.point_in_time.output import Manifest
from featurestore_dagster.serving.point_in_time.reader import Detail, HistoryOptions, Label, PointInTimeReader, Retrieval

__all__ = ["Detail", "Entities", "HistoryOptions", "Label", "Manifest", "PointInTimeReader", "Retrieval"]
