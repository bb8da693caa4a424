"""The only reader of the environment: every setting with its default, its allowed values and where its value came from.

Opening connections does not belong here, nor does starting servers (`stores.embedded`). A wrong value raises ConfigurationError, never a
pydantic error, so that every program shows the same message.
"""

import difflib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self
from urllib.parse import quote, urlencode

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from featurestore_dagster.errors import ConfigurationError, StoreUnavailableError
from featurestore_dagster.features.sources import FILES, SAMPLES, SOURCES
from featurestore_dagster.model.time import Clock, parse_clock

PREFIX = "FEATURESTORE_"
ANY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104 - compared, never bound
MASK = "********"
FEAST_SCHEMA = "feast"
"""Schema of Feast's SQL registry inside our database."""

EVENT_BATCH_SIZE = 1000
"""Events that Dagster collects before one write: a range run has thousands."""

KEEPALIVES = {"keepalives_idle": "30", "keepalives_interval": "10", "keepalives_count": "3"}
"""For libpq: a server whose machine is gone is noticed within a minute, not after two hours, by whoever waits for its answer."""

Port = Annotated[int, Field(ge=1, le=65535)]
PortOrFree = Annotated[int, Field(ge=0, le=65535)]
Identifier = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]{0,62}$")]
"""Names that need no quoting in any of the URL dialects: SQLAlchemy does not decode the database part."""


class Setting(NamedTuple):
    """One line of `featurestore info`: a secret's value is masked; `origin` says who decided it."""

    name: str
    value: str
    origin: str
    allowed: str


class EnvironmentSettings(BaseSettings):
    """Frozen, ignores empty variables, and turns every complaint into one ConfigurationError."""

    model_config = SettingsConfigDict(frozen=True, env_ignore_empty=True, extra="forbid", populate_by_name=True, validate_default=True)

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, data: Any, handler: Any) -> Self:
        try:
            validated: Self = handler(data)
        except ValidationError as error:
            raise ConfigurationError("; ".join(cls._complaint(detail) for detail in error.errors())) from None
        return validated

    @classmethod
    def _complaint(cls, detail: ErrorDetails) -> str:
        location = str(detail["loc"][0]) if detail["loc"] else "settings"
        names = {alias: name for name in cls.model_fields for alias in (name, cls.variable(name))}
        name = names.get(location)
        if name is None:
            return f"{location}: {detail['msg']}"
        field = cls.model_fields[name]
        value = MASK if field.annotation is SecretStr else repr(detail["input"])
        return f"{cls.variable(name)}={value}: {detail['msg'].partition('; ')[0]}; allowed: {field.description}"

    @classmethod
    def variable(cls, field_name: str) -> str:
        """Name of the environment variable that sets `field_name`."""
        alias = cls.model_fields[field_name].validation_alias
        return alias if isinstance(alias, str) else f"{cls.model_config.get('env_prefix', '')}{field_name}".upper()

    def rows(self, origin: str | None = None) -> list[Setting]:
        """One `Setting` for each field, in declaration order; `origin` overrides what is found out."""
        lines = []
        for name, field in type(self).model_fields.items():
            if field.exclude:
                continue
            value, variable = getattr(self, name), self.variable(name)
            shown = (MASK if value.get_secret_value() else "") if isinstance(value, SecretStr) else str(value)
            found = "environment" if os.environ.get(variable) else "argument" if name in self.model_fields_set else "default"
            lines.append(Setting(variable, shown, origin or found, field.description or ""))
        return lines


class PostgresSettings(EnvironmentSettings):
    """How to reach PostgreSQL. The properties that return text hold the password in clear: hand them to a driver, never to a log."""

    model_config = SettingsConfigDict(env_prefix="POSTGRES_")

    host: str = Field("127.0.0.1", min_length=1, description="a host name, an address, or the directory of a unix socket (starts with /)")
    port: Port = Field(5432, description="a TCP port, 1 to 65535")
    database: Identifier = Field("featurestore", description="a name of letters, digits, _ . -")
    dagster_database: Identifier = Field("dagster", description="database of Dagster's own storage: a name of letters, digits, _ . -")
    user: str = Field("featurestore", min_length=1, description="a role name")
    password: SecretStr = Field(SecretStr(""), description="any text; empty when the server asks for none")
    sslmode: Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] = Field(
        "prefer", description="disable, allow, prefer, require, verify-ca, verify-full"
    )

    @property
    def conninfo(self) -> str:
        """Keyword string for psycopg; sessions speak UTC and give up connecting after 5 s."""
        return self.conninfo_for(self.database)

    def conninfo_for(self, database: str) -> str:
        """As `conninfo`, for another database of the same server."""
        parts = {
            "host": self.host,
            "port": self.port,
            "dbname": database,
            "user": self.user,
            "password": self.password.get_secret_value(),
            "sslmode": self.sslmode,
            "connect_timeout": 5,
            "application_name": "featurestore",
            "options": "-c TimeZone=UTC",
            **KEEPALIVES,
        }
        escaped = {key: str(value).replace("\\", "\\\\").replace("'", "\\'") for key, value in parts.items() if value != ""}
        return " ".join(f"{key}='{value}'" for key, value in escaped.items())

    def url(self, driver: str = "", database: str | None = None, **query: str) -> str:
        """`postgresql[+driver]://` URL, every part percent-encoded; a socket directory becomes the `host` parameter.

        Args:
            driver: SQLAlchemy driver name; empty for a plain libpq URI.
            database: Another database of the same server.
            query: More connection parameters, for example `options`.
        """
        password = self.password.get_secret_value()
        login = quote(self.user, safe="") + (f":{quote(password, safe='')}" if password else "")
        socket_directory = self.host.startswith("/")
        host = "" if socket_directory else f"[{self.host}]" if ":" in self.host else self.host
        place = "" if socket_directory else f"{host}:{self.port}"
        parameters = {"host": self.host, "port": str(self.port)} if socket_directory else {}
        parameters |= {"sslmode": self.sslmode, **query}
        scheme = f"postgresql+{driver}" if driver else "postgresql"
        return f"{scheme}://{login}@{place}/{database or self.database}?{urlencode(parameters, quote_via=quote)}"

    @property
    def dagster_url(self) -> str:
        """For dagster-postgres, which works with psycopg2 only."""
        return self.url("psycopg2", self.dagster_database)

    @property
    def adbc_uri(self) -> str:
        """For ADBC: a plain libpq URI, sessions in UTC."""
        return self.url(options="-c TimeZone=UTC", **KEEPALIVES)

    @property
    def feast_registry_url(self) -> str:
        """For Feast's SQL registry: psycopg 3, tables in the schema `feast`."""
        return self.url("psycopg", options=f"-c search_path={FEAST_SCHEMA}")


class RedisSettings(EnvironmentSettings):
    """How to reach Redis. The properties that return text hold the password in clear."""

    model_config = SettingsConfigDict(env_prefix="REDIS_")

    host: str = Field("127.0.0.1", pattern=r"^[^\s,=:/]+$", description="a host name or an IPv4 address")
    port: Port = Field(6379, description="a TCP port, 1 to 65535")
    db: int = Field(0, ge=0, description="a database number, from 0")
    username: str = Field("", description="an ACL user; empty for the default user")
    password: SecretStr = Field(SecretStr(""), description="any text; empty when the server asks for none")
    tls: bool = Field(False, description="true or false")

    @property
    def url(self) -> str:
        """`redis://` or `rediss://` URL for redis-py."""
        password = self.password.get_secret_value()
        login = f"{quote(self.username, safe='')}:{quote(password, safe='')}@" if password or self.username else ""
        return f"{'rediss' if self.tls else 'redis'}://{login}{self.host}:{self.port}/{self.db}"

    @property
    def feast_connection_string(self) -> str:
        """Feast's `host:port,db=0,password="..."`.

        Feast splits at commas, then reads each value as JSON: JSON escapes therefore carry any password.
        """
        texts = {"username": self.username, "password": self.password.get_secret_value()}
        quoted = {key: json.dumps(value).replace(",", "\\u002c") for key, value in texts.items() if value}
        parts = {"db": str(self.db), **quoted, **({"ssl": "true"} if self.tls else {})}
        return ",".join([f"{self.host}:{self.port}", *(f"{key}={value}" for key, value in parts.items())])


class Settings(EnvironmentSettings):
    """All settings. `Settings()` reads the environment; keyword arguments win over it.

    With `services="embedded"` the connections are unknown until servers run: `stores.embedded.running_settings` fills them in.

    Raises:
        ConfigurationError: A value is wrong (the message lists what is allowed), or a FEATURESTORE_* variable is unknown.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX)

    environment: Literal["development", "test", "production"] = Field("development", description="development, test, production")
    data_folder: Path = Field(Path(".featurestore"), description="a folder that this user can write")
    drop_folder: Path | None = Field(None, description="a folder for incoming files; default: drop, inside the data folder")
    clock: str = Field("", description="an instant with zone (2018-12-31T22:00:00Z), a duration (-P1000D), or nothing for real time")
    sources: str = Field(
        f"{SAMPLES.name},{FILES.name}",
        description=f"one or more of {', '.join(source.name for source in SOURCES)}, separated by commas",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="DEBUG, INFO, WARNING, ERROR")
    services: Literal["embedded", "external"] | None = Field(
        None, description="embedded (started from wheels), external; default: external when POSTGRES_HOST or REDIS_HOST is set"
    )
    webserver_host: str = Field("127.0.0.1", min_length=1, description="an address to listen on")
    webserver_port: PortOrFree = Field(3000, description="a TCP port, 0 to 65535; 0 picks a free one")
    code_server_host: str = Field(
        "127.0.0.1", min_length=1, description="where Dagster's code server is reached: a host name or an address"
    )
    code_server_port: PortOrFree = Field(0, description="a TCP port, 0 to 65535; 0 picks a free one")
    history_cache_mebibytes: int = Field(4_096, ge=0, description="most MiB of the local cache of published history; 0: none")
    serve_host: str = Field("127.0.0.1", min_length=1, description="an address to listen on; beyond loopback only with a key")
    serve_port: PortOrFree = Field(8006, description="a TCP port, 0 to 65535; 0 picks a free one")
    serve_workers: int = Field(2, ge=1, le=64, description="processes that answer HTTP, 1 to 64")
    serve_api_key: SecretStr = Field(
        SecretStr(""), description="what HTTP clients send as X-API-Key or bearer token, not padded; empty: none"
    )
    serve_maximum_entities: int = Field(1_000, ge=1, le=100_000, description="entity rows of one online request over HTTP, 1 to 100000")
    serve_maximum_features: int = Field(1_000, ge=1, le=2_000, description="features of one request over HTTP, 1 to 2000")
    serve_maximum_body_bytes: int = Field(8 * 2**20, ge=1_024, description="bytes of a request's body, from 1024")
    serve_maximum_history_body_bytes: int = Field(128 * 2**20, ge=1_024, description="bytes of a historical request's body, from 1024")
    serve_maximum_history_rows: int = Field(1_000_000, ge=1, description="entity rows of one historical request over HTTP, from 1")
    serve_maximum_history_values: int = Field(
        50_000_000, ge=1, description="rows times features of one historical request over HTTP, whose answer is held in memory, from 1"
    )
    serve_maximum_concurrent_requests: int = Field(64, ge=1, description="requests that one process answers at a time, from 1")
    serve_deadline_seconds: float = Field(
        30.0, gt=0, le=3_600, description="seconds until an answer must begin, and until each of its parts is taken, above 0, at most 3600"
    )
    alert_urls: SecretStr = Field(SecretStr(""), description="Apprise URLs of who is alerted, separated by spaces; empty: nobody")
    escalation_urls: SecretStr = Field(SecretStr(""), description="Apprise URLs of who is told of escalations too, separated by spaces")
    dagster_url: str = Field("", pattern=r"^(https?://\S+)?$", description="URL of the Dagster UI in alerts; default: host and port of it")
    runbook_url: str = Field("", pattern=r"^(https?://\S+)?$", description="URL of this repository's files in alerts; default: their paths")
    exporter_host: str = Field("127.0.0.1", min_length=1, description="an address to listen on; metrics hold no feature value")
    exporter_port: PortOrFree = Field(8007, description="a TCP port, 0 to 65535; 0 picks a free one")
    dagster_home: Path | None = Field(
        None,
        validation_alias="DAGSTER_HOME",
        description="a folder for Dagster's files; default: dagster, inside the data folder",
    )
    postgres_connection: PostgresSettings | None = Field(None, exclude=True)
    redis_connection: RedisSettings | None = Field(None, exclude=True)
    recorded: bool = Field(False, exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_variables(cls, data: Any) -> Any:
        known = cls.variables()
        for variable in os.environ:
            if variable.startswith(PREFIX) and variable not in known:
                nearest = difflib.get_close_matches(variable, known, n=3) or known
                raise ConfigurationError(f"unknown variable {variable}; nearest: {', '.join(nearest)}")
        return data

    @field_validator("clock")
    @classmethod
    def _parse_clock(cls, text: str) -> str:
        parse_clock(text)
        return text

    @field_validator("sources")
    @classmethod
    def _parse_sources(cls, text: str) -> str:
        names = list(dict.fromkeys(name.strip() for name in text.split(",")))
        if unknown := sorted(set(names) - {source.name for source in SOURCES}):
            raise ValueError(f"no source is named {', '.join(map(repr, unknown))}")
        return ",".join(names)

    @field_validator("data_folder", "drop_folder", "dagster_home")
    @classmethod
    def _make_absolute(cls, folder: Path | None) -> Path | None:
        return folder and Path(os.path.abspath(folder.expanduser()))  # noqa: PTH100 - resolve() would follow the user's symlinks

    @model_validator(mode="after")
    def _fill_in(self) -> Self:
        postgres, redis = self.postgres_connection, self.redis_connection
        if self.environment == "production" and self.clock:
            raise ConfigurationError(
                f"FEATURESTORE_CLOCK={self.clock!r} with FEATURESTORE_ENVIRONMENT=production: a replay is no production; "
                "unset one of the two"
            )
        given = bool(postgres or redis or os.environ.get("POSTGRES_HOST") or os.environ.get("REDIS_HOST"))
        services = self.services or ("external" if given else "embedded")
        external = services == "external"
        derived = {
            "services": services,
            "drop_folder": self.drop_folder or self.data_folder / "drop",
            "dagster_home": self.dagster_home or self.data_folder / "dagster",
            "postgres_connection": postgres or (PostgresSettings() if external else None),
            "redis_connection": redis or (RedisSettings() if external else None),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)  # frozen for everybody else; keeps model_fields_set, which tells given from derived
        return self

    @classmethod
    def variables(cls) -> list[str]:
        """Names of all environment variables that are read, sorted."""
        models: tuple[type[EnvironmentSettings], ...] = (cls, PostgresSettings, RedisSettings)
        return sorted(model.variable(name) for model in models for name, field in model.model_fields.items() if not field.exclude)

    @property
    def postgres(self) -> PostgresSettings:
        """The connection to PostgreSQL.

        Raises:
            StoreUnavailableError: The servers are embedded and not known to run.
        """
        if self.postgres_connection is None:
            raise StoreUnavailableError(self._not_running("PostgreSQL"))
        return self.postgres_connection

    @property
    def redis(self) -> RedisSettings:
        """The connection to Redis.

        Raises:
            StoreUnavailableError: The servers are embedded and not known to run.
        """
        if self.redis_connection is None:
            raise StoreUnavailableError(self._not_running("Redis"))
        return self.redis_connection

    @property
    def source_names(self) -> tuple[str, ...]:
        """Sources that are switched on."""
        return tuple(self.sources.split(","))

    @property
    def home(self) -> Path:
        """Dagster's folder, absolute."""
        return self.dagster_home or self.data_folder / "dagster"

    @property
    def drop(self) -> Path:
        """Folder of incoming files, absolute."""
        return self.drop_folder or self.data_folder / "drop"

    @property
    def embedded(self) -> bool:
        """Whether the servers are ours to start and stop."""
        return self.services == "embedded"

    def _not_running(self, server: str) -> str:
        return f"the embedded {server} of {self.data_folder} is not running; start it with `featurestore up` (or `make demo`)"

    def make_clock(self) -> Clock:
        """The clock that `FEATURESTORE_CLOCK` describes."""
        return parse_clock(self.clock)

    def with_connections(self, postgres: PostgresSettings, redis: RedisSettings) -> Self:
        """A copy that knows its running embedded servers."""
        return self.model_copy(update={"postgres_connection": postgres, "redis_connection": redis, "recorded": True})

    def describe(self) -> list[Setting]:
        """Every setting in declaration order, secrets masked; connections only when they are known."""
        origin = "embedded server" if self.recorded else None
        connections = [part for part in (self.postgres_connection, self.redis_connection) if part is not None]
        return [*self.rows(), *(line for part in connections for line in part.rows(origin))]

    def exports(self) -> dict[str, str]:
        """Environment for child processes, `featurestore env` and Feast's `${VAR}`: passwords in clear.

        A child that loads `Settings()` from it gets these settings again; a value that was empty stays unset.
        """
        exported = {self.variable(name): getattr(self, name) for name, field in type(self).model_fields.items() if not field.exclude}
        for part in (self.postgres, self.redis):
            exported |= {part.variable(name): getattr(part, name) for name in type(part).model_fields}
        exported |= {
            "DAGSTER_PG_URL": self.postgres.dagster_url,
            "DAGSTER_EVENT_BATCH_SIZE": str(EVENT_BATCH_SIZE),
            "FEAST_REGISTRY_URL": self.postgres.feast_registry_url,
            "FEAST_REDIS": self.redis.feast_connection_string,
        }
        return {name: text for name, value in exported.items() if (text := _plain(value))}

    def child_environment(self, inherited: Mapping[str, str] | None = None) -> dict[str, str]:
        """The whole environment of a child process: what we inherited, with `exports` in place of its settings."""
        kept = {name: value for name, value in (os.environ if inherited is None else inherited).items() if name not in self.variables()}
        return kept | self.exports()


def _plain(value: object) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return str(value).lower() if isinstance(value, bool) else str(value)
