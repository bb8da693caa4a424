"""Our own Feast repository through the plug-ins: the same answers as our client's, from an unmodified Feast, its SDK and its server."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
import yaml

from featurestore_dagster.features.sources import SOURCES
from featurestore_dagster.settings import Settings
from tests.integration.feast.conftest import REPOSITORY
from tests.integration.feast.publications import INTRADAY, MOMENTUM, NOW, values

FEAST = str(Path(sys.executable).with_name("feast"))
FIRST, LAST = MOMENTUM.feature_names[0], MOMENTUM.feature_names[-1]
NEWEST = values(MOMENTUM, 21)


@pytest.fixture
def applied(published: Settings) -> dict[str, str]:
    """Environment of a Feast whose registry holds our definitions."""
    every_source = ",".join(source.name for source in SOURCES)  # else the samples' symbols, which ended earlier, are delisted
    environment = published.model_copy(update={"clock": NOW.isoformat(), "sources": every_source}).child_environment()
    done = subprocess.run([FEAST, "-c", str(REPOSITORY), "apply"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return environment


def test_reads_writes_and_fallback_of_the_sdk(published: Settings, applied: dict[str, str]) -> None:
    with redis.Redis.from_url(published.redis.url) as client:
        client.flushall()
    command = [sys.executable, "-m", "tests.integration.feast.our_repository_side"]
    done = subprocess.run(command, cwd=REPOSITORY.parent, env=applied, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)

    present = {FIRST: [NEWEST[FIRST], "PRESENT"], LAST: [NEWEST[LAST], "PRESENT"]}
    expected = {
        FIRST: [present[FIRST], [None, "NULL_VALUE"], [None, "NOT_FOUND"]],
        LAST: [present[LAST], [values(MOMENTUM, 30)[LAST], "PRESENT"], [None, "NOT_FOUND"]],
    }
    assert seen["before"] == expected, "an empty Redis is answered by Postgres"
    assert seen["online"] == expected
    (intraday,) = seen["streams"].values()
    assert [status for _, status in intraday] == ["PRESENT", "OUTSIDE_MAX_AGE"]
    assert intraday[1][0] is None
    assert [column[0][1] for column in seen["views"].values()] == ["PRESENT", "PRESENT"]
    assert seen["missing key"].startswith("MissingJoinKeyError: the request names no timeframe")

    original = values(MOMENTUM, 20)
    assert seen["columns"] == ["symbol", "event_timestamp", "note", f"{MOMENTUM.name}__{FIRST}", f"{MOMENTUM.name}__{LAST}"]
    assert seen["history"] == [
        ["AAPL", 0, NEWEST[FIRST], NEWEST[LAST]],
        ["IBM", 1, None, values(MOMENTUM, 30)[LAST]],
        ["AAPL", 2, original[FIRST], original[LAST]],
        ["AAPL", 3, None, None],
        ["AAPL", 4, NEWEST[FIRST], NEWEST[LAST]],
    ]
    assert seen["range"] == [values(MOMENTUM, 10)[LAST], NEWEST[LAST]]
    assert seen["range before a correction"] == [values(MOMENTUM, 10)[LAST], original[LAST]]
    assert seen["T14"] == expected
    assert seen["pushed"].startswith("RefusedError")
    assert seen["redis dead"] == expected
    assert seen["delisted"] == {FIRST: [[None, "NOT_FOUND"]] * 2}


def test_t14_the_registry_is_one_that_serves_while_a_view_is_materialized() -> None:
    configuration = yaml.safe_load((REPOSITORY / "feature_store.yaml").read_text())
    assert configuration["registry"]["registry_type"] == "sql"
    assert configuration["registry"]["serve_features_while_materializing"] is True


@pytest.fixture
def served(applied: dict[str, str], tmp_path: Path) -> Iterator[httpx.Client]:
    """`feast serve` on our repository."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [FEAST, "-c", str(REPOSITORY), "serve", "--host", "127.0.0.1", "--port", str(port)]
    log = tmp_path / "serve.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, env=applied, stdout=output, stderr=output, start_new_session=True)
    one_request_each = httpx.Limits(max_keepalive_connections=0)  # Feast's server drops the connection after an error
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, limits=one_request_each) as client:
        try:
            deadline = time.monotonic() + 120
            while True:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                try:
                    if client.get("/health").status_code == 200:
                        break
                except httpx.TransportError:
                    time.sleep(0.2)
            yield client
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


def test_feast_serve_answers_by_our_rules(served: httpx.Client) -> None:
    features = [f"{MOMENTUM.name}:{FIRST}"]
    answer = served.post("/get-online-features", json={"features": features, "entities": {"symbol": ["AAPL", "IBM", "?"]}})
    assert answer.status_code == 200, answer.text
    column = answer.json()["results"][answer.json()["metadata"]["feature_names"].index(FIRST)]
    assert column["values"] == [NEWEST[FIRST], None, None]
    assert column["statuses"] == ["PRESENT", "NULL_VALUE", "NOT_FOUND"]

    intraday = {"features": [f"{INTRADAY.name}:{INTRADAY.feature_names[0]}"], "entities": {"symbol": ["AAPL"]}}
    refused = served.post("/get-online-features", json=intraday)
    assert refused.status_code == 422
    assert "timeframe" in refused.text

    at = (NOW - timedelta(minutes=15)).isoformat()
    row = {"symbol": ["AAPL"], "event_timestamp": [at], "created_timestamp": [at]} | {name: [1.0] for name in MOMENTUM.feature_names}
    pushed = served.post("/write-to-online-store", json={"feature_view_name": MOMENTUM.name, "df": row})
    assert pushed.status_code == 500
    assert "published" in pushed.text
    again = served.post("/get-online-features", json={"features": features, "entities": {"symbol": ["AAPL"]}})
    assert again.json()["results"][1]["values"] == [NEWEST[FIRST]]
