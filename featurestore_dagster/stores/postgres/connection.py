"""Connections to Postgres, and driver errors translated into ours. No table is known here."""

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

_local = threading.local()


@contextmanager
def connect(settings: PostgresSettings, *, autocommit: bool = False) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """One connection in UTC: committed on leaving, rolled back when an exception leaves.

    Raises:
        StoreUnavailableError: The server does not answer, or the connection broke.
        ConfigurationError: The server refused user, password, database or TLS, or `featurestore apply` has not run.
    """
    where = f"Postgres at {settings.host}:{settings.port}, database {settings.database}, user {settings.user}"
    try:
        with psycopg.connect(settings.conninfo, autocommit=autocommit) as connection:
            yield connection
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as error:
        raise ConfigurationError(f"{where} lacks a table: {error.diag.message_primary}. Run `featurestore apply`.") from error
    except psycopg.OperationalError as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        if any(word in str(error) for word in ("password authentication", "no password supplied", "does not exist", "pg_hba", "SSL")):
            raise ConfigurationError(
                f"{where} refused the connection: {reason}. Check POSTGRES_USER, POSTGRES_PASSWORD, "
                "POSTGRES_DATABASE and POSTGRES_SSLMODE (`featurestore info` lists them)."
            ) from error
        raise StoreUnavailableError(
            f"{where} does not answer: {reason}. Start it (`featurestore up`) or set POSTGRES_HOST and POSTGRES_PORT."
        ) from error


def read_frame(settings: PostgresSettings, query: Query, parameters: dict[str, Any], schema: dict[str, pl.DataType]) -> pl.DataFrame:
    """Result of a query as a Polars frame of this schema (columns in the query's order).

    Arrow from the server to Polars; Python objects are never made of the values. Parameters are inlined by psycopg as quoted literals,
    since ADBC cannot bind lists.
    """
    with connect(settings) as connection:
        text = psycopg.ClientCursor(connection).mogrify(query, parameters)
    frame = pl.from_arrow(_fetch_arrow(settings, text))
    if not isinstance(frame, pl.DataFrame):
        raise TypeError(f"expected a table, got {type(frame).__name__}")
    return frame.cast(schema)  # type: ignore[arg-type]


class _Reader:
    """An ADBC connection, closed with its thread or the process. Opening one costs a hundred queries: it reads the type catalogue."""

    def __init__(self, uri: str) -> None:
        import adbc_driver_postgresql.dbapi

        connection = adbc_driver_postgresql.dbapi.connect(uri, autocommit=True)
        self.uri = uri
        self.cursor = connection.cursor
        self.close = weakref.finalize(self, connection.close)


def _fetch_arrow(settings: PostgresSettings, text: str) -> Any:
    """Run a query on this thread's connection; one that the server closed meanwhile is replaced once."""
    import adbc_driver_manager

    where = f"Postgres at {settings.host}:{settings.port}"
    for attempt in range(2):
        reader: _Reader | None = getattr(_local, "reader", None)
        try:
            if reader is None or reader.uri != settings.adbc_uri:
                _close_reader()
                reader = _local.reader = _Reader(settings.adbc_uri)
            with reader.cursor() as cursor:
                cursor.execute(text)
                return cursor.fetch_arrow_table()
        except adbc_driver_manager.ProgrammingError as error:
            if error.sqlstate in ("42P01", "3F000"):
                raise ConfigurationError(f"{where} lacks a table: {error}; run `featurestore apply`") from error
            raise
        except adbc_driver_manager.OperationalError as error:
            _close_reader()
            if attempt:
                raise StoreUnavailableError(f"{where} broke off a read: {error}") from error
    raise AssertionError


def _close_reader() -> None:
    reader: _Reader | None = _local.__dict__.pop("reader", None)
    if reader is not None:
        reader.close()
