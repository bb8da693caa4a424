"""The Dagster code location: everything that is derived from the catalogue, put together.

The code server loads `defs`. No declaration and no business code belongs here.
"""

from pathlib import Path

import dagster as dg

from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.orchestration.alerting import build_alert_sensor
from featurestore_dagster.orchestration.assets.dbt import DbtRunner, build_dbt_assets
from featurestore_dagster.orchestration.assets.online import build_online_asset
from featurestore_dagster.orchestration.assets.raw import build_raw_asset
from featurestore_dagster.orchestration.assets.views import build_stream_asset
from featurestore_dagster.orchestration.drift import build_drift_job, build_drift_schedule, drift_checks
from featurestore_dagster.orchestration.jobs import build_path_job, paths
from featurestore_dagster.orchestration.platform import Platform
from featurestore_dagster.orchestration.propagation import build_propagation_sensor
from featurestore_dagster.orchestration.schedules import (
    build_fallback_schedule,
    build_path_schedule,
    build_refetch_schedule,
    fallback_views,
)
from featurestore_dagster.orchestration.sensors import build_file_sensor, build_freshness_sensor, freshness_checks
from featurestore_dagster.settings import Settings

PROJECT_ROOT = Path(__file__).parent.parent


def build_definitions(settings: Settings, catalogue: Catalogue | None = None, **resource_overrides: object) -> dg.Definitions:
    """Definitions for these settings.

    Args:
        settings: Decides the clock (partitions of a replay end with the replayed day) and, inside runs, the stores.
        catalogue: What to build; the declared one with the sources that are switched on, unless given.
        resource_overrides: Resources by name (`platform`, `dbt`) that replace the usual ones, for tests.
    """
    catalogue = catalogue or CATALOGUE.with_sources(settings.source_names)
    clock = settings.make_clock()
    dbt = DbtRunner(settings, PROJECT_ROOT / "dbt_project")
    routes = paths(catalogue)
    jobs = {path.name: build_path_job(catalogue, path) for path in routes}
    drift_job = build_drift_job(catalogue)
    return dg.Definitions(
        assets=[
            *(build_raw_asset(catalogue, dataset, clock) for dataset in catalogue.datasets),
            *(build_stream_asset(catalogue, view, stream, clock) for view in catalogue.views for stream in view.streams),
            *(build_online_asset(view) for view in catalogue.views if view.online),
            build_dbt_assets(dbt),
        ],
        asset_checks=[*freshness_checks(catalogue), *drift_checks(catalogue)],
        jobs=[*jobs.values(), drift_job],
        schedules=[
            *(build_path_schedule(catalogue, path) for path in routes),
            *(build_fallback_schedule(catalogue, path) for path in routes if fallback_views(path)),
            *(build_refetch_schedule(catalogue, path) for path in routes if path.delivered(catalogue)),
            build_drift_schedule(drift_job),
        ],
        sensors=[
            build_freshness_sensor(catalogue),
            build_alert_sensor(catalogue),
            build_file_sensor(catalogue, jobs),
            build_propagation_sensor(catalogue, jobs),
        ],
        resources={"platform": Platform(settings, catalogue), "dbt": dbt, **resource_overrides},
    )


defs = build_definitions(Settings())
