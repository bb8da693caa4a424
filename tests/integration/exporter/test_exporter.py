"""The exporter as a process, scraped over HTTP: what it tells, what it tells when stores are gone, how it ends; and a real Prometheus."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.features.equity_views import DAILY_OHLCV_STATS
from featurestore_dagster.monitoring import metrics
from featurestore_dagster.monitoring.metrics import Job
from featurestore_dagster.projections.alert_rules import alert_rules, rules
from featurestore_dagster.projections.dashboard import ROWS
from featurestore_dagster.serving.freshness import FreshnessState
from featurestore_dagster.serving.slo_ledger import record
from featurestore_dagster.stores.embedded import processes
from featurestore_dagster.stores.postgres.slo_ledger import SloStore
from tests.integration.exporter.conftest import Exporter, Served, exporting, value
from tests.integration.http.conftest import HttpServer, serving
from tests.integration.serving.conftest import DAYS, ENTITIES, NOW, REFERENCES, VIEWS
from tests.prometheus import prometheus_folder

STREAM = {"view": "daily_ohlcv_stats", "stream": "us_equity_1d"}
RELATION = "features.daily_ohlcv_stats.us_equity_1d"
ON_POSTGRES = {"freshness", "slo", "alerts", "ledger", "quarantine", "durations", "sync", "dagster"}
ALL = ON_POSTGRES | {"redis"}


@pytest.fixture(scope="module")
def exporter(deployed: Served) -> Iterator[Exporter]:
    with exporting(deployed.settings) as running:
        yield running


def test_a_scrape_tells_what_the_stores_hold(served: Served, exporter: Exporter) -> None:
    began = time.time()
    served.sync()
    found = exporter.samples()
    assert {name: value(found, metrics.COLLECTOR_UP, collector=name) for name in ALL} == dict.fromkeys(ALL, 1)

    states = {state: value(found, metrics.FRESHNESS_STATE, **STREAM, state=state) for state in FreshnessState}
    assert states == dict.fromkeys(FreshnessState, 0) | {"CLOSED": 1}
    assert value(found, metrics.FRESHNESS_STATE, view="price_volume_features", stream="us_equity_1d", state="NEVER") == 1
    assert value(found, metrics.FRESHNESS_LAG, view="price_volume_features", stream="us_equity_1d") is None
    assert value(found, metrics.FRESHNESS_LAG, **STREAM) == 0
    assert value(found, metrics.SLO, **STREAM) == DAILY_OHLCV_STATS.slo.max_lag.total_seconds()
    with served.store_connection() as connection:
        (watermark,) = connection.execute("select max(max_event_timestamp) from ops.publications").fetchone() or ()
        query = "select sum(rows_published) from ops.publications where relation = %s"
        (rows,) = connection.execute(query, [RELATION]).fetchone() or ()
    assert value(found, metrics.WATERMARK, **STREAM) == watermark.timestamp()
    due = value(found, metrics.DUE, **STREAM)
    assert due is not None
    assert due > NOW.timestamp()

    assert value(found, metrics.ROWS_PUBLISHED, relation=RELATION) == rows
    assert value(found, metrics.BLOCKED, relation=RELATION) == 0
    published = value(found, metrics.PUBLISH_DURATION, "_count", relation=RELATION)
    assert published is not None
    assert 0 < published <= len(DAYS)
    assert value(found, metrics.PUBLISH_DURATION, "_bucket", relation=RELATION, le="+Inf") == published

    for view in VIEWS:
        assert value(found, metrics.SYNC_PENDING, view=view.name) == 0
        heartbeat = value(found, metrics.SYNC_HEARTBEAT, view=view.name)
        assert heartbeat is not None
        assert heartbeat >= began - 1
    with served.redis() as plain:
        assert value(found, metrics.REDIS_KEYS) == plain.dbsize()
        plain.flushall()
    after = exporter.samples()
    assert value(after, metrics.REDIS_KEYS) == 0
    pending = value(after, metrics.SYNC_PENDING, view=VIEWS[0].name)
    assert pending is not None
    assert pending > 0
    assert (value(after, metrics.REDIS_MEMORY_USED) or 0) > 0


def test_a_correction_is_timed_and_a_refused_row_counted_once(served: Served, exporter: Exporter) -> None:
    before = exporter.samples()
    with served.store_connection() as connection:
        connection.execute(
            "insert into ops.quarantine (relation, partition_key, row, row_hash, reasons, status, run_id, quarantined_at)"
            " select %s, '2018-12-31', '{}', status, '{bad}', status, 'r', now() from unnest(array['open', 'replayed']) as status",
            [RELATION],
        )
        connection.execute(
            "insert into ops.restatements (job, status, relations, first_partition, last_partition, partitions, causes,"
            " last_publication_id, attempts, changed_at, requested_at, finished_at) select 'xnys_path', status, '{}', %s, %s, 1, '{}',"
            " 1, 1, now(), now(), now() + interval '4 seconds' from unnest(array['done', 'failed']) as status",
            [DAYS[-1], DAYS[-1]],
        )
    found = exporter.samples()
    for metric, expected in ((metrics.ROWS_QUARANTINED, 2), (metrics.QUARANTINED_OPEN, 1)):
        grown = (value(found, metric, relation=RELATION) or 0) - (value(before, metric, relation=RELATION) or 0)
        assert grown == expected, metric.name
    for le, expected in (("2.5", 0), ("5.0", 1), ("+Inf", 1)):
        labels = {"path": "xnys_path", "le": le}
        counted, known = (value(samples, metrics.RESTATEMENT_LATENCY, "_bucket", **labels) or 0 for samples in (found, before))
        assert counted - known == expected, le


def test_stores_that_are_gone_are_zeros_and_come_back(served: Served, exporter: Exporter) -> None:
    assert exporter.up() == dict.fromkeys(ALL, 1)
    served.kill("redis")
    assert exporter.up() == dict.fromkeys(ALL, 1) | {"redis": 0, "sync": 0}
    assert httpx.get(f"{exporter.url}/health", timeout=10).json() == {"status": "ok"}
    served.services.start()
    with served.frozen("postgres"):
        found = exporter.samples()  # an answer, although Postgres accepts connections and is silent
        assert {name: value(found, metrics.COLLECTOR_UP, collector=name) for name in ALL} == dict.fromkeys(ON_POSTGRES, 0) | {"redis": 1}
        assert value(found, metrics.FRESHNESS_LAG, **STREAM) is None, "no old value for a new one"
        assert value(found, metrics.REDIS_KEYS) is not None
    assert processes.wait_until(lambda: exporter.up() == dict.fromkeys(ALL, 1), 120)


def test_it_starts_without_any_store_and_ends_in_order(served: Served) -> None:
    nowhere = served.settings.postgres.model_copy(update={"host": "127.0.0.1", "port": processes.free_port()})
    silent = served.settings.redis.model_copy(update={"port": processes.free_port()})
    with exporting(served.settings.with_connections(nowhere, silent)) as running:
        assert running.up() == dict.fromkeys(ALL, 0)
        assert httpx.get(f"{running.url}/", timeout=10).status_code == 404
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(30) == 0


@contextmanager
def prometheus(exporter: Exporter, server: HttpServer, folder: Path) -> Iterator[str]:
    """A real Prometheus that scrapes both and evaluates the generated rules; yields its address."""
    targets = {Job.EXPORTER: exporter.url, Job.SERVE: server.url}
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yml"],
        "scrape_configs": [
            {"job_name": job.value, "static_configs": [{"targets": [url.removeprefix("http://")]}]} for job, url in targets.items()
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    (folder / "rules.yml").write_text(alert_rules(CATALOGUE))
    port = processes.free_port()
    command = [prometheus_folder() / "prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], cwd=folder, stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def asked(address: str, path: str, **parameters: str) -> Any:
    answer = httpx.get(f"{address}/api/v1/{path}", params=parameters, timeout=30)
    assert answer.json()["status"] == "success", answer.text
    return answer.json()["data"]


def test_a_real_prometheus_answers_every_panel_and_every_rule(served: Served, exporter: Exporter, tmp_path: Path) -> None:
    record(served.catalogue, SloStore(served.settings.postgres), NOW)  # as the freshness sensor does
    with serving(served.settings) as server, prometheus(exporter, server, tmp_path) as address:
        with server.client() as client:
            asked_for = {"features": REFERENCES, "entities": ENTITIES[:1], "policy": {"deadline_seconds": 20}}
            answer = client.post("/v1/online-features", json=asked_for)
            assert answer.status_code == 200, answer.text

        counters = (metrics.ROWS_PUBLISHED.name, metrics.REQUESTS.name)

        def scraped() -> bool:
            try:
                if httpx.get(f"{address}/-/ready", timeout=10).status_code != 200:
                    return False
                return all(asked(address, "query", query=f"count_over_time({name}[1m]) >= 2")["result"] for name in counters)
            except httpx.TransportError:
                return False

        assert processes.wait_until(scraped, 60), (tmp_path / "log").read_text()
        assert processes.wait_until(lambda: all(rule["health"] == "ok" for rule in _evaluated(address)), 60), _evaluated(address)
        assert len(_evaluated(address)) == sum(len(group) for group in rules(CATALOGUE).values())

        silent = []
        for _, panels in ROWS:
            for panel in panels:
                for query in panel.queries:
                    expression = re.sub(r"\$__rate_interval|\$__range", "1m", query.expression).replace("$view", ".*")
                    if not asked(address, "query", query=expression)["result"]:
                        silent.append(panel.title)
        # No daemon and no sensor ever ran on this database, its clock stands still, nothing was corrected or failed, Redis has no limit.
        nothing_yet = {"Daemons", "Sensors", "Correction to online (p95)", "Errors", "Redis memory", "Attainment against the objective"}
        assert set(silent) <= nothing_yet, silent

        os.kill(exporter.process.pid, signal.SIGSTOP)  # a dead man: alive by its process id, and silent
        try:
            assert processes.wait_until(lambda: "ExporterSilent" in _pending(address), 60)
        finally:
            os.kill(exporter.process.pid, signal.SIGCONT)


def _evaluated(address: str) -> list[dict[str, Any]]:
    return [rule for group in asked(address, "rules")["groups"] for rule in group["rules"]]


def _pending(address: str) -> set[str]:
    return {alert["labels"]["alertname"] for alert in asked(address, "alerts")["alerts"]}
