"""Create, compare and drop the declared tables. What the tables look like belongs to `projections.postgres_table`."""

from typing import Any

import psycopg
from psycopg import sql

from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.projections.postgres_table import SCHEMAS, PostgresColumn, PostgresTable, tables

HYPERTABLE_CHUNK = "7 days"


def statements(catalogue: Catalogue, connection: psycopg.Connection[Any]) -> list[sql.SQL | sql.Composed]:
    """Statements that bring the database to the declarations; empty when it is there.

    Missing schemas, tables and columns are created. A column of another type or one that is no longer declared is a drift that `audit`
    reports and no statement mends: dropping data is a person's decision.
    """
    has_timescale = _scalar(connection, "select count(*) from pg_extension where extname = 'timescaledb'") > 0
    existing = _existing_columns(connection)
    result: list[sql.SQL | sql.Composed] = [
        sql.SQL("create schema {}").format(sql.Identifier(schema))
        for schema in SCHEMAS
        if not _scalar(connection, "select count(*) from information_schema.schemata where schema_name = %s", schema)
    ]
    if not _scalar(connection, "select count(*) from pg_sequences where schemaname = 'ops' and sequencename = 'batch_id'"):
        result.append(sql.SQL("create sequence ops.batch_id"))
    for table in tables(catalogue):
        known = existing.get((table.schema, table.name))
        if known is None:
            result.extend(_create(table, has_timescale=has_timescale))
        else:
            identifier = sql.Identifier(table.schema, table.name)
            result.extend(
                sql.SQL("alter table {} add column {}").format(identifier, _column(column))
                for column in table.columns
                if column.name not in known
            )
    return result


def drift(catalogue: Catalogue, connection: psycopg.Connection[Any]) -> list[str]:
    """Differences between declarations and database, a sentence each; empty when they agree."""
    existing = _existing_columns(connection)
    found = []
    for table in tables(catalogue):
        known = existing.get((table.schema, table.name))
        if known is None:
            found.append(f"table {table.schema}.{table.name} is missing: run `featurestore apply`")
            continue
        declared = {column.name: column for column in table.columns}
        found += [
            f"column {table.schema}.{table.name}.{name} is missing: run `featurestore apply`" for name in declared if name not in known
        ]
        found += [
            f"column {table.schema}.{table.name}.{name} is not declared: drop it, or declare it" for name in known if name not in declared
        ]
        found += [
            f"column {table.schema}.{table.name}.{name} is {known[name][0]}, declared {column.type}: migrate it"
            for name, column in declared.items()
            if name in known and known[name][0] != column.type
        ]
        found += [
            f"column {table.schema}.{table.name}.{name} is {'nullable' if known[name][1] else 'not null'}, declared otherwise: migrate it"
            for name, column in declared.items()
            if name in known and known[name][1] != column.nullable
        ]
    return found


def drop_all(connection: psycopg.Connection[Any]) -> list[str]:
    """Drop every schema of ours with all data; returns the names of those that existed."""
    dropped = []
    for schema in SCHEMAS:
        if _scalar(connection, "select count(*) from information_schema.schemata where schema_name = %s", schema):
            connection.execute(sql.SQL("drop schema {} cascade").format(sql.Identifier(schema)))
            dropped.append(schema)
    return dropped


def ensure_yearly_partitions(connection: psycopg.Connection[Any], schema: str, table: str, first_year: int, last_year: int) -> None:
    """Native partitions for these calendar years (UTC) of a table that is partitioned by range; nothing on a hypertable."""
    if is_native(connection, schema, table):
        for year in range(first_year, last_year + 1):
            if not exists(connection, schema, year_name(table, year)):
                create_year(connection, schema, table, year)
                attach_year(connection, schema, table, year)


def is_native(connection: psycopg.Connection[Any], schema: str, table: str) -> bool:
    """Whether a table exists and is partitioned natively."""
    identifier = sql.Identifier(schema, table)
    kind = connection.execute("select relkind from pg_class where oid = to_regclass(%s)", [identifier.as_string(connection)]).fetchone()
    return kind is not None and kind[0] in ("p", b"p")


def exists(connection: psycopg.Connection[Any], schema: str, table: str) -> bool:
    """Whether there is a table."""
    found = connection.execute("select to_regclass(%s) is not null", [sql.Identifier(schema, table).as_string(connection)]).fetchone()
    return found == (True,)


def year_name(table: str, year: int) -> str:
    """Name of the native partition of a calendar year."""
    return f"{table}_{year}"


def create_year(connection: psycopg.Connection[Any], schema: str, table: str, year: int) -> None:
    """The partition of a year, without indexes, and not part of the table yet: rows can be loaded at a third of the cost."""
    partition = sql.Identifier(schema, year_name(table, year))
    connection.execute(sql.SQL("create table {} (like {})").format(partition, sql.Identifier(schema, table)))


def attach_year(connection: psycopg.Connection[Any], schema: str, table: str, year: int) -> None:
    """Make a created year part of its table, with the indexes of the table. Readers of other years go on meanwhile."""
    connection.execute(
        sql.SQL("alter table {} attach partition {} for values from ({}) to ({})").format(
            sql.Identifier(schema, table),
            sql.Identifier(schema, year_name(table, year)),
            sql.Literal(f"{year}-01-01 00:00:00+00"),
            sql.Literal(f"{year + 1}-01-01 00:00:00+00"),
        )
    )


def _create(table: PostgresTable, *, has_timescale: bool) -> list[sql.SQL | sql.Composed]:
    identifier = sql.Identifier(table.schema, table.name)
    native = table.time_column is not None and not has_timescale
    body = sql.SQL(", ").join([*map(_column, table.columns), sql.SQL("primary key ({})").format(_names(table.primary_key))])
    suffix = sql.SQL(" partition by range ({})").format(sql.Identifier(table.time_column)) if native and table.time_column else sql.SQL("")
    result: list[sql.SQL | sql.Composed] = [
        sql.SQL("create table {} ({}){}").format(identifier, body, suffix),
        sql.SQL("comment on table {} is {}").format(identifier, sql.Literal(table.comment)),
    ]
    if table.time_column is not None and has_timescale:
        result.append(
            sql.SQL("select create_hypertable({}, {}, chunk_time_interval => interval {})").format(
                sql.Literal(f"{table.schema}.{table.name}"), sql.Literal(table.time_column), sql.Literal(HYPERTABLE_CHUNK)
            )
        )
    result += [sql.SQL("create index on {} ({})").format(identifier, _names(columns)) for columns in table.indexes]
    result += [sql.SQL("create unique index on {} ({})").format(identifier, _names(columns)) for columns in table.unique]
    result += [
        sql.SQL("comment on column {} is {}").format(sql.Identifier(table.schema, table.name, column.name), sql.Literal(column.comment))
        for column in table.columns
        if column.comment
    ]
    return result


def _column(column: PostgresColumn) -> sql.SQL | sql.Composed:
    if column.is_identity:
        return sql.SQL("{} bigint generated by default as identity").format(sql.Identifier(column.name))
    type_name = "text[]" if column.type == "ARRAY" else column.type
    return sql.SQL("{} {}{}").format(
        sql.Identifier(column.name),
        sql.SQL(type_name),
        sql.SQL("" if column.nullable else " not null"),
    )


def _names(columns: tuple[str, ...]) -> sql.SQL | sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, columns))


def _scalar(connection: psycopg.Connection[Any], query: str, *parameters: object) -> int:
    row = connection.execute(query, parameters).fetchone()
    return int(row[0]) if row else 0


def _existing_columns(connection: psycopg.Connection[Any]) -> dict[tuple[str, str], dict[str, tuple[str, bool]]]:
    rows = connection.execute(
        "select table_schema, table_name, column_name, data_type, is_nullable = 'YES' from information_schema.columns"
        " where table_schema in ('raw', 'features', 'ops')"
    ).fetchall()
    result: dict[tuple[str, str], dict[str, tuple[str, bool]]] = {}
    for schema, table, column, data_type, nullable in rows:
        result.setdefault((schema, table), {})[column] = (data_type, nullable)
    return result
