"""Asking the processes of a tree, and the servers they use, whether they answer. Starting and stopping them does not belong here."""

import http.client
import json
import socket
from typing import Any

import psycopg
import redis

from featurestore_dagster.errors import StoreUnavailableError
from featurestore_dagster.model.time import SystemClock
from featurestore_dagster.settings import ANY_ADDRESS, Settings
from featurestore_dagster.stores.embedded.processes import LOOPBACK

HEARTBEAT_QUERY = "{instance{daemonHealth{allDaemonStatuses{required lastHeartbeatTime}}}}"
LOCATION_QUERY = "{workspaceOrError{... on Workspace{locationEntries{name locationOrLoadError{__typename ... on PythonError{message}}}}}}"


def speaks_http2(host: str, port: int) -> bool:
    """Whether a gRPC server serves: it answers our empty SETTINGS frame with its own. It listens, silent, long before that."""
    preface, empty_settings, settings_type = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\0\0\0\x04\0\0\0\0\0", 4
    try:
        with socket.create_connection((host, port), timeout=1) as connection:
            connection.sendall(preface + empty_settings)
            frame_header = connection.recv(9)
    except OSError:
        return False
    return frame_header[3:4] == bytes([settings_type])


def answers_health(host: str, port: int) -> bool:
    """Whether the exporter answers."""
    connection = http.client.HTTPConnection(LOOPBACK if host in ANY_ADDRESS else host, port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


class Webserver:
    """Dagster's webserver, asked over HTTP."""

    def __init__(self, host: str, port: int) -> None:
        """Remember the address that it listens on; asks nothing."""
        self._host = LOOPBACK if host in ANY_ADDRESS else host
        self._port = port

    @property
    def url(self) -> str:
        """What to open in a browser on this machine."""
        return f"http://{self._host}:{self._port}"

    def answers(self) -> bool:
        """Whether it serves."""
        return self._request("GET", "/server_info") is not None

    def heartbeat_age_seconds(self) -> float | None:
        """Age of the oldest heartbeat among the daemons that must run; None when one never gave any, or nobody answers."""
        statuses = self._graphql(HEARTBEAT_QUERY).get("instance", {}).get("daemonHealth", {}).get("allDaemonStatuses", [])
        beats = [status["lastHeartbeatTime"] for status in statuses if status["required"]]
        if not beats or None in beats:
            return None
        return max(0.0, SystemClock().now().timestamp() - float(min(beats)))

    def location_problems(self) -> list[str]:
        """Why code locations do not load, a message each."""
        entries = self._graphql(LOCATION_QUERY).get("workspaceOrError", {}).get("locationEntries", [])
        loaded = [entry["locationOrLoadError"] or {} for entry in entries]
        return [error["message"] for error in loaded if error.get("__typename") == "PythonError"]

    def _graphql(self, query: str) -> Any:
        return (self._request("POST", "/graphql", json.dumps({"query": query})) or {}).get("data") or {}

    def _request(self, method: str, path: str, body: str | None = None) -> Any:
        """The JSON answer; None when there is none."""
        connection = http.client.HTTPConnection(self._host, self._port, timeout=10)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            return json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError):
            return None
        finally:
            connection.close()


def postgres_answers(settings: Settings, database: str) -> bool:
    """Whether the server lets us into the database.

    Raises:
        StoreUnavailableError: It does not; the message says why.
    """
    try:
        psycopg.connect(settings.postgres.conninfo_for(database)).close()
    except psycopg.OperationalError as error:
        postgres = settings.postgres
        raise StoreUnavailableError(
            f"PostgreSQL at {postgres.host}:{postgres.port}, database {database}, user {postgres.user}: {error}; see POSTGRES_*"
        ) from error
    return True


def redis_answers(settings: Settings) -> bool:
    """Whether the server answers and takes our password.

    Raises:
        StoreUnavailableError: It does not; the message says why.
    """
    with redis.Redis.from_url(settings.redis.url, socket_timeout=5, socket_connect_timeout=5) as client:
        try:
            return bool(client.ping())
        except redis.RedisError as error:
            raise StoreUnavailableError(f"Redis at {settings.redis.host}:{settings.redis.port}: {error}; see REDIS_*") from error
