"""Dagster's event log on Postgres, fit for ranges of thousands of partitions.

Stock dagster-postgres 0.29 opens a connection for each event and batches materialisations only, so that planning ten years of daily
partitions costs minutes before the first row is computed; and it adds up the state of a partitioned check one partition at a time, so that
the UI's page of an asset with ten years of checks hangs for half a minute. This storage, named in `dagster.yaml`, keeps connections open,
writes planned events and check evaluations in batches, and adds up states in bulk. What is stored and answered is unchanged; it
also holds the lock of each run that its process executes (see `live_runs`).
"""

import io
import re
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Self

import polars as pl
from dagster import AssetCheckKey, AssetKey, DagsterEventType, PartitionsDefinition, RunsFilter
from dagster._core.asset_graph_view.serializable_entity_subset import SerializableEntitySubset
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluationPlanned
from dagster._core.events.log import EventLogEntry
from dagster._core.storage.asset_check_execution_record import (
    AssetCheckExecutionRecordStatus,
    AssetCheckExecutionResolvedStatus,
    AssetCheckPartitionInfo,
)
from dagster._core.storage.asset_check_state import AssetCheckState, _process_run_statuses
from dagster._core.storage.dagster_run import FINISHED_STATUSES
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable, AssetEventTagsTable, SqlEventLogStorageTable
from dagster._serdes import ConfigurableClassData, serialize_value
from dagster_postgres.event_log import PostgresEventLogStorage
from dagster_postgres.utils import pg_url_from_config
from sqlalchemy import Connection, Table, text

from featurestore_dagster.orchestration.asset_keys import AUDIT
from featurestore_dagster.orchestration.live_runs import RunLocks, unheld

STATEMENT_TIMEOUT_MILLISECONDS = 600_000
POOL_RECYCLE_SECONDS = 3600
POOL_OVERFLOW = 20


NEXT_EVENT_IDS = text("select nextval(pg_get_serial_sequence('event_logs', 'id')) from generate_series(1, :count)")

PLACES: dict[str, Any] = {name: f"place-{uuid.uuid4().hex}-of-{name}" for name in ("timestamp", "data", "message")}
PLACE = re.compile(r'"place-[0-9a-f]{32}-of-(timestamp|data|message)"')
"""Where a serialised event differs from its neighbours."""


class BatchingPostgresEventLogStorage(PostgresEventLogStorage):
    """PostgresEventLogStorage with a connection pool, and with batches of planned events and check evaluations."""

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]) -> Self:
        """As the parent, which names its own class; then pooled."""
        storage = cls(postgres_url=pg_url_from_config(config_value), should_autocreate_tables=True, inst_data=inst_data)
        storage.optimize_for_webserver(STATEMENT_TIMEOUT_MILLISECONDS, POOL_RECYCLE_SECONDS, POOL_OVERFLOW)
        return storage

    def store_event(self, event: EventLogEntry) -> None:
        """As the parent; a run is held by this process from its start to its end (see `live_runs`)."""
        self._locks.before(event)
        super().store_event(event)
        self._locks.after(event)

    def without_process(self, run_ids: Sequence[str]) -> set[str]:
        """Those of these started runs that no process executes."""
        with self.run_connection() as connection:
            return unheld(connection, run_ids)

    @cached_property
    def _locks(self) -> RunLocks:
        return RunLocks(self.postgres_url)

    def store_event_batch(self, events: Sequence[EventLogEntry]) -> None:
        """Store events of any batchable kind, and check evaluations, with a few statements per asset and kind."""
        groups: dict[tuple[DagsterEventType | None, AssetKey | None], list[EventLogEntry]] = defaultdict(list)
        for event in events:
            dagster_event = event.get_dagster_event()
            groups[dagster_event.event_type, dagster_event.asset_key].append(event)
        for (event_type, _), group in groups.items():
            match event_type:
                case DagsterEventType.ASSET_MATERIALIZATION | DagsterEventType.ASSET_MATERIALIZATION_PLANNED:
                    self._store_of_asset(group)
                case DagsterEventType.ASSET_CHECK_EVALUATION:
                    self._store_evaluations(group)
                case _:
                    super().store_event_batch(group)

    def _store_asset_check_evaluation_planned(self, event: EventLogEntry, event_id: int | None) -> None:
        """As the parent, with two differences.

        A partition's row does not repeat the list of all partitions: that is quadratic in their number. And a check that is not partitioned
        is planned once, not once per partition of the run: nothing would ever complete those rows.
        """
        planned = event.get_dagster_event().asset_check_planned_data
        subset = planned.partitions_subset if planned.check_name == AUDIT else None
        keys = subset.get_partition_keys() if subset else None
        partitions: list[str | None] = [None] if keys is None else [*keys]
        slim = event.get_dagster_event()._replace(
            event_specific_data=AssetCheckEvaluationPlanned(asset_key=planned.asset_key, check_name=planned.check_name)
        )
        row = {
            "asset_key": planned.asset_key.to_string(),
            "check_name": planned.check_name,
            "run_id": event.run_id,
            "execution_status": AssetCheckExecutionRecordStatus.PLANNED.value,
            "evaluation_event": serialize_value(event._replace(dagster_event=slim)),
            "evaluation_event_timestamp": self._event_insert_timestamp(event),  # type: ignore[no-untyped-call]
            "evaluation_event_storage_id": event_id,
        }
        with self.index_transaction() as connection:
            _copy(connection, AssetCheckExecutionsTable, [{**row, "partition": partition} for partition in partitions])

    def get_asset_check_state(
        self, keys: Sequence[tuple[AssetCheckKey, PartitionsDefinition | None]]
    ) -> Mapping[AssetCheckKey, AssetCheckState]:
        """As the parent, with one subset per status instead of one per partition; an unchanged state is not added up again.

        The UI asks for the state of every check in view, again and again.
        """
        partitioned = {key: definition for key, definition in keys if definition is not None}
        states = dict(super().get_asset_check_state([(key, None) for key, definition in keys if definition is None]))
        infos: dict[AssetCheckKey, list[AssetCheckPartitionInfo]] = defaultdict(list)
        for info in self.get_asset_check_partition_info(list(partitioned)) if partitioned else ():
            infos[info.check_key].append(info)
        for key, definition in partitioned.items():
            content = hash((definition, *((i.partition_key, i.latest_execution_status, i.is_current) for i in infos[key])))
            known = self._added_up.get(key)
            states[key] = known[1] if known and known[0] == content else self._state(key, definition, infos[key])
            if not states[key].in_progress_runs:
                self._added_up[key] = (content, states[key])
        return states

    @cached_property
    def _added_up(self) -> dict[AssetCheckKey, tuple[int, AssetCheckState]]:
        """Of each check the newest state without a run in progress, and the hash of the records that it was added up from."""
        return {}

    def _state(self, key: AssetCheckKey, definition: PartitionsDefinition, infos: Sequence[AssetCheckPartitionInfo]) -> AssetCheckState:
        known = set(definition.get_partition_keys())
        by_status: dict[AssetCheckExecutionResolvedStatus, list[str]] = defaultdict(list)
        by_run: dict[str, list[str]] = defaultdict(list)
        for info in infos:
            if info.partition_key is None or info.partition_key not in known:
                continue
            if info.latest_execution_status == AssetCheckExecutionRecordStatus.PLANNED:
                by_status[AssetCheckExecutionResolvedStatus.IN_PROGRESS].append(info.partition_key)
                by_run[info.latest_planned_run_id].append(info.partition_key)
            elif info.is_current:
                by_status[AssetCheckExecutionResolvedStatus[info.latest_execution_status.value]].append(info.partition_key)

        def subset(partitions: Sequence[str]) -> SerializableEntitySubset[AssetCheckKey]:
            return SerializableEntitySubset(key=key, value=definition.subset_with_partition_keys(partitions))

        subsets = {status: subset(by_status[status]) for status in AssetCheckExecutionResolvedStatus}
        in_progress = {run_id: subset(partitions) for run_id, partitions in by_run.items()}
        finished = self._instance.get_runs(RunsFilter(run_ids=list(by_run), statuses=FINISHED_STATUSES)) if by_run else []
        statuses = {run.run_id: run.status for run in finished}
        resolved, running = _process_run_statuses(key, definition, subsets, in_progress, statuses)
        newest = max((max(info.latest_check_event_storage_id, info.latest_materialization_storage_id or 0) for info in infos), default=0)
        return AssetCheckState(latest_storage_id=newest, subsets=resolved, in_progress_runs=running)

    def _store_of_asset(self, events: Sequence[EventLogEntry]) -> None:
        rows = self._insert(events)
        tags = [
            {"event_id": row["id"], "asset_key": row["asset_key"], "key": key, "value": value, "event_timestamp": row["timestamp"]}
            for event, row in zip(events, rows, strict=True)
            for key, value in self._tags_for_asset_event(event).items()
        ]
        with self.index_transaction() as connection:
            _copy(connection, AssetEventTagsTable, tags)
            self._store_asset_event(connection, events[-1], rows[-1]["id"])  # the asset's row shows its last event only

    def _store_evaluations(self, events: Sequence[EventLogEntry]) -> None:
        """Evaluations of one asset and run; what the run planned for the same partitions is replaced."""
        table = AssetCheckExecutionsTable
        rows = []
        for event, stored in zip(events, self._insert(events), strict=True):
            evaluation = event.get_dagster_event().asset_check_evaluation_data
            status = AssetCheckExecutionRecordStatus.SUCCEEDED if evaluation.passed else AssetCheckExecutionRecordStatus.FAILED
            target = evaluation.target_materialization_data
            rows.append(
                {
                    "asset_key": evaluation.asset_key.to_string(),
                    "check_name": evaluation.check_name,
                    "run_id": event.run_id,
                    "partition": evaluation.partition,
                    "execution_status": status.value,
                    "evaluation_event": stored["event"],
                    "evaluation_event_timestamp": stored["timestamp"],
                    "evaluation_event_storage_id": stored["id"],
                    "materialization_event_storage_id": target and target.storage_id,
                }
            )
        first = rows[0]
        with self.index_transaction() as connection:
            connection.execute(
                table.delete().where(
                    table.c.asset_key == first["asset_key"],
                    table.c.check_name == first["check_name"],
                    table.c.run_id == first["run_id"],
                    table.c.partition.in_([row["partition"] for row in rows]),
                )
            )
            _copy(connection, table, rows)

    def _insert(self, events: Sequence[EventLogEntry]) -> list[dict[str, Any]]:
        """Store events of one kind and asset; returns the rows as stored, with their ids, in order."""
        asset_key = events[0].get_dagster_event().asset_key
        asset_text = asset_key and asset_key.to_string()
        rows = [
            {
                "run_id": event.run_id,
                "event": content,
                "dagster_event_type": event.get_dagster_event().event_type_value,
                "timestamp": self._event_insert_timestamp(event),  # type: ignore[no-untyped-call]
                "step_key": event.get_dagster_event().step_key,
                "asset_key": asset_text,
                "partition": event.get_dagster_event().partition,
            }
            for event, content in zip(events, serialized(events), strict=True)
        ]
        with self.index_transaction() as connection:
            ids = connection.execute(NEXT_EVENT_IDS, {"count": len(rows)}).scalars()
            rows = [{"id": storage_id, **row} for storage_id, row in zip(ids, rows, strict=True)]
            _copy(connection, SqlEventLogStorageTable, rows)
        return rows


def serialized(events: Iterable[EventLogEntry]) -> Iterator[str]:
    """`serialize_value` of each event, letter for letter; what an event shares with the one before it is not serialised again."""
    known: EventLogEntry | None = None
    parts: list[str] = []
    for event in events:
        dagster_event = event.get_dagster_event()
        frame = event._replace(
            timestamp=PLACES["timestamp"],
            dagster_event=dagster_event._replace(event_specific_data=PLACES["data"], message=PLACES["message"]),
        )
        if frame != known:
            known, parts = frame, PLACE.split(serialize_value(frame))
        found = {"timestamp": event.timestamp, "data": dagster_event.event_specific_data, "message": dagster_event.message}
        # Odd parts are names of places.
        yield "".join(serialize_value(found[part]) if number % 2 else part for number, part in enumerate(parts))


def _copy(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append rows, which all have the keys of the first, in the connection's transaction. A thousand inserts cost ten times as much."""
    if not rows:
        return
    lines = pl.DataFrame(rows, infer_schema_length=None).write_csv(
        include_header=False, null_value="\\N", quote_style="non_numeric", datetime_format="%Y-%m-%d %H:%M:%S%.6f"
    )
    columns = ", ".join(f'"{name}"' for name in rows[0])
    cursor: Any = connection.connection.cursor()
    with cursor:
        cursor.copy_expert(f"copy {table.name} ({columns}) from stdin (format csv, null '\\N')", io.StringIO(lines))
