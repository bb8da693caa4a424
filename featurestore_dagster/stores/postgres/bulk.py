"""Bulk reads of feature versions for history: Arrow from one snapshot of Postgres, no Python object per value.

Which version wins is decided by `serving.point_in_time`, except in `visible`, where the server looks each row up by its index.
"""

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import polars as pl
from psycopg import sql
from psycopg.abc import Query

from featurestore_dagster.errors import MalformedDataError, StoreUnavailableError
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS
from featurestore_dagster.projections.postgres_table import feature_schema
from featurestore_dagster.settings import PostgresSettings
from featurestore_dagster.stores.postgres.connection import Reader, close_reader, reader_of, translated

REPEATABLE = "set transaction isolation level repeatable read"

ASKED_TABLE = "asked_rows"

PUBLISHED_DAYS = {
    "day": UTC_MICROSECONDS,
    "version_count": pl.Int64(),
    "publication_count": pl.Int64(),
    "newest_publication_id": pl.Int64(),
    "digest": pl.Int64(),
}

_CHANGES = (
    "select publication_id, batch_id, rows_published, content_hash, published_at,"
    " coalesce(min_event_timestamp, lag(min_event_timestamp) over last) as low,"
    " coalesce(max_event_timestamp, lag(max_event_timestamp) over last) as high,"
    " rows_published > 0 or content_hash is distinct from lag(content_hash) over last as changed"
    " from ops.publications where starts_with(relation, %(relations)s)"
    " window last as (partition by relation, partition_key order by publication_id)"
)
"""Publications that changed what a partition holds; one that only advanced its inputs did not."""


@contextmanager
def snapshot(settings: PostgresSettings) -> Iterator["Snapshot"]:
    """One repeatable-read transaction: whatever is read in it, ledger and rows, is of one instant.

    Raises:
        StoreUnavailableError: The server does not answer, or the connection broke.
        ConfigurationError: The server refused the connection, or `featurestore apply` has not run.
    """
    with translated(settings):
        reader = _begun(settings)
        try:
            yield Snapshot(reader, settings)
        finally:
            _end(reader)


def _begun(settings: PostgresSettings) -> Reader:
    """This thread's connections in a new transaction; a connection that the server closed meanwhile is replaced once."""
    for attempt in range(2):
        try:
            with translated(settings):
                reader = reader_of(settings)
                reader.connection.set_autocommit(False)
                reader.execute(REPEATABLE)
                return reader
        except StoreUnavailableError:
            close_reader()
            if attempt:
                raise
    raise AssertionError


def _end(reader: Reader) -> None:
    """Leave no transaction behind; a connection that cannot end it is given up."""
    import adbc_driver_manager

    try:
        reader.connection.rollback()
        reader.connection.set_autocommit(True)
    except adbc_driver_manager.Error:
        close_reader()


class Snapshot:
    """Reads of one transaction; get it from `snapshot`."""

    def __init__(self, reader: Reader, settings: PostgresSettings) -> None:
        """The reader's connection is in the transaction; more can be opened with the settings."""
        self._reader = reader
        self._settings = settings

    def select(self, query: str) -> pl.DataFrame:
        """Result of a caller's own query, which cannot write: the rest of the transaction is read-only.

        Columns of type numeric come as Float64.

        Raises:
            MalformedDataError: The server refuses the text; its message is passed on. Or a column is an interval, or has another's name.
        """
        import adbc_driver_manager

        self._reader.execute("set transaction read only")
        if query := query.rstrip("; \t\r\n"):
            query += "\n"  # the driver puts it in parentheses, which a comment must not hide
        try:
            if intervals := self._reader.interval_columns(query):
                raise MalformedDataError(f"the entity query has intervals in {intervals}; give numbers: extract(epoch from {intervals[0]})")
            frame = self._read(query)
        except adbc_driver_manager.OperationalError:
            raise
        except (adbc_driver_manager.Error, pl.exceptions.PolarsError) as error:
            raise MalformedDataError(f"the entity query is refused: {error}; give one SELECT that names its columns") from error
        numeric = [
            pl.col(name).ext.storage().cast(pl.Float64)
            for name, dtype in frame.schema.items()
            if isinstance(dtype, pl.Extension) and '"numeric"' in (dtype.ext_metadata() or "")
        ]
        return frame.with_columns(numeric)

    def published_days(self, view: FeatureView) -> pl.DataFrame:
        """What the ledger says of a view by UTC day of event time, ascending; columns PUBLISHED_DAYS.

        `version_count` is an estimate: a publication's versions are shared out evenly to the days that they may touch. `digest` changes
        with any publication that may have changed the day.
        """
        query = (
            f"with changes as ({_CHANGES}) select day, count(*) as publication_count,"  # noqa: S608 - constants
            " sum(rows_published / (1 + extract(day from date_trunc('day', high, 'UTC') - date_trunc('day', low, 'UTC'))))::bigint"
            " as version_count, max(publication_id) as newest_publication_id,"
            " bit_xor(hashtextextended(concat_ws(' ', publication_id, batch_id, content_hash, published_at), 0)) as digest"
            " from changes, generate_series(date_trunc('day', low, 'UTC'), high, '1 day') as day where changed group by day order by day"
        )
        return self._read(query, {"relations": _relations(view)}).select(list(PUBLISHED_DAYS)).cast(PUBLISHED_DAYS)  # type: ignore[arg-type]

    def publication_ids(self, view: FeatureView) -> pl.Series:
        """Ids of all publications of a view that changed its values, ascending."""
        query = f"with changes as ({_CHANGES}) select publication_id from changes where changed order by 1"  # noqa: S608 - a constant
        return self._read(query, {"relations": _relations(view)})["publication_id"].cast(pl.Int64)

    def versions(
        self, view: FeatureView, columns: Sequence[str], instants: Sequence[datetime], keys: Mapping[str, Sequence[str]]
    ) -> pl.DataFrame:
        """Every version between the first and the last of ascending instants, the last left out, unsorted.

        With an instant between them the ranges before and after it are read at once, each through a connection of its own: one
        connection keeps neither the server nor this process busy. `keys` restricts join keys to the values given.
        """
        queries = []
        for start, end in itertools.pairwise(instants):
            condition, parameters = self._range(view, start, end, keys)
            query = sql.SQL("select {columns} from {table} where {condition}").format(
                columns=_names(columns), table=sql.Identifier("features", view.name), condition=condition
            )
            queries.append((query, parameters))
        (here, here_parameters), *beside = queries
        if not beside:
            return self._read(here, here_parameters).cast(_schema(view, columns))  # type: ignore[arg-type]
        name = self._read("select pg_export_snapshot() as name")["name"].item()
        with ThreadPoolExecutor(len(beside)) as threads:
            others = [threads.submit(self._read_beside, name, query, parameters) for query, parameters in beside]
            found = [self._read(here, here_parameters), *(other.result() for other in others)]
        return pl.concat(found).cast(_schema(view, columns))  # type: ignore[arg-type]

    def _read_beside(self, name: str, query: Query, parameters: dict[str, Any]) -> pl.DataFrame:
        with contextlib.closing(Reader(self._settings)) as reader:
            reader.connection.set_autocommit(False)
            reader.execute(REPEATABLE)
            reader.execute(f"set transaction snapshot '{name}'")
            return reader.read(query, parameters)

    def share_of_keys(self, view: FeatureView, start: datetime, end: datetime, keys: Mapping[str, Sequence[str]]) -> float:
        """Share of the versions of a range that have one of these keys; 0 when there are none."""
        if not keys:
            return 1.0
        everything, parameters = self._range(view, start, end, {})
        wanted, more = _among(keys)
        query = sql.SQL("select coalesce(avg(({wanted})::int), 0)::float8 as share from {table} where {condition}").format(
            wanted=sql.SQL(" and ").join(wanted), table=sql.Identifier("features", view.name), condition=everything
        )
        return float(self._read(query, {**parameters, **more})["share"].item())

    def visible(self, view: FeatureView, columns: Sequence[str], asked: pl.DataFrame) -> pl.DataFrame:
        """The winning version of each row asked for, looked up by the index of the table.

        Args:
            view: Whose versions.
            columns: Columns of `feature_schema(view)`.
            asked: Join keys of the view; `row` (Int64); `oldest`, `instant` and `knowledge` (UTC): a version is visible when
                oldest < event_timestamp <= instant and created_timestamp <= knowledge.

        Returns:
            `row` and `columns`, unsorted, without the rows that see nothing.
        """
        with contextlib.closing(self._reader.statement()) as statement:
            statement.set_options(
                **{
                    "adbc.ingest.target_table": ASKED_TABLE,
                    "adbc.ingest.mode": "adbc.ingest.mode.replace",
                    "adbc.ingest.temporary": "true",
                }
            )
            statement.bind_stream(asked)
            statement.execute_update()
        query = sql.SQL(
            "select a.row, f.* from {asked} a cross join lateral (select {columns} from {table} f where {match}"
            " and f.feature_set_version = {version} and f.event_timestamp <= a.instant and f.event_timestamp > a.oldest"
            " and f.created_timestamp <= a.knowledge order by f.event_timestamp desc, f.created_timestamp desc limit 1) f"
        ).format(
            asked=sql.Identifier(ASKED_TABLE),
            columns=_names(columns),
            table=sql.Identifier("features", view.name),
            match=sql.SQL(" and ").join(sql.SQL("f.{0} = a.{0}").format(sql.Identifier(key)) for key in view.join_keys),
            version=sql.Literal(view.version),
        )
        schema: dict[str, pl.DataType] = {"row": pl.Int64(), **_schema(view, columns)}
        return self._read(query).cast(schema)  # type: ignore[arg-type]

    def _range(
        self, view: FeatureView, start: datetime, end: datetime, keys: Mapping[str, Sequence[str]]
    ) -> tuple[sql.Composable, dict[str, Any]]:
        conditions, parameters = _among(keys)
        conditions.append(sql.SQL("event_timestamp >= %(start)s and event_timestamp < %(end)s and feature_set_version = %(version)s"))
        return sql.SQL(" and ").join(conditions), {"start": start, "end": end, "version": view.version, **parameters}

    def _read(self, query: Query, parameters: dict[str, Any] | None = None) -> pl.DataFrame:
        return self._reader.read(query, parameters)


def _among(keys: Mapping[str, Sequence[str]]) -> tuple[list[sql.Composable], dict[str, Any]]:
    conditions: list[sql.Composable] = []
    parameters: dict[str, Any] = {}
    for number, (name, values) in enumerate(keys.items()):
        conditions.append(sql.SQL("{} = any({})").format(sql.Identifier(name), sql.Placeholder(f"key{number}")))
        parameters[f"key{number}"] = list(values)
    return conditions, parameters


def _relations(view: FeatureView) -> str:
    """How the names of a view's relations start, also of streams that are not declared any more."""
    return f"features.{view.label}."


def _schema(view: FeatureView, columns: Sequence[str]) -> dict[str, pl.DataType]:
    declared = feature_schema(view)
    return {name: declared[name] for name in columns}


def _names(columns: Sequence[str]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, columns))
