"""One evaluation of the alerts, and the emptying of their outbox. Called by Dagster's sensor; knows no Dagster.

A message is put into the outbox in the transaction that begins, ends or escalates its streaks, and sent afterwards: a process that dies at
any point loses none. See docs/adr/0014-alerts-by-outbox.md for what that promises and what it cannot.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from featurestore_dagster.model.alert import Alert, AlertEvent, AlertState
from featurestore_dagster.model.time import Clock
from featurestore_dagster.monitoring import messages, streaks
from featurestore_dagster.monitoring.notifications import channels, send
from featurestore_dagster.monitoring.problems import Found, undelivered
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.postgres.alerts import AlertStore, Claim, Told

GIVE_UP_AFTER = timedelta(hours=1)
"""A message that no attempt of this time could deliver becomes a dead letter."""

FIRST_WAIT, LONGEST_WAIT = timedelta(minutes=1), timedelta(minutes=15)
"""After the first failed attempt, doubled after each further one, and at most."""

TICK_SECONDS = 20.0
"""Time for sending at one tick; the rest is sent at the next."""


@dataclass(frozen=True)
class Delivered:
    """What one emptying of the outbox did, in messages."""

    sent: int = 0
    failed: int = 0
    dead: int = 0


def evaluate(find: Callable[[datetime], Found], store: AlertStore, settings: Settings, clock: Clock, deliveries: Clock) -> list[Alert]:
    """Begin, end and escalate streaks by what is wrong now, and put up their messages; returns the streaks that go on.

    Args:
        find: What is wrong at an instant. Asked after every earlier evaluation has ended: what a slower daemon found before it would begin
            again what has been resolved since.
        store: Keeps streaks and outbox.
        settings: Channels and links.
        clock: The platform's, which may be a replay's.
        deliveries: Clock of the messages, which wait in real time.

    Raises:
        StoreUnavailableError: Postgres does not answer; nothing was changed.
        ConfigurationError: A channel's URL is wrong; nothing was changed.
    """
    everybody, usual = ([channel.name for channel in channels(settings, escalated=escalated)] for escalated in (True, False))
    links = messages.Links.of(settings)
    with store.evaluation() as evaluation:
        now = clock.now()
        found = find(now)
        problems = [*found.problems, *undelivered([letter for letter in evaluation.dead_letters() if letter.channel in everybody])]
        plan = streaks.plan(evaluation.unresolved(), problems, evaluation.silences(now), now, found.undetermined)
        begun = [evaluation.begin(problem, state, now) for problem, state in plan.begun]
        for alert in (*(alert for _, alert in plan.changed), *plan.refreshed):
            evaluation.update(alert)
        for message in streaks.messages([*((AlertEvent.OPENED, alert) for alert in begun), *plan.changed]):
            receivers = everybody if any(alert.escalated_at is not None for alert in message.alerts) else usual
            told = Told(message, messages.title(message), messages.body(message, links, now))
            evaluation.enqueue(told, channels=receivers, at=deliveries.now(), give_up_after=GIVE_UP_AFTER)
    changed = (alert for _, alert in plan.changed if alert.state is not AlertState.RESOLVED)
    return [*begun, *changed, *plan.refreshed]


def deliver(store: AlertStore, settings: Settings, clock: Clock, deliveries: Clock) -> Delivered:
    """Send what is due, oldest first; a channel that fails waits for its next time, the others do not wait for it.

    Each message is sent inside the transaction that locks its row and records the outcome. What dies in between sends it again, with the
    same key; two senders never have the same one.

    Args:
        store: The outbox.
        settings: Channels.
        clock: The platform's.
        deliveries: Clock of the messages.
    """
    known = {channel.name: channel for channel in channels(settings)}
    done, failing, ends = Delivered(), list[str](), time.monotonic() + TICK_SECONDS
    while time.monotonic() < ends:
        now = deliveries.now()
        with store.claimed(now, LONGEST_WAIT, failing) as claim:
            if claim is None:
                break
            delivery = claim.delivery
            channel = known.get(delivery.channel)
            if channel is None:
                claim.failed("the channel is configured no more", None)
                done = replace(done, dead=done.dead + 1)
                continue
            error = send(channel, AlertEvent(delivery.event), delivery.title, delivery.body, delivery.message_key)
            if error is None:
                claim.sent(deliveries.now(), clock.now())
                done = replace(done, sent=done.sent + 1)
            else:
                failing.append(delivery.channel)
                gave_up = _put_off(claim, error, now)
                done = replace(done, dead=done.dead + gave_up, failed=done.failed + (not gave_up))
    return done


def _put_off(claim: Claim, error: str, now: datetime) -> bool:
    """Wait longer after each failure, or give up; returns whether it did."""
    gives_up = now >= claim.delivery.give_up_at
    wait = min(FIRST_WAIT * 2 ** min(claim.delivery.attempts, 10), LONGEST_WAIT)
    # The last attempt comes when the time is over, not up to a wait later.
    claim.failed(error, None if gives_up else max(min(now + wait, claim.delivery.give_up_at), now))
    return gives_up
