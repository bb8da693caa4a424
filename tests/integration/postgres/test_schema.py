"""Create, compare and drop the declared tables."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import pytest
from psycopg import sql

from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.features.equity_views import MOMENTUM_FEATURES
from featurestore_dagster.indicators.averages import sma
from featurestore_dagster.model.time import SystemClock
from featurestore_dagster.projections.postgres_table import tables
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.postgres import PostgresStore
from featurestore_dagster.stores.postgres.connection import connect
from featurestore_dagster.stores.postgres.schema import ensure_yearly_partitions

TABLES = {f"{table.schema}.{table.name}" for table in tables(CATALOGUE)}


def _store(settings: Settings) -> PostgresStore:
    return PostgresStore(settings.postgres, SystemClock())


def _run(settings: Settings, statement: str) -> list[tuple[object, ...]]:
    with connect(settings.postgres) as connection:
        cursor = connection.execute(statement)  # type: ignore[arg-type]
        return cursor.fetchall() if cursor.description else []


def test_plan_says_what_apply_does_and_apply_does_it_once(empty_database: Settings) -> None:
    store = _store(empty_database)
    assert len(store.drift(CATALOGUE)) == len(TABLES)
    planned = store.plan(CATALOGUE)
    assert _run(empty_database, "select count(*) from information_schema.tables where table_schema in ('raw', 'features', 'ops')") == [(0,)]
    assert store.apply(CATALOGUE) == planned
    assert store.plan(CATALOGUE) == []
    assert store.apply(CATALOGUE) == []
    assert store.drift(CATALOGUE) == []
    found = _run(
        empty_database,
        "select table_schema || '.' || table_name from information_schema.tables where table_schema in ('raw', 'features', 'ops')",
    )
    assert {name for (name,) in found} == TABLES


def test_columns_carry_their_meaning(fresh_database: Settings) -> None:
    rows = _run(
        fresh_database, "select col_description('features.momentum_features'::regclass, 4), obj_description('raw.candles'::regclass)"
    )
    ((column, table),) = rows
    assert "100*G/(G+L)" in str(column).replace(" ", "") or "0..100" in str(column)
    assert "Closed bars" in str(table)


def test_a_new_feature_is_a_new_column_and_keeps_the_rows(fresh_database: Settings) -> None:
    _run(
        fresh_database,
        "create table features.momentum_features_2018 partition of features.momentum_features"
        " for values from ('2018-01-01') to ('2019-01-01')",
    )
    _run(
        fresh_database,
        "insert into features.momentum_features (symbol, event_timestamp, created_timestamp, flags, feature_set_version, stream, batch_id)"
        " values ('AAA', '2018-12-03', '2018-12-03', 0, 1, 'us_equity_1d', 1)",
    )
    wider = dataclasses.replace(MOMENTUM_FEATURES, features=(*MOMENTUM_FEATURES.features, sma.feature("sma_5", n=5)))
    catalogue = dataclasses.replace(
        CATALOGUE, views=tuple(wider if view is MOMENTUM_FEATURES else view for view in CATALOGUE.views), services=()
    )
    store = _store(fresh_database)
    assert store.drift(catalogue) == ["column features.momentum_features.sma_5 is missing: run `featurestore apply`"]
    (statement,) = store.apply(catalogue)
    assert statement == 'alter table "features"."momentum_features" add column "sma_5" double precision'
    assert store.drift(catalogue) == []
    assert _run(fresh_database, "select symbol, sma_5 from features.momentum_features") == [("AAA", None)]
    # The old declaration sees a column that it does not know, and nothing drops it.
    assert store.drift(CATALOGUE) == ["column features.momentum_features.sma_5 is not declared: drop it, or declare it"]
    assert store.plan(CATALOGUE) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            "alter table features.daily_ohlcv_stats alter column close type text",
            "column features.daily_ohlcv_stats.close is text, declared double precision: migrate it",
        ),
        (
            "alter table ops.publications alter column run_id drop not null",
            "column ops.publications.run_id is nullable, declared otherwise: migrate it",
        ),
        ("alter table raw.candles drop column volume", "column raw.candles.volume is missing: run `featurestore apply`"),
        ("drop table ops.quarantine", "table ops.quarantine is missing: run `featurestore apply`"),
    ],
    ids=["type", "nullable", "column", "table"],
)
def test_drift_is_named(fresh_database: Settings, change: str, sentence: str) -> None:
    _run(fresh_database, change)
    assert _store(fresh_database).drift(CATALOGUE) == [sentence]
    _store(fresh_database).apply(CATALOGUE)
    assert _store(fresh_database).drift(CATALOGUE) == ([sentence] if sentence.endswith("migrate it") else [])


def test_apply_fails_whole(empty_database: Settings) -> None:
    """A view of somebody else stands where a table should: nothing of the rest is left behind."""
    import psycopg

    _run(empty_database, "create schema ops")
    _run(empty_database, "create sequence ops.quality_log")
    with pytest.raises(psycopg.errors.DuplicateTable):
        _store(empty_database).apply(CATALOGUE)
    assert _run(empty_database, "select count(*) from information_schema.schemata where schema_name = 'raw'") == [(0,)]


def test_teardown_drops_ours_and_nothing_else(fresh_database: Settings) -> None:
    _run(fresh_database, "create schema theirs")
    store = _store(fresh_database)
    assert set(store.teardown()) == {"raw", "features", "ops", "staging", "marts", "feast"}
    assert store.teardown() == []
    assert _run(fresh_database, "select count(*) from information_schema.schemata where schema_name = 'theirs'") == [(1,)]
    store.apply(CATALOGUE)
    assert store.drift(CATALOGUE) == []


def _partitions(settings: Settings, table: str) -> list[str]:
    rows = _run(settings, f"select inhrelid::regclass::text from pg_inherits where inhparent = '{table}'::regclass order by 1")
    return [str(name) for (name,) in rows]


def test_native_partitions_are_made_by_year(fresh_database: Settings) -> None:
    with connect(fresh_database.postgres) as connection:
        ensure_yearly_partitions(connection, "raw", "candles", 2017, 2018)
        ensure_yearly_partitions(connection, "raw", "candles", 2018, 2019)
        ensure_yearly_partitions(connection, "ops", "publications", 2018, 2018)  # a plain table
        ensure_yearly_partitions(connection, "raw", "nothing", 2018, 2018)
    assert _partitions(fresh_database, "raw.candles") == ["raw.candles_2017", "raw.candles_2018", "raw.candles_2019"]
    bounds = _run(fresh_database, "select pg_get_expr(relpartbound, oid) from pg_class where oid = 'raw.candles_2018'::regclass")
    assert bounds == [("FOR VALUES FROM ('2018-01-01 00:00:00+00') TO ('2019-01-01 00:00:00+00')",)]


def test_every_time_table_is_partitioned_and_has_its_key(fresh_database: Settings) -> None:
    for table in tables(CATALOGUE):
        identifier = sql.Identifier(table.schema, table.name)
        with connect(fresh_database.postgres) as connection:
            kind = connection.execute(
                "select relkind = 'p' from pg_class where oid = to_regclass(%s)", [identifier.as_string(connection)]
            ).fetchone()
            key = connection.execute(
                "select array_agg(a.attname::text order by k.position)"
                " from pg_index i, unnest(i.indkey) with ordinality k(column_number, position)"
                " join pg_attribute a on true where i.indrelid = to_regclass(%s) and i.indisprimary and a.attrelid = i.indrelid"
                " and a.attnum = k.column_number",
                [identifier.as_string(connection)],
            ).fetchone()
        assert kind == (table.time_column is not None,)
        assert key == (list(table.primary_key),)


def test_two_that_apply_at_once_do_it_once(empty_database: Settings) -> None:
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda _: len(_store(empty_database).apply(CATALOGUE)), range(2)))
    assert min(done) == 0
    assert max(done) > len(TABLES)
    assert _store(empty_database).drift(CATALOGUE) == []
