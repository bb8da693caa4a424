"""The daemon and a run's worker killed amid a backfill from the UI: both are replaced, and the end is that of an undisturbed backfill."""

import json
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.embedded import running_settings
from featurestore_dagster.stores.postgres.connection import connect
from tests.e2e.conftest import Installation, held, running, wait_for
from tests.e2e.test_kill import HASHES, MOMENTUM, RANGE, SECOND_CHUNK, _published
from tests.unit.pipeline.frames import keys_between

ASSETS = (
    "raw/us_equity_corporate_actions", "raw/us_equity_candles_1d", "momentum_features_us_equity_1d", "online/momentum_features",
)  # fmt: skip
LAUNCH = """mutation($params: LaunchBackfillParams!) {launchPartitionBackfill(backfillParams: $params) {
    __typename ... on LaunchBackfillSuccess {backfillId} ... on PythonError {message}}}"""
STATUS = "query($id: String!) {partitionBackfillOrError(backfillId: $id) {... on PartitionBackfill {status}}}"
LONGEST_SECONDS = 600


def _asked(ui: str, query: str, **variables: Any) -> Any:
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(f"{ui}/graphql", data=body, headers={"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["data"]


def _daemon(installation: Installation) -> int:
    return next(one["process_id"] for one in installation.json("status")["tree"]["processes"] if one["name"] == "daemon")


@pytest.mark.timeout(1800)
def test_daemon_and_worker_killed_amid_a_backfill_of_the_ui(tmp_path: Path) -> None:
    undisturbed, killed = Installation(tmp_path / "undisturbed"), Installation(tmp_path / "killed")
    assert undisturbed.run(*RANGE).returncode == 0
    assert killed.run("apply").returncode == 0
    count = f"select count(*) from ops.publications where relation = '{MOMENTUM}'"
    with running(killed) as (process, ui):
        daemon = _daemon(killed)
        before = {child.pid for child in psutil.Process(process.pid).children(recursive=True)}
        params = {"assetSelection": [{"path": key.split("/")} for key in ASSETS], "partitionNames": keys_between(*RANGE[2:])}
        settings = running_settings(Settings(data_folder=killed.folder))
        with connect(settings.postgres, autocommit=True) as connection, held(connection, MOMENTUM, SECOND_CHUNK):
            launched = _asked(ui, LAUNCH, params=params)["launchPartitionBackfill"]
            wait_for(lambda: connection.execute(count).fetchone() != (0,), LONGEST_SECONDS, lambda: launched)
            workers = [child for child in psutil.Process(process.pid).children(recursive=True) if child.pid not in before]
            for one in (psutil.Process(daemon), *workers):
                one.kill()
            (done,) = connection.execute(count).fetchone() or (0,)
        assert 0 < done < len(keys_between(*RANGE[2:])), "the kill must fall between two chunks of the view"
        state = lambda: _asked(ui, STATUS, id=launched["backfillId"])["partitionBackfillOrError"]["status"]  # noqa: E731
        wait_for(lambda: state() in {"COMPLETED_SUCCESS", "COMPLETED_FAILED", "FAILED", "CANCELED"}, LONGEST_SECONDS, state)
        assert state() == "COMPLETED_SUCCESS"
        assert _daemon(killed) != daemon
    assert _published(killed, HASHES) == _published(undisturbed, HASHES)
    again = killed.run(*RANGE)
    assert (again.returncode, "nothing to do" in again.stdout) == (0, True), again.stdout + again.stderr
    for installation in (undisturbed, killed):
        installation.run("down")
