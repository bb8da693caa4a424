"""Rows of a Feast source as they were known at given instants, for every Feast repository on Postgres. Feast's interfaces are no part.

Arrow from Postgres by ADBC; the join sees only keys and times, so that values of any type pass untouched.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import adbc_driver_postgresql.dbapi
import polars as pl
import pyarrow as pa
from psycopg import sql

from featurestore_dagster.pipeline.bitemporal import join_visible

MOST_KEYS = 10_000
"""More distinct values of a key are not named in the query."""

NUMERIC = "numeric"


@dataclass(frozen=True)
class Source:
    """A table or query of versions: `keys` and `features` are its columns; without a known-at column a row is known from its event on."""

    subquery: str
    keys: tuple[str, ...]
    features: tuple[str, ...]
    event_time: str
    known_at: str | None
    time_to_live: timedelta | None

    @property
    def known(self) -> sql.Composable:
        """The instant from which a row is known."""
        event = sql.Identifier(self.event_time)
        return event if self.known_at is None else sql.SQL("coalesce({}, {})").format(sql.Identifier(self.known_at), event)


def read_arrow(uri: str, query: sql.Composable) -> pa.Table:
    """Result of a query in one chunk, since Feast looks at the first only; `numeric` as float64, as stock Feast reads it."""
    with adbc_driver_postgresql.dbapi.connect(uri, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(query.as_string())
        table = cursor.fetch_arrow_table()
    columns = [
        column.cast(pa.string()).cast(pa.float64())
        if (field.metadata or {}).get(b"ADBC:postgresql:typname") == NUMERIC.encode()
        else column
        for field, column in zip(table.schema, table.columns, strict=True)
    ]
    return pa.table(columns, names=table.column_names).combine_chunks()


def features_at(uri: str, source: Source, instants: pl.DataFrame, now: datetime) -> pa.Table:
    """The features of the version that was visible at each instant, in the order of `instants`; NULL without one, or beyond its TTL.

    A version is visible at t when event time <= t and known-at <= t, both at most `now`; the greatest event time wins, then the greatest
    known-at. It is too old when t - event time >= TTL.

    Args:
        uri: Of Postgres, for ADBC.
        source: What is read.
        instants: The source's keys, under their names in the source and of any type that casts to theirs, and `_at` (UTC microseconds).
        now: Nothing later is known.
    """
    instants = instants.with_columns(pl.min_horizontal("_at", pl.lit(now)).alias("_visible"))
    versions = read_arrow(uri, _range(source, instants, now))
    times = pl.from_arrow(versions.select([*source.keys, "_event", "_known"])).with_row_index("_version")  # type: ignore[union-attr]
    keys = [f"_key{number}" for number in range(len(source.keys))]
    asked = instants.select(
        "_at",
        "_visible",
        *(pl.col(name).cast(times.schema[name], strict=False).alias(key) for name, key in zip(source.keys, keys, strict=True)),
    )
    winners = join_visible(
        asked,
        times.rename(dict(zip(source.keys, keys, strict=True))),
        keys=keys,
        at="_visible",
        event_time="_event",
        known_at="_known",
    )
    winner = pl.col("_version")
    if source.time_to_live:
        winner = pl.when(pl.col("_at") - pl.col("_event") < source.time_to_live).then(winner)
    return versions.select(list(source.features)).take(winners.select(winner.cast(pl.Int64))["_version"].to_arrow())


def _range(source: Source, instants: pl.DataFrame, now: datetime) -> sql.Composable:
    """The versions that any of the instants could see."""
    moment = sql.SQL("cast({} as timestamptz)")
    event, known = moment.format(sql.Identifier(source.event_time)), moment.format(source.known)
    high: datetime = instants["_visible"].max() or now  # type: ignore[assignment]
    conditions = [sql.SQL("{} <= {}").format(known, now), sql.SQL("{} <= {}").format(event, high)]
    if source.time_to_live and instants.height:
        low: datetime = instants["_at"].min()  # type: ignore[assignment]
        conditions.append(sql.SQL("{} > {}").format(event, low - source.time_to_live))
    conditions += [sql.SQL("{} is not null").format(sql.Identifier(name)) for name in source.keys]
    conditions += [
        sql.SQL("{} in ({})").format(sql.Identifier(name), sql.SQL(", ").join(map(sql.Literal, wanted)))
        for name in source.keys
        if (wanted := _texts(instants[name]))
    ]
    return sql.SQL("select {columns}, {event} as _event, {known} as _known from {source} as source where {conditions}").format(
        columns=_columns(dict.fromkeys((*source.keys, *source.features))),
        event=event,
        known=known,
        source=sql.SQL(source.subquery),  # the repository's own text
        conditions=sql.SQL(" and ").join(conditions),
    )


def pulled(
    source: Source, columns: Sequence[str], start: datetime | None, end: datetime | None, now: datetime, *, newest_only: bool
) -> sql.Composable:
    """Versions of the past whose event time, or whose known-at, lies in the range: a row that came late is in the range in which it came.

    Args:
        source: What is read.
        columns: Columns of the result; all when empty.
        start: First instant, None for no bound.
        end: Last instant, None for no bound.
        now: Nothing later is known.
        newest_only: One version of each key: the greatest event time, then the greatest known-at.
    """
    event = sql.Identifier(source.event_time)
    inside = [_within(event, start, end)]
    if source.known_at is not None:
        inside.append(_within(sql.Identifier(source.known_at), start, end))
    conditions = [
        sql.SQL("{} <= {}").format(event, now if end is None else min(now, end)),
        sql.SQL("{} <= {}").format(source.known, now),
        sql.SQL("({})").format(sql.SQL(" or ").join(inside)),
    ]
    query = sql.SQL("from {source} as source where {conditions}").format(
        source=sql.SQL(source.subquery),  # the repository's own text
        conditions=sql.SQL(" and ").join(conditions),
    )
    wanted = _columns(columns) if columns else sql.SQL("source.*")
    if not newest_only:
        return sql.SQL("select {} {}").format(wanted, query)
    keys = _columns(source.keys) if source.keys else sql.SQL("true")
    return sql.SQL("select distinct on ({keys}) {wanted} {query} order by {keys}, {event} desc, {known} desc").format(
        keys=keys, wanted=wanted, query=query, event=event, known=source.known
    )


def _within(column: sql.Composable, start: datetime | None, end: datetime | None) -> sql.Composable:
    bounds = [sql.SQL("{} {} {}").format(column, sql.SQL(sign), bound) for sign, bound in ((">=", start), ("<=", end)) if bound is not None]
    return sql.SQL("({})").format(sql.SQL(" and ").join(bounds)) if bounds else sql.SQL("true")


def _columns(names: Sequence[str] | dict[str, None]) -> sql.Composable:
    return sql.SQL(", ").join(map(sql.Identifier, names))


def _texts(values: pl.Series) -> list[str]:
    """Distinct values as text, which Postgres reads as the column's type; none when they are too many, or their text is not exact."""
    if not (values.dtype == pl.String() or values.dtype.is_integer()):
        return []
    distinct = values.unique().drop_nulls()
    return distinct.cast(pl.String).to_list() if distinct.len() <= MOST_KEYS else []
