"""A backfill killed in its middle and started again publishes what an undisturbed one does; once more, it finds nothing to do."""

import os
import signal
import subprocess
import time

from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.embedded import EmbeddedServices
from featurestore_dagster.stores.postgres.connection import connect
from tests.e2e.conftest import COMMAND, Installation

RANGE = ("backfill", "momentum_features", "2016-01-04", "2017-12-29")
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
    with EmbeddedServices(Settings(data_folder=killed.folder)) as settings:
        process = subprocess.Popen([COMMAND, *RANGE], env=killed.environment, start_new_session=True, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 180
        with connect(settings.postgres, autocommit=True) as connection:
            while not connection.execute(count).fetchone()[0]:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        with connect(settings.postgres) as connection:
            done = connection.execute(count).fetchone()[0]
    assert 0 < done < 503, "the kill must fall between two chunks of the view"

    left = [row for row in killed.json(*RANGE, "--preview") if row["stream"] == "us_equity_1d"]
    assert [0 < row["partitions_to_compute"] <= 503 - done for row in left] == [True]
    assert killed.run(*RANGE).returncode == 0
    assert _published(killed, HASHES) == _published(undisturbed, HASHES)
    again = killed.run(*RANGE)
    assert (again.returncode, "nothing to do" in again.stdout) == (0, True), again.stdout + again.stderr
    assert _published(killed, HASHES) == _published(undisturbed, HASHES)
    for installation in (undisturbed, killed):
        installation.run("down")
