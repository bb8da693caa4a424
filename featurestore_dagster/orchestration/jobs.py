"""Jobs: for each calendar one path from raw rows to online rows. A backfill of a single asset needs no job: the UI makes it."""

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.feature_view import FeatureView, Stream
from featurestore_dagster.orchestration import asset_keys


def path_streams(catalogue: Catalogue, calendar_name: str) -> list[tuple[FeatureView, Stream]]:
    """Streams that live on a calendar."""
    return [(view, stream) for view in catalogue.views for stream in view.streams if stream.calendar == calendar_name]


def path_name(calendar_name: str) -> str:
    """Name of the calendar's job."""
    return f"{calendar_name.lower().replace('/', '_')}_path"


def calendars(catalogue: Catalogue) -> list[str]:
    """Calendars that have datasets, in declared order."""
    return list(dict.fromkeys(dataset.calendar for dataset in catalogue.datasets))


def build_path_job(catalogue: Catalogue, calendar_name: str) -> UnresolvedAssetJobDefinition:
    """All assets of a calendar, raw to online, in one process: a process for each step would cost a live bar seconds."""
    streams = path_streams(catalogue, calendar_name)
    keys = [asset_keys.raw(dataset) for dataset in catalogue.datasets if dataset.calendar == calendar_name]
    keys += [asset_keys.stream(view, stream) for view, stream in streams]
    selection: dg.AssetSelection = dg.AssetSelection.assets(*keys, *dict.fromkeys(asset_keys.online(view) for view, _ in streams))
    for mart in {view.mart for view, _ in streams if view.mart}:
        models = dg.AssetSelection.assets(asset_keys.mart(mart)).upstream() & dg.AssetSelection.key_prefixes(["staging"], ["marts"])
        selection |= models
    return dg.define_asset_job(
        path_name(calendar_name),
        selection=selection,
        executor_def=dg.in_process_executor,
        description=f"Calendar {calendar_name}: fetch, audit and publish raw rows, compute and publish the views, sync Redis",
        tags={"path": calendar_name},
    )
