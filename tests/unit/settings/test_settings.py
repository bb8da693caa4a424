"""Settings: where values come from, what is refused and how, and that no secret shows."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from featurestore_dagster.errors import ConfigurationError, StoreUnavailableError
from featurestore_dagster.model.time import FrozenClock, SystemClock
from featurestore_dagster.settings import PostgresSettings, RedisSettings, Settings

SECRET = "p@ss:/%'\"\\ ,=#?ü"


def test_defaults_need_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings()
    assert settings.data_folder == tmp_path / ".featurestore"
    assert settings.drop == tmp_path / ".featurestore" / "drop"
    assert settings.home == tmp_path / ".featurestore" / "dagster"
    assert settings.embedded
    assert settings.make_clock() == SystemClock()
    assert settings.make_clock().replayed is None


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("FEATURESTORE_CLOCK", "yesterday", "2018-12-31T22:00:00Z"),
        ("FEATURESTORE_CLOCK", "2018-12-31T22:00:00", "with zone"),
        ("FEATURESTORE_ENVIRONMENT", "prod", "development, test, production"),
        ("FEATURESTORE_SERVICES", "docker", "embedded"),
        ("FEATURESTORE_SOURCES", "samples,polygon", "samples, files, binance, eodhd"),
        ("FEATURESTORE_SOURCES", "samples,", "separated by commas"),
        ("FEATURESTORE_LOG_LEVEL", "verbose", "DEBUG, INFO, WARNING, ERROR"),
        ("FEATURESTORE_WEBSERVER_PORT", "70000", "0 to 65535"),
        ("FEATURESTORE_CODE_SERVER_PORT", "first", "0 to 65535"),
        ("POSTGRES_PORT", "0", "1 to 65535"),
        ("POSTGRES_DATABASE", "a b", "letters"),
        ("POSTGRES_SSLMODE", "on", "disable, allow, prefer, require, verify-ca, verify-full"),
        ("REDIS_DB", "-1", "from 0"),
        ("REDIS_TLS", "maybe", "true or false"),
        ("REDIS_HOST", "redis://x", "host name"),
    ],
)
def test_a_wrong_value_names_itself_and_what_is_allowed(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, allowed: str) -> None:
    monkeypatch.setenv("POSTGRES_HOST", "db")
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError) as caught:
        Settings()
    assert f"{variable}={value!r}" in str(caught.value)
    assert allowed in str(caught.value).partition("allowed: ")[2]


def test_every_wrong_value_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATURESTORE_LOG_LEVEL", "loud")
    monkeypatch.setenv("FEATURESTORE_WEBSERVER_PORT", "-1")
    with pytest.raises(ConfigurationError, match=r"LOG_LEVEL.*WEBSERVER_PORT|WEBSERVER_PORT.*LOG_LEVEL"):
        Settings()


def test_an_unknown_variable_is_refused_with_the_nearest_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATURESTORE_CLOK", "-P1D")
    with pytest.raises(ConfigurationError, match="FEATURESTORE_CLOK; nearest: FEATURESTORE_CLOCK"):
        Settings()


def test_an_empty_variable_is_no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATURESTORE_WEBSERVER_PORT", "")
    monkeypatch.setenv("POSTGRES_HOST", "")
    assert Settings().webserver_port == 3000
    assert Settings().embedded


def test_the_clock_is_replayed_only_on_request_and_never_in_production(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATURESTORE_CLOCK", "2018-12-31T17:00:00-05:00")
    assert Settings().make_clock() == FrozenClock(datetime(2018, 12, 31, 22, tzinfo=UTC))
    monkeypatch.setenv("FEATURESTORE_CLOCK", "-P1DT2H")
    assert Settings().make_clock() == SystemClock(-timedelta(days=1, hours=2))
    monkeypatch.setenv("FEATURESTORE_ENVIRONMENT", "production")
    with pytest.raises(ConfigurationError, match="replay"):
        Settings()


@pytest.mark.parametrize("variable", ["POSTGRES_HOST", "REDIS_HOST"])
def test_naming_a_server_means_external_unless_embedded_is_asked_for(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "db")
    assert not Settings().embedded
    assert "db" in {Settings().postgres.host, Settings().redis.host}
    monkeypatch.setenv("FEATURESTORE_SERVICES", "embedded")
    assert Settings().embedded


def test_embedded_servers_that_do_not_run_have_no_connection() -> None:
    settings = Settings()
    for connect in (lambda: settings.postgres, lambda: settings.redis, settings.exports):
        with pytest.raises(StoreUnavailableError, match="featurestore up"):
            connect()


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().clock = "-P1D"


def test_no_secret_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("POSTGRES", "REDIS"):
        monkeypatch.setenv(f"{name}_HOST", "db")
        monkeypatch.setenv(f"{name}_PASSWORD", "hunter2")
    settings = Settings()
    rows = {row.name: row for row in settings.describe()}
    assert "hunter2" not in f"{settings} {settings!r} {rows}"
    assert (rows["POSTGRES_PASSWORD"].value, rows["POSTGRES_PASSWORD"].origin) == ("********", "environment")
    assert (rows["POSTGRES_PORT"].value, rows["POSTGRES_PORT"].origin) == ("5432", "default")
    monkeypatch.setenv("POSTGRES_PORT", "none")
    with pytest.raises(ConfigurationError) as caught:
        Settings()
    assert "hunter2" not in str(caught.value)


def test_origins_tell_who_decided(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEATURESTORE_LOG_LEVEL", "DEBUG")
    origins = {row.name: row.origin for row in Settings(data_folder=tmp_path).describe()}
    assert origins["FEATURESTORE_LOG_LEVEL"] == "environment"
    assert origins["FEATURESTORE_DATA_FOLDER"] == "argument"
    assert origins["FEATURESTORE_CLOCK"] == "default"


def test_a_child_sees_the_same_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POSTGRES_SSLMODE", "require")  # of the shell, and not of the servers below
    postgres = PostgresSettings(host="db", password=SECRET, user="me", sslmode="disable")
    redis = RedisSettings(host="cache", password=SECRET, tls=True)
    parent = Settings(data_folder=tmp_path, services="external", clock="-P10D").with_connections(postgres, redis)

    environment = parent.child_environment({"POSTGRES_SSLMODE": "require", "REDIS_USERNAME": "stale", "HOME": "/home/me"})

    assert environment["HOME"] == "/home/me"
    for name in Settings.variables():
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        if name in Settings.variables():
            monkeypatch.setenv(name, value)
    child = Settings()
    assert (child.postgres, child.redis) == (postgres, redis)
    assert (child.data_folder, child.clock, child.services, child.home) == (parent.data_folder, "-P10D", "external", parent.home)


def test_d16_urls_name_their_driver() -> None:
    postgres = PostgresSettings(host="/var/run/postgresql", user="me", password="x")
    assert postgres.dagster_url.startswith("postgresql+psycopg2://me:x@/dagster?host=%2Fvar%2Frun%2Fpostgresql&port=5432")
    assert postgres.feast_registry_url.startswith("postgresql+psycopg://")
    assert "search_path%3Dfeast" in postgres.feast_registry_url
    assert postgres.adbc_uri.startswith("postgresql://me:x@/featurestore?")
    assert PostgresSettings(host="::1").url() == "postgresql://featurestore@[::1]:5432/featurestore?sslmode=prefer"
    assert RedisSettings(tls=True).url.startswith("rediss://")
