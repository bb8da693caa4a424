"""The state machine of alerts: a streak is told once, ended once, escalated once, and never under a silence."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore_dagster.model.alert import ESCALATE_AFTER, Alert, AlertEvent, AlertKind, AlertState, Problem, Silence
from featurestore_dagster.monitoring.streaks import messages, plan

NOON = datetime(2026, 3, 9, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
ESCALATION_MINUTES = ESCALATE_AFTER[AlertKind.VIEW_OVERDUE] // MINUTE


def problem(subject: str = "momentum/us", kind: AlertKind = AlertKind.VIEW_OVERDUE) -> Problem:
    return Problem(kind, subject.partition("/")[0], subject, NOON, "late", "nobody knows")


class Watch:
    """Evaluations minute by minute, kept in memory; `told` lists what was to be sent."""

    def __init__(self) -> None:
        self.minute = 0
        self.alerts: list[Alert] = []
        self.told: list[tuple[int, AlertEvent, tuple[str, ...]]] = []

    def tick(self, *problems: Problem, silences: Sequence[Silence] = (), unknown: Sequence[Problem] = ()) -> None:
        now = NOON + self.minute * MINUTE
        in_force = [silence for silence in silences if silence.starts_at <= now < silence.ends_at]
        unresolved = [alert for alert in self.alerts if alert.state is not AlertState.RESOLVED]
        found = plan(unresolved, problems, in_force, now, {one.key for one in unknown})
        begun = [
            Alert(len(self.alerts) + place, one, state, now, None if state is AlertState.SILENCED else now)
            for place, (one, state) in enumerate(found.begun)
        ]
        for alert in (*(alert for _, alert in found.changed), *found.refreshed):
            self.alerts[alert.alert_id] = alert
        self.alerts += begun
        for message in messages([*((AlertEvent.OPENED, alert) for alert in begun), *found.changed]):
            self.told.append((self.minute, message.event, tuple(alert.problem.subject for alert in message.alerts)))
        self.minute += 1

    def events(self) -> list[tuple[int, str]]:
        return [(minute, event.value) for minute, event, _ in self.told]


def test_a_streak_is_told_at_its_first_and_after_its_last_evaluation_only() -> None:
    watch = Watch()
    for found in ([], [problem()], [problem()], [problem()], [], [], [problem()]):
        watch.tick(*found)
    assert watch.events() == [(1, "opened"), (4, "resolved"), (6, "opened")]
    assert [(alert.state, alert.resolved_at) for alert in watch.alerts] == [
        (AlertState.RESOLVED, NOON + 4 * MINUTE),
        (AlertState.OPEN, None),
    ]


def test_a_streak_escalates_once_when_its_time_is_over() -> None:
    watch = Watch()
    for _ in range(3 * ESCALATION_MINUTES):
        watch.tick(problem())
    watch.tick()
    assert watch.events() == [(0, "opened"), (ESCALATION_MINUTES, "escalated"), (3 * ESCALATION_MINUTES, "resolved")]


def test_a_silenced_streak_is_told_when_the_silence_ends_before_it() -> None:
    watch = Watch()
    silence = Silence(1, "momentum", NOON, NOON + 90 * MINUTE, "works on the roof")
    for _ in range(90 + ESCALATION_MINUTES + 1):
        watch.tick(problem(), silences=[silence])
    assert watch.events() == [(90, "opened"), (90 + ESCALATION_MINUTES, "escalated")]


def test_a_streak_that_begins_and_ends_under_a_silence_is_never_told() -> None:
    watch = Watch()
    silence = Silence(1, "momentum", NOON, NOON + 90 * MINUTE, "works on the roof")
    for found in ([problem()], [problem()], []):
        watch.tick(*found, silences=[silence])
    assert watch.told == []
    assert [alert.state for alert in watch.alerts] == [AlertState.RESOLVED]


def test_a_silence_stops_escalation_but_not_the_end_of_what_was_told() -> None:
    watch = Watch()
    silence = Silence(1, "momentum", NOON + MINUTE, NOON + timedelta(days=1), "somebody looks at it")
    for _ in range(2 * ESCALATION_MINUTES):
        watch.tick(problem(), silences=[silence])
    watch.tick(silences=[silence])
    assert watch.events() == [(0, "opened"), (2 * ESCALATION_MINUTES, "resolved")]


@pytest.mark.parametrize(
    ("name", "group", "subject", "covered"),
    [
        ("momentum", "momentum", "momentum/us", True),
        ("momentum", "features.momentum.us", "features.momentum.us 2026-03-09", True),
        ("momentum", "features.momentum_2.us", "features.momentum_2.us 2026-03-09", False),
        ("momentum/us", "momentum", "momentum/us", True),
        ("momentum/us", "features.momentum.us", "features.momentum.us 2026-03-09", True),
        ("momentum/us", "momentum", "momentum/fx", False),
        ("features.momentum.us", "momentum", "momentum/us", True),
        ("features.momentum.us", "momentum", "momentum/us_2", False),
        ("features.momentum.us 2026-03-09", "features.momentum.us", "features.momentum.us 2026-03-09", True),
        ("raw.us_bars", "raw.us_bars", "raw.us_bars 2026-03-09", True),
        ("raw.us", "raw.us_bars", "raw.us_bars 2026-03-09", False),
    ],
)
def test_a_silence_covers_a_view_with_all_that_it_publishes_or_a_stream(name: str, group: str, subject: str, *, covered: bool) -> None:
    assert Silence(1, name, NOON, NOON, "").covers(replace(problem(subject), group=group)) is covered


def test_what_cannot_be_evaluated_begins_and_ends_nothing() -> None:
    watch = Watch()
    watch.tick(problem())
    watch.tick(unknown=[problem()])
    watch.tick(problem())
    watch.tick()
    assert watch.events() == [(0, "opened"), (3, "resolved")]


def test_what_happens_at_once_to_one_view_is_one_message() -> None:
    watch = Watch()
    watch.tick(problem("momentum/us"), problem("macro/us"), problem("momentum/fx"), problem("momentum/us ", AlertKind.PARTITION_BLOCKED))
    assert sorted(subjects for _, _, subjects in watch.told) == [("macro/us",), ("momentum/us", "momentum/fx"), ("momentum/us ",)]


def test_the_beginning_of_a_streak_and_its_newest_cause_are_kept() -> None:
    watch = Watch()
    watch.tick(problem())
    watch.tick(replace(problem(), since=NOON + MINUTE, cause="the source"))
    assert (watch.alerts[0].problem.since, watch.alerts[0].problem.cause) == (NOON, "the source")


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), max_size=200))
def test_whatever_happens_openings_and_ends_alternate(history: list[tuple[bool, bool, bool]]) -> None:
    """Each minute: is the problem there, is it silenced, can it be evaluated."""
    watch = Watch()
    for is_wrong, is_silenced, is_known in history:
        now = NOON + watch.minute * MINUTE
        silences = [Silence(1, "momentum", now, now + MINUTE, "")] if is_silenced else []
        watch.tick(*([problem()] if is_wrong and is_known else []), silences=silences, unknown=[] if is_known else [problem()])
    told = [event for _, event, _ in watch.told if event is not AlertEvent.ESCALATED]
    assert told == [AlertEvent.OPENED, AlertEvent.RESOLVED] * (len(told) // 2) + [AlertEvent.OPENED] * (len(told) % 2)
    assert sum(alert.state is not AlertState.RESOLVED for alert in watch.alerts) <= 1
