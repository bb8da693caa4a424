"""Reading the ledger, the quality log and the quarantine. Writing them belongs to `PostgresStore.publish` and `block`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import polars as pl
from psycopg.rows import class_row, dict_row

from featurestore_dagster.settings import PostgresSettings
from featurestore_dagster.stores.postgres.connection import connect, read_frame


@dataclass(frozen=True)
class PartitionState:
    """The last publication of a partition."""

    relation: str
    partition_key: str
    publication_id: int
    rows_total: int
    content_hash: str
    inputs: dict[str, int]
    code_version: str
    published_at: datetime
    max_event_timestamp: datetime | None


@dataclass(frozen=True)
class QuarantinedRow:
    """A refused row and why."""

    quarantine_id: int
    relation: str
    partition_key: str
    row: dict[str, Any]
    reasons: list[str]
    status: str
    quarantined_at: datetime


@dataclass(frozen=True)
class Block:
    """A partition whose last audit failed, with the failed checks."""

    relation: str
    partition_key: str
    checks: list[Mapping[str, Any]]
    run_id: str
    logged_at: datetime


class Ledger:
    """What was published, blocked and quarantined."""

    def __init__(self, settings: PostgresSettings) -> None:
        """No connection is made before the first call."""
        self.settings = settings

    def partitions(self, relation: str, keys: Sequence[str] | None = None) -> dict[str, PartitionState]:
        """Last publication of each partition of a relation, by partition key in order; `keys` None means all."""
        with connect(self.settings) as connection, connection.cursor(row_factory=class_row(PartitionState)) as cursor:
            cursor.execute(
                "select distinct on (partition_key) relation, partition_key, publication_id, rows_total, content_hash, inputs,"
                " code_version, published_at, max_event_timestamp from ops.publications where relation = %(relation)s"
                " and (%(keys)s::text[] is null or partition_key = any(%(keys)s)) order by partition_key, publication_id desc",
                {"relation": relation, "keys": None if keys is None else list(keys)},
            )
            return {state.partition_key: state for state in cursor}

    def newest_writes(self, relation: str, since: Sequence[datetime], ends: Sequence[datetime]) -> list[int]:
        """For each pair of `since` and `ends`: newest publication id that wrote rows of `relation` with since < event time <= end, or 0."""
        written = self.writes(relation, min(since), max(ends))
        if written.is_empty():
            return [0] * len(ends)
        first, last, ids = (written[name].to_numpy() for name in ("first_event", "last_event", "publication_id"))
        asked = pl.DataFrame({"since": since, "end": ends}, schema={"since": pl.Datetime("us", "UTC"), "end": pl.Datetime("us", "UTC")})
        seen = (last > asked["since"].to_numpy()[:, None]) & (first <= asked["end"].to_numpy()[:, None])
        return (seen * ids).max(axis=1).tolist()  # type: ignore[no-any-return]

    def writes(self, relation: str, since: datetime, end: datetime) -> pl.DataFrame:
        """Publications that wrote rows of a relation with since < event time <= end.

        Columns `publication_id`, `first_event`, `last_event` (event times of the partition after it), unsorted.
        """
        query = (
            "select publication_id, min_event_timestamp as first_event, max_event_timestamp as last_event from ops.publications"
            " where relation = %(relation)s and rows_published > 0 and max_event_timestamp > %(since)s and min_event_timestamp <= %(end)s"
        )
        # Asked for each input of each chunk: over the connection that is kept for reads, since opening one costs more than the answer.
        instant = pl.Datetime("us", "UTC")
        schema = {"publication_id": pl.Int64(), "first_event": instant, "last_event": instant}
        return read_frame(self.settings, query, {"relation": relation, "since": since, "end": end}, schema)

    def newest_event(self, relation: str, up_to: int) -> datetime | None:
        """Greatest event time that publications of a relation up to this number wrote; None when they wrote no row."""
        with connect(self.settings) as connection:
            query = "select max(max_event_timestamp) from ops.publications where relation = %s and publication_id <= %s"
            found = connection.execute(query, [relation, up_to]).fetchone()
        return found[0] if found else None

    def written_by(self, run_id: str) -> dict[str, int]:
        """What a run wrote: rows_published, rows_quarantined, partitions_published."""
        with connect(self.settings) as connection, connection.cursor(row_factory=dict_row) as cursor:
            cursor.execute(
                "select coalesce(sum(rows_published), 0)::bigint as rows_published, count(*) filter (where rows_published > 0)"
                " as partitions_published, (select count(*) from ops.quarantine q where q.run_id = %(run)s) as rows_quarantined"
                " from ops.publications where run_id = %(run)s",
                {"run": run_id},
            )
            return cursor.fetchone() or {}

    def totals(self) -> dict[str, dict[str, int]]:
        """Per relation: partitions published, rows ever published, rows quarantined and still open, partitions blocked now."""
        with connect(self.settings) as connection, connection.cursor(row_factory=dict_row) as cursor:
            cursor.execute(
                "select relation, count(distinct partition_key) as partitions, sum(rows_published)::bigint as rows_published"
                " from ops.publications group by relation"
            )
            result = {row.pop("relation"): row for row in cursor.fetchall()}
            cursor.execute("select relation, count(*) as open from ops.quarantine where status = 'open' group by relation")
            for row in cursor.fetchall():
                result.setdefault(row["relation"], {"partitions": 0, "rows_published": 0})["quarantined_open"] = row["open"]
        for relation, _ in self.blocked():
            entry = result.setdefault(relation, {"partitions": 0, "rows_published": 0})
            entry["blocked"] = entry.get("blocked", 0) + 1
        return result

    def blocks(self, relation: str | None = None) -> list[Block]:
        """Partitions (of one relation, or of all) whose last audit failed, in order."""
        with connect(self.settings) as connection, connection.cursor(row_factory=class_row(Block)) as cursor:
            cursor.execute(
                "select distinct on (relation, partition_key) relation, partition_key, checks, run_id, logged_at"
                " from ops.quality_log failed where outcome = 'blocked' and (%(relation)s::text is null or relation = %(relation)s)"
                " and not exists (select from ops.quality_log later where later.relation = failed.relation"
                " and later.partition_key = failed.partition_key and later.quality_log_id > failed.quality_log_id"
                " and later.outcome <> 'blocked') order by relation, partition_key, quality_log_id desc",
                {"relation": relation},
            )
            return cursor.fetchall()

    def blocked(self, relation: str | None = None) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
        """Partitions (of one relation, or of all) whose last audit failed -> its failed checks."""
        return {(block.relation, block.partition_key): block.checks for block in self.blocks(relation)}

    def blocking_runs(self, run_ids: Sequence[str]) -> set[str]:
        """Those of the runs whose audits refused a partition."""
        with connect(self.settings) as connection:
            query = "select distinct run_id from ops.quality_log where outcome = 'blocked' and run_id = any(%s)"
            return {run_id for (run_id,) in connection.execute(query, [list(run_ids)])}

    def null_shares(self, relation: str, before: str, count: int = 20) -> list[dict[str, float]]:
        """NULL share by column of the last `count` partitions with rows published before this one, oldest first."""
        with connect(self.settings) as connection:
            rows = connection.execute(
                "select distinct on (partition_key) null_shares from ops.quality_log where relation = %s and partition_key < %s"
                " and jsonb_typeof(null_shares) = 'object' order by partition_key desc, quality_log_id desc limit %s",
                [relation, before, count],
            ).fetchall()
        return [shares for (shares,) in reversed(rows)]

    def first_refused(self, relation: str, reason: str, before: str) -> pl.DataFrame:
        """Symbols with an open refused row whose reason starts so, in partitions before this one: symbol, first event_timestamp of it."""
        query = (
            "select row->>'symbol' as symbol, min((row->>'event_timestamp')::timestamptz) as event_timestamp from ops.quarantine"
            " where relation = %(relation)s and status = 'open' and partition_key < %(before)s"
            " and exists (select from unnest(reasons) as reason where starts_with(reason, %(reason)s)) group by 1"
        )
        schema = {"symbol": pl.String(), "event_timestamp": pl.Datetime("us", "UTC")}
        return read_frame(self.settings, query, {"relation": relation, "before": before, "reason": reason}, schema)

    def quarantined(
        self, *, relation: str | None = None, status: str | None = "open", quarantine_id: int | None = None, limit: int = 100
    ) -> list[QuarantinedRow]:
        """Refused rows, newest first, restricted by whatever is given."""
        with connect(self.settings) as connection, connection.cursor(row_factory=class_row(QuarantinedRow)) as cursor:
            cursor.execute(
                "select quarantine_id, relation, partition_key, row, reasons, status, quarantined_at from ops.quarantine"
                " where (%(relation)s::text is null or relation = %(relation)s) and (%(status)s::text is null or status = %(status)s)"
                " and (%(id)s::bigint is null or quarantine_id = %(id)s) order by quarantine_id desc limit %(limit)s",
                {"relation": relation, "status": status, "id": quarantine_id, "limit": limit},
            )
            return cursor.fetchall()

    def mark_replayed(self, quarantine_ids: Sequence[int]) -> None:
        """Take rows out of the open quarantine: they were published."""
        with connect(self.settings) as connection:
            connection.execute("update ops.quarantine set status = 'replayed' where quarantine_id = any(%s)", [list(quarantine_ids)])
