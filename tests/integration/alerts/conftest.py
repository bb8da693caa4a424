"""A database with alerts, receivers on loopback, and a clock that a test moves."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import SecretStr

from featurestore_dagster.model.alert import AlertKind, Problem
from featurestore_dagster.monitoring import alerting
from featurestore_dagster.monitoring.problems import Found
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.postgres import AlertStore
from tests.receivers import Mailbox, Webhook, mailbox, webhook

NOON = datetime(2026, 3, 9, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


class MovingClock:
    """Stands until it is moved."""

    replayed = None

    def __init__(self) -> None:
        self.instant = NOON

    def now(self) -> datetime:
        return self.instant


def problem(subject: str = "momentum/us", kind: AlertKind = AlertKind.VIEW_OVERDUE) -> Problem:
    facts = {"worst": ["SPX", "low<open & <b>high</b>"]}
    return Problem(kind, subject.partition("/")[0], subject, NOON, f"{subject} is LATE", "nobody knows", "/assets/momentum", facts)


@dataclass
class Duty:
    """The sensor's work, tick by tick."""

    settings: Settings
    store: AlertStore
    clock: MovingClock

    def evaluate(self, *problems: Problem) -> None:
        alerting.evaluate(lambda _: Found(problems), self.store, self.settings, self.clock, self.clock)

    def deliver(self) -> alerting.Delivered:
        return alerting.deliver(self.store, self.settings, self.clock, self.clock)

    def tick(self, *problems: Problem, after: timedelta = MINUTE) -> alerting.Delivered:
        self.evaluate(*problems)
        delivered = self.deliver()
        self.clock.instant += after
        return delivered


@pytest.fixture
def hook() -> Iterator[Webhook]:
    with webhook() as running:
        yield running


@pytest.fixture
def mail() -> Iterator[Mailbox]:
    with mailbox() as running:
        yield running


def duty_of(settings: Settings, urls: str, escalation_urls: str = "") -> Duty:
    told = settings.model_copy(update={"alert_urls": SecretStr(urls), "escalation_urls": SecretStr(escalation_urls)})
    return Duty(told, AlertStore(settings.postgres), MovingClock())


@pytest.fixture
def duty(fresh_database: Settings, hook: Webhook) -> Duty:
    """One webhook is told."""
    return duty_of(fresh_database, hook.url)
