"""The write side of the store: versions, ledger, quarantine and quality log of one relation, inside one transaction of the caller's.

Which rows are new is decided in `versions`; reading belongs to `store` and `ledger`.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Any

import polars as pl
import psycopg
from psycopg import sql

from featurestore_dagster.calendars import calendar
from featurestore_dagster.projections.relation import Relation
from featurestore_dagster.settings import PostgresSettings
from featurestore_dagster.stores.postgres import versions, watermarks
from featurestore_dagster.stores.postgres.connection import read_frame
from featurestore_dagster.stores.postgres.contents import Content, Contents
from featurestore_dagster.stores.postgres.loading import Load
from featurestore_dagster.stores.postgres.refused import REFUSED_SCHEMA, refused_rows

LEDGER_LOCK = 7_301_154_921
"""Advisory lock under which ledger ids are drawn: held to the commit, so that ids appear in commit order."""

EVERY = sql.SQL("true")

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

    The table and not only the relation: two writers would both make a new year's native partition. And `Writer.stored` reads over a
    connection of its own: had this transaction locked out readers, they would wait for each other without Postgres seeing it.
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

    def stored(self, partitions: Sequence[str], entities: sql.Composable = EVERY) -> pl.DataFrame:
        """Every version in the range of these partitions, columns `relation.frame_schema`, unsorted; `entities` is a condition."""
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
        query = sql.SQL("select {} from {} where {} and {}").format(_names(relation.frame_schema), table, in_range, entities)
        return read_frame(self.settings, query, parameters, relation.frame_schema)

    def publish(
        self,
        rows: pl.DataFrame | Iterable[pl.DataFrame],
        partitions: Sequence[str],
        quarantined: pl.DataFrame | None,
        inputs: Mapping[str, dict[str, int]],
        *,
        supersede: bool,
    ) -> list[Publication]:
        """See `PostgresStore.publish`; the table is locked."""
        row = self.connection.execute("select nextval('ops.batch_id')").fetchone()
        batch_id = int(row[0])  # type: ignore[index]
        relation, contents = self.relation, Contents(self.relation)
        load = Load(self.connection, relation.schema, relation.table)
        bad = [pl.DataFrame(schema=REFUSED_SCHEMA) if quarantined is None else quarantined]
        newest = []
        for part, stored in self._with_stored(rows, partitions):
            new, late, published = self._versions(part, stored)
            contents.add(published, new)
            if not new.is_empty():
                load.append(self._stamped(new, batch_id))
                newest.append(watermarks.newest(relation, new))
            reasons = pl.Series([[LATE_VINTAGE]] * late.height, dtype=pl.List(pl.String))
            bad.append(refused_rows(late, _sessions(relation, late), reasons))
        load.finish()
        if newest:
            watermarks.advance(self.connection, relation, pl.concat(newest))
        refused = pl.concat(bad)
        self.quarantine(refused, partitions if supersede else [])
        counts = dict(refused.group_by("partition_key").len().iter_rows())
        return self._record(partitions, contents.by_partition(), counts, batch_id, inputs)

    def _with_stored(
        self, rows: pl.DataFrame | Iterable[pl.DataFrame], partitions: Sequence[str]
    ) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
        """Rows with every version that is stored of their entities; at last, without rows, those of all other entities."""
        if isinstance(rows, pl.DataFrame):
            yield rows, self.stored(partitions)
            return
        key, seen = sql.Identifier(self.relation.keys[0]), list[str]()
        for part in rows:
            entities = part[self.relation.keys[0]].unique().to_list()
            seen += entities
            yield part, self.stored(partitions, sql.SQL("{} = any({})").format(key, sql.Literal(entities)))
        others = self.stored(partitions, sql.SQL("{} <> all({})").format(key, sql.Literal(seen)))
        yield others.clear(), others

    def _versions(self, rows: pl.DataFrame, stored: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
        """New versions, vintages that came too late, and what is published now."""
        rows = rows.select(list(self.relation.frame_schema))
        if versions.is_first(self.relation, rows, stored):
            return rows, rows.clear(), rows
        new, late = versions.new_versions(self.relation, rows, stored, self.now)
        return new, late, versions.newest(self.relation, pl.concat([stored, new]))

    def _stamped(self, rows: pl.DataFrame, batch_id: int) -> pl.DataFrame:
        """The rows as the table has them; those of an entity beside each other, as they are read."""
        stamps = {"batch_id": pl.lit(batch_id, pl.Int64)}
        if self.relation.schema == "raw":
            stamps["ingested_at"] = pl.lit(self.now).dt.cast_time_unit("us")
        return rows.sort(self.relation.identity).with_columns(**stamps)

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

    def _record(
        self,
        partitions: Sequence[str],
        contents: Mapping[str, Content],
        refused: Mapping[str, int],
        batch_id: int,
        inputs: Mapping[str, dict[str, int]],
    ) -> list[Publication]:
        relation = self.relation
        recorded = self._last_records(partitions)
        ledger: list[tuple[Any, ...]] = []
        publications: list[Publication] = []
        nothing = Content()
        for key in partitions:
            held, read, bad = contents.get(key, nothing), inputs.get(key, {}), refused.get(key, 0)
            publications.append(Publication(relation.name, key, None, held.rows_new, bad, held.rows_total, held.content_hash))
            if held.rows_new or recorded.get(key) != (read, relation.code_version):
                ledger.append(
                    (
                        batch_id, relation.name, key, held.rows_new, bad, held.rows_total, held.content_hash, held.first_event,
                        held.last_event, json.dumps(held.changed), json.dumps(read, sort_keys=True), relation.code_version, self.run_id,
                        self.now, None if self.seconds is None else self.seconds / len(partitions),
                    )
                )  # fmt: skip
        ids = self._insert_ledger(ledger)
        self.log(
            (key, "published" if held.rows_new else "unchanged", [], held.flags, held.null_shares)
            for key, held in ((key, contents.get(key, nothing)) for key in partitions)
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
