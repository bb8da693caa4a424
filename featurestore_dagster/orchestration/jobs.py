"""Jobs: paths from raw rows to online rows. A backfill of a single asset needs no job: the UI makes it."""

from dataclasses import dataclass
from datetime import timedelta

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.feature_view import FeatureView, Stream
from featurestore_dagster.model.raw_table import Dataset
from featurestore_dagster.model.time import Timeframe
from featurestore_dagster.orchestration import asset_keys
from featurestore_dagster.orchestration.drift import DRIFT_JOB, drift_selection

SLOW = timedelta(hours=1)

BACKFILL_TAG = "featurestore/backfill"
"""On runs of `featurestore backfill`."""


@dataclass(frozen=True)
class MarketPath:
    """What falls due together on one calendar: the streams of one timeframe, or (cadence None) all of an hour and longer."""

    calendar: str
    cadence: Timeframe | None = None

    @property
    def name(self) -> str:
        """Name of the job."""
        market = self.calendar.lower().replace("/", "_")
        return f"{market}_{self.cadence}_path" if self.cadence else f"{market}_path"

    def streams(self, catalogue: Catalogue) -> list[tuple[FeatureView, Stream]]:
        """Streams that are computed on it."""
        return [(v, s) for v in catalogue.views for s in v.streams if MarketPath(s.calendar, _cadence(s.timeframe)) == self]

    def datasets(self, catalogue: Catalogue) -> list[Dataset]:
        """Raw rows that are fetched on it: bars of its timeframes, and arrivals that its streams read; the slow path has the rest."""
        mine = [dataset for dataset in catalogue.datasets if dataset.calendar == self.calendar]
        read = {dataset.name for _, stream in self.streams(catalogue) for dataset in stream.inputs}
        elsewhere = {d.name for v in catalogue.views for s in v.streams if s.calendar == self.calendar for d in s.inputs} - read
        return [
            dataset
            for dataset in mine
            if (
                _cadence(dataset.timeframe) == self.cadence
                if dataset.bars
                else dataset.name in read or (self.cadence is None and dataset.name not in elsewhere)
            )
        ]

    def delivered(self, catalogue: Catalogue) -> list[Dataset]:
        """Those of its `datasets` that a source delivers."""
        delivered = {dataset.name for source in catalogue.sources for dataset in source.datasets}
        return [dataset for dataset in self.datasets(catalogue) if dataset.name in delivered]


def _cadence(timeframe: Timeframe) -> Timeframe | None:
    return None if timeframe.duration >= SLOW else timeframe


def paths(catalogue: Catalogue) -> list[MarketPath]:
    """Every path that has a dataset or a stream, in declared order."""
    found = [MarketPath(dataset.calendar, _cadence(dataset.timeframe)) for dataset in catalogue.datasets if dataset.bars]
    found += [MarketPath(stream.calendar, _cadence(stream.timeframe)) for view in catalogue.views for stream in view.streams]
    return list(dict.fromkeys(found))


def job_names(catalogue: Catalogue) -> set[str]:
    """Every declared job."""
    return {DRIFT_JOB, *(path.name for path in paths(catalogue))}


def path_of(catalogue: Catalogue, dataset: Dataset) -> MarketPath:
    """The first path that fetches a dataset."""
    return next(path for path in paths(catalogue) if dataset in path.datasets(catalogue))


def build_path_job(catalogue: Catalogue, path: MarketPath) -> UnresolvedAssetJobDefinition:
    """All assets of a path, raw to online, in one process: a process for each step would cost a live bar seconds."""
    streams = path.streams(catalogue)
    keys = [asset_keys.raw(dataset) for dataset in path.datasets(catalogue)]
    keys += [asset_keys.stream(view, stream) for view, stream in streams]
    online = dict.fromkeys(asset_keys.online(view) for view, _ in streams if view.online)
    selection: dg.AssetSelection = dg.AssetSelection.assets(*keys, *online)
    if marts := {view.mart for view, _ in streams if view.mart}:
        selection |= asset_keys.mart_models(*marts)
    cadence = f"{path.cadence} bars" if path.cadence else "bars of an hour and longer"
    return dg.define_asset_job(
        path.name,
        selection=selection - drift_selection(catalogue),
        executor_def=dg.in_process_executor,
        description=f"Calendar {path.calendar}, {cadence}: fetch, audit and publish raw rows, compute and publish the views, sync Redis",
        tags={"path": path.name},
    )
