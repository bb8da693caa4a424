"""Connections to Postgres, and driver errors translated into ours. No table is known here."""

import contextlib
import functools
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import polars as pl
import psycopg
from psycopg.abc import Query

from featurestore_dagster.errors import ConfigurationError, StoreUnavailableError
from featurestore_dagster.settings import PostgresSettings

UNDEFINED = ("42P01", "42703", "3F000")
"""SQLSTATEs of a table, column or schema that does not exist."""

REFUSALS = ("password authentication", "no password supplied", "does not exist", "pg_hba", "SSL")

_local = threading.local()


@contextmanager
def connect(settings: PostgresSettings, *, autocommit: bool = False) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """One connection in UTC: committed on leaving, rolled back when an exception leaves.

    Raises:
        StoreUnavailableError: The server does not answer, or the connection broke.
        ConfigurationError: The server refused user, password, database or TLS, or `featurestore apply` has not run.
    """
    with translated(settings), psycopg.connect(settings.conninfo, autocommit=autocommit) as connection:
        yield connection


def read_frame(settings: PostgresSettings, query: Query, parameters: dict[str, Any], schema: dict[str, pl.DataType]) -> pl.DataFrame:
    """Result of a query as a Polars frame of this schema (columns in the query's order).

    Arrow from the server to Polars; Python objects are never made of the values. Parameters are inlined by psycopg as quoted literals,
    since ADBC cannot bind lists. A connection that the server closed meanwhile is replaced once.

    Raises:
        StoreUnavailableError: The server does not answer.
        ConfigurationError: As `connect`.
    """
    for attempt in range(2):
        try:
            with translated(settings):
                return reader_of(settings).read(query, parameters).cast(schema)  # type: ignore[arg-type]
        except StoreUnavailableError:
            close_reader()
            if attempt:
                raise
    raise AssertionError


class Reader:
    """A thread's connections for reads, closed with the thread or the process. Opening one costs a hundred queries.

    ADBC's low-level interface: its DBAPI would import pyarrow, and with it pandas, into every reader of a feature.
    """

    def __init__(self, settings: PostgresSettings) -> None:
        import adbc_driver_manager
        import adbc_driver_postgresql

        self.uri = settings.adbc_uri
        self.quoting = psycopg.connect(settings.conninfo, autocommit=True)
        database = adbc_driver_postgresql.connect(settings.adbc_uri)
        connection = adbc_driver_manager.AdbcConnection(database)
        self.connection = connection
        self.statement = functools.partial(adbc_driver_manager.AdbcStatement, connection)
        self.close = weakref.finalize(self, _close, self.quoting, connection, database)

    def execute(self, command: str) -> None:
        """Run a statement without result."""
        with contextlib.closing(self.statement()) as statement:
            statement.set_sql_query(command)
            statement.execute_update()

    def read(self, query: Query, parameters: dict[str, Any] | None) -> pl.DataFrame:
        """Result of a query, parameters inlined."""
        text = psycopg.ClientCursor(self.quoting).mogrify(query, parameters)
        with contextlib.closing(self.statement()) as statement:
            statement.set_sql_query(text)
            stream, _ = statement.execute_query()
            with as_driver_error():
                return pl.DataFrame(stream)

    def interval_columns(self, text: str) -> list[str]:
        """Names of a query's columns of type interval, which Polars has no type for."""
        import pyarrow as pa

        with contextlib.closing(self.statement()) as statement:
            statement.set_sql_query(text)
            return [column.name for column in pa.schema(statement.execute_schema()) if pa.types.is_interval(column.type)]


@contextmanager
def as_driver_error() -> Iterator[None]:
    """Errors of a stream as the driver's own: the server computes while it sends, so that it may refuse, or be gone, amid the rows."""
    import adbc_driver_manager

    try:
        yield
    except pl.exceptions.ComputeError as error:
        refused = "ERROR:" in str(error) and "canceling statement" not in str(error)
        kind = adbc_driver_manager.ProgrammingError if refused else adbc_driver_manager.OperationalError
        raise kind(str(error), status_code=adbc_driver_manager.AdbcStatusCode.IO) from error


def reader_of(settings: PostgresSettings) -> Reader:
    """This thread's connections, opened when there are none yet."""
    reader: Reader | None = getattr(_local, "reader", None)
    if reader is None or reader.uri != settings.adbc_uri:
        close_reader()
        reader = _local.reader = Reader(settings)
    return reader


def close_reader() -> None:
    """Close this thread's connections; the next read opens others."""
    reader: Reader | None = _local.__dict__.pop("reader", None)
    if reader is not None:
        reader.close()


def _close(*parts: Any) -> None:
    for part in parts:
        part.close()


@contextmanager
def translated(settings: PostgresSettings) -> Iterator[None]:
    """Driver errors as ours, without the password."""
    import adbc_driver_manager

    where = f"Postgres at {settings.host}:{settings.port}, database {settings.database}, user {settings.user}"
    try:
        yield
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn, psycopg.errors.InvalidSchemaName) as error:
        raise ConfigurationError(f"{where} is not as declared: {error.diag.message_primary}. Run `featurestore apply`.") from error
    except adbc_driver_manager.ProgrammingError as error:
        if error.sqlstate not in UNDEFINED:
            raise
        raise ConfigurationError(f"{where} is not as declared: {error}. Run `featurestore apply`.") from error
    except (psycopg.OperationalError, adbc_driver_manager.OperationalError) as error:
        # What follows the first line are libpq's guesses.
        reason = next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if any(word in str(error) for word in REFUSALS):
            raise ConfigurationError(
                f"{where} refused the connection: {reason}. Check POSTGRES_USER, POSTGRES_PASSWORD, "
                "POSTGRES_DATABASE and POSTGRES_SSLMODE (`featurestore info` lists them)."
            ) from error
        raise StoreUnavailableError(
            f"{where} does not answer: {reason}. Start it (`featurestore up`) or set POSTGRES_HOST and POSTGRES_PORT."
        ) from error
