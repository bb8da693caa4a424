"""Rows into a table that is cut by years, in the caller's transaction. Which rows, and under which lock, is decided in `publishing`.

An index costs more to extend row by row than the rows themselves. A year that has no partition yet is loaded without indexes, which are
built once when it becomes part of the table: until the commit nobody else sees either.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl
import psycopg
from psycopg import sql
from psycopg.copy import QueuedLibpqWriter

from featurestore_dagster.stores.postgres import schema
from featurestore_dagster.stores.postgres.binary_copy import binary_copy


@dataclass(frozen=True)
class Load:
    """One transaction's appends to a table; call `finish` after the last one, before anything reads the rows."""

    connection: psycopg.Connection[tuple[Any, ...]]
    schema: str
    table: str
    new_years: list[int] = field(default_factory=list)

    def append(self, rows: pl.DataFrame) -> None:
        """Append rows; their columns are columns of the table, among them `event_timestamp`."""
        if not schema.is_native(self.connection, self.schema, self.table):
            self._copy(self.table, rows)
            return
        years = rows["event_timestamp"].dt.year().rename("year")
        parts = {years[0]: rows} if years.n_unique() == 1 else _by_year(rows, years)
        for year, part in parts.items():
            name = schema.year_name(self.table, year)
            if not schema.exists(self.connection, self.schema, name):
                schema.create_year(self.connection, self.schema, self.table, year)
                self.new_years.append(year)
            self._copy(name, part)

    def finish(self) -> None:
        """Make the new years part of the table, with statistics: a plan made without them reads all of it for a few entities."""
        while self.new_years:
            year = self.new_years.pop()
            schema.attach_year(self.connection, self.schema, self.table, year)
            self.connection.execute(sql.SQL("analyze {}").format(sql.Identifier(self.schema, schema.year_name(self.table, year))))

    def _copy(self, table: str, rows: pl.DataFrame) -> None:
        statement = sql.SQL("copy {} ({}) from stdin (format binary)").format(sql.Identifier(self.schema, table), _names(rows.columns))
        # The server takes one part in while the next is encoded.
        with self.connection.cursor() as cursor, cursor.copy(statement, writer=QueuedLibpqWriter(cursor)) as copy:
            for part in binary_copy(rows):
                copy.write(part)


def _by_year(rows: pl.DataFrame, years: pl.Series) -> dict[int, pl.DataFrame]:
    parts = rows.with_columns(years).partition_by("year", as_dict=True, include_key=False)
    return {int(year): part for (year,), part in sorted(parts.items())}


def _names(columns: Sequence[str]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, columns))
