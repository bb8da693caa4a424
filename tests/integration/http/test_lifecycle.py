"""Starting, draining, crashing, and stores that die while requests are answered."""

import io
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime

import httpx
import polars as pl
import psutil

from featurestore_dagster.serving.http.uploads import ARROW
from tests.integration.http.conftest import COMMAND, PATIENCE_SECONDS, HttpServer, alive, environment, serving, wait_until
from tests.integration.serving.conftest import REFERENCES, Served

GOOD = {"features": REFERENCES, "entities": {"symbol": ["AAA", "nobody"]}, "full_feature_names": True}
OURS = {"features": REFERENCES, "entities": {"symbol": ["AAA", "nobody"]}}
PAST = OURS | {"as_of": "2018-12-20T00:00:00Z", "policy": {"deadline_seconds": 20}}
"""From Postgres only: it waits as long as its table is locked."""
ONE_WORKER = {"FEATURESTORE_SERVE_WORKERS": "1"}
HANG_SECONDS = 10
"""Far beyond any deadline used here, far below any hang."""


@contextmanager
def a_request_under_way(served: Served, server: HttpServer) -> Iterator[Future[httpx.Response]]:
    """A request that is answered when the block ends."""
    with ThreadPoolExecutor(1) as pool, server.client() as client, server.client() as probe:
        with served.locked("momentum_features"):
            answer = pool.submit(client.post, "/v1/online-features", json=PAST)
            wait_until(lambda: b"feature_store_requests_in_progress 2.0" in probe.get("/metrics").content)
            yield answer
        answer.result(PATIENCE_SECONDS)


def test_draining_finishes_what_was_begun_and_refuses_the_rest(served: Served) -> None:
    with serving(served.settings, **ONE_WORKER) as server, server.client() as client:
        assert client.get("/health/ready").status_code == 200
        with a_request_under_way(served, server) as answer:
            server.terminate()
            wait_until(lambda: client.get("/health/ready").status_code == 503)
            assert client.get("/health/live").json()["status"] == "draining"
            refused = client.post("/get-online-features", json=GOOD)
            assert (refused.status_code, refused.headers["retry-after"], refused.headers["connection"]) == (503, "1", "close")
            assert not answer.done()
        assert answer.result().status_code == 200
        assert server.process.wait(PATIENCE_SECONDS) == 0
        assert server.lines[-1] == "stopped"


def test_stopped_while_it_starts(served: Served) -> None:
    with subprocess.Popen(COMMAND, stdout=subprocess.PIPE, text=True, env=environment(served.settings)) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("starting 2 worker processes")
        process.send_signal(signal.SIGINT)
        assert process.stdout.read().splitlines()[-1] == "stopped"
        assert process.wait(PATIENCE_SECONDS) == 0


def test_too_many_at_once_are_told_to_come_again(served: Served) -> None:
    with serving(served.settings, **ONE_WORKER, FEATURESTORE_SERVE_MAXIMUM_CONCURRENT_REQUESTS="2") as server, server.client() as client:
        with ThreadPoolExecutor(4) as pool, served.locked("momentum_features"):
            asked = [pool.submit(client.post, "/v1/online-features", json=PAST) for _ in range(4)]
            wait_until(lambda: sum(answer.done() for answer in asked) >= 2)
            refused = [answer.result() for answer in asked if answer.done()][:2]
            assert [(answer.status_code, answer.headers.get("retry-after")) for answer in refused] == [(503, "1")] * 2
            assert client.get("/health/live").status_code == 200
        assert sorted(answer.result().status_code for answer in asked) == [200, 200, 503, 503]
        assert client.post("/get-online-features", json=GOOD).status_code == 200


def test_an_answer_that_does_not_begin_in_time_is_given_up(served: Served) -> None:
    with serving(served.settings, **ONE_WORKER, FEATURESTORE_SERVE_DEADLINE_SECONDS="1") as server, server.client() as client:
        body = {"features": REFERENCES, "entities": [{"symbol": "AAA", "event_timestamp": "2018-12-20T00:00:00Z"}]}
        with served.locked("momentum_features"):
            late = client.post("/v1/historical-features", json=body)
            assert (late.status_code, late.json()["error"]) == (504, "DeadlineExceeded")
            with ThreadPoolExecutor(12) as pool:
                many = list(pool.map(lambda _: client.post("/v1/historical-features", json=body).status_code, range(12)))
            assert set(many) == {503, 504}
            assert many.count(504) <= 4  # no more threads wait than that
        wait_until(lambda: client.post("/v1/historical-features", json=body).status_code == 200)


def test_a_client_that_stops_reading_holds_no_slot(served: Served) -> None:
    with serving(served.settings, **ONE_WORKER, FEATURESTORE_SERVE_DEADLINE_SECONDS="5") as server, server.client() as client:
        instants = pl.datetime_range(datetime(2018, 12, 1, tzinfo=UTC), datetime(2018, 12, 31, tzinfo=UTC), "13s", eager=True)
        rows = pl.DataFrame({"event_timestamp": instants}).with_columns(symbol=pl.lit("AAA"))
        buffer = io.BytesIO()
        rows.write_ipc_stream(buffer)
        query = "&".join(f"features={reference}" for reference in REFERENCES)
        with socket.socket() as stalled:
            stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stalled.connect(("127.0.0.1", httpx.URL(server.url).port or 0))
            head = f"POST /v1/historical-features?{query} HTTP/1.1\r\nhost: x\r\ncontent-type: {ARROW}\r\n"
            stalled.sendall(f"{head}content-length: {buffer.tell()}\r\n\r\n".encode() + buffer.getvalue())
            assert stalled.recv(12) == b"HTTP/1.1 200"
            wait_until(lambda: b"feature_store_requests_in_progress 1.0" in client.get("/metrics").content)  # that of the question itself


def test_a_killed_worker_is_replaced_and_killed_parents_take_their_workers_along(served: Served) -> None:
    with serving(served.settings) as server:
        first, second = server.workers()
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: any("starting another" in line for line in server.lines))
        with server.client() as client:
            assert client.post("/get-online-features", json=GOOD).status_code == 200
        server.process.kill()
        wait_until(lambda: not alive(second))
        wait_until(lambda: not listens(server))


def listens(server: HttpServer) -> bool:
    try:
        httpx.get(f"{server.url}/health/live", timeout=5)
    except httpx.TransportError:
        return False
    return True


def test_redis_killed_and_frozen_while_serving(served: Served) -> None:
    with serving(served.settings, **ONE_WORKER) as server, server.client() as client:
        before = client.post("/get-online-features", json=GOOD).json()
        calm = OURS | {"policy": {"deadline_seconds": 2}}

        def tiers() -> set[str]:
            answer = client.post("/v1/online-features", json=calm)
            assert answer.status_code == 200
            return {state["tier"] for row in answer.json()["rows"] for state in row["views"]}

        assert tiers() == {"redis"}
        with served.frozen("redis"):
            started = time.monotonic()
            for _ in range(20):
                answer = client.post("/get-online-features", json=GOOD)
                assert (answer.status_code, answer.json()) == (200, before)
            assert tiers() == {"postgres"}
            assert time.monotonic() - started < 20 * HANG_SECONDS
        wait_until(lambda: tiers() == {"redis"})
        served.kill("redis")
        for _ in range(20):
            answer = client.post("/get-online-features", json=GOOD)
            assert (answer.status_code, answer.json()) == (200, before)
        assert tiers() == {"postgres"}
        wait_until(lambda: client.get("/health").json()["tier"] == "postgres")
        assert client.get("/health/ready").status_code == 200
        served.services.start()
        served.sync()
        wait_until(lambda: tiers() == {"redis"})
        wait_until(lambda: client.get("/health").json() == {"status": "ok", "tier": "redis", "degraded": []})


def test_with_every_store_frozen_refusals_come_in_time(served: Served) -> None:
    with serving(served.settings, **ONE_WORKER) as server, server.client() as client:
        threads = psutil.Process(server.workers()[0]).num_threads()
        with served.frozen("redis", "postgres"):
            started = time.monotonic()

            def refused(_: int) -> tuple[int, str]:
                with server.client() as each:
                    answer = each.post("/get-online-features", json=GOOD | {"entities": {"symbol": ["AAPL"]}})
                    return answer.status_code, json.loads(answer.content).get("error", answer.text)

            with ThreadPoolExecutor(8) as pool:
                assert set(pool.map(refused, range(40))) == {(503, "NoTierAnsweredError")}
            assert time.monotonic() - started < HANG_SECONDS
            wait_until(lambda: client.get("/health/ready").status_code == 503)
            assert client.get("/health").json()["status"] == "down"
            assert client.get("/health/live").status_code == 200
            assert psutil.Process(server.workers()[0]).num_threads() <= threads + min(32, (os.cpu_count() or 1) + 4) + 2
        wait_until(lambda: client.get("/health/ready").status_code == 200)
        wait_until(lambda: client.post("/get-online-features", json=GOOD).status_code == 200)
