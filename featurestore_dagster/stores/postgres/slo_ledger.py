"""The SLO ledger in Postgres: what was counted, and the publications that are not counted yet. Counting belongs to `serving.slo_ledger`."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

import polars as pl
from psycopg import sql
from psycopg.rows import class_row

from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.projections.relation import Relation
from featurestore_dagster.settings import PostgresSettings
from featurestore_dagster.stores.postgres.connection import connect, read_frame

CLOCK_SET_BACK = timedelta(minutes=1)
"""Days counted further ahead of the clock than this were counted by a clock that was wrong; two daemons' clocks differ by less."""

ADVANCES = {"publication_id": pl.Int64(), "published_at": pl.Datetime("us", "UTC"), "watermark": pl.Datetime("us", "UTC")}


@dataclass(frozen=True)
class SloDay:
    """What was counted of one stream on one UTC day, up to `evaluated_until`; `watermark` is the one of that instant."""

    view: str
    stream: str
    day: date
    evaluated_seconds: float
    overdue_seconds: float
    evaluated_until: datetime
    watermark: datetime | None
    publication_id: int


class SloStore:
    """Reads and writes `ops.slo_ledger`."""

    def __init__(self, settings: PostgresSettings) -> None:
        """No connection is made before the first call."""
        self.settings = settings

    def last_days(self, now: datetime) -> dict[tuple[str, str], SloDay]:
        """The last day counted of each (view, stream), leaving out what a clock ahead of `now` has counted."""
        with connect(self.settings) as connection, connection.cursor(row_factory=class_row(SloDay)) as cursor:
            cursor.execute(
                "select distinct on (view, stream) * from ops.slo_ledger where evaluated_until <= %s order by view, stream, day desc",
                [now + CLOCK_SET_BACK],
            )
            return {(day.view, day.stream): day for day in cursor}

    def days(self, first: date, last: date) -> list[SloDay]:
        """What was counted of the days from `first` to `last`, inclusive."""
        with connect(self.settings) as connection, connection.cursor(row_factory=class_row(SloDay)) as cursor:
            cursor.execute("select * from ops.slo_ledger where day between %s and %s order by view, stream, day", [first, last])
            return cursor.fetchall()

    def first_published_at(self) -> dict[str, datetime]:
        """When each relation first got rows."""
        with connect(self.settings) as connection:
            query = "select relation, min(published_at) from ops.publications where rows_published > 0 group by relation"
            return dict(connection.execute(query).fetchall())

    def advances(self, relation: Relation, after_publication_id: int, watermark: datetime | None) -> pl.DataFrame:
        """Batches published after the given publication with rows newer than a watermark: columns ADVANCES, by their last publication.

        By id and not by time: ids are given in the order of commits, while a publication's time lies before its commit. Rows that stand for
        missing bars are no news.
        """
        query = sql.SQL(
            "with batch as materialized (select batch_id, max(publication_id) as publication_id, max(published_at) as published_at"
            " from ops.publications where relation = %(relation)s and publication_id > %(after)s and rows_published > 0"
            " and (%(watermark)s::timestamptz is null or max_event_timestamp > %(watermark)s) group by batch_id),"
            # A batch holds the rows of many publications: it is looked through once.
            " newest as (select batch_id, max(event_timestamp) as watermark from {table} where batch_id in (select batch_id from batch)"
            " and stream = %(stream)s and feature_set_version = %(version)s and flags & %(missing)s = 0 group by batch_id)"
            " select publication_id, published_at, watermark from batch join newest using (batch_id) order by publication_id"
        ).format(table=sql.Identifier(relation.schema, relation.table))
        parameters = _of(relation) | {"after": after_publication_id, "watermark": watermark}
        return read_frame(self.settings, query, parameters, ADVANCES)

    def position(self, relation: Relation, instant: datetime) -> tuple[datetime | None, int]:
        """What was published before an instant: the newest row that does not stand for a missing bar, and the last publication, or 0."""
        query = sql.SQL(
            "with seen as materialized (select batch_id, publication_id from ops.publications where relation = %(relation)s"
            " and published_at < %(instant)s and rows_published > 0)"
            " select (select event_timestamp from {table} where batch_id in (select batch_id from seen) and event_timestamp <= %(instant)s"
            " and stream = %(stream)s and feature_set_version = %(version)s and flags & %(missing)s = 0"
            " order by event_timestamp desc limit 1),"
            " coalesce((select max(publication_id) from seen), 0)"
        ).format(table=sql.Identifier(relation.schema, relation.table))
        with connect(self.settings) as connection:
            found = connection.execute(query, _of(relation) | {"instant": instant}).fetchone()
        return found if found is not None else (None, 0)

    def forget_after(self, now: datetime) -> None:
        """Forget what a clock ahead of `now` has counted."""
        with connect(self.settings) as connection:
            connection.execute("delete from ops.slo_ledger where evaluated_until > %s", [now + CLOCK_SET_BACK])

    def record(self, days: Sequence[SloDay]) -> None:
        """Keep what was counted; a day that another daemon has counted further stays."""
        columns = {
            "view": "text", "stream": "text", "day": "date", "evaluated_seconds": "float8", "overdue_seconds": "float8",
            "evaluated_until": "timestamptz", "watermark": "timestamptz", "publication_id": "bigint",
        }  # fmt: skip
        statement = sql.SQL(
            "insert into ops.slo_ledger ({names}) select * from unnest({arrays}) on conflict (view, stream, day) do update set {updates}"
            " where excluded.evaluated_until > slo_ledger.evaluated_until"
        ).format(
            names=sql.SQL(", ").join(map(sql.Identifier, columns)),
            arrays=sql.SQL(", ").join(sql.SQL("%s::{}[]").format(sql.SQL(kind)) for kind in columns.values()),
            updates=sql.SQL(", ").join(sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in list(columns)[3:]),
        )
        with connect(self.settings) as connection:
            connection.execute(statement, [[getattr(day, name) for day in days] for name in columns])


def _of(relation: Relation) -> dict[str, Any]:
    return {
        "relation": relation.name,
        "stream": relation.scope,
        "version": relation.feature_set_version,
        "missing": QualityFlag.MISSING_OHLCV.value,
    }
