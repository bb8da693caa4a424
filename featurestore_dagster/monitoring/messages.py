"""The text of a message about streaks. Pure; sending it belongs to `monitoring.notifications`."""

import socket
from dataclasses import dataclass
from datetime import datetime

from featurestore_dagster.model.alert import RUNBOOKS, Alert, AlertEvent, AlertKind, Message
from featurestore_dagster.model.time import duration, instant
from featurestore_dagster.settings import ANY_ADDRESS, Settings

MOST_LISTED = 10
"""Streaks that one message tells in full."""

TITLES = {
    AlertKind.VIEW_OVERDUE: "{group} is overdue",
    AlertKind.PARTITION_BLOCKED: "{group} has blocked partitions",
    AlertKind.RUN_FAILED: "{group} fails",
    AlertKind.RESTATEMENT_UNFINISHED: "{group} has restatements that failed or wait",
    AlertKind.MESSAGE_UNDELIVERED: "{group} takes no messages",
}


@dataclass(frozen=True)
class Links:
    """Where the UI and the runbooks are; `clock` is what to say of a replay clock, None for the real one."""

    dagster: str
    runbooks: str
    clock: str | None

    @classmethod
    def of(cls, settings: Settings) -> "Links":
        """From the settings; the UI at its own address when none is given, or by the machine's name when it listens on all."""
        host = socket.gethostname() if settings.webserver_host in ANY_ADDRESS else settings.webserver_host
        dagster = settings.dagster_url or f"http://{host}:{settings.webserver_port}"
        return cls(dagster.rstrip("/"), settings.runbook_url.rstrip("/"), settings.make_clock().replayed)

    def runbook(self, kind: AlertKind) -> str:
        """Where the page of a kind is: below the configured URL, else its path in the repository."""
        return f"{self.runbooks}/{kind.runbook.removeprefix(f'{RUNBOOKS}/')}" if self.runbooks else kind.runbook


def title(message: Message) -> str:
    """One line: what happened, to what, and to how many."""
    count = len(message.alerts)
    said = TITLES[message.kind].format(group=message.alerts[0].problem.group)
    return f"[{message.event.upper()}] {said}{f' ({count})' if count > 1 else ''}"


def body(message: Message, links: Links, now: datetime) -> str:
    """Everything that is known of each streak, the links, and the key by which a repetition is recognised."""
    parts = [
        _resolved(alert, now) if message.event is AlertEvent.RESOLVED else _told(alert, links) for alert in message.alerts[:MOST_LISTED]
    ]
    if (more := len(message.alerts) - MOST_LISTED) > 0:
        parts.append(f"and {more} more: `featurestore alerts` lists them")
    end = [f"runbook: {links.runbook(message.kind)}", f"message key: {message.key}"]
    return "\n\n".join([*parts, "\n".join([*end, *([f"clock: {links.clock}"] if links.clock else [])])])


def _told(alert: Alert, links: Links) -> str:
    problem = alert.problem
    lines = [problem.summary, f"likely cause: {problem.cause}"]
    if alert.escalated_at is not None:
        lines.append(f"nobody ended it in {duration(alert.escalated_at - (alert.announced_at or alert.opened_at))}: escalated")
    for name, value in problem.facts.items():
        if isinstance(value, list):
            lines += [f"{name}:", *(f"- {item}" for item in value)] if value else []
        else:
            lines.append(f"{name}: {value}")
    if problem.page:
        lines.append(f"Dagster: {links.dagster}{problem.page}")
    return "\n".join(lines)


def _resolved(alert: Alert, now: datetime) -> str:
    problem = alert.problem
    lasted = (
        f"after {duration(now - problem.since)}"
        if now >= problem.since
        else f"before it began at {instant(problem.since)}: the clock was set back"
    )
    return f"{problem.subject} is well again at {instant(now)}, {lasted}; it was: {problem.summary}"
