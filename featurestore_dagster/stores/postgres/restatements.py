"""`ops.restatements`: requests to compute dependents again, and what the ledger says of changes and of those who followed them.

Deciding what is stale belongs to `pipeline.staleness`; asking Dagster belongs to `orchestration.propagation`.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import polars as pl
from psycopg import sql
from psycopg.rows import class_row, dict_row

from featurestore_dagster.errors import RefusedError
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS
from featurestore_dagster.settings import PostgresSettings
from featurestore_dagster.stores.postgres.connection import connect, read_frame

WATCH_EVERY_SECONDS = 0.1

WAITING, REQUESTED, DONE, FAILED = "waiting", "requested", "done", "failed"

COLUMNS = (
    "restatement_id, job, status, relations, first_partition, last_partition, partitions, causes, last_publication_id, attempts,"
    " changed_at, requested_at, finished_at, run_id"
)

WRITES_SCHEMA: dict[str, pl.DataType] = {
    "publication_id": pl.Int64(), "batch_id": pl.Int64(), "relation": pl.String(), "run_id": pl.String(), "rows": pl.Int64(),
    "first_event": UTC_MICROSECONDS, "last_event": UTC_MICROSECONDS, "published_at": UTC_MICROSECONDS,
}  # fmt: skip


@dataclass(frozen=True)
class Restatement:
    """One request. `restatement_id` is 0 before it is stored."""

    restatement_id: int
    job: str
    status: str
    relations: list[str]
    first_partition: str
    last_partition: str
    partitions: int
    causes: dict[str, Any]
    last_publication_id: int
    attempts: int
    changed_at: datetime
    requested_at: datetime
    finished_at: datetime | None
    run_id: str | None


class Restatements:
    """Reads and writes of the requests."""

    def __init__(self, settings: PostgresSettings) -> None:
        """No connection is made before the first call."""
        self.settings = settings

    def newest_publication(self) -> int:
        """Greatest publication id; 0 before the first."""
        with connect(self.settings) as connection:
            row = connection.execute("select coalesce(max(publication_id), 0) from ops.publications").fetchone()
        return int(row[0]) if row else 0

    def newest_of(self, relations: Sequence[str]) -> dict[str, int]:
        """Greatest publication id of each of these relations that was ever published."""
        query = (
            "select relation, newest from unnest(%s::text[]) as r(relation) cross join lateral (select max(publication_id) as newest"
            " from ops.publications p where p.relation = r.relation) n where newest is not null"
        )
        with connect(self.settings) as connection:
            return dict(connection.execute(query, [list(relations)]).fetchall())

    def await_publication(self, after: int, seconds: float) -> bool:
        """Whether anything but the publications up to `after` is there within so many seconds from now on; returns as soon as it is."""
        ends = time.monotonic() + seconds
        query = "select coalesce(max(publication_id), 0) from ops.publications"
        with connect(self.settings, autocommit=True) as connection:
            while time.monotonic() < ends:
                if connection.execute(query).fetchone() != (after,):
                    return True
                time.sleep(WATCH_EVERY_SECONDS)
        return False

    def writes(self, after: int) -> pl.DataFrame:
        """Publications after this id that wrote rows, by id: columns `WRITES_SCHEMA`; the event times are those of the new versions."""
        query = (
            "select publication_id, batch_id, relation, run_id, rows_published as rows, (changed->>'start')::timestamptz as first_event,"
            " (changed->>'end')::timestamptz as last_event, published_at from ops.publications"
            " where publication_id > %(after)s and rows_published > 0 order by publication_id"
        )
        return read_frame(self.settings, query, {"after": after}, WRITES_SCHEMA)

    def usable_from(self, table: str, batch_ids: Sequence[int]) -> pl.DataFrame:
        """For each of these batches of a raw table: from when on a row of it could be used, its event time or known-at when later.

        Columns batch_id, usable; unsorted.
        """
        query = sql.SQL(
            "select batch_id, min(greatest(event_timestamp, known_at)) as usable from raw.{} where batch_id = any(%(ids)s)"
            " group by batch_id"
        ).format(sql.Identifier(table))
        schema = {"batch_id": pl.Int64(), "usable": UTC_MICROSECONDS}
        return read_frame(self.settings, query, {"ids": list(batch_ids)}, schema)

    def blocked_since(self, relation: str, instant: datetime) -> set[str]:
        """Partitions of a relation whose last audit failed, later than this instant."""
        with connect(self.settings) as connection:
            rows = connection.execute(
                "select partition_key from (select distinct on (partition_key) partition_key, outcome, logged_at from ops.quality_log"
                " where relation = %s order by partition_key, quality_log_id desc) last where outcome = 'blocked' and logged_at > %s",
                [relation, instant],
            ).fetchall()
        return {key for (key,) in rows}

    def audited(self, relations: Sequence[str], since: str) -> dict[str, dict[str, datetime]]:
        """By relation the partitions from `since` on that were audited, each with the last time."""
        query = (
            "select relation, partition_key, max(logged_at) from ops.quality_log where relation = any(%(relations)s)"
            " and partition_key >= %(since)s group by 1, 2 order by 1, 2"
        )
        found: dict[str, dict[str, datetime]] = {}
        with connect(self.settings) as connection:
            for relation, key, logged_at in connection.execute(query, {"relations": list(relations), "since": since}):
                found.setdefault(relation, {})[key] = logged_at
        return found

    # Requests -------------------------------------------------------------------------------------------------------------------------

    def accounted_for(self) -> dict[str, int]:
        """By job the greatest publication id that a request of it accounts for."""
        with connect(self.settings) as connection:
            return dict(connection.execute("select job, max(last_publication_id) from ops.restatements group by job").fetchall())

    def requests(self, *, status: str | None = None, limit: int = 1000) -> list[Restatement]:
        """Requests, newest first."""
        with connect(self.settings) as connection, connection.cursor(row_factory=class_row(Restatement)) as cursor:
            cursor.execute(
                f"select {COLUMNS} from ops.restatements where %(status)s::text is null or status = %(status)s"  # noqa: S608 - constants
                " order by restatement_id desc limit %(limit)s",
                {"status": status, "limit": limit},
            )
            return cursor.fetchall()

    def request(self, restatement_id: int) -> Restatement:
        """The request of this id.

        Raises:
            RefusedError: There is none.
        """
        with connect(self.settings) as connection, connection.cursor(row_factory=class_row(Restatement)) as cursor:
            cursor.execute(f"select {COLUMNS} from ops.restatements where restatement_id = %s", [restatement_id])  # noqa: S608 - constants
            found = cursor.fetchone()
        if found is None:
            raise RefusedError(f"no restatement has id {restatement_id}; `featurestore restatements` lists them")
        return found

    def add(self, requests: Sequence[Restatement], job: str, accounted_for: int) -> list[Restatement]:
        """Store new requests of a job in one transaction; nothing when another process accounted for as much meanwhile.

        Returns:
            The requests with their ids.
        """
        names = COLUMNS.removeprefix("restatement_id, ")
        stored = []
        with connect(self.settings) as connection, connection.cursor(row_factory=class_row(Restatement)) as cursor:
            cursor.execute("select pg_advisory_xact_lock(hashtextextended('ops.restatements', 0))")
            newest = connection.execute("select max(last_publication_id) from ops.restatements where job = %s", [job]).fetchone()
            if newest and newest[0] is not None and newest[0] >= accounted_for:
                return []
            for request in requests:
                values = {**vars(request), "causes": json.dumps(request.causes)}
                placeholders = ", ".join(f"%({name})s" for name in names.split(", "))
                cursor.execute(f"insert into ops.restatements ({names}) values ({placeholders}) returning {COLUMNS}", values)  # noqa: S608 - constants
                stored += cursor.fetchall()
        return stored

    def attempt(self, restatement_id: int, attempts: int) -> None:
        """Record that a request is asked for another time."""
        with connect(self.settings) as connection:
            connection.execute(
                "update ops.restatements set status = 'requested', attempts = %s where restatement_id = %s", [attempts, restatement_id]
            )

    def finish(self, restatement_id: int, status: str, run_id: str, finished_at: datetime) -> None:
        """Record the end of a request's run: status done or failed."""
        with connect(self.settings) as connection:
            connection.execute(
                "update ops.restatements set status = %s, run_id = %s, finished_at = %s where restatement_id = %s",
                [status, run_id, finished_at, restatement_id],
            )

    # What happened --------------------------------------------------------------------------------------------------------------------

    def changes(self, limit: int = 20) -> list[dict[str, Any]]:
        """Batches of raw rows that replaced others, newest first, each with what followed it.

        Columns: batch_id, relation, first_partition, last_partition, rows (replaced), keys, published_at; `touched`: by relation of a view
        the partitions and rows that changed with it; `seconds`: from this publication to the last of those.
        """
        with connect(self.settings) as connection, connection.cursor(row_factory=dict_row) as cursor:
            cursor.execute(
                "select batch_id, relation, min(partition_key) as first_partition, max(partition_key) as last_partition,"
                " sum((changed->>'restated')::bigint)::bigint as rows, min(published_at) as published_at, max(publication_id) as newest,"
                " min(publication_id) as oldest, array_agg(changed->'keys') as keys from ops.publications"
                " where starts_with(relation, 'raw.') and (changed->>'restated')::bigint > 0"
                " group by batch_id, relation order by batch_id desc limit %s",
                [limit],
            )
            found = cursor.fetchall()
            for change in found:
                cursor.execute(FOLLOWED, change)
                rows = cursor.fetchall()
                change["touched"] = {
                    row["relation"]: {"partitions": row["partitions"], "rows": row["rows"]} for row in rows if row["rows"] > 0
                }
                last = max((row["published_at"] for row in rows), default=None)
                change["seconds"] = None if last is None else (last - change["published_at"]).total_seconds()
                change["keys"] = _names(change["keys"])
                del change["newest"], change["oldest"]
        return found


FOLLOWED = """
select relation, count(*) as partitions, sum(rows_published)::bigint as rows, max(published_at) as published_at from (
  select distinct on (relation, partition_key) relation, partition_key, rows_published, published_at from ops.publications
  where publication_id > %(oldest)s and (inputs->>%(relation)s)::bigint >= %(oldest)s
  order by relation, partition_key, publication_id
) first_that_read_it where rows_published > 0 group by relation order by relation
"""


def _names(listed: Sequence[Sequence[Sequence[str]] | None]) -> list[str]:
    """Keys of a change, as text; empty when there were too many to list."""
    if any(keys is None for keys in listed):
        return []
    return sorted({"/".join(key) for keys in listed for key in keys or ()})


def as_causes(writes: pl.DataFrame) -> Mapping[str, Any]:
    """`writes` summed up by relation: rows, first and last event time."""
    groups = writes.group_by("relation").agg(pl.col("rows").sum(), pl.col("first_event").min(), pl.col("last_event").max()).sort("relation")
    return {
        relation: {"rows": rows, "first_event": first.isoformat(), "last_event": last.isoformat()}
        for relation, rows, first, last in groups.iter_rows()
    }


def unfinished(settings: PostgresSettings) -> list[Restatement]:
    """Requests that failed or wait for a person, oldest first, without those whose partitions a later request of their job has computed."""
    with connect(settings) as connection, connection.cursor(row_factory=class_row(Restatement)) as cursor:
        cursor.execute(
            f"select {COLUMNS} from ops.restatements r where status = any(%s) and not exists (select from ops.restatements later"  # noqa: S608
            " where later.job = r.job and later.restatement_id > r.restatement_id and later.status = %s and later.relations @> r.relations"
            " and later.first_partition <= r.first_partition and later.last_partition >= r.last_partition) order by restatement_id",
            [[WAITING, FAILED], DONE],
        )
        return cursor.fetchall()
