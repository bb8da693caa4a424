"""Rows of every type and layout arrive bit by bit, in years that exist and in years that do not."""

from datetime import UTC, date, datetime
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from psycopg import sql

from featurestore_dagster.model.raw_table import UTC_MICROSECONDS
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.postgres.connection import connect, read_frame
from featurestore_dagster.stores.postgres.loading import Load

SCHEMA: dict[str, pl.DataType] = {
    "event_timestamp": UTC_MICROSECONDS,
    "name": pl.String(),
    "note": pl.String(),
    "price": pl.Float64(),
    "count": pl.Int64(),
    "version": pl.Int32(),
    "day": pl.Date(),
}
TYPES = {
    "event_timestamp": "timestamptz not null", "name": "text not null", "note": "text", "price": "double precision", "count": "bigint",
    "version": "integer", "day": "date",
}  # fmt: skip
INSTANTS = st.datetimes(datetime(2016, 1, 1), datetime(2020, 12, 31)).map(lambda moment: moment.replace(tzinfo=UTC))  # noqa: DTZ001
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=4)
ROWS = st.fixed_dictionaries(
    {
        "event_timestamp": INSTANTS,
        "name": TEXTS,
        "note": st.none() | TEXTS,
        "price": st.none() | st.floats(allow_nan=False),
        "count": st.none() | st.integers(-(2**63), 2**63 - 1),
        "version": st.none() | st.integers(-(2**31), 2**31 - 1),
        "day": st.none() | st.dates(date(1900, 1, 1), date(2200, 1, 1)),
    }
)
COLUMNS = sql.SQL(", ").join(sql.SQL(f"{name} {kind}") for name, kind in TYPES.items())


@pytest.mark.parametrize("partitioned", [True, False])
@hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(st.lists(ROWS, min_size=1, max_size=12), min_size=1, max_size=3))
def test_what_is_appended_is_read_back(fresh_database: Settings, parts: list[list[dict[str, Any]]], *, partitioned: bool) -> None:
    suffix = sql.SQL("partition by range (event_timestamp)" if partitioned else "")
    with connect(fresh_database.postgres) as connection:
        connection.execute("drop table if exists public.loaded")
        connection.execute(sql.SQL("create table public.loaded ({}) {}").format(COLUMNS, suffix))
        connection.execute("create index on public.loaded (name)")
    frames = [pl.DataFrame(rows, schema=SCHEMA) for rows in parts]
    for frame in frames:  # later ones find years of earlier ones
        with connect(fresh_database.postgres) as connection:
            load = Load(connection, "public", "loaded")
            load.append(frame)
            load.finish()
    found = read_frame(fresh_database.postgres, "select * from public.loaded", {}, SCHEMA)
    expected = pl.concat(frames)
    assert sorted(map(repr, found.rows())) == sorted(map(repr, expected.rows()))
    with connect(fresh_database.postgres) as connection:
        years = connection.execute("select count(*) from pg_indexes where schemaname = 'public' and tablename ~ '^loaded_2'").fetchone()
    assert years == ((expected["event_timestamp"].dt.year().n_unique() if partitioned else 0),)


def test_a_load_that_fails_leaves_no_year(fresh_database: Settings) -> None:
    with connect(fresh_database.postgres) as connection:
        connection.execute(sql.SQL("create table public.abandoned ({}) partition by range (event_timestamp)").format(COLUMNS))
    row = dict.fromkeys(SCHEMA) | {"event_timestamp": datetime(2018, 1, 1, tzinfo=UTC), "name": "a"}

    def fail() -> None:
        with connect(fresh_database.postgres) as connection:
            Load(connection, "public", "abandoned").append(pl.DataFrame([row], schema=SCHEMA))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with connect(fresh_database.postgres) as connection:
        assert connection.execute("select to_regclass('public.abandoned_2018')").fetchone() == (None,)
