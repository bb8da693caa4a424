"""Feature assets (groups indicators and macro): one per stream of a view, partitioned like its spine."""

import re
from collections.abc import Iterator
from datetime import timedelta
from functools import cache
from typing import Any

import dagster as dg
import polars as pl
from dagster._core.storage.tags import PRIORITY_TAG

from featurestore_dagster.calendars import calendar
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.feature_view import LONGEST_CLOSURE, FeatureView, Stream
from featurestore_dagster.model.time import Clock
from featurestore_dagster.orchestration import asset_keys, presentation
from featurestore_dagster.orchestration.lineage import column_lineage
from featurestore_dagster.orchestration.partition_events import publish_events
from featurestore_dagster.orchestration.partitions import first_session, session_partitions
from featurestore_dagster.orchestration.platform import Platform
from featurestore_dagster.pipeline.publication import PartitionOutcome
from featurestore_dagster.projections.postgres_table import feature_table
from featurestore_dagster.projections.relation import stream_relation

JOINED_LAST = "-1"
"""Within a run: what only training reads waits for what is served."""

SHORTEST_POLICY = timedelta(minutes=1)
LAST_HOUR = 23
HOURS = re.compile(r"\d+(-\d+|(,\d+)*)")
"""Hours of a cron expression: one, a range, or a list."""


def build_stream_asset(catalogue: Catalogue, view: FeatureView, stream: Stream, clock: Clock) -> dg.AssetsDefinition:
    """The asset that computes, audits and publishes a stream of a view."""
    partitions = session_partitions(stream.calendar, first_session(catalogue, stream.calendar), clock)
    key = asset_keys.stream(view, stream)
    # Sessions of another calendar do not map onto these; the edge shows where the columns come from.
    upstream = [
        dg.AssetDep(asset_keys.raw(dataset), partition_mapping=None if dataset.calendar == stream.calendar else dg.LastPartitionMapping())
        for dataset in stream.inputs
    ]
    lineage = column_lineage(view, stream)

    def describe(outcomes: list[PartitionOutcome]) -> dict[str, Any]:
        rows = pl.concat([outcome.rows for outcome in outcomes])
        metadata: dict[str, Any] = {"dagster/column_lineage": lineage}
        if not rows.is_empty():
            plotted = next((name for name in view.feature_names if rows[name].count()), view.feature_names[0])
            metadata["plot"] = presentation.plot(rows, plotted, view.join_keys[0], f"{plotted} of {view.label}")
            metadata["distributions"] = presentation.distributions(rows, view)
        return metadata

    @dg.asset(
        key=key,
        deps=[*upstream, *([asset_keys.mart(view.mart)] if view.mart else []), *_members(view, stream)],
        partitions_def=partitions,
        backfill_policy=dg.BackfillPolicy.single_run(),
        check_specs=[
            dg.AssetCheckSpec(
                asset_keys.AUDIT,
                asset=key,
                blocking=True,
                partitions_def=partitions,
                description="Types, ranges, completeness and staleness, judged before anything is written",
            )
        ],
        freshness_policy=freshness_policy(view, stream),
        group_name=view.group,
        owners=[view.owner],
        kinds={"postgres", "polars"},
        code_version=stream_relation(view, stream).code_version,
        description=presentation.describe_view(view, stream),
        metadata={
            "dagster/column_schema": presentation.table_schema(feature_table(view)),
            "dagster/column_lineage": lineage,
            "dagster/table_name": f"features.{view.name}",
            "features": presentation.features_table(view),
            "slo": str(view.slo_of(stream).max_lag),
            "ttl_open_market_time": str(view.ttl_of(stream)),
            "calendar": stream.calendar,
            "feature_set_version": view.version,
        },
        pool=f"features_{view.name}",
        op_tags={PRIORITY_TAG: JOINED_LAST} if view.members else None,
    )
    def stream_features(context: dg.AssetExecutionContext, platform: dg.ResourceParam[Platform]) -> Iterator[Any]:
        outcomes = platform.pipeline.materialise(view, stream, list(context.partition_keys), context.run.run_id)
        yield from publish_events(context, outcomes, describe)

    return stream_features


def _members(view: FeatureView, stream: Stream) -> list[dg.AssetKey]:
    """Streams of the joined views on the same calendar: what a run of this calendar's path must have computed before."""
    return [asset_keys.stream(member, part) for member in view.members for part in member.streams if part.calendar == stream.calendar]


def freshness_policy(view: FeatureView, stream: Stream) -> dg.FreshnessPolicy:
    """Dagster's badge: does the asset run by its SLO? Whether the data is fresh is the check `data_freshness`.

    A stream whose schedule names its hours is due a SLO after its last tick of each hour, so that nights and weekends are no failure. One
    that runs round the clock never rests longer than a bar and its SLO; one whose SLO reaches into the next day, not longer than that and
    the longest closure.
    """
    slo = view.slo_of(stream).max_lag
    minute, hours, *days = stream.schedule.split()
    if not HOURS.fullmatch(hours):
        return dg.FreshnessPolicy.time_window(fail_window=stream.timeframe.duration + slo, warn_window=max(slo, SHORTEST_POLICY))
    once_an_hour = minute.isdecimal()
    late, minutes = divmod(timedelta(minutes=int(minute) if once_an_hour else 59) + slo, timedelta(hours=1))
    between = "-" if "-" in hours else ","
    due = [int(hour) + late for hour in hours.split(between)]
    if max(due) > LAST_HOUR:
        return dg.FreshnessPolicy.time_window(fail_window=LONGEST_CLOSURE + stream.timeframe.duration + slo, warn_window=slo)
    return _deadlines(
        f"{minutes // timedelta(minutes=1)} {between.join(map(str, due))} {' '.join(days)}",
        slo if once_an_hour else max(slo, timedelta(hours=1)),
        calendar(stream.calendar).time_zone,
    )


@cache
def _deadlines(cron: str, lower_bound: timedelta, time_zone: str) -> dg.FreshnessPolicy:
    """Dagster looks at a thousand ticks of each: every run pays for it when it loads the code."""
    return dg.FreshnessPolicy.cron(deadline_cron=cron, lower_bound_delta=lower_bound, timezone=time_zone)
