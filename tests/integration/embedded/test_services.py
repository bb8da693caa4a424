"""The embedded servers as a user meets them: settings, passwords, sharing, accounts. Unclean ends are in test_recovery."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import psycopg
import pytest
import redis
from pydantic import SecretStr

from featurestore_dagster.errors import ConfigurationError, StoreUnavailableError
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.embedded import EmbeddedServices, running_settings
from featurestore_dagster.stores.embedded.processes import LAUNCHER

START = """
import json, os, sys
from pathlib import Path
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.embedded import EmbeddedServices
services = EmbeddedServices(Settings(data_folder=Path(sys.argv[1])))
services.start()
print(json.dumps([os.geteuid(), services.started.postgres, services.started.redis]))
"""
NOBODY = 65534


def start_elsewhere(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", START, str(folder)], stdout=subprocess.PIPE, text=True)


def test_a_first_start_makes_servers_that_suit(services: EmbeddedServices, session_settings: Settings) -> None:
    settings = session_settings
    assert all(status.running for status in services.status())
    with psycopg.connect(settings.postgres.conninfo) as connection:
        shown = {
            name: connection.execute(f"show {name}").fetchone()[0]
            for name in ("timezone", "fsync", "synchronous_commit", "full_page_writes")
        }
        assert shown == {"timezone": "UTC", "fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}
        assert connection.execute("select rolsuper, rolcreatedb from pg_roles where rolname = current_user").fetchone() == (False, True)
        ordered = connection.execute("select array_agg(c order by c) from unnest(array['b','A','a','Z','_']) c").fetchone()[0]
        assert ordered == sorted(ordered)
    with psycopg.connect(settings.postgres.conninfo_for("dagster")) as connection:
        assert connection.execute("show synchronous_commit").fetchone() == ("off",)
    with redis.Redis.from_url(settings.redis.url, decode_responses=True) as client:
        config = client.config_get("*")
        expected = {"save": "", "appendonly": "no", "maxmemory-policy": "noeviction", "hash-max-ziplist-value": "1024", "bind": "127.0.0.1"}
        assert {name: config[name] for name in expected} == expected
        client.hset("packed", mapping={"view": b"x" * 1000})
        assert client.object("encoding", "packed") in {"ziplist", "listpack"}


def test_wrong_passwords_and_the_superuser_are_refused(session_settings: Settings) -> None:
    wrong = session_settings.postgres.model_copy(update={"password": SecretStr("wrong")})
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(wrong.conninfo)
    superuser = session_settings.postgres.model_copy(update={"user": "postgres"})
    with pytest.raises(psycopg.OperationalError, match="authentication failed"):
        psycopg.connect(superuser.conninfo)
    with (
        redis.Redis.from_url(session_settings.redis.model_copy(update={"password": SecretStr("wrong")}).url) as client,
        pytest.raises(redis.AuthenticationError),
    ):
        client.ping()


def test_secrets_are_readable_to_the_owner_only_and_in_no_command_line(services: EmbeddedServices, session_settings: Settings) -> None:
    record = session_settings.data_folder / "services.json"
    secrets = {entry["password"] for entry in json.loads(record.read_text()).values()}
    assert len(secrets) == 2
    assert all(len(secret) >= 40 for secret in secrets)
    assert stat.S_IMODE(record.stat().st_mode) == 0o600
    for status in services.status():
        assert not [part for part in psutil.Process(status.process_id).cmdline() for secret in secrets if secret in part]


def test_servers_outlive_their_starter_and_are_found(embedded: EmbeddedServices) -> None:
    folder = embedded.status()[0].folder.parent
    starter = start_elsewhere(folder)
    assert json.loads(starter.communicate(timeout=60)[0])[1:] == [True, True]

    found = running_settings(Settings(data_folder=folder))

    with psycopg.connect(found.postgres.conninfo) as connection:
        assert connection.execute("select 1").fetchone() == (1,)
    assert found.describe()[-1].origin == "embedded server"
    with EmbeddedServices(Settings(data_folder=folder)) as reused:
        assert (reused.postgres, reused.redis) == (found.postgres, found.redis)
    assert all(status.running for status in embedded.status())  # a context manager stops only what it started
    embedded.stop()
    assert not any(status.running for status in embedded.status())
    with pytest.raises(StoreUnavailableError, match="featurestore up"):
        running_settings(Settings(data_folder=folder))


def test_starts_at_once_start_once(embedded: EmbeddedServices) -> None:
    folder = embedded.status()[0].folder.parent
    starters = [start_elsewhere(folder) for _ in range(3)]
    started = [json.loads(starter.communicate(timeout=60)[0])[1:] for starter in starters]
    assert sorted(started) == [[False, False], [False, False], [True, True]]


def test_restart_keeps_ports_and_takes_less_than_three_seconds(embedded: EmbeddedServices) -> None:
    first = embedded.start()
    embedded.stop()
    second = embedded.start()
    assert (second.postgres, second.redis) == (first.postgres, first.redis)
    assert embedded.started.postgres
    assert embedded.started.seconds < 3


def test_a_normal_user_can_do_it(tmp_path: Path, make_services: Callable[[Path], EmbeddedServices]) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    launcher: list[str] = []
    if os.geteuid() == 0:  # the account keeps access to files, since this interpreter may lie in root's home
        os.chown(folder, NOBODY, NOBODY)
        launcher = [sys.executable, str(LAUNCHER), "--user-id", str(NOBODY), "--group-id", str(NOBODY), "--keep-file-access", "--"]
    done = subprocess.run([*launcher, sys.executable, "-c", START, str(folder)], capture_output=True, text=True, check=True, timeout=60)
    services = make_services(folder)

    user_id, *started = json.loads(done.stdout)

    assert user_id != 0
    assert started == [True, True]
    owners = {psutil.Process(status.process_id).uids().effective for status in services.status()}
    assert owners == {user_id}
    services.stop()
    services.start()  # root goes on with a folder of theirs, as its owner
    assert {psutil.Process(status.process_id).uids().effective for status in services.status()} >= {user_id}


def test_as_root_no_server_runs_as_root(services: EmbeddedServices) -> None:
    assert 0 not in {psutil.Process(status.process_id).uids().effective for status in services.status()}


def test_unwritable_folders_are_a_configuration_error(tmp_path: Path) -> None:
    a_file = tmp_path / "file"
    a_file.touch()
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    user_id = os.geteuid()
    if user_id == 0:
        tmp_path.chmod(0o755)
        os.seteuid(NOBODY)
    try:
        for folder in (a_file, closed / "data"):
            with pytest.raises(ConfigurationError, match="FEATURESTORE_DATA_FOLDER"):
                EmbeddedServices(Settings(data_folder=folder)).start()
    finally:
        os.seteuid(user_id)


def test_external_servers_are_not_ours_to_start(session_settings: Settings) -> None:
    external = session_settings.model_copy(update={"services": "external"})
    with pytest.raises(ConfigurationError, match="not ours"):
        EmbeddedServices(external)
