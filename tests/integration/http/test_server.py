"""A running server: Feast's protocol and ours, errors that keep the connection, limits, keys, metrics of all workers, OpenAPI."""

import contextlib
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest

from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS
from featurestore_dagster.serving.answer import Status
from featurestore_dagster.serving.http.gate import OPEN
from featurestore_dagster.serving.http.uploads import ARROW, PARQUET
from featurestore_dagster.serving.policy import ReadPolicy
from tests.integration.http.conftest import COMMAND, HttpServer, environment, serving, wait_until
from tests.integration.serving.conftest import NOW, REFERENCES, Served

SYMBOLS = ["AAA", "nobody", "CCC"]
PATIENT = {"deadline_seconds": 20}
UNHURRIED = ReadPolicy(**PATIENT)
KEY = "a key of \u00fcs"
FEAST_SIDE = Path(__file__).with_name("remote_feast_side.py")


@pytest.fixture
def client(http: HttpServer, served: Served) -> Iterator[httpx.Client]:
    with http.client() as found:
        yield found


def test_t20_no_worker_is_restarted_for_its_age(http: HttpServer, served: Served) -> None:
    with contextlib.closing(HTTPConnection(http.url.removeprefix("http://"), timeout=60)) as connection:
        connection.connect()
        opened, body = connection.sock, json.dumps(GOOD)
        for _ in range(2_500):
            connection.request("POST", "/get-online-features", body)
            with connection.getresponse() as answer:
                assert answer.read()
        assert connection.sock is opened
    assert not any("starting another" in line for line in http.lines)


def test_feasts_protocol_gives_what_the_client_gives(client: httpx.Client, served: Served) -> None:
    body = {
        "features": REFERENCES,
        "entities": {"symbol": SYMBOLS},
        "full_feature_names": True,
        "include_feature_view_version_metadata": False,
    }
    answer = client.post("/get-online-features", json=body)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    names = ["symbol", *(reference.replace(":", "__") for reference in REFERENCES)]
    assert answer.json()["metadata"] == {"feature_names": names}
    keys, *columns = answer.json()["results"]
    assert keys == {"values": SYMBOLS, "statuses": ["PRESENT"] * 3, "event_timestamps": ["1970-01-01T00:00:00Z"] * 3}
    with served.client() as ours:
        expected = ours.get_online_features(REFERENCES, [{"symbol": symbol} for symbol in SYMBOLS], policy=UNHURRIED)
    for position, column in enumerate(columns):
        assert column["values"] == [row.numbers[position] for row in expected.rows]
        assert column["statuses"] == [row.statuses[position] for row in expected.rows]
    assert {status for column in columns for status in column["statuses"]} == {"PRESENT", "NULL_VALUE", "NOT_FOUND"}
    assert columns[0]["event_timestamps"] == ["2018-12-31T21:00:00Z", "1970-01-01T00:00:00Z", "2018-12-31T21:00:00Z"]


def test_ours_tells_ages_flags_and_tiers_and_reads_the_past(client: httpx.Client, served: Served) -> None:
    rows = [{"symbol": symbol} for symbol in SYMBOLS]
    body = {"features": REFERENCES, "entities": rows, "policy": PATIENT}
    then = datetime.fromisoformat("2018-12-20T00:00:00Z")
    with served.client() as ours:
        for expected, extra in (
            (ours.get_online_features(REFERENCES, rows, policy=UNHURRIED), {}),
            (ours.get_online_features(REFERENCES, rows, as_of_timestamp=then), {"as_of": then.isoformat()}),
            (ours.get_online_features(REFERENCES, entity_ids=SYMBOLS, policy=UNHURRIED), {"entities": None, "entity_ids": SYMBOLS}),
        ):
            answer = client.post("/v1/online-features", json=body | extra).json()
            assert datetime.fromisoformat(answer["as_of"]) == expected.as_of
            assert answer["features"] == REFERENCES
            assert [row["values"] for row in answer["rows"]] == [list(row.numbers) for row in expected.rows]
            assert [row["statuses"] for row in answer["rows"]] == [list(row.statuses) for row in expected.rows]
            states = [[(s["tier"], s["age_seconds"], tuple(s["flags"])) for s in row["views"]] for row in answer["rows"]]
            assert states == [[(s.tier, s.age_seconds, s.flags) for s in row.states] for row in expected.rows]


def test_keys_that_no_view_needs_are_ignored_whatever_they_hold(client: httpx.Client, served: Served) -> None:
    extra = {"user_id": [5, None, ["x"]]}
    feast = {"features": REFERENCES, "full_feature_names": True, "entities": {"symbol": SYMBOLS}}
    plain = client.post("/get-online-features", json=feast).json()["results"]
    keys, user_ids, *columns = client.post("/get-online-features", json=feast | {"entities": feast["entities"] | extra}).json()["results"]
    assert ([keys, *columns], user_ids["values"]) == (plain, extra["user_id"])
    rows = [{"symbol": symbol, "user_id": value} for symbol, value in zip(SYMBOLS, extra["user_id"], strict=True)]
    answer = client.post("/v1/online-features", json={"features": REFERENCES, "entities": rows, "policy": PATIENT}).json()
    assert [row["entity"] for row in answer["rows"]] == rows


INSTANTS = ["2018-12-20T00:00:00Z", "2018-12-31T21:00:00Z", "2017-01-01T00:00:00Z"]
FRAME = pl.DataFrame(
    {"symbol": ["AAA", "CCC", "AAA"], "event_timestamp": [datetime.fromisoformat(text) for text in INSTANTS], "kept": [1, 2, None]},
    schema_overrides={"event_timestamp": UTC_MICROSECONDS},
)


@pytest.mark.parametrize("accept", [ARROW, PARQUET])
@pytest.mark.parametrize("sent", ["application/json", ARROW, PARQUET])
def test_history_in_every_format_is_that_of_the_client(client: httpx.Client, served: Served, sent: str, accept: str) -> None:
    with served.client() as ours:
        expected = ours.get_historical_features(FRAME, REFERENCES, details=["flags"])
    asked: dict[str, Any] = {"features": REFERENCES, "details": ["flags"]}
    headers = {"content-type": sent, "accept": accept}
    if sent == "application/json":
        rows = [row | {"event_timestamp": row["event_timestamp"].isoformat()} for row in FRAME.to_dicts()]
        answer = client.post("/v1/historical-features", json=asked | {"entities": rows}, headers=headers)
    else:
        buffer = io.BytesIO()
        FRAME.write_ipc_stream(buffer) if sent == ARROW else FRAME.write_parquet(buffer)
        answer = client.post("/v1/historical-features", params=asked, content=buffer.getvalue(), headers=headers)
    assert (answer.status_code, answer.headers["content-type"]) == (200, accept), answer.text
    read = pl.read_ipc_stream if accept == ARROW else pl.read_parquet
    assert read(io.BytesIO(answer.content)).equals(expected)


def test_what_is_declared_and_what_was_measured_is_told(client: httpx.Client, served: Served) -> None:
    assert [view["name"] for view in client.get("/v1/views").json()] == [view.label for view in CATALOGUE.views]
    services = client.get("/v1/services").json()
    assert [service["name"] for service in services] == [service.name for service in CATALOGUE.services]
    assert client.get("/v1/services/daily_equity_service").json() == next(s for s in services if s["name"] == "daily_equity_service")
    [stream] = [
        state for state in client.get("/v1/freshness", params={"view": "momentum_features"}).json() if state["stream"] == "us_equity_1d"
    ]
    assert (stream["state"], stream["watermark"][:10]) == ("CLOSED", NOW.date().isoformat())
    statistics = client.get("/v1/views/daily_ohlcv_stats/statistics").json()
    promised = client.get("/v1/slo", params={"view": "momentum_features", "month": f"{NOW:%Y-%m}"}).json()  # of the server's own sources
    with served.client() as ours:
        months = [month.as_dict() for month in ours.get_slo_attainment(view="momentum_features")]
        assert [month for month in months if month["stream"] == "us_equity_1d"] == promised != []
        assert statistics == ours.get_feature_statistics("daily_ohlcv_stats").to_dicts()
    wanted = {"features": REFERENCES[:2], "entities": {"symbol": SYMBOLS}, "policy": PATIENT, "tier": None}
    covered = client.post("/v1/coverage", json=wanted).json()
    assert [feature["reference"] for feature in covered["features"]] == REFERENCES[:2]
    assert (covered["is_met"], covered["not_judged"]) == (None, SYMBOLS)  # the server's own sources list other symbols
    wait_until(lambda: client.get("/health").json() == {"status": "ok", "tier": "redis", "degraded": []})  # a probe's answer holds a second
    assert client.get("/v1/statistics", params={"window_minutes": 1}).json()["window_minutes"] == 1


def test_head_is_get_without_its_body(client: httpx.Client) -> None:
    for path in ("/status", "/v1/views", "/health/ready", "/no-such-route"):
        got, head = client.get(path), client.head(path)
        assert (head.status_code, head.headers["content-type"], head.content) == (got.status_code, got.headers["content-type"], b"")
    assert client.head("/get-online-features").status_code == 405


TRAINING = f"comprehensive_features_view:{CATALOGUE.view('comprehensive_features_view').feature_names[0]}"
GOOD = {"features": REFERENCES[:1], "entities": {"symbol": ["AAA"]}}
WIDE = {
    "features": REFERENCES[:1],
    "entities": [{"symbol": "AAA", "event_timestamp": "2018-12-20T00:00:00Z", "y": number} for number in (2**63, -1)],
}
LONG = "x" * 3_000_000
NO_TEXT = [
    (path, json.dumps(GOOD | {"entities": {"symbol": [value]}}).encode(), repr(value))
    for path in ("/get-online-features", "/v1/online-features", "/v1/coverage")
    for value in (None, 1, ["AAA"], "A\0")
]
ERRORS: list[tuple[str, str, bytes, int, str]] = [
    ("POST", "/get-online-features", b"{", 422, "no JSON"),
    ("POST", "/get-online-features", b"[" * 100_000, 422, "no JSON"),
    ("POST", "/get-online-features", b'{"features":["momentum_features:rsi_14"],"entities":{"symbol":[NaN]}}', 422, "no JSON"),
    ("POST", "/get-online-features", json.dumps(GOOD | {"entities": {"timeframe": ["1d"]}}).encode(), 422, "lacks join key 'symbol'; view"),
    ("POST", "/get-online-features", json.dumps(GOOD | {"features": ["no_such_view:a"]}).encode(), 404, "no_such_view"),
    ("POST", "/get-online-features", json.dumps(GOOD | {"features": ["momentum_features:rsi"]}).encode(), 404, "rsi_14"),
    ("POST", "/get-online-features", json.dumps(GOOD | {"features": REFERENCES * 1000}).encode(), 422, "at most 1000"),
    ("POST", "/get-online-features", json.dumps(GOOD | {"entities": {"symbol": ["A"] * 1001}}).encode(), 422, "at most 1000"),
    ("POST", "/get-online-features", json.dumps(GOOD | {"entities": {"symbol": ["A"], "x": []}}).encode(), 422, "different lengths"),
    *(("POST", path, body, 422, f"entity row 0 has symbol={said}; view") for path, body, said in NO_TEXT),
    ("POST", "/v1/online-features", json.dumps(GOOD | {"features": ["momentum_feature:rsi_14"]}).encode(), 404, "momentum_features"),
    ("POST", "/v1/online-features", json.dumps(GOOD | {"policy": {"min_coverage": 1}, "entities": {"symbol": ["?"]}}).encode(), 412, "?"),
    ("POST", "/v1/online-features", json.dumps(GOOD | {"features": [TRAINING]}).encode(), 422, "training"),
    ("POST", "/v1/historical-features", b'{"features":["momentum_features:rsi_14"]}', 422, "list of objects"),
    ("POST", "/v1/historical-features", json.dumps(WIDE).encode(), 422, "128 bits"),
    ("POST", "/v1/coverage", b"nothing", 422, "no JSON"),
    ("POST", "/v1/coverage", json.dumps(GOOD | {"tier": 9}).encode(), 422, "allowed: 1, 2"),
    ("POST", "/v1/online-features", json.dumps(GOOD | {"features": [LONG]}).encode(), 404, f"{LONG[:200]}...'; nearest"),
    ("GET", "/v1/services/daily_equity", b"", 404, "daily_equity_service"),
    ("GET", "/v1/freshness?view=momentum", b"", 404, "momentum_features"),
    ("GET", "/v1/slo?month=2018-13", b"", 422, "month"),
    ("GET", "/v1/slo?view=momentum", b"", 404, "momentum_features"),
    ("GET", "/v1/statistics?window_minutes=0", b"", 422, "window_minutes"),
    ("GET", "/v1/views/momentum_features/statistics?start=2018-12-01T00:00:00", b"", 422, "time zone"),
    ("GET", "/get-online-features", b"", 405, "GET"),
    ("GET", "/docs", b"", 404, "/openapi.json"),
]


def test_t20_errors_keep_the_connection_and_a_missing_join_key_is_one(http: HttpServer, served: Served) -> None:
    with contextlib.closing(HTTPConnection(http.url.removeprefix("http://"), timeout=60)) as connection:
        connection.connect()
        opened = connection.sock
        for method, path, body, status, said in ERRORS:
            connection.request(method, path, body or None)
            answer = connection.getresponse()
            text = answer.read().decode()
            assert (answer.status, answer.headers["content-type"]) == (status, "application/json"), (method, path, body[:80], text)
            parsed = json.loads(text)
            assert isinstance(parsed, str) == (path == "/get-online-features" and status == 404)
            assert said in (json.loads(parsed) if isinstance(parsed, str) else parsed)["message"]
        connection.request("POST", "/get-online-features", json.dumps(GOOD))
        assert connection.getresponse().status == 200
        assert connection.sock is opened


def test_counts_of_all_workers_add_up(served: Served) -> None:
    count = 60
    with serving(served.settings) as server:

        def one(number: int) -> tuple[int, int]:
            with server.client() as each:  # a connection of its own, so that both workers get some
                reads = [each.post("/get-online-features", json=GOOD | {"full_feature_names": True}).status_code for _ in range(number % 3)]
                reads.append(each.post("/v1/online-features", content=b"{").status_code)
                return each.get("/v1/statistics").json()["process_id"], len(reads) - 1

        processes, answered = set[int](), 0
        while len(processes) < 2:
            with ThreadPoolExecutor(8) as pool:
                for process, reads in pool.map(one, range(count)):
                    processes.add(process)
                    answered += reads
        assert processes == set(server.workers())
        with server.client() as each:
            text = each.get("/metrics").text
    series = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(series['feature_store_requests_total{route="/get-online-features",status="200"}']) == answered
    assert float(series['feature_store_request_duration_seconds_count{route="/get-online-features"}']) == answered
    assert float(series['feature_store_requests_total{route="/v1/online-features",status="422"}']) % count == 0
    assert float(series[f'feature_store_values_total{{status="{Status.PRESENT}"}}']) == answered
    assert sum(float(value) for name, value in series.items() if name.startswith("feature_store_answered_views_total")) == answered
    assert float(series["feature_store_point_in_time_violations_total"]) == 0


def test_a_key_is_asked_of_all_but_the_probes(served: Served) -> None:
    limits = {
        "FEATURESTORE_SERVE_MAXIMUM_BODY_BYTES": "2000",
        "FEATURESTORE_SERVE_MAXIMUM_ENTITIES": "2",
        "FEATURESTORE_SERVE_HOST": "0.0.0.0",
    }
    with (
        serving(served.settings, FEATURESTORE_SERVE_API_KEY=KEY, FEATURESTORE_SERVE_WORKERS="1", **limits) as server,
        server.client() as each,
    ):
        assert {each.get(f"/health/{probe}").status_code for probe in ("live", "ready")} == {200}
        for path in ("/health", "/metrics", "/openapi.json", "/v1/views", "/nowhere"):
            assert each.get(path).status_code == 401
        assert each.post("/get-online-features", json=GOOD).status_code == 401
        raw = KEY.encode()
        for headers in ({b"X-API-Key": raw[:-1]}, {b"X-API-Key": b""}, {b"Authorization": b"Basic " + raw}, {b"Authorization": raw}):
            assert each.post("/get-online-features", json=GOOD, headers=headers).status_code == 401  # type: ignore[arg-type]
        for headers in ({b"X-API-Key": raw}, {b"Authorization": b"bearer " + raw}):
            assert each.post("/get-online-features", json=GOOD, headers=headers).status_code == 200  # type: ignore[arg-type]
        each.headers = httpx.Headers({b"X-API-Key": raw})
        assert each.get("/openapi.json").json()["security"] == [{"key": []}, {"bearer": []}, {"basic": []}]
        too_many = each.post("/get-online-features", json=GOOD | {"entities": {"symbol": ["A"] * 3}})
        assert (too_many.status_code, "at most 2" in too_many.text) == (422, True)
        too_large = each.post("/get-online-features", content=b"x" * 2001)
        streamed = each.post("/get-online-features", content=(b"x" * 1000 for _ in range(5)))
        assert [(answer.status_code, answer.json()["error"]) for answer in (too_large, streamed)] == [(413, "BodyTooLarge")] * 2


def test_it_does_not_start_in_the_open_or_where_another_listens(served: Served, http: HttpServer) -> None:
    port = http.url.rpartition(":")[2]
    for variables, said in (
        ({"FEATURESTORE_SERVE_HOST": "0.0.0.0"}, "FEATURESTORE_SERVE_API_KEY"),
        ({"FEATURESTORE_SERVE_HOST": "0.0.0.0", "FEATURESTORE_SERVE_API_KEY": " "}, "begins or ends with a blank"),
        ({"FEATURESTORE_SERVE_PORT": port}, f"port {port} is in use"),
        ({"FEATURESTORE_SERVE_WORKERS": "0"}, "FEATURESTORE_SERVE_WORKERS"),
    ):
        done = subprocess.run(
            COMMAND, env=environment(served.settings, **variables), capture_output=True, text=True, timeout=60, check=False
        )
        said_plainly = re.sub(r"\s+", " ", done.stderr)
        assert (done.returncode, "ConfigurationError" in said_plainly, said in said_plainly) == (1, True, True), done.stderr


def test_a_worker_loads_neither_feast_nor_dagster_nor_pandas() -> None:
    program = "import sys, featurestore_dagster.serving.http.worker; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"feast", "dagster", "pandas", "pandera", "exchange_calendars"} & set(loaded)


def test_the_document_is_complete_and_loads_nothing_from_elsewhere(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    operations = {(path, method): operation for path, item in document["paths"].items() for method, operation in item.items()}
    posted = {path for path, method in operations if method == "post"}
    assert posted == {"/get-online-features", *(f"/v1/{name}" for name in ("online-features", "historical-features", "coverage"))}
    for (path, method), operation in operations.items():
        answers = operation["responses"]
        assert all(answer.get("content") for answer in answers.values()), path
        assert {"200", "503", "504"} <= set(answers)
        assert ("401" in answers) == (path not in OPEN) == ("security" not in operation)
        if method == "post":
            assert {"413", "422"} <= set(answers)
            assert operation["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert "$defs" not in json.dumps(document)
    assert document["security"] == [*({name: []} for name in document["components"]["securitySchemes"]), {}]


def test_generated_requests_never_break_it(http: HttpServer, served: Served, tmp_path: Path) -> None:
    checks = [
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
        "negative_data_rejection",
        "unsupported_method",
    ]
    options = [
        "--max-examples",
        "25",
        "--seed",
        "1",
        "--phases",
        "examples,coverage,fuzzing",
        "--generation-database",
        "none",
        "--no-color",
    ]
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{http.url}/openapi.json", "--checks", ",".join(checks), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) generated", done.stdout)[1]) > 500, done.stdout[-3000:]  # type: ignore[index]


def test_feasts_own_sdk_reads_through_its_remote_store(http: HttpServer, served: Served, tmp_path: Path) -> None:
    request = {
        "url": http.url,
        "folder": str(tmp_path),
        "features": REFERENCES,
        "symbols": SYMBOLS,
        "legacy": {"view": "daily_ohlcv_stats", "features": ["open", "close"], "symbols": ["AAA", "CCC"]},
        "missing": ["no_such_view:a"],
        "service": "daily_equity_service",
    }
    done = subprocess.run(
        [sys.executable, str(FEAST_SIDE)], input=json.dumps(request), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    with served.client() as ours:
        expected = ours.get_online_features(REFERENCES, [{"symbol": symbol} for symbol in SYMBOLS], policy=UNHURRIED)
    for position, reference in enumerate(REFERENCES):
        assert found["online"][reference.replace(":", "__")] == [row.numbers[position] for row in expected.rows]
    assert found["statuses"] == [[status.value for status in row.statuses] for row in expected.rows]
    row = expected.rows[0]
    opened, closed = row["daily_ohlcv_stats:open"].value, row["daily_ohlcv_stats:close"].value
    assert found["legacy"][0] == {"at": "2018-12-31T21:00:00", "open": opened, "close": closed}
    assert found["missing"][0] == "FeatureViewNotFoundException"
    assert "no_such_view" in found["missing"][1]
    assert found["service_names"] == [reference.name for _, reference in CATALOGUE.service("daily_equity_service").references]
