"""Raw assets: one per dataset, partitioned by the sessions of its calendar."""

from collections.abc import Iterator
from typing import Any

import dagster as dg
import polars as pl

from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.raw_table import Dataset
from featurestore_dagster.model.time import Clock
from featurestore_dagster.orchestration import asset_keys, presentation
from featurestore_dagster.orchestration.partition_events import publish_events
from featurestore_dagster.orchestration.partitions import first_session, session_partitions
from featurestore_dagster.orchestration.platform import Platform
from featurestore_dagster.pipeline.publication import PartitionOutcome
from featurestore_dagster.projections.postgres_table import raw_table

OWNERS = ["team:market-data"]


def build_raw_asset(catalogue: Catalogue, dataset: Dataset, clock: Clock) -> dg.AssetsDefinition:
    """The asset that fetches, audits and publishes a dataset."""
    partitions = session_partitions(dataset.calendar, first_session(catalogue, dataset.calendar), clock)
    sources = {source.name: source.description for source in catalogue.sources if dataset in source.datasets}
    key = asset_keys.raw(dataset)
    # Prices are audited against the known splits, so these must be in before them.
    upstream = [asset_keys.raw(other) for other in catalogue.datasets if other.market == dataset.market and dataset.bars and not other.bars]

    def describe(outcomes: list[PartitionOutcome]) -> dict[str, Any]:
        rows = pl.concat([outcome.rows for outcome in outcomes])
        column = "close" if dataset.bars else dataset.table.columns[-1].name
        return {} if rows.is_empty() else {"plot": presentation.plot(rows, column, dataset.table.key[0], f"{column} of {dataset.name}")}

    @dg.asset(
        key=key,
        deps=upstream,
        partitions_def=partitions,
        backfill_policy=dg.BackfillPolicy.single_run(),
        check_specs=[
            dg.AssetCheckSpec(
                asset_keys.AUDIT,
                asset=key,
                blocking=True,
                partitions_def=partitions,
                description="Schema, market checks, completeness and staleness, judged before anything is written",
            )
        ],
        group_name="raw",
        owners=OWNERS,
        kinds={"postgres", "polars"},
        description=presentation.describe_dataset(dataset, sources),
        metadata={
            "dagster/column_schema": presentation.table_schema(raw_table(dataset.table)),
            "dagster/table_name": f"raw.{dataset.table.name}",
            "sources": ", ".join(sources),
        },
        pool=f"raw_{dataset.table.name}",
    )
    def raw_dataset(context: dg.AssetExecutionContext, platform: dg.ResourceParam[Platform]) -> Iterator[Any]:
        for problem in platform.take_files(dataset):
            context.log.error(problem)
        outcomes = platform.pipeline.ingest(dataset, list(context.partition_keys), context.run.run_id)
        yield from publish_events(context, outcomes, describe)

    return raw_dataset
