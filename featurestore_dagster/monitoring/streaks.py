"""The state machine of alerts: which streaks begin, end, or are told again. Pure; keeping and sending belong elsewhere.

    (nothing) -> OPEN       a problem appears, and a message is due
    (nothing) -> SILENCED   a problem appears under a silence
    SILENCED  -> OPEN       the silence has ended, the problem has not
    OPEN      -> NOTIFIED   a message was delivered (the outbox does this)
    OPEN, NOTIFIED -> ESCALATED   its kind's time is over; never under a silence
    any       -> RESOLVED   the problem is gone; told only when its beginning was

A problem whose presence could not be determined neither begins nor ends anything.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import groupby

from featurestore_dagster.model.alert import ESCALATE_AFTER, Alert, AlertEvent, AlertKind, AlertState, Message, Problem, Silence


@dataclass(frozen=True)
class Plan:
    """What one evaluation changes: problems that begin a streak with their first state, and alerts as they become."""

    begun: tuple[tuple[Problem, AlertState], ...]
    changed: tuple[tuple[AlertEvent, Alert], ...]
    refreshed: tuple[Alert, ...]


def plan(
    unresolved: Sequence[Alert],
    problems: Sequence[Problem],
    silences: Collection[Silence],
    now: datetime,
    undetermined: Collection[tuple[AlertKind, str]] = (),
) -> Plan:
    """Compare the streaks that are kept with what is wrong now.

    Args:
        unresolved: Every streak that has not ended.
        problems: What is wrong now, each key once.
        silences: Those in force at `now`.
        now: The instant of the evaluation, UTC.
        undetermined: Keys of what could not be evaluated: their streaks stay as they are.
    """
    found = {problem.key: problem for problem in problems}
    kept = {alert.problem.key for alert in unresolved}

    def is_silenced(problem: Problem) -> bool:
        return any(silence.covers(problem) for silence in silences)

    begun = tuple(
        (problem, AlertState.SILENCED if is_silenced(problem) else AlertState.OPEN) for key, problem in found.items() if key not in kept
    )
    changed: list[tuple[AlertEvent, Alert]] = []
    refreshed: list[Alert] = []
    for alert in unresolved:
        problem = found.get(alert.problem.key)
        if problem is None:
            if alert.problem.key not in undetermined:
                changed.append((AlertEvent.RESOLVED, replace(alert, state=AlertState.RESOLVED, resolved_at=now)))
            continue
        current = replace(alert, problem=replace(problem, since=alert.problem.since))
        if is_silenced(problem):
            refreshed.append(current)
        elif alert.state is AlertState.SILENCED:
            changed.append((AlertEvent.OPENED, replace(current, state=AlertState.OPEN, announced_at=now)))
        elif (
            alert.state is not AlertState.ESCALATED
            and alert.announced_at is not None
            and now - alert.announced_at >= ESCALATE_AFTER[problem.kind]
        ):
            changed.append((AlertEvent.ESCALATED, replace(current, state=AlertState.ESCALATED, escalated_at=now)))
        else:
            refreshed.append(current)
    return Plan(begun, tuple(changed), tuple(refreshed))


def messages(events: Iterable[tuple[AlertEvent, Alert]]) -> list[Message]:
    """What must be told of these events: one message for each event, kind and group. Untold streaks end untold."""

    def told(item: tuple[AlertEvent, Alert]) -> tuple[AlertEvent, AlertKind, str]:
        event, alert = item
        return event, alert.problem.kind, alert.problem.group

    due = sorted((item for item in events if item[1].announced_at is not None), key=told)
    return [Message(event, tuple(alert for _, alert in group)) for (event, _, _), group in groupby(due, key=told)]
