"""The bitemporal store: audited frames in, versions out, everything recorded in the ledger.

Computing and auditing do not belong here (see `pipeline`), nor does Redis.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import polars as pl
from psycopg import sql

from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.model.raw_table import Dataset
from featurestore_dagster.model.time import Clock
from featurestore_dagster.projections.postgres_table import feature_schema
from featurestore_dagster.projections.relation import Relation
from featurestore_dagster.settings import PostgresSettings
from featurestore_dagster.stores.postgres import durations, schema, watermarks
from featurestore_dagster.stores.postgres.connection import connect, read_frame
from featurestore_dagster.stores.postgres.publishing import LEDGER_LOCK, Publication, Writer, lock_table

BY_PRIORITY = sql.SQL("array_position(%(priority)s::text[], source) nulls last")


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
        self,
        dataset: Dataset,
        start: datetime,
        end: datetime,
        *,
        as_of: datetime | None = None,
        priority: Sequence[str] = (),
        all_versions: bool = False,
        symbols: Sequence[str] | None = None,
    ) -> pl.DataFrame:
        """Rows of a dataset with start < event_timestamp <= end, one per key and event time, as known at `as_of` (default: now).

        Among versions the greatest known-at wins; among sources with the same known-at the earlier one in `priority`. With `all_versions`
        each one comes. Columns: the dataset's canonical schema; sorted by key and event time, the greatest known-at first. `symbols`
        restricts the symbol to those given.
        """
        key = [*dataset.table.key, "event_timestamp"]
        query = sql.SQL(
            "select {columns} from {table} where dataset = %(scope)s and event_timestamp > %(start)s"
            " and event_timestamp <= %(end)s and known_at <= %(as_of)s and {symbols} order by {order}"
        ).format(
            order=sql.SQL("{}, known_at desc, {}").format(_names(key), BY_PRIORITY) if all_versions else _names(key),
            columns=_names(dataset.table.schema),
            table=sql.Identifier("raw", dataset.table.name),
            symbols=sql.SQL("true" if symbols is None else "symbol = any(%(symbols)s)"),
        )
        parameters = {"scope": dataset.name, "start": start, "end": end, "as_of": as_of or self.clock.now(), "priority": list(priority)}
        if symbols is not None:
            parameters["symbols"] = list(symbols)
        found = read_frame(self.settings, query, parameters, dataset.table.schema)
        return found if all_versions else _newest(found, key, priority)

    def symbols(self, dataset: Dataset) -> list[str]:
        """Every symbol that a dataset ever had a row of, ascending: an index look-up for each, however many rows there are."""
        query = sql.SQL(
            "with recursive found as ((select min(symbol) as symbol from {table} where dataset = %(scope)s) union all"
            " select (select min(symbol) from {table} where dataset = %(scope)s and symbol > found.symbol) from found"
            " where found.symbol is not null) select symbol from found where symbol is not null"
        ).format(table=sql.Identifier("raw", dataset.table.name))
        return read_frame(self.settings, query, {"scope": dataset.name}, {"symbol": pl.String()})["symbol"].to_list()

    def restatements(self, dataset: Dataset, symbols: Sequence[str], start: datetime, end: datetime) -> list[datetime]:
        """Instants, ascending, at which what was known of these symbols' rows (start < event_timestamp <= end) changed backwards.

        Either a row got another version, or it became known after a later row of its key.
        """
        query = sql.SQL(
            "select distinct known_at from (select known_at, min(known_at) over same_row as first_known_at, min(known_at) over later_rows"
            " as later_known_at from {table} where dataset = %(scope)s and symbol = any(%(symbols)s) and event_timestamp > %(start)s"
            " and event_timestamp <= %(end)s window same_row as (partition by {key}, event_timestamp), later_rows as (partition by {key}"
            " order by event_timestamp groups between 1 following and unbounded following)) versions"
            " where known_at > first_known_at or known_at > later_known_at order by 1"
        ).format(table=sql.Identifier("raw", dataset.table.name), key=_names(dataset.table.key))
        parameters = {"scope": dataset.name, "symbols": list(symbols), "start": start, "end": end}
        return read_frame(self.settings, query, parameters, {"known_at": pl.Datetime("us", "UTC")})["known_at"].to_list()

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

    def has_mart(self, mart: str) -> bool:
        """Whether dbt has built a mart."""
        with connect(self.settings) as connection:
            found = connection.execute("select to_regclass(%s) is not null", [f'"marts"."{mart}"']).fetchone()
        return found == (True,)

    def read_mart(self, mart: str, columns: Mapping[str, pl.DataType]) -> pl.DataFrame:
        """The named columns of a dbt mart, unsorted."""
        query = sql.SQL("select {} from {}").format(_names(columns), sql.Identifier("marts", mart))
        return read_frame(self.settings, query, {}, dict(columns))

    def watermarks(self, relation: Relation) -> pl.DataFrame:
        """Newest event time per business key of a relation, visible now: columns = keys, `watermark`.

        A row that stands for a missing bar is not news.
        """
        return watermarks.read(self.settings, relation, self.clock.now())

    def entities(self, view: FeatureView) -> list[tuple[str, ...]]:
        """Join keys, in the view's order, of every entity that ever had a row of this version, sorted."""
        keys = _names(view.join_keys)
        query = sql.SQL("select distinct {keys} from {table} where feature_set_version = %(version)s order by {keys}").format(
            keys=keys, table=sql.Identifier("features", view.name)
        )
        return read_frame(self.settings, query, {"version": view.version}, dict.fromkeys(view.join_keys, pl.String())).rows()

    def online_changes(self, view: FeatureView, after_publication_id: int | None, now: datetime) -> OnlineChanges:
        """Entities of a view touched by publications after the given one (None: all), each with its newest row visible at `now`.

        The answer's `last_publication_id` is read first: what is published meanwhile comes with the next call. It stops before the first
        publication with a row that is not known yet at `now`, so that this row is offered again when it is.
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
        published = sql.SQL(
            "ops.publications where starts_with(relation, %(pattern)s) and publication_id > %(after)s and publication_id <= %(last)s"
        )
        columns = feature_schema(view)
        newest = sql.SQL(
            "select {columns} from (select distinct {keys} from {table} where batch_id in (select batch_id from {published})) k"
            " left join lateral (select * from {table} f where {match} and event_timestamp <= %(now)s"
            " and created_timestamp <= %(now)s and feature_set_version = %(version)s"
            " order by event_timestamp desc, created_timestamp desc limit 1) f using ({keys})"
        ).format(
            columns=_names(columns),
            table=table,
            published=published,
            match=sql.SQL(" and ").join(sql.SQL("f.{0} = k.{0}").format(sql.Identifier(key)) for key in view.join_keys),
            keys=keys,
        )
        found = read_frame(self.settings, newest, parameters, columns)
        invisible = pl.col("event_timestamp").is_null()
        # Hundreds of publications may share a batch, whose rows are looked through once.
        unseen = sql.SQL(
            "with unseen as materialized (select distinct batch_id from (select distinct batch_id from {published}) b join {table} f"
            " using (batch_id) where greatest(event_timestamp, created_timestamp) > %(now)s and feature_set_version = %(version)s)"
            " select min(publication_id) from {published} and batch_id in (select batch_id from unseen)"
        ).format(published=published, table=table)
        with connect(self.settings) as connection:
            first = connection.execute(unseen, parameters).fetchone()
        if first is not None and first[0] is not None:
            last = int(first[0]) - 1
        return OnlineChanges(last, found.filter(~invisible), found.filter(invisible).select(view.join_keys))

    # Publishing -----------------------------------------------------------------------------------------------------------------------

    def publish(
        self,
        relation: Relation,
        rows: pl.DataFrame | Iterable[pl.DataFrame],
        partitions: Sequence[str],
        *,
        quarantined: pl.DataFrame | None = None,
        inputs: Mapping[str, dict[str, int]] | None = None,
        run_id: str = "",
        supersede: bool = True,
        seconds: float | None = None,
    ) -> list[Publication]:
        """Write the new versions among `rows`, the ledger rows and the quarantine, in one transaction.

        Args:
            relation: What is written; an advisory lock keeps other writers of its table out until the commit.
            rows: Audited rows of these partitions, columns `relation.frame_schema`; several of one identity are vintages. In parts, when
                they do not fit into memory together: no entity is in two of them.
            partitions: Every partition that was computed, also those without rows.
            quarantined: Columns `partition_key`, `row` (JSON text), `reasons` (list of text).
            inputs: Per partition, newest publication id read of each input relation.
            run_id: Who wrote it.
            supersede: The partitions were audited whole: open quarantined rows that did not come again are closed.
            seconds: What it took to fetch or compute and to audit the rows, for later estimates.

        Returns:
            One publication per partition, in the order given. A partition whose content and inputs were published already is not
            recorded again: its `publication_id` is None.
        """
        started = time.perf_counter()
        with connect(self.settings) as connection:
            lock_table(connection, relation)
            # The clock is read after the wait: what is known from now on was not known while another writer held the lock.
            writer = Writer(self.settings, connection, relation, run_id, self.clock.now(), seconds)
            publications = writer.publish(rows, partitions, quarantined, inputs or {}, supersede=supersede)
            durations.record(connection, durations.WriteKind.PUBLISH, relation.name, time.perf_counter() - started)
        return publications

    def block(self, relation: Relation, checks: Mapping[str, object], quarantined: pl.DataFrame, run_id: str = "") -> None:
        """Record that the audit refused partitions: the failed checks of each, and their bad rows for replay. Nothing is published.

        `quarantined` has columns `partition_key`, `row`, `reasons`, for these partitions.
        """
        with connect(self.settings) as connection:
            writer = Writer(self.settings, connection, relation, run_id, self.clock.now())
            writer.quarantine(quarantined, list(checks))
            writer.log((key, "blocked", found, {}, None) for key, found in checks.items())


def _newest(rows: pl.DataFrame, key: Sequence[str], priority: Sequence[str]) -> pl.DataFrame:
    """Of each key its greatest known-at, then its first source; `rows` come sorted by key, as an index has them: most are the only one."""
    repeated = pl.all_horizontal(pl.col(name).eq_missing(pl.col(name).shift(1)) for name in key)
    if not rows.select(repeated.any()).item():
        return rows
    places = {name: place for place, name in enumerate(priority)}
    rank = pl.col("source").replace_strict(places, default=len(places), return_dtype=pl.Int64)
    descending = [*[False] * len(key), True, False, False]
    return rows.sort(*key, "known_at", rank, "source", descending=descending).unique(key, keep="first", maintain_order=True)


def _names(columns: Sequence[str] | Mapping[str, object]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, columns))
