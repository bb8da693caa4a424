"""What `feature_store.yaml` says about stores -> our settings, and which of its feature views are ours. Opening connections is no part."""

from functools import cache
from urllib.parse import urlencode

from feast.feature_view import FeatureView as FeastView
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres import PostgreSQLOfflineStoreConfig
from feast.infra.online_stores.redis import RedisClient, RedisOnlineStore, RedisOnlineStoreConfig, RedisType
from feast.infra.utils.postgres.postgres_config import PostgreSQLConfig
from feast.repo_config import RepoConfig
from pydantic import SecretStr

from featurestore_dagster.errors import ConfigurationError
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.model.time import Clock
from featurestore_dagster.serving.client_base import PROJECT
from featurestore_dagster.settings import PostgresSettings, RedisSettings, Settings

DEADLINE_PARAMETERS = ("socket_timeout", "socket_connect_timeout", "retry_on_timeout")
"""redis-py's own, which `deadline_seconds` replaces."""


def refuse_unexpanded(name: str, value: object) -> None:
    """Raise ConfigurationError when a variable was left standing: Feast expands `${VAR}` when it is set, and no other form."""
    if isinstance(value, str) and value.strip().startswith("${"):
        raise ConfigurationError(
            f"feature_store.yaml: {name} is still {value.strip().partition('}')[0]}}}; Feast expands only ${{VAR}}, without default, of "
            "variables that are set: export it, or write the value (`featurestore env` prints ours)"
        )


def redis_settings(config: RedisOnlineStoreConfig) -> RedisSettings:
    """Settings of Feast's `host:port,db=0,password=...`.

    Raises:
        ConfigurationError: It names a cluster, a sentinel, or a parameter that is not known here.
    """
    if config.redis_type is not RedisType.redis or config.client is not RedisClient.redis:
        raise ConfigurationError(
            f"feature_store.yaml: online_store.redis_type={config.redis_type.value}, client={config.client.value}; allowed: redis, redis"
        )
    nodes, parameters = RedisOnlineStore._parse_connection_string(config.connection_string)  # noqa: SLF001 - the format is Feast's own
    known = ("db", "username", "password", "ssl", *DEADLINE_PARAMETERS)
    if len(nodes) != 1 or (unknown := sorted(set(parameters) - set(known))):
        what = f"{len(nodes)} hosts" if len(nodes) != 1 else f"parameters {', '.join(unknown)}"
        raise ConfigurationError(f"feature_store.yaml: connection_string has {what}; allowed: one host:port, and {', '.join(known)}")
    return RedisSettings(
        host=nodes[0]["host"],
        port=int(nodes[0].get("port", 6379)),
        db=int(parameters.get("db", 0)),
        username=str(parameters.get("username", "")),
        password=SecretStr(str(parameters.get("password", ""))),
        tls=bool(parameters.get("ssl", False)),
    )


def postgres_settings(config: PostgreSQLConfig) -> PostgresSettings:
    """Settings of Feast's offline store."""
    return PostgresSettings(
        host=config.host,
        port=config.port,
        database=config.database,
        user=config.user,
        password=SecretStr(config.password),
        sslmode=config.sslmode or "prefer",
    )


def postgres_uri(config: PostgreSQLConfig) -> str:
    """For ADBC: as Feast connects, with sessions in UTC that give up connecting after 5 s. Holds the password in clear."""
    search_path = ",".join(dict.fromkeys([config.db_schema, "public"]))
    certificates = {"sslkey": config.sslkey_path, "sslcert": config.sslcert_path, "sslrootcert": config.sslrootcert_path}
    more = urlencode({name: path for name, path in certificates.items() if path} | {"connect_timeout": 5})
    return f"{postgres_settings(config).url(options=f'-c TimeZone=UTC -c search_path={search_path}')}&{more}"


@cache
def environments_clock() -> Clock:
    """The clock that `FEATURESTORE_CLOCK` describes: the real one, unless something is replayed. The environment is read once."""
    return Settings().make_clock()


def settings_of(config: RepoConfig) -> Settings:
    """Our settings, with the connections that the configuration names."""
    return Settings().with_connections(postgres_settings(config.offline_store), redis_settings(config.online_store))


def declared_view(config: RepoConfig, table: FeastView) -> FeatureView | None:
    """The declaration behind a view of Feast's registry; None when it is another repository's, or of another version."""
    if config.project != PROJECT or not isinstance(config.offline_store, PostgreSQLOfflineStoreConfig):
        return None
    for view in CATALOGUE.views:
        if view.name == table.name and not view.is_superseded and table.tags.get("feature_set_version") == str(view.version):
            return view
    return None
