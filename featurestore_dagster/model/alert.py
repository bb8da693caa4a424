"""Alerts: what may go wrong, and what is known of each streak of it. Finding, keeping and sending them belongs elsewhere.

A *streak* is the time from the first evaluation that finds a problem to the first one that does not; it has one alert. Prometheus' rules
and the runbooks use the same kinds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

RUNBOOKS = "docs/how-to/alerts"
"""Folder of the pages that say what an alert means, one page for each kind."""


class AlertKind(StrEnum):
    """What an alert is about; the value names its runbook. The first five are told by the alert sensor, the others by Prometheus only."""

    VIEW_OVERDUE = "view-overdue"
    PARTITION_BLOCKED = "partition-blocked"
    RUN_FAILED = "run-failed"
    RESTATEMENT_UNFINISHED = "restatement-unfinished"
    MESSAGE_UNDELIVERED = "message-undelivered"

    DAEMON_SILENT = "daemon-silent"
    EXPORTER_SILENT = "exporter-silent"
    SERVER_SILENT = "server-silent"
    COLLECTOR_DOWN = "collector-down"
    SENSOR_SILENT = "sensor-silent"
    SYNC_SILENT = "sync-silent"
    BUDGET_SPENT = "budget-spent"
    ROWS_QUARANTINED = "rows-quarantined"
    RESTATEMENT_SLOW = "restatement-slow"
    READS_DEGRADED = "reads-degraded"
    READS_FAILING = "reads-failing"
    READS_SLOW = "reads-slow"
    FUTURE_VALUE = "future-value"
    REDIS_MEMORY = "redis-memory"

    @property
    def runbook(self) -> str:
        """Path of the runbook in the repository."""
        return f"{RUNBOOKS}/{self.value}.md"


ESCALATE_AFTER = {
    AlertKind.VIEW_OVERDUE: timedelta(hours=1),
    AlertKind.PARTITION_BLOCKED: timedelta(hours=4),
    AlertKind.RUN_FAILED: timedelta(hours=4),
    AlertKind.RESTATEMENT_UNFINISHED: timedelta(hours=4),
    AlertKind.MESSAGE_UNDELIVERED: timedelta(hours=4),
}
"""Age at which a streak that nobody ended is told again, to more people; of the kinds that the alert sensor tells."""


class AlertState(StrEnum):
    """Where a streak is.

    OPEN: its message waits to be sent. NOTIFIED: a receiver has it. ESCALATED: told again. SILENCED: nobody was told, on purpose.
    RESOLVED: the streak has ended.
    """

    OPEN = "open"
    NOTIFIED = "notified"
    ESCALATED = "escalated"
    SILENCED = "silenced"
    RESOLVED = "resolved"


class AlertEvent(StrEnum):
    """What a message tells of a streak."""

    OPENED = "opened"
    ESCALATED = "escalated"
    RESOLVED = "resolved"


@dataclass(frozen=True)
class Problem:
    """What one evaluation found wrong.

    `group` is what messages and silences are about (a view, a relation, a job, a channel); `subject` is what has a streak of its own (a
    stream, a partition). `since`: when it began to be wrong, UTC. `facts` are lines of the message by their label, values as JSON knows
    them. `page` is the path of what it is about in the Dagster UI, None when there is none.
    """

    kind: AlertKind
    group: str
    subject: str
    since: datetime
    summary: str
    cause: str
    page: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[AlertKind, str]:
        """What a streak is recognised by."""
        return self.kind, self.subject


@dataclass(frozen=True)
class Alert:
    """One streak as it is kept; instants UTC. `announced_at`: when its first message was put up for sending."""

    alert_id: int
    problem: Problem
    state: AlertState
    opened_at: datetime
    announced_at: datetime | None = None
    notified_at: datetime | None = None
    escalated_at: datetime | None = None
    resolved_at: datetime | None = None


@dataclass(frozen=True)
class Silence:
    """Nobody is told of `name` before `ends_at`: an alert's group or subject, a stream, its relation, or a view with all its streams."""

    silence_id: int
    name: str
    starts_at: datetime
    ends_at: datetime
    reason: str

    def covers(self, problem: Problem) -> bool:
        """Whether the problem is not to be told."""
        named = {_relation(problem.group), _relation(problem.subject)}
        return _relation(self.name) in named or problem.group.startswith(f"features.{self.name}.")


def _relation(name: str) -> str:
    """The relation of a stream that is named `view/stream`; any other name as it is."""
    view, slash, stream = name.partition("/")
    return f"features.{view}.{stream}" if slash else name


@dataclass(frozen=True)
class Message:
    """What is to be told at once: streaks of one kind and group to which the same happened at the same evaluation."""

    event: AlertEvent
    alerts: tuple[Alert, ...]

    @property
    def kind(self) -> AlertKind:
        """The kind of its alerts."""
        return self.alerts[0].problem.kind

    @property
    def key(self) -> str:
        """The same whenever this message is sent, and no other's."""
        return f"{self.alerts[0].alert_id}-{self.event}"
