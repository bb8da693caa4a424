"""Online assets: a view's newest rows in Redis, brought up to the ledger."""

from typing import Any

import dagster as dg
from dagster._core.storage.tags import PRIORITY_TAG

from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.orchestration import asset_keys, presentation
from featurestore_dagster.orchestration.platform import Platform
from featurestore_dagster.orchestration.retries import retried
from featurestore_dagster.projections.postgres_table import feature_table
from featurestore_dagster.serving.online_sync import sync_view

ONLINE_FIRST = "1"
"""Within a run: readers have a view's values while the run computes the next view."""


def build_online_asset(view: FeatureView) -> dg.AssetsDefinition:
    """The asset that applies to Redis every publication of a view which Redis does not remember. Unpartitioned: Redis holds the newest."""
    held = {*view.join_keys, *view.feature_names, "event_timestamp", "created_timestamp", "flags"}
    columns = [column for column in presentation.table_schema(feature_table(view)).columns if column.name in held]
    streams = [asset_keys.stream(view, stream) for stream in view.streams]
    lineage = {name: [dg.TableColumnDep(stream, name) for stream in streams] for name in view.feature_names}

    @dg.asset(
        key=asset_keys.online(view),
        deps=[dg.AssetDep(stream, partition_mapping=dg.LastPartitionMapping()) for stream in streams],
        group_name="online",
        owners=[view.owner],
        kinds={"redis"},
        description=(
            f"Newest row of each entity of {view.name}, in Feast's layout. Follows the ledger, not event time: corrections and late rows "
            "arrive, and a flushed Redis heals at the next run."
        ),
        metadata={
            "dagster/column_schema": dg.TableSchema(columns),
            "dagster/column_lineage": dg.TableColumnLineage(lineage),
            "entities": ", ".join(view.join_keys),
            "features": len(view.features),
        },
        pool=f"online_{view.name}",
        op_tags={PRIORITY_TAG: ONLINE_FIRST},
    )
    def online_view(context: dg.AssetExecutionContext, platform: dg.ResourceParam[Platform]) -> dg.MaterializeResult[Any]:
        with retried(context.retry_number):
            result = sync_view(view, platform.store, platform.online, platform.clock.now(), platform.catalogue)
        return dg.MaterializeResult(
            metadata={
                "entities_written": result.entities_written,
                "entities_skipped": result.entities_skipped,
                "entities_refused_future": result.entities_refused_future,
                "entities_deleted": result.entities_deleted,
                "redis_bytes_used": result.bytes_used,
                "watermark": result.watermark.isoformat() if result.watermark else "none",
            }
        )

    return online_view
