"""Postgres stopped at once and started again under the sensors, a run, the exporter, the HTTP server and a client: each recovers by itself.

The same story is lived through without the stops, on a database of its own; both must end alike.
"""

import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import psycopg
import pytest
from pydantic import SecretStr

from featurestore_dagster.errors import NoTierAnsweredError, StoreUnavailableError
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.orchestration.alerting import build_alert_sensor
from featurestore_dagster.orchestration.sensors import build_freshness_sensor
from featurestore_dagster.serving.client import FeatureStoreClient
from featurestore_dagster.serving.policy import ReadPolicy
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.embedded import EmbeddedServices, postgres_server, processes
from featurestore_dagster.stores.postgres import AlertStore, PostgresStore
from featurestore_dagster.stores.postgres.slo_ledger import SloStore
from tests.integration.exporter.conftest import Exporter, exporting
from tests.integration.http.conftest import HttpServer, serving, wait_until
from tests.integration.orchestration.conftest import CORRECTED, LATER, VIEWS, WEEKS, Daemon, bars, correct, five_weeks, online
from tests.integration.pipeline.conftest import MovingClock
from tests.receivers import Webhook, webhook
from tests.unit.pipeline.frames import EQUITIES, LISTED, close_of

NEXT, AFTER_NEXT = "2018-12-10", "2018-12-11"
END = close_of(AFTER_NEXT) + timedelta(hours=12)
REFERENCES = [f"{view.name}:{name}" for view in VIEWS for name in view.feature_names]
BODY = {"features": REFERENCES, "entities": {"symbol": ["AAA", "CCC"]}, "full_feature_names": True}
NOW_READ = {"features": REFERENCES, "entities": [{"symbol": "AAA"}], "policy": {"deadline_seconds": 20}}
PAST = {"features": REFERENCES, "entities": [{"symbol": "AAA", "event_timestamp": END.isoformat()}]}
PATIENT = ReadPolicy(deadline_seconds=20)
MINUTE = timedelta(minutes=1)


@dataclass
class Server:
    """Embedded servers that the test stops and starts."""

    services: EmbeddedServices
    settings: Settings

    def stop(self) -> None:
        """Immediate shutdown: sessions are cut off, nothing is flushed."""
        process = postgres_server.running(self.settings.data_folder / "postgres")
        assert process is not None
        process.send_signal(3)
        assert processes.wait_until(lambda: not processes.alive(process), 30)

    def start(self) -> None:
        started = self.services.start()
        assert started.postgres == self.settings.postgres

    def restart(self) -> None:
        self.stop()
        self.start()


@pytest.fixture
def server(initialised: Path, tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "data"
    subprocess.run(["cp", "-a", str(initialised), str(folder)], check=True)
    services = EmbeddedServices(Settings(data_folder=folder))
    yield Server(services, services.start())
    services.stop()


@dataclass
class World:
    """Everything that runs in a deployment but its processes, tick by tick as Dagster's daemon drives it."""

    settings: Settings
    daemon: Daemon
    hook: Webhook
    freshness: dg.SensorDefinition = field(init=False)
    alerts: dg.SensorDefinition = field(init=False)
    cursors: dict[str, str | None] = field(default_factory=dict)
    posted: list[tuple[str, bool]] = field(default_factory=list)

    def __post_init__(self) -> None:
        catalogue = self.daemon.deployment.catalogue
        self.freshness, self.alerts = build_freshness_sensor(catalogue), build_alert_sensor(catalogue)

    def tick(self) -> None:
        """One look of every sensor, and the runs that are asked for. As in the daemon, a tick that fails keeps its cursor."""
        for request in self.daemon.tick():
            assert self.daemon.run(request).is_success
        for sensor in (self.freshness, self.alerts):
            context = dg.build_sensor_context(instance=self.daemon.instance, cursor=self.cursors.get(sensor.name))
            result = sensor(context, platform=self.daemon.platform)
            assert isinstance(result, dg.SensorResult)
            self.cursors[sensor.name] = result.cursor
            self.posted += [(event.asset_key.to_user_string(), event.passed) for event in result.asset_events]

    def fails(self) -> None:
        """One look of every sensor while Postgres is away."""
        daemon = self.daemon
        with pytest.raises(StoreUnavailableError):
            daemon.tick()
        for sensor in (self.freshness, self.alerts):
            context = dg.build_sensor_context(instance=daemon.instance, cursor=self.cursors.get(sensor.name))
            with pytest.raises(StoreUnavailableError):
                sensor(context, platform=daemon.platform)

    def state(self) -> dict[str, Any]:
        """What is stored at the end, but for row ids and for the real time of attempts."""
        deployment = self.daemon.deployment
        ledger = (
            "select relation, partition_key, content_hash, rows_total from ops.publications order by relation, partition_key, content_hash"
        )
        days = SloStore(self.settings.postgres).days(END.date() - timedelta(days=60), END.date())
        told = AlertStore(self.settings.postgres).deliveries("sent")
        return {
            "ledger": deployment.query(ledger),
            "raw": _rows(deployment.store.read_raw(EQUITIES, close_of(WEEKS[0]) - timedelta(days=1), END, all_versions=True)),
            "features": [_rows(deployment.features(view, all_versions=True)) for view in VIEWS],
            "online": [online(self.daemon, view, symbol) for view in VIEWS for symbol in LISTED],
            "restatements": [(one.status, one.first_partition, one.relations) for one in self.daemon.restatements.requests()],
            "alerts": [
                (a.problem.subject, a.state, a.opened_at, a.resolved_at) for a in AlertStore(self.settings.postgres).alerts(resolved=True)
            ],
            "sent": sorted(letter.message_key for letter in told),
            "slo": [(day.view, day.stream, day.day, day.overdue_seconds) for day in days],
            "posted": self.posted,
        }


def _rows(frame: pl.DataFrame) -> list[tuple[Any, ...]]:
    return sorted(frame.rows(), key=str)


def world(settings: Settings, hook: Webhook, instance: dg.DagsterInstance) -> World:
    """Five weeks of bars and two views of them, in Postgres and Redis, as the sensors have seen them."""
    told = settings.model_copy(update={"alert_urls": SecretStr(hook.url), "dagster_url": "https://dagster.example.com"})
    PostgresStore(settings.postgres, MovingClock(END)).apply(CATALOGUE)  # the exporter and the server know all of it
    return World(told, five_weeks(told, instance), hook)


def story(
    world: World, between: Callable[[], None], within_a_run: Callable[[dg.RunRequest], None], while_sending: Callable[[], None]
) -> None:
    """A correction, an overdue session, another correction, and the missed sessions; the callbacks are where Postgres may go away."""
    daemon, clock = world.daemon, world.daemon.deployment.clock
    world.tick()
    between()
    correct(daemon, CORRECTED)
    between()
    world.tick()
    clock.instant = close_of(NEXT) + timedelta(hours=3)  # due and overdue: the schedule did not run
    while_sending()
    world.tick()
    clock.advance(minutes=1)
    world.tick()
    clock.advance(minutes=1)
    correct(daemon, CORRECTED, LATER)
    (request,) = daemon.tick()
    within_a_run(request)
    between()
    clock.instant = close_of(AFTER_NEXT) + timedelta(hours=9)
    days = [*WEEKS, NEXT, AFTER_NEXT]
    daemon.deployment.deliver(
        bars(days, **{f"d_{day.replace('-', '_')}": {"close": 118.0, "high": 125.0, "low": 90.0} for day in (CORRECTED, LATER)})
    )
    world.tick()
    between()
    for _ in range(3):
        clock.advance(minutes=1)
        world.tick()


def database(server: Server, name: str, number: int) -> Settings:
    with psycopg.connect(server.settings.postgres.conninfo, autocommit=True) as connection:
        connection.execute(f"create database {name}")  # type: ignore[arg-type]
    postgres = server.settings.postgres.model_copy(update={"database": name})
    return server.settings.with_connections(postgres, server.settings.redis.model_copy(update={"db": number}))


def undisturbed(settings: Settings) -> tuple[dict[str, Any], list[str]]:
    with webhook() as hook, dg.DagsterInstance.ephemeral() as instance:
        lived = world(settings, hook, instance)

        def run(request: dg.RunRequest) -> None:
            assert lived.daemon.run(request).is_success

        story(lived, lambda: None, run, lambda: None)
        return lived.state(), hook.keys()


@pytest.mark.timeout(900)
def test_every_process_outlives_a_restart_of_postgres_and_the_end_is_that_of_a_calm_run(server: Server) -> None:
    expected, told = undisturbed(database(server, "calm", 1))
    settings = database(server, "hurt", 0)
    with ExitStack() as stack:
        hook, instance = stack.enter_context(webhook()), stack.enter_context(dg.DagsterInstance.ephemeral())
        lived = world(settings, hook, instance)
        standing = settings.model_copy(update={"clock": END.isoformat()})
        exporter = stack.enter_context(exporting(standing))
        http = stack.enter_context(serving(standing))
        client = stack.enter_context(FeatureStoreClient(standing, lived.daemon.deployment.catalogue))
        others = Others(exporter, http, client)
        others.all_well()

        def between() -> None:
            server.stop()
            lived.fails()
            others.without_postgres()
            server.start()
            others.all_well()

        def within_a_run(request: dg.RunRequest) -> None:
            """Postgres goes away while a run has published one of its views and waits to publish the other."""
            with ThreadPoolExecutor(1) as pool:
                with psycopg.connect(settings.postgres.conninfo) as connection:
                    connection.execute("lock table features.momentum_features in access exclusive mode")
                    running = pool.submit(lived.daemon.run, request)
                    waits = "select from pg_stat_activity where datname = %s and wait_event_type = 'Lock'"
                    with psycopg.connect(settings.postgres.conninfo, autocommit=True) as watching:
                        assert processes.wait_until(lambda: watching.execute(waits, ["hurt"]).fetchone() is not None, 60)
                    server.restart()
                    with pytest.raises(psycopg.OperationalError):
                        connection.execute("select 1")
                assert running.result(120).is_success

        restarted = threading.Event()

        def while_sending() -> None:
            """Postgres goes away when a message has arrived and before that is recorded."""

            def restart() -> None:
                hook.on_request = lambda: None
                server.restart()
                restarted.set()

            hook.on_request = restart
            with pytest.raises(StoreUnavailableError):
                lived.tick()
            assert restarted.wait(60)

        story(lived, between, within_a_run, while_sending)
        found = lived.state()
        others.all_well()
        offline = client.get_online_features(REFERENCES, [{"symbol": "AAA"}], as_of_timestamp=END, policy=PATIENT)
        served = client.get_online_features(REFERENCES, [{"symbol": "AAA"}], policy=PATIENT)
        assert list(offline.rows[0].numbers) == list(served.rows[0].numbers)
    assert found == expected
    received = hook.keys()
    (twice,) = {key for key in received if received.count(key) > 1}
    assert sorted(received) == sorted([*told, twice]), "what was cut off before its record is sent again, with the same key"


@dataclass
class Others:
    """The processes beside the sensors."""

    exporter: Exporter
    http: HttpServer
    client: FeatureStoreClient

    def all_well(self) -> None:
        wait_until(lambda: set(self.exporter.up().values()) == {1})
        with self.http.client() as web:
            wait_until(lambda: web.post("/v1/historical-features", json=PAST).status_code == 200)
            wait_until(lambda: web.get("/health").json()["status"] == "ok")
            assert web.post("/get-online-features", json=BODY).status_code == 200
        wait_until(self._past_is_answered)

    def _past_is_answered(self) -> bool:
        try:
            answer = self.client.get_online_features(REFERENCES, [{"symbol": "AAA"}], as_of_timestamp=END - MINUTE, policy=PATIENT)
        except NoTierAnsweredError:
            return False
        return {state.tier for state in answer.rows[0].states} == {"postgres"}

    def without_postgres(self) -> None:
        up = self.exporter.up()
        assert (up["redis"], up["ledger"], up["freshness"]) == (1, 0, 0)
        with self.http.client() as web:
            answer = web.post("/v1/online-features", json=NOW_READ)
            assert answer.status_code == 200, answer.text
            assert web.post("/v1/historical-features", json=PAST).status_code == 503
            assert web.get("/health/ready").status_code == 200
        answer = self.client.get_online_features(REFERENCES, [{"symbol": "AAA"}], policy=PATIENT)
        assert {state.tier for state in answer.rows[0].states} == {"redis"}
        with pytest.raises(NoTierAnsweredError):
            self.client.get_online_features(
                REFERENCES, [{"symbol": "AAA"}], as_of_timestamp=END - MINUTE, policy=ReadPolicy(deadline_seconds=2)
            )
