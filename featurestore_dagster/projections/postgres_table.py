"""Declarations -> Postgres tables: columns, keys and comments of schemas `raw`, `features` and `ops`.

Pure descriptions; executing or comparing them belongs to `stores.postgres.schema`.
"""

from dataclasses import dataclass

import polars as pl

from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS, RawTable
from featurestore_dagster.model.units import Unit

SCHEMAS = ("raw", "features", "ops", "staging", "marts", "feast")
"""Schemas of the database; `staging` and `marts` are filled by dbt, `feast` by Feast's SQL registry."""

BOOKKEEPING = {
    "event_timestamp": "first instant at which the values are true of the market and public by their nature",
    "created_timestamp": "known-at: when this version could first have been used here",
    "flags": "bitmask of quality flags",
    "feature_set_version": "version of the view's declaration that computed the row",
    "stream": "market and timeframe part of the view",
}
"""Columns of every feature table beside its keys and features."""


@dataclass(frozen=True)
class PostgresColumn:
    """One column; `type` is Postgres' own name, as information_schema prints it."""

    name: str
    type: str
    nullable: bool = False
    comment: str = ""
    is_identity: bool = False


@dataclass(frozen=True)
class PostgresTable:
    """A table; `time_column` is what native partitions or hypertable chunks are cut by (None: a plain table)."""

    schema: str
    name: str
    columns: tuple[PostgresColumn, ...]
    primary_key: tuple[str, ...]
    comment: str = ""
    time_column: str | None = None
    indexes: tuple[tuple[str, ...], ...] = ()
    unique: tuple[tuple[str, ...], ...] = ()


def feature_dtype(unit: Unit) -> pl.DataType:
    """Stored Polars type of a feature of this unit: codes are Int64, everything else Float64."""
    return pl.Int64() if unit is Unit.CODE else pl.Float64()


def feature_schema(view: FeatureView) -> dict[str, pl.DataType]:
    """Canonical frame schema of a view: join keys, both times, features, flags, version and stream, in table order."""
    return {
        **{key: pl.String() for key in view.join_keys},
        "event_timestamp": UTC_MICROSECONDS,
        "created_timestamp": UTC_MICROSECONDS,
        **{feature.name: feature_dtype(feature.indicator.unit) for feature in view.features},
        "flags": pl.Int64(),
        "feature_set_version": pl.Int32(),
        "stream": pl.String(),
    }


def postgres_type(dtype: pl.DataType) -> str:
    """Postgres type of a canonical Polars type."""
    names = {pl.String(): "text", pl.Float64(): "double precision", pl.Int64(): "bigint", pl.Int32(): "integer", pl.Date(): "date"}
    return names.get(dtype, "timestamp with time zone")


def raw_table(table: RawTable) -> PostgresTable:
    """Table of schema `raw` for a declaration."""
    return PostgresTable(
        "raw",
        table.name,
        (
            *(PostgresColumn(c.name, postgres_type(c.dtype), c.nullable, c.description) for c in table.all_columns),
            PostgresColumn("batch_id", "bigint", comment="batch of ops.publications that wrote the row"),
        ),
        primary_key=(*table.identity, "known_at"),
        comment=table.description,
        time_column="event_timestamp",
        indexes=(("dataset", "event_timestamp"), ("batch_id",)),
    )


def feature_table(view: FeatureView, *others: FeatureView) -> PostgresTable:
    """Table of schema `features` for a view; `others` are its other versions, whose columns it holds too."""
    comments = {
        **{entity.join_key: entity.description for entity in view.entities},
        **BOOKKEEPING,
        **{feature.name: f"{feature.formula}; {feature.indicator.unit}" for part in (*others, view) for feature in part.features},
    }
    schema = feature_schema(view)
    schema |= {name: dtype for other in others for name, dtype in feature_schema(other).items() if name not in schema}
    features = {name for part in (view, *others) for name in part.feature_names}
    return PostgresTable(
        "features",
        view.name,
        (
            *(
                PostgresColumn(name, postgres_type(dtype), nullable=name in features, comment=comments[name])
                for name, dtype in schema.items()
            ),
            PostgresColumn("batch_id", "bigint", comment="batch of ops.publications that wrote the row"),
        ),
        primary_key=(*view.join_keys, "event_timestamp", "created_timestamp", "feature_set_version"),
        comment=view.description,
        time_column="event_timestamp",
        indexes=(("stream", "event_timestamp"), ("batch_id",)),
    )


Keys = tuple[tuple[str, ...], ...]


def _ops_table(name: str, comment: str, key: str, *columns: PostgresColumn, indexes: Keys = (), unique: Keys = ()) -> PostgresTable:
    identity = PostgresColumn(key, "bigint", is_identity=True)
    return PostgresTable("ops", name, (identity, *columns), primary_key=(key,), comment=comment, indexes=indexes, unique=unique)


_INSTANT = "timestamp with time zone"

OPS_TABLES = (
    _ops_table(
        "publications",
        "Ledger of publications; ids are given in commit order, so that a reader that remembers the last id misses nothing",
        "publication_id",
        PostgresColumn("batch_id", "bigint", comment="joins the rows that were written"),
        PostgresColumn("relation", "text", comment="raw.<dataset> or features.<view>/<stream>"),
        PostgresColumn("partition_key", "text", comment="session of the relation's calendar"),
        PostgresColumn("rows_published", "bigint", comment="new versions written; 0 when only the inputs advanced"),
        PostgresColumn("rows_quarantined", "bigint"),
        PostgresColumn("rows_total", "bigint", comment="rows of the partition after publication, newest versions"),
        PostgresColumn("content_hash", "text", comment="hash of the newest versions of the partition, known-at excluded"),
        PostgresColumn("min_event_timestamp", _INSTANT, nullable=True),
        PostgresColumn("max_event_timestamp", _INSTANT, nullable=True),
        PostgresColumn("changed", "jsonb", comment="keys and event-time range of the new versions, and how many replace another"),
        PostgresColumn("inputs", "jsonb", comment="newest publication id read of each input relation"),
        PostgresColumn("code_version", "text", comment="hash of the declaration that computed the rows"),
        PostgresColumn("run_id", "text"),
        PostgresColumn("published_at", _INSTANT),
        PostgresColumn("seconds", "double precision", nullable=True, comment="the partition's share of the time until publication began"),
        indexes=(("relation", "partition_key", "publication_id"), ("relation", "publication_id"), ("batch_id",)),
    ),
    _ops_table(
        "quarantine",
        "Rows that were refused, replayable",
        "quarantine_id",
        PostgresColumn("relation", "text"),
        PostgresColumn("partition_key", "text"),
        PostgresColumn("row", "jsonb"),
        PostgresColumn("row_hash", "text"),
        PostgresColumn("reasons", "ARRAY"),
        PostgresColumn("status", "text", comment="open, replayed, or superseded by a later audit of the partition"),
        PostgresColumn("run_id", "text"),
        PostgresColumn("quarantined_at", _INSTANT),
        indexes=(("status", "relation", "partition_key"),),
        unique=(("relation", "partition_key", "row_hash"),),
    ),
    _ops_table(
        "quality_log",
        "Outcome of each audit of a partition, published or blocked",
        "quality_log_id",
        PostgresColumn("relation", "text"),
        PostgresColumn("partition_key", "text"),
        PostgresColumn("outcome", "text", comment="published, unchanged or blocked"),
        PostgresColumn("checks", "jsonb", comment="failed checks with counts and examples"),
        PostgresColumn("flags", "jsonb", comment="rows by quality flag"),
        PostgresColumn("null_shares", "jsonb", nullable=True, comment="NULL share by column of a dataset's published rows"),
        PostgresColumn("run_id", "text"),
        PostgresColumn("logged_at", _INSTANT),
        indexes=(("relation", "partition_key", "quality_log_id"), ("outcome", "relation")),
    ),
    _ops_table(
        "alerts",
        "Streaks of what went wrong: one row from the evaluation that found it to the one that did not",
        "alert_id",
        PostgresColumn("kind", "text"),
        PostgresColumn("grouping", "text", comment="view, relation, job or channel: what messages and silences are about"),
        PostgresColumn("subject", "text", comment="stream, partition, job or channel: what has a streak of its own"),
        PostgresColumn("state", "text", comment="open, notified, escalated, silenced or resolved"),
        PostgresColumn("since", _INSTANT, comment="when it began to be wrong; of a view: due at"),
        PostgresColumn("summary", "text"),
        PostgresColumn("cause", "text", comment="the likely one"),
        PostgresColumn("page", "text", nullable=True, comment="path in the Dagster UI"),
        PostgresColumn("facts", "jsonb", comment="lines of the message, as of the last evaluation that found it"),
        PostgresColumn("opened_at", _INSTANT),
        PostgresColumn("announced_at", _INSTANT, nullable=True, comment="when its first message was put up for sending"),
        PostgresColumn("notified_at", _INSTANT, nullable=True, comment="when a channel first took it"),
        PostgresColumn("escalated_at", _INSTANT, nullable=True),
        PostgresColumn("resolved_at", _INSTANT, nullable=True),
        indexes=(("state",), ("kind", "subject", "alert_id")),
    ),
    _ops_table(
        "alert_deliveries",
        "Outbox: one row for each message and channel, sent or given up",
        "delivery_id",
        PostgresColumn("message_key", "text", comment="in the message: the same whenever it is sent"),
        PostgresColumn("channel", "text", comment="scheme and digest of the channel's URL"),
        PostgresColumn("event", "text", comment="opened, escalated or resolved"),
        PostgresColumn("alert_ids", "ARRAY", comment="the streaks that it tells of"),
        PostgresColumn("title", "text"),
        PostgresColumn("body", "text"),
        PostgresColumn("state", "text", comment="pending, sent, dead (until somebody asks for it again) or obsolete (too late to be told)"),
        PostgresColumn("attempts", "bigint"),
        PostgresColumn("queued_at", _INSTANT),
        PostgresColumn("next_attempt_at", _INSTANT),
        PostgresColumn("give_up_at", _INSTANT, comment="a failure from here on makes it a dead letter"),
        PostgresColumn("sent_at", _INSTANT, nullable=True),
        PostgresColumn("last_error", "text", nullable=True),
        indexes=(("state", "next_attempt_at"),),
        unique=(("message_key", "channel"),),
    ),
    _ops_table(
        "alert_silences",
        "Who is not told of what, and until when",
        "silence_id",
        PostgresColumn("name", "text", comment="an alert's grouping, or a view with all that it publishes"),
        PostgresColumn("starts_at", _INSTANT),
        PostgresColumn("ends_at", _INSTANT),
        PostgresColumn("reason", "text"),
        indexes=(("name", "ends_at"),),
    ),
    PostgresTable(
        "ops",
        "slo_ledger",
        (
            PostgresColumn("view", "text"),
            PostgresColumn("stream", "text"),
            PostgresColumn("day", "date", comment="UTC"),
            PostgresColumn("evaluated_seconds", "double precision"),
            PostgresColumn("overdue_seconds", "double precision", comment="of the evaluated ones: a value was owed and not published"),
            PostgresColumn("evaluated_until", _INSTANT),
            PostgresColumn("watermark", _INSTANT, nullable=True, comment="newest event time published by then"),
            PostgresColumn("publication_id", "bigint", comment="newest publication that was counted"),
        ),
        primary_key=("view", "stream", "day"),
        comment="Time in which a stream was evaluated against its SLO and was overdue, from the ledger of publications",
    ),
    PostgresTable(
        "ops",
        "watermarks",
        (
            PostgresColumn("view", "text"),
            PostgresColumn("stream", "text"),
            PostgresColumn("feature_set_version", "integer"),
            PostgresColumn("entity", "ARRAY", comment="values of the join keys, in the view's order"),
            PostgresColumn("event_timestamp", _INSTANT, comment="greatest one published with a bar"),
        ),
        primary_key=("view", "stream", "feature_set_version", "entity"),
        comment="Newest event time of each entity of a stream; written with the rows, and only ever advanced",
    ),
    _ops_table(
        "restatements",
        "Requests to compute again what was computed from other inputs than the published ones",
        "restatement_id",
        PostgresColumn("job", "text", comment="path whose run does it"),
        PostgresColumn("status", "text", comment="waiting (for a person), requested, done or failed"),
        PostgresColumn("relations", "ARRAY", comment="streams of views to compute"),
        PostgresColumn("first_partition", "text"),
        PostgresColumn("last_partition", "text"),
        PostgresColumn("partitions", "bigint", comment="stale sessions from the first to the last"),
        PostgresColumn("causes", "jsonb", comment="by relation what changed: rows, first and last event time"),
        PostgresColumn("last_publication_id", "bigint", comment="what the ledger held up to here is accounted for"),
        PostgresColumn("attempts", "bigint", comment="runs asked for"),
        PostgresColumn("changed_at", _INSTANT, comment="publication of the oldest cause"),
        PostgresColumn("requested_at", _INSTANT),
        PostgresColumn("finished_at", _INSTANT, nullable=True, comment="end of the run: the online rows are up to date"),
        PostgresColumn("run_id", "text", nullable=True),
        indexes=(("status", "job"), ("job", "last_publication_id")),
    ),
    PostgresTable(
        "ops",
        "durations",
        (
            PostgresColumn("kind", "text", comment="publish or sync"),
            PostgresColumn("subject", "text", comment="relation or view"),
            PostgresColumn("seconds_up_to", "double precision", comment="upper bound of the bucket; the last one is infinite"),
            PostgresColumn("writes", "bigint", comment="writes that took so long"),
            PostgresColumn("seconds", "double precision", comment="their sum"),
            PostgresColumn("newest_at", _INSTANT, comment="end of the newest, by the server's own clock"),
        ),
        primary_key=("kind", "subject", "seconds_up_to"),
        comment="How long writes took, counted by bucket, and when the newest ended: a histogram and a heartbeat that never grow",
    ),
)


def tables(catalogue: Catalogue) -> tuple[PostgresTable, ...]:
    """Every table that the catalogue needs; all versions of a view share one."""
    versions: dict[str, list[FeatureView]] = {}
    for view in sorted(catalogue.views, key=lambda view: view.is_superseded):
        versions.setdefault(view.name, []).append(view)
    return (*map(raw_table, catalogue.raw_tables), *(feature_table(*found) for found in versions.values()), *OPS_TABLES)
