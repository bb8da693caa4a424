"""Dagster's event log on Postgres, fit for ranges of thousands of partitions.

Stock dagster-postgres 0.29 opens a connection for each event and batches materialisations only, so that planning ten years of daily
partitions costs minutes before the first row is computed. This storage, named in `dagster.yaml`, keeps connections open and writes planned
events and check evaluations in batches too. What is stored is unchanged; removing the class from `dagster.yaml` loses nothing but time.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Self

from dagster import DagsterEventType
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluationPlanned
from dagster._core.events.log import EventLogEntry
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable, SqlEventLogStorageTable
from dagster._serdes import ConfigurableClassData, serialize_value
from dagster_postgres.event_log import PostgresEventLogStorage
from dagster_postgres.utils import pg_url_from_config

STATEMENT_TIMEOUT_MILLISECONDS = 600_000
POOL_RECYCLE_SECONDS = 3600
POOL_OVERFLOW = 20


class BatchingPostgresEventLogStorage(PostgresEventLogStorage):
    """PostgresEventLogStorage with a connection pool, and with batches of planned events and check evaluations."""

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]) -> Self:
        """As the parent, which names its own class; then pooled."""
        storage = cls(postgres_url=pg_url_from_config(config_value), should_autocreate_tables=True, inst_data=inst_data)
        storage.optimize_for_webserver(STATEMENT_TIMEOUT_MILLISECONDS, POOL_RECYCLE_SECONDS, POOL_OVERFLOW)
        return storage

    def store_event_batch(self, events: Sequence[EventLogEntry]) -> None:
        """Store events of any batchable kind, and check evaluations, with a few statements per asset and kind."""
        groups: dict[tuple[DagsterEventType | None, str], list[EventLogEntry]] = defaultdict(list)
        for event in events:
            dagster_event = event.get_dagster_event()
            groups[dagster_event.event_type, str(dagster_event.asset_key)].append(event)
        for (event_type, _), group in groups.items():
            match event_type:
                case DagsterEventType.ASSET_MATERIALIZATION_PLANNED:
                    self._store_planned(group)
                case DagsterEventType.ASSET_CHECK_EVALUATION:
                    self._store_evaluations(group)
                case _:
                    super().store_event_batch(group)

    def _store_asset_check_evaluation_planned(self, event: EventLogEntry, event_id: int | None) -> None:
        """As the parent, but a partition's row does not repeat the list of all partitions: that is quadratic in their number."""
        planned = event.get_dagster_event().asset_check_planned_data
        keys = planned.partitions_subset.get_partition_keys() if planned.partitions_subset else None
        partitions: list[str | None] = [None] if keys is None else [*keys]
        slim = event.get_dagster_event()._replace(
            event_specific_data=AssetCheckEvaluationPlanned(asset_key=planned.asset_key, check_name=planned.check_name)
        )
        text = serialize_value(event._replace(dagster_event=slim))
        row = {
            "asset_key": planned.asset_key.to_string(),
            "check_name": planned.check_name,
            "run_id": event.run_id,
            "execution_status": AssetCheckExecutionRecordStatus.PLANNED.value,
            "evaluation_event": text,
            "evaluation_event_timestamp": self._event_insert_timestamp(event),  # type: ignore[no-untyped-call]
            "evaluation_event_storage_id": event_id,
        }
        with self.index_transaction() as connection:
            connection.execute(AssetCheckExecutionsTable.insert(), [{**row, "partition": partition} for partition in partitions])

    def _insert(self, events: Sequence[EventLogEntry]) -> list[int]:
        with self._connect() as connection:
            statement = self.prepare_insert_event_batch(events).returning(SqlEventLogStorageTable.c.id)
            return [int(row[0]) for row in connection.execute(statement).fetchall()]

    def _store_planned(self, events: Sequence[EventLogEntry]) -> None:
        ids = self._insert(events)
        with self.index_transaction() as connection:
            self._store_asset_event_tags(connection, events, ids)
            self._store_asset_event(connection, events[-1], ids[-1])  # the asset's row shows its last event only

    def _store_evaluations(self, events: Sequence[EventLogEntry]) -> None:
        """Evaluations of one asset and run; what the run planned for the same partitions is replaced."""
        ids = self._insert(events)
        table = AssetCheckExecutionsTable
        rows = []
        for event, storage_id in zip(events, ids, strict=True):
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
                    "evaluation_event": serialize_value(event),
                    "evaluation_event_timestamp": self._event_insert_timestamp(event),  # type: ignore[no-untyped-call]
                    "evaluation_event_storage_id": storage_id,
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
            connection.execute(table.insert(), rows)
