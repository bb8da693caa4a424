"""Sensors: data freshness as asset checks, and files that were dropped."""

import json
from collections.abc import Mapping
from datetime import date, datetime
from typing import Any

import dagster as dg
import polars as pl
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluation
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from featurestore_dagster.calendars import calendar
from featurestore_dagster.features.sources import FILES
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.feature_view import FeatureView, Stream
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS, Dataset
from featurestore_dagster.model.time import duration
from featurestore_dagster.orchestration import asset_keys
from featurestore_dagster.orchestration.jobs import path_of
from featurestore_dagster.orchestration.partitions import first_session, range_tags
from featurestore_dagster.orchestration.platform import Platform
from featurestore_dagster.orchestration.retries import retried
from featurestore_dagster.serving import slo_ledger
from featurestore_dagster.serving.slo_state import StreamState, stream_state
from featurestore_dagster.sources import files
from featurestore_dagster.stores.postgres.slo_ledger import SloStore

FRESHNESS_SECONDS = 60
FILES_SECONDS = 10


def freshness_checks(catalogue: Catalogue) -> list[dg.AssetChecksDefinition]:
    """The unpartitioned check `data_freshness` of every stream: evaluated on demand from the UI, and posted by the sensor."""
    return [_freshness_check(view, stream) for view in catalogue.views for stream in view.streams]


def _freshness_check(view: FeatureView, stream: Stream) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=asset_keys.stream(view, stream),
        name=asset_keys.DATA_FRESHNESS,
        description=f"The newest row is at most {duration(view.slo_of(stream).max_lag)} after it was due by calendar {stream.calendar}",
    )
    def data_freshness(context: dg.AssetCheckExecutionContext, platform: dg.ResourceParam[Platform]) -> dg.AssetCheckResult:
        with retried(context.op_execution_context.retry_number):
            state = stream_state(platform.catalogue, platform.store, view, stream, platform.clock.now())
        if not platform.catalogue.is_fed(stream):
            return dg.AssetCheckResult(passed=True, metadata={"state": "no source is switched on for it"})
        return dg.AssetCheckResult(passed=not state.freshness.state.overdue, metadata=_freshness_metadata(state, platform))

    return data_freshness


def _freshness_metadata(state: StreamState, platform: Platform) -> dict[str, Any]:
    result = state.freshness
    metadata: dict[str, Any] = {
        "state": result.state.value,
        "watermark": result.watermark.isoformat() if result.watermark else "none",
        "due_at": result.due_at.isoformat(),
        "next_due_at": result.next_due_at.isoformat(),
        "evaluated_at": platform.clock.now().isoformat(),
        "worst_symbols": dg.MetadataValue.md("\n".join(f"- {line}" for line in state.worst)) if state.worst else "none is behind",
    }
    if platform.clock.replayed:
        metadata["clock"] = platform.clock.replayed
    if result.lag is not None:
        metadata["lag_seconds"] = result.lag.total_seconds()
    if result.age_open is not None:
        metadata["age_open_seconds"] = result.age_open.total_seconds()
    return metadata


def build_freshness_sensor(catalogue: Catalogue) -> dg.SensorDefinition:
    """Evaluates every stream each minute and counts it in the SLO ledger; posts changes of state, and every tenth time as a heartbeat."""

    @dg.sensor(
        name="data_freshness_sensor",
        minimum_interval_seconds=FRESHNESS_SECONDS,
        description="Posts the check data_freshness of every view: the watermark against the exchange calendar",
    )
    def data_freshness_sensor(context: dg.SensorEvaluationContext, platform: dg.ResourceParam[Platform]) -> dg.SensorResult:
        previous: dict[str, Any] = json.loads(context.cursor or "{}")
        tick = int(previous.get("tick", 0)) + 1
        states: dict[str, str] = {}
        events = []
        for view in catalogue.views:
            for stream in filter(catalogue.is_fed, view.streams):
                key = asset_keys.stream(view, stream)
                state = stream_state(catalogue, platform.store, view, stream, platform.clock.now())
                name = key.to_user_string()
                states[name] = state.freshness.state.value
                if previous.get("states", {}).get(name) == states[name] and tick % HEARTBEAT_TICKS:
                    continue
                metadata = {
                    label: value
                    if isinstance(value, dg.MetadataValue)
                    else dg.MetadataValue.float(value)
                    if isinstance(value, float)
                    else dg.MetadataValue.text(str(value))
                    for label, value in _freshness_metadata(state, platform).items()
                }
                events.append(
                    AssetCheckEvaluation(
                        asset_key=key,
                        check_name=asset_keys.DATA_FRESHNESS,
                        passed=not state.freshness.state.overdue,
                        metadata=metadata,
                    )
                )
        slo_ledger.record(catalogue, SloStore(platform.settings.postgres), platform.clock.now())
        return dg.SensorResult(asset_events=events, cursor=json.dumps({"tick": tick, "states": states}))

    return data_freshness_sensor


HEARTBEAT_TICKS = 10


def build_file_sensor(catalogue: Catalogue, jobs: Mapping[str, UnresolvedAssetJobDefinition]) -> dg.SensorDefinition:
    """Takes files from the drop folder and requests a run of the sessions that each covers.

    Args:
        catalogue: Says which datasets may be dropped.
        jobs: Path jobs by name.
    """
    datasets = [dataset for dataset in FILES.datasets if dataset in catalogue.datasets]

    @dg.sensor(
        name="file_drop_sensor",
        minimum_interval_seconds=FILES_SECONDS,
        jobs=list({path.name: jobs[path.name] for path in (path_of(catalogue, dataset) for dataset in datasets)}.values()),
        description="Takes CSV and Parquet files from the drop folder and runs the sessions they cover",
    )
    def file_drop_sensor(context: dg.SensorEvaluationContext, platform: dg.ResourceParam[Platform]) -> dg.SensorResult:
        # The cursor is what was requested, not what was taken: a file landed before a crash is requested at the next tick.
        requested: dict[str, int] = json.loads(context.cursor or "{}")
        requests: list[dg.RunRequest] = []
        problems: list[str] = []
        now = platform.clock.now()
        for dataset in datasets:
            problems += platform.take_files(dataset)
            landed = files.landed(dataset, platform.settings.drop, after_sequence=requested.get(dataset.name, 0))
            # A file of later sessions than now is fetched by the runs of those sessions.
            earliest = first_session(catalogue, dataset.calendar)
            job = path_of(catalogue, dataset).name
            requests += [_request(dataset, job, file, earliest, now) for file in landed if file.first_event <= now]
            if landed:
                requested[dataset.name] = landed[-1].sequence
        for problem in problems:
            context.log.error(problem)
        nothing = "; ".join(problems) or f"no new file under {platform.settings.drop}"
        return dg.SensorResult(run_requests=requests, skip_reason=None if requests else nothing, cursor=json.dumps(requested))

    return file_drop_sensor


def _request(dataset: Dataset, job_name: str, file: files.LandedFile, earliest: date, now: datetime) -> dg.RunRequest:
    """A run of the file's sessions; rows before the first listing are in no partition, and stay in the landed file."""
    sessions = _sessions(dataset.calendar, file.first_event, min(file.last_event, now))
    first, last = (max(session, earliest).isoformat() for session in sessions)
    return dg.RunRequest(
        run_key=f"{dataset.name}:{file.sequence}",
        job_name=job_name,
        partition_key=first if first == last else None,
        tags={"file": file.name, **range_tags(first, last)},
    )


def _sessions(calendar_name: str, first: datetime, last: datetime) -> list[date]:
    return calendar(calendar_name).session_of(pl.Series([first, last], dtype=UTC_MICROSECONDS)).to_list()
