"""Rows of a Feast source as they were known at given instants, for every Feast repository on Postgres. Feast's interfaces are no part.

Arrow from Postgres by ADBC; the join sees only keys and times, so that values of any type pass untouched.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import adbc_driver_postgresql.dbapi
import polars as pl
import pyarrow as pa
from psycopg import sql

from featurestore_dagster.errors import MalformedDataError
from featurestore_dagster.pipeline.bitemporal import join_visible

MOST_KEYS = 10_000
"""More distinct values of a key are not named in the query."""

POSTGRES_TYPE = b"POSTGRESQL:type"
"""ADBC's name, in a field's metadata, for the type of a column."""


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
        return _fetched(cursor, query)


def _fetched(cursor: adbc_driver_postgresql.dbapi.Cursor, query: sql.Composable) -> pa.Table:
    cursor.execute(query.as_string())
    return _numeric_as_float(cursor.fetch_arrow_table())


def _numeric_as_float(table: pa.Table) -> pa.Table:
    columns = [
        column.cast(pa.string()).cast(pa.float64()) if (field.metadata or {}).get(POSTGRES_TYPE) == b"numeric" else column
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

    Raises:
        MalformedDataError: A value of a key is not of the source's type.
    """
    keys = {name: f"_key{number}" for number, name in enumerate(source.keys)}
    with adbc_driver_postgresql.dbapi.connect(uri, autocommit=True) as connection, connection.cursor() as cursor:
        typed = sql.SQL("select {} from {} as source").format(_columns(keys), sql.SQL(source.subquery))  # the repository's own text
        columns: pa.Schema = cursor.adbc_execute_schema(typed.as_string())
        instants = instants.with_columns(
            pl.min_horizontal("_at", pl.lit(now)).alias("_visible"),
            *(_as_key(instants[name], columns.field(name)).alias(key) for name, key in keys.items()),
        )
        versions = _fetched(cursor, _range(source, instants, keys, now))
    times = pl.DataFrame(pl.from_arrow(versions.select([*keys, "_event", "_known"]))).with_row_index("_version")
    winners = join_visible(
        instants,
        times.with_columns(_as_key(times[name], columns.field(name)).alias(key) for name, key in keys.items()).drop(keys),
        keys=list(keys.values()),
        at="_visible",
        event_time="_event",
        known_at="_known",
    )
    winner = pl.col("_version")
    if source.time_to_live:
        winner = pl.when(pl.col("_at") - pl.col("_event") < source.time_to_live).then(winner)
    return versions.select(list(source.features)).take(winners.select(winner.cast(pl.Int64))["_version"].to_arrow())


def _as_key(values: pl.Series, column: pa.Field) -> pl.Series:
    """Values as the column's type compares them, NULL for a number beyond its range.

    Raises:
        MalformedDataError: A value is not of that type.
    """
    kind = column.metadata[POSTGRES_TYPE].decode()
    dtype = pl.DataFrame(pl.from_arrow(_numeric_as_float(pa.schema([column]).empty_table()))).dtypes[0]
    if kind == "uuid" and values.dtype == pl.String:
        cast = values.str.replace_all("[{}-]", "").str.decode("hex", strict=False)
    else:
        cast = values.cast(dtype, strict=False)
    foreign = values.filter(cast.is_null() & values.is_not_null())
    if foreign.len() and not (values.dtype.is_numeric() and dtype.is_numeric()):
        raise MalformedDataError(
            f"{foreign.len()} entity rows have a {column.name} that is no {kind}, its type at the source, such as {foreign[0]!r}; "
            f"every value must be NULL or a {kind}: correct these rows or leave them out"
        )
    return cast.str.strip_chars_end(" ") if kind == "bpchar" else cast  # which pads with blanks


def _range(source: Source, instants: pl.DataFrame, keys: Mapping[str, str], now: datetime) -> sql.Composable:
    """The versions that any of the instants could see; `keys` names the column with each key as the source has it."""
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
        for name, key in keys.items()
        if (wanted := _texts(instants[name].filter(instants[key].is_not_null()))) is not None
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


def _columns(names: Iterable[str]) -> sql.Composable:
    return sql.SQL(", ").join(map(sql.Identifier, names))


def _texts(values: pl.Series) -> list[str | None] | None:
    """Distinct values, and NULL, as text that Postgres reads as the column's type; None when they are too many, or no text is exact."""
    if not (values.dtype == pl.String() or values.dtype.is_integer()):
        return None
    distinct = values.unique()
    return [None, *distinct.cast(pl.String)] if distinct.len() <= MOST_KEYS else None
