"""Messages to real receivers: each is sent once or becomes a dead letter, whatever fails in between."""

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import psycopg
import pytest

from featurestore_dagster.errors import ConfigurationError, StoreUnavailableError
from featurestore_dagster.model.alert import ESCALATE_AFTER, AlertKind, AlertState
from featurestore_dagster.monitoring import alerting
from featurestore_dagster.monitoring.problems import Found
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.embedded import processes
from featurestore_dagster.stores.postgres import AlertStore
from tests.integration.alerts.conftest import MINUTE, NOON, Duty, duty_of, problem
from tests.receivers import Mailbox, Webhook

HOUR = timedelta(hours=1)


def test_a_streak_is_one_message_and_one_resolution_by_webhook_and_mail(fresh_database: Settings, hook: Webhook, mail: Mailbox) -> None:
    duty = duty_of(fresh_database, f"{hook.url} {mail.url}")
    for found in ([problem()], [problem()], [problem()], [], []):
        duty.tick(*found)
    assert [message["title"] for message in hook.taken] == ["[OPENED] momentum is overdue", "[RESOLVED] momentum is overdue"]
    assert [message["type"] for message in hook.taken] == ["failure", "success"]
    assert [letter["Subject"] for letter in mail.mails] == ["[OPENED] momentum is overdue", "[RESOLVED] momentum is overdue"]
    assert [letter["Idempotency-Key"] for letter in mail.mails] == hook.keys()
    assert [letter.get_content_type() for letter in mail.mails] == ["text/plain", "text/plain"]
    lines = mail.mails[0].get_payload(decode=True).decode().splitlines()
    assert lines[:5] == ["momentum/us is LATE", "likely cause: nobody knows", "worst:", "- SPX", "- low<open & <b>high</b>"]
    (alert,) = duty.store.alerts(resolved=True)
    assert (alert.state, alert.notified_at, alert.resolved_at) == (AlertState.RESOLVED, NOON, NOON + 3 * MINUTE)


def test_a_receiver_that_fails_for_an_hour_leaves_a_dead_letter_that_can_be_sent_again(duty: Duty, hook: Webhook) -> None:
    hook.statuses = [429, 500] * 100
    ticks = [duty.tick(problem()) for _ in range(70)]
    assert sum(tick.dead for tick in ticks) == 1
    assert hook.taken == []
    assert hook.requests < 20, "it is not asked each minute"
    letters = [
        letter for letter in duty.store.deliveries("dead") if letter.event == "opened" and letter.title.startswith("[OPENED] momentum")
    ]
    assert [letter.message_key for letter in letters] == ["1-opened"]
    assert "token-of-the-webhook" not in str(letters)
    assert duty.store.alerts()[-1].state is not AlertState.NOTIFIED

    hook.statuses = []
    assert duty.store.retry(duty.clock.now(), HOUR) >= 1
    duty.tick(problem(), after=20 * MINUTE)
    duty.tick(problem())
    assert hook.keys().count("1-opened") == 1
    assert duty.store.deliveries("dead") == []


def test_the_beginning_of_what_has_ended_is_not_sent_again(duty: Duty, hook: Webhook) -> None:
    hook.statuses = [500] * 1000
    for _ in range(12):
        duty.tick(problem(), problem("volume/us"), after=15 * MINUTE)
    duty.tick(problem("volume/us"), after=2 * HOUR)
    duty.tick(problem("volume/us"))
    assert {"1-opened", "1-escalated", "1-resolved", "2-opened"} <= {letter.message_key for letter in duty.store.deliveries("dead")}

    hook.statuses = []
    duty.store.retry(duty.clock.now(), HOUR)
    for _ in range(20):
        duty.tick(problem("volume/us"))
    told = hook.keys()
    assert [key for key in told if key.startswith(("1-", "2-"))] == ["2-opened", "2-escalated", "1-resolved"]
    assert duty.store.deliveries("dead") == []


def test_a_receiver_that_recovers_gets_each_message_once_and_in_order(duty: Duty, hook: Webhook) -> None:
    hook.statuses = [429, 500]  # the second attempt is put off beyond the end of the streak
    duty.tick(problem())
    duty.tick(problem())
    for _ in range(20):
        duty.tick()
    assert hook.keys() == ["1-opened", "1-resolved"]


def test_a_dead_channel_is_told_to_the_others_and_holds_them_up_in_nothing(fresh_database: Settings, hook: Webhook, mail: Mailbox) -> None:
    hook.statuses = [500] * 1000
    duty = duty_of(fresh_database, f"{hook.url} {mail.url}")
    duty.tick(problem())
    assert [letter["Subject"] for letter in mail.mails] == ["[OPENED] momentum is overdue"]
    for _ in range(14):
        duty.tick(problem(), after=5 * MINUTE)
    told = [alert.problem for alert in duty.store.alerts() if alert.problem.kind is AlertKind.MESSAGE_UNDELIVERED]
    assert len(told) == 1
    assert sum("takes no messages" in letter["Subject"] for letter in mail.mails) == 1


def test_a_sender_killed_between_sending_and_recording_sends_the_same_key_again(duty: Duty, hook: Webhook) -> None:
    """At least once, and recognisable: what an outbox can promise to a receiver outside its database."""

    def kill_the_sender() -> None:
        hook.on_request = lambda: None
        with psycopg.connect(duty.settings.postgres.conninfo, autocommit=True) as connection:
            connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()"
                " and state = 'idle in transaction'"
            )

    hook.on_request = kill_the_sender
    duty.evaluate(problem())
    with pytest.raises(StoreUnavailableError):
        duty.deliver()
    assert [one.state for one in duty.store.deliveries("pending")] == ["pending"]
    duty.tick(problem())
    duty.tick(problem())
    assert hook.keys() == ["1-opened", "1-opened"]
    assert [one.message_key for one in duty.store.deliveries("sent")] == ["1-opened"]


def test_a_sensor_killed_before_it_sends_loses_nothing(duty: Duty, hook: Webhook) -> None:
    duty.evaluate(problem())
    assert hook.taken == []
    duty.tick(problem())
    assert hook.keys() == ["1-opened"]


def test_two_daemons_evaluate_one_after_the_other_and_send_each_message_once(duty: Duty, hook: Webhook) -> None:
    subjects = [problem(f"view{number}/us") for number in range(12)]
    looking: list[int] = []

    def find(_: datetime) -> Found:
        """The first one looks until the second waits for it, or looks too."""
        looking.append(1)
        assert processes.wait_until(lambda: len(looking) == 2 or waits_for_a_lock(), 60)
        return Found(tuple(subjects))

    def waits_for_a_lock() -> bool:
        with psycopg.connect(duty.settings.postgres.conninfo) as connection:
            waiting = "select from pg_stat_activity where datname = current_database() and wait_event = 'advisory'"
            return connection.execute(waiting).fetchone() is not None

    def daemon() -> alerting.Delivered:
        alerting.evaluate(find, duty.store, duty.settings, duty.clock, duty.clock)
        return duty.deliver()

    with ThreadPoolExecutor(2) as pool:
        sent = [future.result().sent for future in (pool.submit(daemon), pool.submit(daemon))]
    duty.tick(*subjects)
    assert len(duty.store.alerts()) == 12
    assert sorted(hook.keys()) == sorted(f"{alert.alert_id}-opened" for alert in duty.store.alerts())
    assert sum(sent) <= 12


def test_an_escalation_and_its_end_reach_more_people(fresh_database: Settings, hook: Webhook, mail: Mailbox) -> None:
    duty = duty_of(fresh_database, hook.url, mail.url)
    duty.tick(problem(), after=ESCALATE_AFTER[AlertKind.VIEW_OVERDUE])
    duty.tick(problem())
    duty.tick()
    assert hook.keys() == ["1-opened", "1-escalated", "1-resolved"]
    assert [letter["Subject"][:11] for letter in mail.mails] == ["[ESCALATED]", "[RESOLVED] "]


def test_a_silence_holds_the_message_back_until_it_ends(duty: Duty, hook: Webhook) -> None:
    duty.store.silence("momentum", NOON, NOON + 5 * MINUTE, "maintenance")
    for _ in range(5):
        duty.tick(problem())
    assert hook.taken == []
    assert duty.store.alerts()[0].state is AlertState.SILENCED
    duty.store.silence("momentum", duty.clock.now(), duty.clock.now() + HOUR, "longer")
    duty.tick(problem())
    assert duty.store.unsilence("momentum", duty.clock.now()) == 1
    duty.tick(problem())
    assert hook.keys() == ["1-opened"]


def test_a_clock_that_was_ahead_for_a_while_delays_no_message(duty: Duty, hook: Webhook) -> None:
    hook.statuses = [500]
    duty.clock.instant = NOON + timedelta(days=30)
    duty.tick(problem())
    duty.clock.instant = NOON
    duty.tick(problem())
    assert hook.keys() == ["1-opened"]


def test_a_channel_that_is_configured_no_more_gets_a_dead_letter_and_no_alert(duty: Duty, fresh_database: Settings) -> None:
    duty.evaluate(problem())
    other = duty_of(fresh_database, "json://127.0.0.1:9/other")
    assert other.deliver().dead == 1
    other.evaluate(problem())
    assert [alert.problem.kind for alert in AlertStore(fresh_database.postgres).alerts()] == [AlertKind.VIEW_OVERDUE]


def test_a_wrong_channel_is_named_without_its_secret(fresh_database: Settings) -> None:
    duty = duty_of(fresh_database, "slack://secret-of-slack")
    with pytest.raises(ConfigurationError, match="slack://") as refused:
        duty.evaluate(problem())
    assert "secret-of-slack" not in str(refused.value)
