"""The write side of the store: versions, ledger, quarantine and quality log of one relation, inside one transaction of the caller's.

Which rows are new is decided in `versions`; reading belongs to `store` and `ledger`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Any

import polars as pl
import psycopg
from psycopg import sql
from psycopg.copy import QueuedLibpqWriter

from featurestore_dagster.calendars import calendar
from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.projections.relation import Relation
from featurestore_dagster.settings import PostgresSettings
from featurestore_dagster.stores.postgres import schema, versions, watermarks
from featurestore_dagster.stores.postgres.connection import read_frame
from featurestore_dagster.stores.postgres.refused import REFUSED_SCHEMA, refused_rows

LEDGER_LOCK = 7_301_154_921
"""Advisory lock under which ledger ids are drawn: held to the commit, so that ids appear in commit order."""

ROWS_PER_COPY = 20_000

CHANGED_KEYS_LISTED = 100
"""A publication that touches more keys than this records the range only."""

LATE_VINTAGE = "known_at: an older vintage than what is published, with another value than was read here at its time"

LEDGER_COLUMNS = {
    "batch_id": "bigint", "relation": "text", "partition_key": "text", "rows_published": "bigint", "rows_quarantined": "bigint",
    "rows_total": "bigint", "content_hash": "text", "min_event_timestamp": "timestamptz", "max_event_timestamp": "timestamptz",
    "changed": "jsonb", "inputs": "jsonb", "code_version": "text", "run_id": "text", "published_at": "timestamptz",
    "seconds": "double precision",
}  # fmt: skip
LOG_COLUMNS = {
    "relation": "text", "partition_key": "text", "outcome": "text", "checks": "jsonb", "flags": "jsonb", "null_shares": "jsonb",
    "run_id": "text", "logged_at": "timestamptz",
}  # fmt: skip


@dataclass(frozen=True)
class Publication:
    """One row of the ledger, as far as its writer cares. `publication_id` is None when nothing new was recorded."""

    relation: str
    partition_key: str
    publication_id: int | None
    rows_published: int
    rows_quarantined: int
    rows_total: int
    content_hash: str


def lock_table(connection: psycopg.Connection[tuple[Any, ...]], relation: Relation) -> None:
    """Keep other writers of the relation's table out until the transaction ends.

    The table and not only the relation: a new year's native partition is created under a lock that readers of the table wait for, and
    `Writer.stored` reads over a connection of its own, so that two writers would wait for each other without Postgres seeing it.
    """
    connection.execute("select pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"{relation.schema}.{relation.table}"])


@dataclass(frozen=True)
class Writer:
    """One transaction's writes to a relation."""

    settings: PostgresSettings
    connection: psycopg.Connection[tuple[Any, ...]]
    relation: Relation
    run_id: str
    now: datetime
    seconds: float | None = None

    def stored(self, partitions: Sequence[str]) -> pl.DataFrame:
        """Every version in the range of these partitions, columns `relation.frame_schema`, unsorted."""
        relation, sessions = self.relation, calendar(self.relation.calendar)
        low = sessions.session(date.fromisoformat(min(partitions))).window_start
        high = sessions.session(date.fromisoformat(max(partitions))).window_end
        table = sql.Identifier(relation.schema, relation.table)
        in_range = sql.SQL("{} = %(scope)s and event_timestamp > %(low)s and event_timestamp <= %(high)s").format(
            sql.Identifier(relation.scope_column)
        )
        parameters: dict[str, Any] = {"scope": relation.scope, "low": low, "high": high}
        if relation.feature_set_version is not None:
            in_range += sql.SQL(" and feature_set_version = %(version)s")
            parameters["version"] = relation.feature_set_version
        # Backfills mostly find nothing: a look at the index is cheaper than a bulk read of nothing.
        if self.connection.execute(sql.SQL("select 1 from {} where {} limit 1").format(table, in_range), parameters).fetchone() is None:
            return pl.DataFrame(schema=relation.frame_schema)
        query = sql.SQL("select {} from {} where {}").format(_names(relation.frame_schema), table, in_range)
        return read_frame(self.settings, query, parameters, relation.frame_schema)

    def publish(
        self,
        rows: pl.DataFrame,
        partitions: Sequence[str],
        quarantined: pl.DataFrame | None,
        inputs: Mapping[str, dict[str, int]],
        *,
        supersede: bool,
    ) -> list[Publication]:
        """See `PostgresStore.publish`; the table is locked."""
        stored = self.stored(partitions)
        new, late = versions.new_versions(self.relation, rows, stored, self.now)
        row = self.connection.execute("select nextval('ops.batch_id')").fetchone()
        batch_id = int(row[0])  # type: ignore[index]
        if not new.is_empty():
            self._copy(new, batch_id)
            watermarks.advance(self.connection, self.relation, batch_id)
        too_late = refused_rows(late, _sessions(self.relation, late), pl.Series([[LATE_VINTAGE]] * late.height, dtype=pl.List(pl.String)))
        refused = pl.concat([pl.DataFrame(schema=REFUSED_SCHEMA) if quarantined is None else quarantined, too_late])
        self.quarantine(refused, partitions if supersede else [])
        published = versions.newest(self.relation, pl.concat([stored, new]))
        return self._record(partitions, published, new, dict(refused.group_by("partition_key").len().iter_rows()), batch_id, inputs)

    def quarantine(self, refused: pl.DataFrame, superseded: Sequence[str]) -> None:
        """Keep refused rows, and close the open ones of the partitions `superseded` that did not come again."""
        with self.connection.cursor() as cursor:
            cursor.execute(
                "update ops.quarantine set status = 'superseded' where relation = %s and partition_key = any(%s) and status = 'open'"
                " and row_hash <> all(select md5(line) from unnest(%s::text[]) as line)",
                [self.relation.name, list(superseded), refused["row"].to_list()],
            )
            if not refused.is_empty():
                cursor.executemany(
                    "insert into ops.quarantine (relation, partition_key, row, row_hash, reasons, status, run_id, quarantined_at)"
                    " values (%s, %s, %s, md5(%s), %s, 'open', %s, %s)"
                    " on conflict (relation, partition_key, row_hash) do update set reasons = excluded.reasons, status = 'open'",
                    [
                        (self.relation.name, key, row, row, reasons, self.run_id, self.now)
                        for key, row, reasons in refused.select("partition_key", "row", "reasons").iter_rows()
                    ],
                )

    def log(self, lines: Iterable[tuple[str, str, object, object, object]]) -> None:
        """Append to the quality log: (partition key, outcome, failed checks, rows by flag, NULL share by column or None)."""
        rows = [
            (self.relation.name, key, outcome, json.dumps(checks), json.dumps(flags), json.dumps(nulls), self.run_id, self.now)
            for key, outcome, checks, flags, nulls in lines
        ]
        self.connection.execute(_insert("quality_log", LOG_COLUMNS), [list(column) for column in zip(*rows, strict=True)])

    def _copy(self, rows: pl.DataFrame, batch_id: int) -> None:
        relation = self.relation
        years = rows["event_timestamp"].dt.year()
        schema.ensure_yearly_partitions(self.connection, relation.schema, relation.table, int(years.min()), int(years.max()))  # type: ignore[arg-type]
        written = rows.select(list(relation.frame_schema)).with_columns(pl.lit(batch_id).alias("batch_id"))
        if relation.schema == "raw":
            written = written.with_columns(pl.lit(self.now).alias("ingested_at"))
        statement = sql.SQL("copy {} ({}) from stdin (format csv, null '\\N')").format(
            sql.Identifier(relation.schema, relation.table), _names(written.columns)
        )
        # The server indexes one part while the next is written as text.
        with self.connection.cursor() as cursor, cursor.copy(statement, writer=QueuedLibpqWriter(cursor)) as copy:
            for part in written.iter_slices(ROWS_PER_COPY):
                copy.write(
                    part.write_csv(
                        include_header=False, null_value="\\N", quote_style="non_numeric", datetime_format="%Y-%m-%d %H:%M:%S%.6f%:z"
                    )
                )

    def _record(
        self,
        partitions: Sequence[str],
        published: pl.DataFrame,
        new: pl.DataFrame,
        refused: Mapping[str, int],
        batch_id: int,
        inputs: Mapping[str, dict[str, int]],
    ) -> list[Publication]:
        relation = self.relation
        digests = versions.content_hashes(relation, published, _sessions(relation, published))
        summaries, flags, changes = _summaries(relation, published), _flag_counts(relation, published), _changes(relation, new)
        recorded = self._last_records(partitions)
        ledger: list[tuple[Any, ...]] = []
        publications: list[Publication] = []
        for key in partitions:
            total, earliest, latest = summaries.get(key, (0, None, None))
            count, change = changes.get(key, (0, {}))
            digest, read = digests.get(key, versions.NO_ROWS), inputs.get(key, {})
            publications.append(Publication(relation.name, key, None, count, refused.get(key, 0), total, digest))
            if count or recorded.get(key) != (read, relation.code_version):
                ledger.append(
                    (
                        batch_id, relation.name, key, count, refused.get(key, 0), total, digest, earliest, latest, json.dumps(change),
                        json.dumps(read, sort_keys=True), relation.code_version, self.run_id, self.now,
                        None if self.seconds is None else self.seconds / len(partitions),
                    )
                )  # fmt: skip
        ids = self._insert_ledger(ledger)
        nulls = _null_shares(relation, published)
        self.log(
            (
                p.partition_key,
                "published" if p.rows_published else "unchanged",
                [],
                flags.get(p.partition_key, {}),
                nulls.get(p.partition_key),
            )
            for p in publications
        )
        return [replace(publication, publication_id=ids.get(publication.partition_key)) for publication in publications]

    def _insert_ledger(self, ledger: Sequence[tuple[Any, ...]]) -> dict[str, int]:
        if not ledger:
            return {}
        self.connection.execute("select pg_advisory_xact_lock(%s)", [LEDGER_LOCK])
        statement = sql.SQL("{} returning partition_key, publication_id").format(_insert("publications", LEDGER_COLUMNS))
        return dict(self.connection.execute(statement, [list(column) for column in zip(*ledger, strict=True)]).fetchall())

    def _last_records(self, partitions: Sequence[str]) -> dict[str, tuple[dict[str, int], str]]:
        rows = self.connection.execute(
            "select distinct on (partition_key) partition_key, inputs, code_version from ops.publications"
            " where relation = %s and partition_key = any(%s) order by partition_key, publication_id desc",
            [self.relation.name, list(partitions)],
        ).fetchall()
        return {key: (inputs, code_version) for key, inputs, code_version in rows}


def _insert(table: str, columns: Mapping[str, str]) -> sql.Composed:
    """Insert of many rows from one array per column."""
    arrays = sql.SQL(", ").join(sql.SQL("%s::{}[]").format(sql.SQL(name)) for name in columns.values())
    return sql.SQL("insert into {} ({}) select * from unnest({})").format(sql.Identifier("ops", table), _names(columns), arrays)


def _names(columns: Sequence[str] | Mapping[str, object]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, columns))


def _sessions(relation: Relation, rows: pl.DataFrame) -> pl.Series:
    return calendar(relation.calendar).session_of(rows["event_timestamp"]).cast(pl.String)


def _summaries(relation: Relation, rows: pl.DataFrame) -> dict[str, tuple[int, datetime | None, datetime | None]]:
    """Per session: rows, first and last event time."""
    event = pl.col("event_timestamp")
    groups = rows.group_by(_sessions(relation, rows).alias("session")).agg(pl.len(), event.min().alias("first"), event.max().alias("last"))
    return {key: (count, first, last) for key, count, first, last in groups.iter_rows()}


def _flag_counts(relation: Relation, rows: pl.DataFrame) -> dict[str, dict[str, int]]:
    """Per session: rows by flag that is set on any of them."""
    names = list(QualityFlag.counts(rows["flags"]))
    flags = pl.col("flags")
    counts = [(flags & QualityFlag[name].value != 0).sum().alias(name) for name in names]
    groups = rows.group_by(_sessions(relation, rows).alias("session")).agg(counts) if names else pl.DataFrame({"session": []})
    return {key: {name: n for name, n in zip(names, found, strict=True) if n} for key, *found in groups.iter_rows()}


def _null_shares(relation: Relation, rows: pl.DataFrame) -> dict[str, dict[str, float]]:
    """Per session of a dataset with rows: NULL share by column."""
    if relation.schema != "raw":
        return {}
    groups = rows.group_by(_sessions(relation, rows).alias("session")).agg(pl.col(relation.values).is_null().mean())
    return {line.pop("session"): line for line in groups.iter_rows(named=True)}


def _changes(relation: Relation, new: pl.DataFrame) -> dict[str, tuple[int, dict[str, Any]]]:
    """Per session with new versions: their number, and what they touch."""
    keys = pl.struct(pl.col(name).cast(pl.String) for name in relation.keys)
    event = pl.col("event_timestamp")
    groups = new.group_by(_sessions(relation, new).alias("session")).agg(
        pl.len(),
        (pl.col("flags") & QualityFlag.RESTATED.value != 0).sum().alias("restated"),
        keys.unique().sort().alias("keys"),
        event.min().alias("first"),
        event.max().alias("last"),
    )
    result = {}
    for session, count, restated, found, first, last in groups.iter_rows():
        listed = [list(key.values()) for key in found] if len(found) <= CHANGED_KEYS_LISTED else None
        result[session] = (count, {"keys": listed, "start": first.isoformat(), "end": last.isoformat(), "restated": restated})
    return result
