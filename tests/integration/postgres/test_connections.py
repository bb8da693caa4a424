"""A server that does not answer or refuses: typed errors that say what to do, without the password; and connections that are given back."""

import gc
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from pydantic import SecretStr

from featurestore_dagster.errors import ConfigurationError, FeatureStoreError, MalformedDataError, StoreUnavailableError
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.features.equity_views import DAILY_OHLCV_STATS
from featurestore_dagster.features.raw_tables import US_EQUITY_CANDLES_1D
from featurestore_dagster.model.time import SystemClock
from featurestore_dagster.settings import PostgresSettings, Settings
from featurestore_dagster.stores.postgres import Ledger, PostgresStore
from featurestore_dagster.stores.postgres.bulk import snapshot
from featurestore_dagster.stores.postgres.connection import connect, read_frame

EVER = datetime(2000, 1, 1, tzinfo=UTC), datetime(2020, 1, 1, tzinfo=UTC)
SECRET = "correct horse battery"
ROOT = Path(__file__).parents[3]

CALLS: dict[str, Callable[[PostgresSettings], object]] = {
    "plan": lambda postgres: PostgresStore(postgres, SystemClock()).plan(CATALOGUE),
    "raw rows": lambda postgres: PostgresStore(postgres, SystemClock()).read_raw(US_EQUITY_CANDLES_1D, *EVER),
    "features": lambda postgres: PostgresStore(postgres, SystemClock()).read_features(DAILY_OHLCV_STATS, *EVER),
    "online": lambda postgres: PostgresStore(postgres, SystemClock()).online_changes(DAILY_OHLCV_STATS, None, EVER[1]),
    "ledger": lambda postgres: Ledger(postgres).totals(),
}
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())


def _refused(call: Callable[[PostgresSettings], object], postgres: PostgresSettings, kind: type[FeatureStoreError]) -> str:
    """Message of the error; the password is nowhere in the whole chain."""
    with pytest.raises(kind) as raised:
        call(postgres)
    assert SECRET not in "".join(traceback.format_exception(raised.value))
    return str(raised.value)


@each_call
def test_nobody_listens(settings: Settings, call: Callable[[PostgresSettings], object]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        away = settings.postgres.model_copy(update={"host": "127.0.0.1", "port": port, "password": SecretStr(SECRET)})
        message = _refused(call, away, StoreUnavailableError)
    assert f"127.0.0.1:{port}" in message
    assert "Connection refused. Start it" in message
    assert "`featurestore up`" in message


@each_call
def test_wrong_password(settings: Settings, call: Callable[[PostgresSettings], object]) -> None:
    message = _refused(call, settings.postgres.model_copy(update={"password": SecretStr(SECRET)}), ConfigurationError)
    assert "POSTGRES_PASSWORD" in message
    assert f"user {settings.postgres.user}" in message


@pytest.mark.parametrize("change", [{"database": "nowhere"}, {"user": "nobody_here"}], ids=["database", "user"])
def test_unknown_database_or_user(settings: Settings, change: dict[str, str]) -> None:
    message = _refused(CALLS["ledger"], settings.postgres.model_copy(update=change), ConfigurationError)
    assert next(iter(change.values())) in message


def test_a_port_that_never_answers(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        frozen = settings.postgres.model_copy(update={"host": "127.0.0.1", "port": silent.getsockname()[1], "password": SecretStr(SECRET)})
        assert "does not answer" in _refused(CALLS["ledger"], frozen, StoreUnavailableError)


@pytest.mark.parametrize("call", [CALLS["raw rows"], CALLS["features"], CALLS["online"], CALLS["ledger"]])
def test_a_database_without_our_tables_says_apply(empty_database: Settings, call: Callable[[PostgresSettings], object]) -> None:
    assert "featurestore apply" in _refused(call, empty_database.postgres, ConfigurationError)


def _readers(settings: Settings) -> int:
    """Open connections to this database but the one that counts."""
    with connect(settings.postgres) as connection:
        row = connection.execute(
            "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        ).fetchone()
    assert row is not None
    return int(row[0])


def _wait_for_readers(settings: Settings, count: int) -> None:
    """A backend leaves the list shortly after its client has gone."""
    deadline = time.monotonic() + 10
    while (found := _readers(settings)) != count:
        assert time.monotonic() < deadline, f"{found} connections, not {count}"
        time.sleep(0.02)


def test_a_read_survives_that_the_server_closed_its_connection(fresh_database: Settings) -> None:
    store = PostgresStore(fresh_database.postgres, SystemClock())
    assert store.read_raw(US_EQUITY_CANDLES_1D, *EVER).is_empty()
    with connect(fresh_database.postgres) as connection:
        closed = connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        ).fetchall()
    assert (True,) in closed
    assert store.read_raw(US_EQUITY_CANDLES_1D, *EVER).is_empty()


CUT_OFF = (
    "select case when g < 100000 then 'x' else pg_terminate_backend(pg_backend_pid())::text end as y from generate_series(1, 200000) g"
)


def test_a_server_that_goes_away_amid_the_rows_is_transient_and_a_query_that_fails_there_is_not(fresh_database: Settings) -> None:
    with pytest.raises(StoreUnavailableError, match="terminating connection") as raised:
        read_frame(fresh_database.postgres, CUT_OFF, {}, {"y": pl.String()})
    assert "?" not in str(raised.value)
    with snapshot(fresh_database.postgres) as opened, pytest.raises(MalformedDataError, match="division by zero"):
        opened.select("select 1 / (g - 100000) as y from generate_series(1, 200000) g")


def test_a_broken_off_transaction_is_transient(fresh_database: Settings) -> None:
    with pytest.raises(StoreUnavailableError), connect(fresh_database.postgres) as connection:
        connection.execute("select pg_terminate_backend(pg_backend_pid())")


def test_a_thread_gives_its_connection_back(fresh_database: Settings) -> None:
    store = PostgresStore(fresh_database.postgres, SystemClock())
    counted: list[bool] = []

    def read() -> None:
        for _ in range(5):
            store.read_raw(US_EQUITY_CANDLES_1D, *EVER)
            store.read_features(DAILY_OHLCV_STATS, *EVER)
        _wait_for_readers(fresh_database, 2)  # one reads, one quotes
        counted.append(True)

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    assert counted
    gc.collect()
    _wait_for_readers(fresh_database, 0)


def test_a_process_that_read_ends_in_silence(fresh_database: Settings) -> None:
    program = (
        "from featurestore_dagster.settings import PostgresSettings\n"
        "from featurestore_dagster.stores.postgres import Ledger\n"
        "print(Ledger(PostgresSettings()).first_refused('raw.x', 'y', '2018-12-03').height)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=fresh_database.child_environment(), cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_parameters_are_values_whatever_they_hold(fresh_database: Settings) -> None:
    texts = ["'; drop table raw.candles; --", 'a"b', "a\\b", "%s %(x)s", "\N{SNOWMAN}", "$1"]
    found = read_frame(fresh_database.postgres, "select unnest(%(texts)s::text[]) as text", {"texts": texts}, {"text": pl.String()})
    assert found["text"].to_list() == texts
