"""Every form of a connection, with a password of the worst kind, against real servers and by the drivers that will use it."""

import adbc_driver_postgresql.dbapi
import psycopg
import pytest
import redis
import sqlalchemy
from feast.infra.online_stores.redis import RedisOnlineStore
from psycopg import sql
from pydantic import SecretStr

from featurestore_dagster.settings import PostgresSettings, RedisSettings, Settings

WORST = "p@ss:/%20'\"\\ ,=#?+ü{}"


@pytest.fixture
def postgres(empty_database: Settings) -> PostgresSettings:
    with psycopg.connect(empty_database.postgres.conninfo) as connection:
        owner = sql.Identifier(empty_database.postgres.user)
        connection.execute(sql.SQL("alter role {} password {}").format(owner, sql.Literal(WORST)))
        connection.execute("create schema feast")
    changed = empty_database.postgres.model_copy(update={"password": SecretStr(WORST)})
    yield changed
    with psycopg.connect(changed.conninfo) as connection:
        connection.execute(
            sql.SQL("alter role {} password {}").format(owner, sql.Literal(empty_database.postgres.password.get_secret_value()))
        )


def test_every_postgres_driver_connects_with_any_password(postgres: PostgresSettings) -> None:
    with psycopg.connect(postgres.conninfo) as connection:
        assert connection.execute("select current_setting('timezone')").fetchone() == ("UTC",)
    with adbc_driver_postgresql.dbapi.connect(postgres.adbc_uri) as adbc, adbc.cursor() as cursor:
        cursor.execute("select current_database()::text, current_setting('timezone')")
        assert cursor.fetchone() == (postgres.database, "UTC")
    for url, database, schema in ((postgres.dagster_url, "dagster", "public"), (postgres.feast_registry_url, postgres.database, "feast")):
        engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
        with engine.connect() as connection:
            assert tuple(connection.execute(sqlalchemy.text("select current_database(), current_schema()")).one()) == (database, schema)


@pytest.mark.parametrize("password", [WORST, "123", "true", "null", '"quoted"'])
def test_redis_and_feast_connect_with_any_password(session_settings: Settings, password: str) -> None:
    changed = session_settings.redis.model_copy(update={"password": SecretStr(password)})
    with redis.Redis.from_url(session_settings.redis.url) as client:
        client.config_set("requirepass", password)
        try:
            with redis.Redis.from_url(changed.url) as ours:
                assert ours.ping()
            [node], parameters = RedisOnlineStore._parse_connection_string(changed.feast_connection_string)
            with redis.Redis(**node, **parameters) as feasts:
                assert feasts.ping()
        finally:
            client.config_set("requirepass", session_settings.redis.password.get_secret_value())


def test_feast_reads_user_and_tls() -> None:
    settings = RedisSettings(host="cache", port=6380, db=2, username="me,you", password="x", tls=True)
    nodes, parameters = RedisOnlineStore._parse_connection_string(settings.feast_connection_string)
    assert nodes == [{"host": "cache", "port": "6380"}]
    assert parameters == {"db": 2, "username": "me,you", "password": "x", "ssl": True}
