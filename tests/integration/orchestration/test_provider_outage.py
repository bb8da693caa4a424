"""A provider that is down for a day of schedule ticks, then back with what was missed and with corrections.

Hourly bars come from a local HTTP server by the real client. The same two days are lived through without the outage: both end alike.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import psycopg
import pytest
from pydantic import SecretStr

from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.features.equity_views import TECHNICAL_INDICATORS_VIEW
from featurestore_dagster.features.raw_tables import CRYPTO_CANDLES
from featurestore_dagster.features.sources import BINANCE
from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.model.raw_table import Dataset
from featurestore_dagster.model.time import Timeframe
from featurestore_dagster.orchestration import retries
from featurestore_dagster.orchestration.alerting import build_alert_sensor
from featurestore_dagster.orchestration.jobs import MarketPath
from featurestore_dagster.orchestration.schedules import build_path_schedule
from featurestore_dagster.serving.online_sync import sync_view
from featurestore_dagster.settings import Settings
from featurestore_dagster.sources import binance
from featurestore_dagster.sources.http import ATTEMPTS, HttpClient
from featurestore_dagster.sources.provider_settings import BinanceSettings
from featurestore_dagster.stores.postgres import AlertStore
from featurestore_dagster.stores.postgres.restatements import DONE
from tests.integration.orchestration.conftest import Daemon
from tests.integration.pipeline.conftest import Deployment, MovingClock
from tests.local_provider import Answer, Asked, LocalProvider, Patience, local_provider
from tests.receivers import Webhook, webhook

HOURS = CRYPTO_CANDLES[Timeframe.ONE_HOUR]
VIEW = replace(
    TECHNICAL_INDICATORS_VIEW, streams=tuple(stream for stream in TECHNICAL_INDICATORS_VIEW.streams if stream.inputs[0] == HOURS)
)
PATH = MarketPath("24/7")
SMALL = replace(CATALOGUE, datasets=(HOURS,), views=(VIEW,), services=(), sources=(BINANCE,))
BEFORE = ("2018-12-02", "2018-12-03")
MIDNIGHT = datetime(2018, 12, 4, tzinfo=UTC)
LAST_HOUR, DOWN_HOURS = 30, range(4, 28)
CALM_HOURS = (1, 4, 8, 12, 16, 20, 24, 27, 30)
"""Fewer looks at the same bars: what is published does not depend on how often one looks."""

CORRECTED_HOURS, CORRECTED_FROM = {2, 3}, 8
"""Bars that were published before the outage, and that the provider corrects in its midst."""

HOUR = timedelta(hours=1)
REFUSALS = (Answer(503), Answer(500, b"{}"), Answer(429, b"{}"), Answer(200, b"[[1543", cut_after=3))


@dataclass
class Provider:
    """Answers as Binance does, from a table that the test's clock unveils."""

    server: LocalProvider
    clock: MovingClock
    down: range = range(0)
    refused: int = 0

    @property
    def hour(self) -> int:
        return (self.clock.now() - MIDNIGHT) // HOUR

    def answer(self, asked: Asked) -> Answer:
        if self.hour in self.down:
            self.refused += 1
            return REFUSALS[self.refused % len(REFUSALS)]
        first, last = (int(asked.query[name]) for name in ("startTime", "endTime"))
        start = -(-first // 3_600_000)
        lines = [self.kline(asked.query["symbol"], hour) for hour in range(start, last // 3_600_000 + 1)]
        return Answer(200, f"[{','.join(lines)}]".encode())

    def kline(self, symbol: str, hour: int) -> str:
        opened = hour * 3_600_000
        price = 100.0 + hour * (7 if symbol.startswith("BTC") else 13) % 11
        ends = (datetime.fromtimestamp(hour * 3600, UTC) + HOUR - MIDNIGHT) // HOUR
        if ends in CORRECTED_HOURS and self.hour >= CORRECTED_FROM:
            price += 2.5
        o, h, l, c = price, price + 2, price - 2, price + 1  # noqa: E741 - a bar
        return f'[{opened},"{o}","{h}","{l}","{c}","{10 + hour % 5}",{opened + 3_599_999},"{(10 + hour % 5) * price}",100,"1","1","0"]'


@dataclass
class OverHttp(Deployment):
    """A deployment whose rows come from the provider."""

    url: str = field(kw_only=True)
    payloads: Path = field(kw_only=True)
    timer: Patience = field(default_factory=Patience)

    def fetch(self, dataset: Dataset, start: datetime, end: datetime) -> pl.DataFrame:
        settings = BinanceSettings(base_url=self.url)
        with HttpClient(BINANCE, settings.base_url, self.payloads, self.clock, timer=self.timer) as client:
            return binance.fetch(dataset, start, end, settings=settings, client=client)


@dataclass
class Days:
    """Schedule, propagation sensor and alert sensor of one deployment, hour by hour."""

    daemon: Daemon
    provider: Provider
    hook: Webhook
    cursor: str | None = None
    outcomes: list[tuple[int, bool]] = field(default_factory=list)

    def hour(self, number: int) -> None:
        """What a daemon does two minutes after the hour, and in the minutes after that."""
        clock, catalogue = self.daemon.deployment.clock, self.daemon.deployment.catalogue
        clock.instant = MIDNIGHT + number * HOUR + timedelta(minutes=2)
        schedule: Any = build_path_schedule(catalogue, PATH)
        context = dg.build_schedule_context(scheduled_execution_time=clock.now())
        request = schedule._execution_fn.decorated_fn(context, platform=self.daemon.platform)
        assert isinstance(request, dg.RunRequest)
        self.outcomes.append((number, self.daemon.run(request.with_replaced_attrs(job_name=PATH.name)).is_success))
        for _ in range(2):
            clock.advance(minutes=1)
            for asked in self.daemon.tick():
                self.daemon.run(asked)
            alerting = build_alert_sensor(catalogue)(
                dg.build_sensor_context(instance=self.daemon.instance, cursor=self.cursor), platform=self.daemon.platform
            )
            assert isinstance(alerting, dg.SensorResult)
            self.cursor = alerting.cursor

    def state(self) -> dict[str, Any]:
        """What is published and served, but for when it came to be known."""
        deployment = self.daemon.deployment
        late = QualityFlag.LATE.value | QualityFlag.RESTATED.value
        values = [name for name in deployment.features(VIEW).columns if name not in {"created_timestamp", "flags"}]
        bars = deployment.bars(HOURS).sort("symbol", "event_timestamp")
        rows = self.daemon.platform.online.read(
            [(VIEW, VIEW.feature_names)], [{"symbol": s, "timeframe": "1h"} for s in ("BTCUSDT", "ETHUSDT")]
        ).rows
        return {
            "bars": bars.select("symbol", "event_timestamp", "open", "high", "low", "close", "volume", "trade_count").rows(),
            "features": deployment.features(VIEW).sort("symbol", "event_timestamp").select(*values, pl.col("flags") & ~late).rows(),
            "online": [(row.values, row.event_microseconds, row.flags & ~late) for (row,) in rows],
            "partitions": {key: deployment.hashes(relation).keys() for key, relation in (("bars", HOURS), ("view", VIEW))},
        }


@contextmanager
def lived(settings: Settings, folder: Path, hours: Iterable[int], down: range) -> Iterator[Days]:
    """Two days, as a daemon lives them that looks at these hours."""
    with webhook() as hook, local_provider() as server, dg.DagsterInstance.ephemeral() as instance:
        told = settings.model_copy(update={"alert_urls": SecretStr(hook.url)})
        clock = MovingClock(MIDNIGHT + timedelta(minutes=2))
        provider = Provider(server, clock, down)
        server.respond = provider.answer
        deployment = OverHttp(told, SMALL, clock, url=server.url, payloads=folder)
        deployment.ingest(*BEFORE, dataset=HOURS)
        daemon = Daemon(deployment, instance)
        deployment.materialise(VIEW, *BEFORE)
        sync_view(VIEW, deployment.store, daemon.platform.online, clock.now())
        days = Days(daemon, provider, hook)
        for number in hours:
            days.hour(number)
        yield days


@pytest.fixture
def calm_database(fresh_database: Settings, template_database: str) -> Settings:
    """Another database, and another one of Redis; the first goes with the session's server."""
    name = f"{fresh_database.postgres.database}_calm"
    with psycopg.connect(fresh_database.postgres.conninfo, autocommit=True) as connection:
        connection.execute(f"create database {name} template {template_database}")  # type: ignore[arg-type]
    postgres = fresh_database.postgres.model_copy(update={"database": name})
    return fresh_database.with_connections(postgres, fresh_database.redis.model_copy(update={"db": 1}))


@pytest.mark.timeout(900)
def test_a_day_without_the_provider_ends_like_an_undisturbed_one_and_is_told_once(
    fresh_database: Settings, calm_database: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "MAXIMUM_RETRIES", 0)  # each waits seconds of real time; the client has retried already
    with lived(calm_database, tmp_path / "calm", CALM_HOURS, range(0)) as calm:
        assert (calm.hook.taken, calm.provider.refused) == ([], 0)
        assert all(succeeded for _, succeeded in calm.outcomes)
        expected = calm.state()
    with lived(fresh_database, tmp_path / "out", range(1, LAST_HOUR + 1), DOWN_HOURS) as days:
        assert [hour for hour, succeeded in days.outcomes if not succeeded] == list(DOWN_HOURS)
        assert days.provider.refused >= ATTEMPTS * len(DOWN_HOURS)
        assert days.state() == expected
        assert {request.status for request in days.daemon.restatements.requests()} == {DONE}
        told = [(message["title"], message["message"]) for message in days.hook.taken]
        # The runs over the missed session fail from midnight until the provider is back: too short for an escalation.
        streaks = {"24_7_path fails": 3, "technical_indicators_view is overdue": 3, "24_7_path catching up fails": 2}
        events = ("OPENED", "RESOLVED", "ESCALATED")
        assert sorted(title for title, _ in told) == sorted(f"[{event}] {what}" for what, n in streaks.items() for event in events[:n])
        (opened,) = (text for title, text in told if title == "[OPENED] technical_indicators_view is overdue")
        assert "likely cause: the source fails: run " in opened
        assert "in step raw__crypto_candles_1h: " in opened
        assert AlertStore(fresh_database.postgres).alerts() == []
