"""The bitemporal store: audited frames in, versions out, everything recorded in the ledger.

Computing and auditing do not belong here (see `pipeline`), nor does Redis.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import polars as pl
import psycopg
from psycopg import sql

from featurestore_dagster.calendars import calendar
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.model.raw_table import Dataset
from featurestore_dagster.model.time import Clock
from featurestore_dagster.projections.postgres_table import feature_schema
from featurestore_dagster.projections.relation import Relation
from featurestore_dagster.settings import PostgresSettings
from featurestore_dagster.stores.postgres import schema, versions
from featurestore_dagster.stores.postgres.connection import connect, read_frame

LEDGER_LOCK = 7_301_154_921
"""Advisory lock under which ledger ids are drawn: held to the commit, so that ids appear in commit order."""

CHANGED_KEYS_LISTED = 100
"""A publication that touches more keys than this records the range only."""

Connection = psycopg.Connection[tuple[Any, ...]]


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


@dataclass(frozen=True)
class OnlineChanges:
    """What the online store must apply to reach `last_publication_id`.

    `rows`: newest visible version of each changed entity, columns `feature_schema(view)`. `retracted`: join keys of entities that have
    no visible row any more.
    """

    last_publication_id: int
    rows: pl.DataFrame
    retracted: pl.DataFrame


class PostgresStore:
    """Reads and writes of raw tables, feature tables and the ledger."""

    def __init__(self, settings: PostgresSettings, clock: Clock) -> None:
        """No connection is made before the first call."""
        self.settings = settings
        self.clock = clock

    # Schema ---------------------------------------------------------------------------------------------------------------------------

    def plan(self, catalogue: Catalogue) -> list[str]:
        """SQL that `apply` would execute; empty when the database is as declared."""
        with connect(self.settings) as connection:
            return [statement.as_string(connection) for statement in schema.statements(catalogue, connection)]

    def apply(self, catalogue: Catalogue) -> list[str]:
        """Bring the database to the declarations in one transaction; returns the statements executed."""
        with connect(self.settings) as connection:
            connection.execute("select pg_advisory_xact_lock(%s)", [LEDGER_LOCK])
            statements = schema.statements(catalogue, connection)
            for statement in statements:
                connection.execute(statement)
            return [statement.as_string(connection) for statement in statements]

    def drift(self, catalogue: Catalogue) -> list[str]:
        """Differences between database and declarations, a sentence each."""
        with connect(self.settings) as connection:
            return schema.drift(catalogue, connection)

    def teardown(self) -> list[str]:
        """Drop all schemas of ours with their data; returns their names."""
        with connect(self.settings) as connection:
            return schema.drop_all(connection)

    # Reading --------------------------------------------------------------------------------------------------------------------------

    def read_raw(
        self, dataset: Dataset, start: datetime, end: datetime, *, as_of: datetime | None = None, priority: Sequence[str] = ()
    ) -> pl.DataFrame:
        """Rows of a dataset with start < event_timestamp <= end, one per key and event time, as known at `as_of` (default: now).

        Among versions the greatest known-at wins; among sources with the same known-at the earlier one in `priority`. Columns: the
        dataset's canonical schema; sorted by key and event time.
        """
        key = [*dataset.table.key, "event_timestamp"]
        query = sql.SQL(
            "select distinct on ({key}) {columns} from {table} where dataset = %(scope)s and event_timestamp > %(start)s"
            " and event_timestamp <= %(end)s and known_at <= %(as_of)s"
            " order by {key}, known_at desc, array_position(%(priority)s::text[], source) nulls last"
        ).format(key=_names(key), columns=_names(dataset.table.schema), table=sql.Identifier("raw", dataset.table.name))
        parameters = {"scope": dataset.name, "start": start, "end": end, "as_of": as_of or self.clock.now(), "priority": list(priority)}
        return read_frame(self.settings, query, parameters, dataset.table.schema)

    def read_features(
        self,
        view: FeatureView,
        start: datetime,
        end: datetime,
        *,
        stream: str | None = None,
        keys: Mapping[str, Sequence[str]] | None = None,
        all_versions: bool = False,
    ) -> pl.DataFrame:
        """Rows of a view with start < event_timestamp <= end; newest versions, or all of them.

        Columns: `feature_schema(view)`; sorted by keys, event time and known-at. `keys` restricts join keys to the values given.
        """
        conditions: list[sql.SQL | sql.Composed] = [
            sql.SQL("event_timestamp > %(start)s and event_timestamp <= %(end)s and feature_set_version = %(version)s")
        ]
        parameters: dict[str, Any] = {"start": start, "end": end, "version": view.version}
        if stream is not None:
            conditions.append(sql.SQL("stream = %(stream)s"))
            parameters["stream"] = stream
        for number, (name, values) in enumerate((keys or {}).items()):
            conditions.append(sql.SQL("{} = any({})").format(sql.Identifier(name), sql.Placeholder(f"key{number}")))
            parameters[f"key{number}"] = list(values)
        columns = feature_schema(view)
        key = [*view.join_keys, "event_timestamp"]
        query = sql.SQL("select {distinct} {columns} from {table} where {conditions} order by {key}, created_timestamp {direction}").format(
            distinct=sql.SQL("") if all_versions else sql.SQL("distinct on ({})").format(_names(key)),
            columns=_names(columns),
            table=sql.Identifier("features", view.name),
            conditions=sql.SQL(" and ").join(conditions),
            key=_names(key),
            direction=sql.SQL("asc") if all_versions else sql.SQL("desc"),
        )
        return read_frame(self.settings, query, parameters, columns)

    def previous_closes(self, prices: Dataset, actions: pl.DataFrame) -> pl.DataFrame:
        """`actions` (columns symbol, event_timestamp, ...) with `previous_close`: the newest raw close before each, NULL when none.

        One index look-up per action, so that an adjustment factor never needs the whole price history.
        """
        if actions.is_empty():
            return actions.with_columns(pl.lit(None, pl.Float64).alias("previous_close"))
        query = sql.SQL(
            "select a.symbol, a.event_timestamp, c.close as previous_close from unnest(%(symbols)s::text[], %(instants)s::timestamptz[])"
            " as a(symbol, event_timestamp) left join lateral (select close from {table} c where c.dataset = %(dataset)s"
            " and c.symbol = a.symbol and c.timeframe = %(timeframe)s and c.event_timestamp < a.event_timestamp"
            " order by c.event_timestamp desc, c.known_at desc limit 1) c on true"
        ).format(table=sql.Identifier("raw", prices.table.name))
        pairs = actions.select("symbol", "event_timestamp").unique()
        parameters = {
            "symbols": pairs["symbol"].to_list(),
            "instants": pairs["event_timestamp"].to_list(),
            "dataset": prices.name,
            "timeframe": prices.timeframe.value,
        }
        closes = read_frame(
            self.settings,
            query,
            parameters,
            {"symbol": pl.String(), "event_timestamp": actions.schema["event_timestamp"], "previous_close": pl.Float64()},
        )
        return actions.join(closes, on=["symbol", "event_timestamp"], how="left")

    def read_mart(self, mart: str, columns: Mapping[str, pl.DataType]) -> pl.DataFrame:
        """The named columns of a dbt mart, unsorted."""
        query = sql.SQL("select {} from {}").format(_names(columns), sql.Identifier("marts", mart))
        return read_frame(self.settings, query, {}, dict(columns))

    def watermarks(self, relation: Relation) -> pl.DataFrame:
        """Newest event time per business key of a relation, visible now: columns = keys, `watermark`."""
        query = sql.SQL(
            "select {keys}, max(event_timestamp) as watermark from {table} where {scope} = %(scope)s and event_timestamp <= %(now)s"
            " and {known_at} <= %(now)s group by {keys}"
        ).format(
            keys=_names(relation.keys),
            table=sql.Identifier(relation.schema, relation.table),
            scope=sql.Identifier(relation.scope_column),
            known_at=sql.Identifier(relation.known_at),
        )
        schema_of = {**{key: relation.frame_schema[key] for key in relation.keys}, "watermark": pl.Datetime("us", "UTC")}
        return read_frame(self.settings, query, {"scope": relation.scope, "now": self.clock.now()}, schema_of)

    def online_changes(self, view: FeatureView, after_publication_id: int | None, now: datetime) -> OnlineChanges:
        """Entities of a view touched by publications after the given one (None: all), each with its newest row visible at `now`.

        The answer's `last_publication_id` is read first: what is published meanwhile comes with the next call.
        """
        pattern = f"features.{view.name}."
        table, keys = sql.Identifier("features", view.name), _names(view.join_keys)
        with connect(self.settings) as connection:
            row = connection.execute(
                "select coalesce(max(publication_id), 0) from ops.publications where starts_with(relation, %s)", [pattern]
            )
            last = int(row.fetchone()[0])  # type: ignore[index]
        if after_publication_id is not None and after_publication_id > last:
            after_publication_id = None  # Redis remembers what this database never published: it belongs to another one, so start over
        parameters = {"pattern": pattern, "after": after_publication_id or 0, "last": last, "now": now, "version": view.version}
        touched = sql.SQL(
            "select distinct {keys} from {table} where batch_id in (select batch_id from ops.publications"
            " where starts_with(relation, %(pattern)s) and publication_id > %(after)s and publication_id <= %(last)s)"
        ).format(keys=keys, table=table)
        columns = feature_schema(view)
        newest = sql.SQL(
            "select {columns} from ({touched}) k join lateral (select * from {table} f where {match} and event_timestamp <= %(now)s"
            " and created_timestamp <= %(now)s and feature_set_version = %(version)s"
            " order by event_timestamp desc, created_timestamp desc limit 1) f using ({keys})"
        ).format(
            columns=_names(columns),
            touched=touched,
            table=table,
            match=sql.SQL(" and ").join(sql.SQL("f.{0} = k.{0}").format(sql.Identifier(key)) for key in view.join_keys),
            keys=keys,
        )
        rows = read_frame(self.settings, newest, parameters, columns)
        entities = read_frame(self.settings, touched, parameters, {key: pl.String() for key in view.join_keys})
        return OnlineChanges(last, rows, entities.join(rows, on=list(view.join_keys), how="anti"))

    # Publishing -----------------------------------------------------------------------------------------------------------------------

    def publish(
        self,
        relation: Relation,
        rows: pl.DataFrame,
        partitions: Sequence[str],
        *,
        quarantined: pl.DataFrame | None = None,
        inputs: Mapping[str, dict[str, int]] | None = None,
        run_id: str = "",
        supersede: bool = True,
    ) -> list[Publication]:
        """Write the new versions among `rows`, the ledger rows and the quarantine, in one transaction.

        Args:
            relation: What is written; an advisory lock keeps other writers of it out until the commit.
            rows: Audited rows of these partitions, columns `relation.frame_schema`, one row per identity.
            partitions: Every partition that was computed, also those without rows.
            quarantined: Columns `partition_key`, `row` (JSON text), `reasons` (list of text).
            inputs: Per partition, newest publication id read of each input relation.
            run_id: Who wrote it.
            supersede: The partitions were audited whole: open quarantined rows that did not come again are closed.

        Returns:
            One publication per partition, in the order given. A partition whose content and inputs were published already is not
            recorded again: its `publication_id` is None.
        """
        now = self.clock.now()
        with connect(self.settings) as connection:
            connection.execute("select pg_advisory_xact_lock(hashtextextended(%s, 0))", [relation.name])
            current = self._current(connection, relation, partitions)
            new = versions.new_versions(relation, rows, current, now)
            batch_id = int(connection.execute("select nextval('ops.batch_id')").fetchone()[0])  # type: ignore[index]
            if not new.is_empty():
                self._copy(connection, relation, new, batch_id, now)
            refused = self._quarantine(connection, relation, quarantined, partitions if supersede else [], run_id, now)
            columns = list(relation.frame_schema)
            published = versions.newest(relation, pl.concat([current, new.select(columns)]))
            return self._record(connection, relation, partitions, published, new, refused, batch_id, inputs or {}, run_id, now)

    def block(
        self, relation: Relation, partition_key: str, checks: object, quarantined: pl.DataFrame | None = None, run_id: str = ""
    ) -> None:
        """Record that the audit refused a partition: its failed checks, and its bad rows for replay. Nothing is published."""
        now = self.clock.now()
        with connect(self.settings) as connection:
            self._quarantine(connection, relation, quarantined, [partition_key], run_id, now)
            self._log(connection, relation.name, [(partition_key, "blocked", checks, {})], run_id, now)

    def _current(self, connection: Connection, relation: Relation, partitions: Sequence[str]) -> pl.DataFrame:
        columns = relation.frame_schema
        sessions = calendar(relation.calendar)
        low = sessions.session(date.fromisoformat(min(partitions))).window_start
        high = sessions.session(date.fromisoformat(max(partitions))).window_end
        table, scope = sql.Identifier(relation.schema, relation.table), sql.Identifier(relation.scope_column)
        in_range = sql.SQL("{} = %(scope)s and event_timestamp > %(low)s and event_timestamp <= %(high)s").format(scope)
        parameters = {"scope": relation.scope, "low": low, "high": high}
        # Backfills mostly find nothing: a look at the index is cheaper than a bulk read of nothing.
        if connection.execute(sql.SQL("select 1 from {} where {} limit 1").format(table, in_range), parameters).fetchone() is None:
            return pl.DataFrame(schema=columns)
        query = sql.SQL(
            "select distinct on ({identity}) {columns} from {table} where {in_range} order by {identity}, {known_at} desc"
        ).format(
            identity=_names(relation.identity),
            columns=_names(columns),
            table=table,
            in_range=in_range,
            known_at=sql.Identifier(relation.known_at),
        )
        return read_frame(self.settings, query, parameters, columns)

    @staticmethod
    def _copy(connection: Connection, relation: Relation, rows: pl.DataFrame, batch_id: int, now: datetime) -> None:
        years = rows["event_timestamp"].dt.year()
        schema.ensure_yearly_partitions(connection, relation.schema, relation.table, int(years.min()), int(years.max()))  # type: ignore[arg-type]
        written = rows.select(list(relation.frame_schema)).with_columns(pl.lit(batch_id).alias("batch_id"))
        if relation.schema == "raw":
            written = written.with_columns(pl.lit(now).alias("ingested_at"))
        statement = sql.SQL("copy {} ({}) from stdin (format csv, null '\\N')").format(
            sql.Identifier(relation.schema, relation.table), _names(written.columns)
        )
        text = written.write_csv(
            include_header=False, null_value="\\N", quote_style="non_numeric", datetime_format="%Y-%m-%d %H:%M:%S%.6f%:z"
        )
        with connection.cursor() as cursor, cursor.copy(statement) as copy:
            copy.write(text)

    @staticmethod
    def _quarantine(
        connection: Connection, relation: Relation, rows: pl.DataFrame | None, partitions: Sequence[str], run_id: str, now: datetime
    ) -> dict[str, int]:
        refused = (
            pl.DataFrame(schema={"partition_key": pl.String, "row": pl.String, "reasons": pl.List(pl.String)}) if rows is None else rows
        )
        with connection.cursor() as cursor:
            cursor.execute(
                "update ops.quarantine set status = 'superseded' where relation = %s and partition_key = any(%s) and status = 'open'"
                " and row_hash <> all(select md5(line) from unnest(%s::text[]) as line)",
                [relation.name, list(partitions), refused["row"].to_list()],
            )
            if not refused.is_empty():
                cursor.executemany(
                    "insert into ops.quarantine (relation, partition_key, row, row_hash, reasons, status, run_id, quarantined_at)"
                    " values (%s, %s, %s, md5(%s), %s, 'open', %s, %s)"
                    " on conflict (relation, partition_key, row_hash) do update set reasons = excluded.reasons, status = 'open'",
                    [
                        (relation.name, key, row, row, reasons, run_id, now)
                        for key, row, reasons in refused.select("partition_key", "row", "reasons").iter_rows()
                    ],
                )
        return dict(refused.group_by("partition_key").len().iter_rows())

    def _record(
        self,
        connection: Connection,
        relation: Relation,
        partitions: Sequence[str],
        published: pl.DataFrame,
        new: pl.DataFrame,
        refused: Mapping[str, int],
        batch_id: int,
        inputs: Mapping[str, dict[str, int]],
        run_id: str,
        now: datetime,
    ) -> list[Publication]:
        by_partition, new_by_partition = _by_session(relation, published), _by_session(relation, new)
        digests = versions.content_hashes(relation, published, _sessions(relation, published))
        recorded = self._last_records(connection, relation, partitions)
        empty = published.clear()
        ledger: list[tuple[Any, ...]] = []
        log: list[tuple[str, str, object, object]] = []
        result: list[Publication] = []
        for partition in partitions:
            frame, fresh = by_partition.get(partition, empty), new_by_partition.get(partition)
            count = 0 if fresh is None else fresh.height
            digest = digests.get(partition, versions.NO_ROWS)
            known = recorded.get(partition)
            is_new = count > 0 or known is None or known[1:] != (inputs.get(partition, {}), relation.code_version)
            log.append((partition, "published" if count else "unchanged", [], QualityFlag.counts(frame["flags"])))
            result.append(Publication(relation.name, partition, None, count, refused.get(partition, 0), frame.height, digest))
            if is_new:
                ledger.append(
                    (
                        batch_id, relation.name, partition, count, refused.get(partition, 0), frame.height, digest,
                        frame["event_timestamp"].min(), frame["event_timestamp"].max(), json.dumps(_changed(relation, fresh)),
                        json.dumps(inputs.get(partition, {}), sort_keys=True), relation.code_version, run_id, now,
                    )
                )  # fmt: skip
        ids = self._insert_ledger(connection, ledger)
        self._log(connection, relation.name, log, run_id, now)
        return [
            Publication(
                p.relation, p.partition_key, ids.get(p.partition_key), p.rows_published, p.rows_quarantined, p.rows_total, p.content_hash
            )
            for p in result
        ]

    @staticmethod
    def _insert_ledger(connection: Connection, ledger: Sequence[tuple[Any, ...]]) -> dict[str, int]:
        if not ledger:
            return {}
        connection.execute("select pg_advisory_xact_lock(%s)", [LEDGER_LOCK])
        columns = list(zip(*ledger, strict=True))
        types = (
            "bigint",
            "text",
            "text",
            "bigint",
            "bigint",
            "bigint",
            "text",
            "timestamptz",
            "timestamptz",
            "jsonb",
            "jsonb",
            "text",
            "text",
            "timestamptz",
        )
        arrays = sql.SQL(", ").join(sql.SQL("%s::{}[]").format(sql.SQL(name)) for name in types)
        rows = connection.execute(
            sql.SQL(
                "insert into ops.publications (batch_id, relation, partition_key, rows_published, rows_quarantined, rows_total, content_hash,"
                " min_event_timestamp, max_event_timestamp, changed, inputs, code_version, run_id, published_at)"
                " select * from unnest({}) returning partition_key, publication_id"
            ).format(arrays),
            [list(column) for column in columns],
        ).fetchall()
        return dict(rows)

    @staticmethod
    def _last_records(connection: Connection, relation: Relation, partitions: Sequence[str]) -> dict[str, tuple[str, dict[str, int], str]]:
        rows = connection.execute(
            "select distinct on (partition_key) partition_key, content_hash, inputs, code_version from ops.publications"
            " where relation = %s and partition_key = any(%s) order by partition_key, publication_id desc",
            [relation.name, list(partitions)],
        ).fetchall()
        return {key: (digest, inputs, code_version) for key, digest, inputs, code_version in rows}

    @staticmethod
    def _log(connection: Connection, relation: str, rows: Sequence[tuple[str, str, object, object]], run_id: str, now: datetime) -> None:
        with connection.cursor() as cursor:
            cursor.executemany(
                "insert into ops.quality_log (relation, partition_key, outcome, checks, flags, run_id, logged_at) values (%s, %s, %s, %s, %s, %s, %s)",
                [(relation, key, outcome, json.dumps(checks), json.dumps(flags), run_id, now) for key, outcome, checks, flags in rows],
            )


def _names(columns: Sequence[str] | Mapping[str, object]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, columns))


def _sessions(relation: Relation, rows: pl.DataFrame) -> pl.Series:
    return calendar(relation.calendar).session_of(rows["event_timestamp"]).cast(pl.String)


def _by_session(relation: Relation, rows: pl.DataFrame) -> dict[str, pl.DataFrame]:
    parts = rows.with_columns(_sessions(relation, rows).alias("session")).partition_by("session", as_dict=True, include_key=False)
    return {str(key[0]): frame for key, frame in parts.items()}


def _changed(relation: Relation, new: pl.DataFrame | None) -> dict[str, Any]:
    if new is None or new.is_empty():
        return {}
    keys = new.select(relation.keys).unique().sort(relation.keys)
    return {
        "keys": keys.cast(pl.String).rows() if keys.height <= CHANGED_KEYS_LISTED else None,
        "start": new["event_timestamp"].min().isoformat(),  # type: ignore[union-attr]
        "end": new["event_timestamp"].max().isoformat(),  # type: ignore[union-attr]
    }
