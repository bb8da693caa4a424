"""A backfill killed in its middle and started again publishes what an undisturbed one does; once more, it finds nothing to do."""

import os
import signal
import subprocess
import time
from datetime import UTC, datetime, timedelta

import polars as pl

from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.features.raw_tables import US_EQUITY_CANDLES_1D
from featurestore_dagster.pipeline.publication import Pipeline
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.embedded import EmbeddedServices
from featurestore_dagster.stores.postgres import Ledger, PostgresStore
from featurestore_dagster.stores.postgres.connection import connect
from featurestore_dagster.stores.postgres.restatements import WAITING, Restatement, Restatements
from tests.e2e.conftest import COMMAND, DEMO_CLOCK, Installation, held

MOMENTUM = "features.momentum_features.us_equity_1d"
RANGE = ("backfill", "momentum_features", "2016-01-04", "2017-12-29")
SECOND_CHUNK = "2017-01-03"
HASHES = """select distinct on (relation, partition_key) relation, partition_key, content_hash, rows_total from ops.publications
order by relation, partition_key, publication_id desc"""


def _published(installation: Installation, query: str) -> list[tuple[object, ...]]:
    with EmbeddedServices(Settings(data_folder=installation.folder)) as settings, connect(settings.postgres) as connection:
        return connection.execute(query).fetchall()


def test_killed_backfill_ends_like_an_undisturbed_one(tmp_path):
    undisturbed, killed = Installation(tmp_path / "undisturbed"), Installation(tmp_path / "killed")
    assert undisturbed.run(*RANGE).returncode == 0

    assert killed.run("apply").returncode == 0
    count = "select count(*) from ops.publications where relation = 'features.momentum_features.us_equity_1d'"
    with (
        EmbeddedServices(Settings(data_folder=killed.folder)) as settings,
        connect(settings.postgres, autocommit=True) as connection,
        held(connection, MOMENTUM, SECOND_CHUNK),
    ):
        process = subprocess.Popen([COMMAND, *RANGE], env=killed.environment, start_new_session=True, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 180
        while not connection.execute(count).fetchone()[0]:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        done = connection.execute(count).fetchone()[0]
    assert 0 < done < 503, "the kill must fall between two chunks of the view"

    left = [row for row in killed.json(*RANGE, "--preview") if row["stream"] == "us_equity_1d"]
    assert [0 < row["partitions_to_compute"] <= 503 - done for row in left] == [True]
    assert killed.run(*RANGE).returncode == 0
    assert _published(killed, HASHES) == _published(undisturbed, HASHES)
    again = killed.run(*RANGE)
    assert (again.returncode, "nothing to do" in again.stdout) == (0, True), again.stdout + again.stderr
    assert _published(killed, HASHES) == _published(undisturbed, HASHES)

    # A correction whose request waits is a backfill too.
    with EmbeddedServices(Settings(data_folder=killed.folder, clock=DEMO_CLOCK)) as settings:
        waiting = _correct(settings)
        shown = killed.json("restatements")
        assert [change["touched"] for change in shown["changes"]] == [{}]
        assert [(request["restatement_id"], request["status"]) for request in shown["requests"]] == [(waiting, "waiting")]
        assert killed.json("restatements", "apply", str(waiting))["status"] == "done"
        shown = killed.json("restatements")
    [change] = shown["changes"]
    assert change["touched"][MOMENTUM]["partitions"] > 1
    assert change["seconds"] is not None
    assert [request["status"] for request in shown["requests"]] == ["done"]
    assert killed.run("restatements", "apply", str(waiting)).returncode == 1
    for installation in (undisturbed, killed):
        installation.run("down")


def _correct(settings: Settings) -> int:
    """Publish another close of a bar, and have its request wait; returns the request's id."""
    clock, ledger = settings.make_clock(), Ledger(settings.postgres)
    pipeline = Pipeline(
        CATALOGUE.with_sources(settings.source_names), PostgresStore(settings.postgres, clock), ledger, clock, lambda *_: None
    )
    day = datetime(2017, 11, 15, tzinfo=UTC)
    bar = pipeline.inputs.read(US_EQUITY_CANDLES_1D, day, day + timedelta(days=1)).filter(symbol="SPX").drop("ingested_at")
    [outcome] = pipeline.replay(US_EQUITY_CANDLES_1D, bar.with_columns(close=pl.col("low")), "replay")
    assert not outcome.unchanged
    store, now = Restatements(settings.postgres), clock.now()
    span = ("2017-11-15", "2017-12-29")
    request = Restatement(0, "xnys_path", WAITING, [MOMENTUM], *span, 31, {}, store.newest_publication(), 1, now, now, None, None)
    [stored] = store.add([request], request.job, request.last_publication_id)
    return stored.restatement_id
