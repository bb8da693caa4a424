"""Batches of events: what they leave in the database is what Dagster's own storage leaves there, event by event."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import dagster as dg
import psycopg
import pytest
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluation,
    AssetCheckEvaluationPlanned,
    AssetCheckEvaluationTargetMaterializationData,
)
from dagster._core.events import AssetMaterializationPlannedData, DagsterEvent, StepMaterializationData
from dagster._core.events.log import EventLogEntry
from dagster._serdes import serialize_value
from dagster_postgres.event_log import PostgresEventLogStorage

from featurestore_dagster.orchestration.asset_keys import AUDIT
from featurestore_dagster.orchestration.event_log import BatchingPostgresEventLogStorage, serialized
from featurestore_dagster.settings import Settings

KEY = dg.AssetKey(["raw", 'awkward "key"'])
PARTITIONS = ("2018-12-27", "2018-12-28", "2018-12-31")
AWKWARD = 'quote " comma , tab \t line\nback\\slash \\N \\. place-of-data "place" λ \x1e'
TAGS = {"dagster/data_version": AWKWARD.replace("\n", " "), "dagster/code_version": "1"}


@dataclass
class Server:
    """Both storages over one database; each writes under a run id of its own."""

    stock: PostgresEventLogStorage
    batching: BatchingPostgresEventLogStorage
    query: Callable[..., list[tuple[Any, ...]]]

    def rows(self, columns: str, table: str, run_id: str) -> list[tuple[Any, ...]]:
        """Of one run, in order of storage, with the run's id taken out of the texts."""
        found = self.query(f"select {columns} from {table} where run_id = %s order by id", [run_id])
        return [tuple(value.replace(run_id, "RUN") if isinstance(value, str) else value for value in row) for row in found]


@pytest.fixture
def server(empty_database: Settings) -> Server:
    postgres = empty_database.postgres
    url = postgres.url("psycopg2", postgres.database)

    def query(text: str, parameters: list[Any]) -> list[tuple[Any, ...]]:
        with psycopg.connect(postgres.conninfo) as connection:
            return connection.execute(text, parameters).fetchall()

    return Server(PostgresEventLogStorage(url, should_autocreate_tables=True), BatchingPostgresEventLogStorage(url), query)


def event(run_id: str, kind: dg.DagsterEventType, data: Any, number: int, message: str | None = AWKWARD) -> EventLogEntry:
    inner = DagsterEvent(kind.value, "job", event_specific_data=data, message=message, step_key="step", logging_tags={"a": AWKWARD})
    return EventLogEntry(None, 10, "", run_id, 1546290000.25 + number, "step", "job", inner)


def planned(run_id: str) -> list[EventLogEntry]:
    kind = dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED
    return [event(run_id, kind, AssetMaterializationPlannedData(KEY, key), number) for number, key in enumerate(PARTITIONS)]


def materialised(run_id: str) -> list[EventLogEntry]:
    contents = [
        dg.AssetMaterialization(KEY, partition=key, metadata={AWKWARD: dg.MetadataValue.json({AWKWARD: [number, None]})}, tags=TAGS)
        for number, key in enumerate(PARTITIONS)
    ]
    kind = dg.DagsterEventType.ASSET_MATERIALIZATION
    return [event(run_id, kind, StepMaterializationData(content, []), number) for number, content in enumerate(contents)]


def evaluated(run_id: str, targets: list[int]) -> list[EventLogEntry]:
    contents = [
        AssetCheckEvaluation(
            asset_key=KEY,
            check_name=AUDIT,
            passed=target is not None,
            metadata={"rows": dg.MetadataValue.int(1), "examples": dg.MetadataValue.text(AWKWARD)},
            target_materialization_data=target
            and AssetCheckEvaluationTargetMaterializationData(storage_id=target, run_id="RUN", timestamp=1.0),
            blocking=True,
            partition=key,
        )
        for key, target in zip(PARTITIONS, [None, *targets[1:]], strict=True)
    ]
    return [event(run_id, dg.DagsterEventType.ASSET_CHECK_EVALUATION, content, number) for number, content in enumerate(contents)]


def check_planned(run_id: str) -> EventLogEntry:
    sessions = dg.DailyPartitionsDefinition("2018-12-01", end_date="2019-01-01")
    subset = sessions.subset_with_partition_keys(PARTITIONS).to_serializable_subset()
    return event(
        run_id,
        dg.DagsterEventType.ASSET_CHECK_EVALUATION_PLANNED,
        AssetCheckEvaluationPlanned(asset_key=KEY, check_name=AUDIT, partitions_subset=subset),
        0,
    )


def test_d10_a_batch_leaves_what_single_events_leave(server: Server) -> None:
    for one in [*planned("stock"), *materialised("stock"), check_planned("stock")]:
        server.stock.store_event(one)
    stock_asset = server.stock.get_asset_records([KEY])[0].asset_entry
    server.batching.store_event_batch([*planned("batch"), *materialised("batch"), check_planned("batch")])
    batch_asset = server.stock.get_asset_records([KEY])[0].asset_entry
    assert (stock_asset.last_run_id, batch_asset.last_run_id) == ("stock", "batch")
    assert batch_asset.last_materialization._replace(run_id="stock") == stock_asset.last_materialization

    targets = [row[0] for row in server.query("select id from event_logs where partition is not null and run_id = %s", ["stock"])][3:]
    for one in evaluated("stock", targets):
        server.stock.store_event(one)
    server.batching.store_event_batch(evaluated("batch", targets))

    stored = "event, dagster_event_type, timestamp, step_key, asset_key, partition"
    batch = [row for row in server.rows(stored, "event_logs", "batch") if row[1] != "ASSET_CHECK_EVALUATION_PLANNED"]
    stock = [row for row in server.rows(stored, "event_logs", "stock") if row[1] != "ASSET_CHECK_EVALUATION_PLANNED"]
    assert sorted(batch) == sorted(stock)
    assert len(batch) == 3 * len(PARTITIONS)

    tags = (
        "select e.partition, t.asset_key, t.key, t.value, t.event_timestamp from asset_event_tags t join event_logs e on e.id = t.event_id"
        " where e.run_id = %s order by 1, 3"
    )
    assert server.query(tags, ["batch"]) == server.query(tags, ["stock"])
    assert len(server.query(tags, ["batch"])) == len(PARTITIONS), "Dagster indexes the data version only"

    checks = (
        "partition, asset_key, check_name, execution_status, evaluation_event, evaluation_event_timestamp, materialization_event_storage_id"
    )
    executions = [sorted(server.rows(checks, "asset_check_executions", run)) for run in ("batch", "stock")]
    assert executions[0] == executions[1]
    assert [row[3] for row in executions[0]] == ["FAILED", "SUCCEEDED", "SUCCEEDED"]
    points_at = "select c.partition, e.partition, e.dagster_event_type from asset_check_executions c join event_logs e on"
    points_at += " e.id = c.evaluation_event_storage_id where c.run_id = %s"
    assert {row[2] for row in server.query(points_at, ["batch"])} == {"ASSET_CHECK_EVALUATION"}


def test_events_come_back_in_the_order_they_were_given(server: Server) -> None:
    server.batching.store_event_batch(materialised("one"))
    server.batching.store_event(event("one", dg.DagsterEventType.STEP_SKIPPED, None, 3, "done"))
    assert [entry.get_dagster_event().partition for entry in server.batching.get_logs_for_run("one")] == [*PARTITIONS, None]
    assert list(server.batching.get_logs_for_run("one"))[:3] == materialised("one")
    latest = server.batching.get_latest_storage_id_by_partition(KEY, dg.DagsterEventType.ASSET_MATERIALIZATION)
    assert sorted(latest, key=lambda partition: latest[partition]) == [*PARTITIONS]


def test_shared_parts_are_serialised_as_dagster_does() -> None:
    """Also where neighbours have nothing in common, and where there is no message or no data."""
    events = [
        *planned("one"),
        *planned("two"),
        *materialised("two"),
        check_planned("two"),
        *evaluated("two", [1, 2, 3]),
        event("two", dg.DagsterEventType.STEP_SKIPPED, None, 4, None),
        event("two", dg.DagsterEventType.STEP_SKIPPED, None, 5, ""),
    ]
    assert list(serialized(events)) == [serialize_value(one) for one in events]
