"""Watermarks: the newest event time of each entity of a stream, kept in `ops.watermarks` by the transaction that publishes its rows.

Reading 45,000 of them takes milliseconds; finding them in the feature table means reading all of it. Judging them belongs to
`serving.freshness`.
"""

from datetime import datetime
from typing import Any

import polars as pl
import psycopg
from psycopg import sql

from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.projections.relation import Relation
from featurestore_dagster.settings import PostgresSettings
from featurestore_dagster.stores.postgres.connection import read_frame

WATERMARK = pl.Datetime("us", "UTC")


def newest(relation: Relation, rows: pl.DataFrame) -> pl.DataFrame:
    """Newest event time of each entity of these rows, columns keys and event_timestamp; rows that stand for a missing bar do not count."""
    present = rows.filter(pl.col("flags") & QualityFlag.MISSING_OHLCV.value == 0)
    return present.group_by(relation.keys).agg(pl.col("event_timestamp").max())


def advance(connection: psycopg.Connection[Any], relation: Relation, written: pl.DataFrame) -> None:
    """Advance the watermarks of a stream to what was just written, `newest` of it; old days move nothing."""
    if relation.feature_set_version is None or written.is_empty():
        return
    ordered = written.group_by(relation.keys).agg(pl.col("event_timestamp").max()).sort(relation.keys)
    arrays = [sql.SQL("{}::text[]").format(sql.Placeholder(f"key{place}")) for place in range(len(relation.keys))]
    names = [sql.Identifier(f"key{place}") for place in range(len(relation.keys))]
    statement = sql.SQL(
        "insert into ops.watermarks as held (view, stream, feature_set_version, entity, event_timestamp)"
        " select %(view)s, %(stream)s, %(version)s, array[{names}], newest from unnest({arrays}, %(newest)s::timestamptz[]) as"
        " t({names}, newest)"
        " on conflict (view, stream, feature_set_version, entity) do update set event_timestamp = excluded.event_timestamp"
        " where excluded.event_timestamp > held.event_timestamp"
    ).format(arrays=sql.SQL(", ").join(arrays), names=sql.SQL(", ").join(names))
    parameters = {
        "view": relation.table,
        "stream": relation.scope,
        "version": relation.feature_set_version,
        "newest": ordered["event_timestamp"].to_list(),
        **{f"key{place}": ordered[key].to_list() for place, key in enumerate(relation.keys)},
    }
    connection.execute(statement, parameters)


def read(settings: PostgresSettings, relation: Relation, now: datetime) -> pl.DataFrame:
    """Newest event time per business key of a relation, visible at `now`: columns = keys, `watermark`.

    The rows themselves are asked where nothing is kept (raw tables, streams never published) and when the clock was set back.
    """
    if relation.feature_set_version is not None:
        kept = _kept(settings, relation)
        newest = kept["watermark"].max()
        if isinstance(newest, datetime) and newest <= now:
            return kept
    return _of_rows(settings, relation, now)


def _kept(settings: PostgresSettings, relation: Relation) -> pl.DataFrame:
    keys = [sql.SQL("entity[{}] as {}").format(sql.Literal(place), sql.Identifier(key)) for place, key in enumerate(relation.keys, start=1)]
    query = sql.SQL(
        "select {keys}, event_timestamp as watermark from ops.watermarks"
        " where view = %(view)s and stream = %(stream)s and feature_set_version = %(version)s"
    ).format(keys=sql.SQL(", ").join(keys))
    parameters = {"view": relation.table, "stream": relation.scope, "version": relation.feature_set_version}
    return read_frame(settings, query, parameters, {**dict.fromkeys(relation.keys, pl.String()), "watermark": WATERMARK})


def _of_rows(settings: PostgresSettings, relation: Relation, now: datetime) -> pl.DataFrame:
    query = sql.SQL(
        "select {keys}, max(event_timestamp) as watermark from {table} where {scope} = %(scope)s and event_timestamp <= %(now)s"
        " and {known_at} <= %(now)s and {version} and flags & %(missing)s = 0 group by {keys} order by {keys}"
    ).format(
        version=sql.SQL("feature_set_version = %(version)s" if relation.feature_set_version is not None else "true"),
        keys=sql.SQL(", ").join(map(sql.Identifier, relation.keys)),
        table=sql.Identifier(relation.schema, relation.table),
        scope=sql.Identifier(relation.scope_column),
        known_at=sql.Identifier(relation.known_at),
    )
    parameters = {
        "scope": relation.scope,
        "now": now,
        "version": relation.feature_set_version,
        "missing": QualityFlag.MISSING_OHLCV.value,
    }
    return read_frame(settings, query, parameters, {**{key: relation.frame_schema[key] for key in relation.keys}, "watermark": WATERMARK})
