"""What stored rows are worth at an instant: visibility, age, status. Pure; reading rows belongs to the stores, their order to `ladder`.

The rule is the same as offline: a row is visible when neither its event time nor its known-at lies after `now`; a value is NULL with
status OUTSIDE_MAX_AGE when its age, counted in open-market time, reaches the TTL of the row's stream.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import repeat
from operator import ge, itemgetter
from typing import NamedTuple

from featurestore_dagster.calendars import calendar
from featurestore_dagster.errors import PointInTimeViolation
from featurestore_dagster.serving.answer import EPOCH, OnlineFeatures, OnlineRow, Status, ViewState
from featurestore_dagster.serving.plan import ReadPlan
from featurestore_dagster.stores.redis import ABSENT, Heads, StoredRow, WholeRow

MICROSECOND = timedelta(microseconds=1)

Head = tuple[int, int | None, int, str | None]
"""The part of a stored row that its state depends on: event time, known-at, flags, stream. Many entities share one."""

Judged = tuple[Sequence[float | int | None], Sequence[Status], Sequence[ViewState]]
"""Values and statuses in the order asked, and a state for each view."""

PRESENT, NULL_VALUE = Status.PRESENT, Status.NULL_VALUE


def judged(
    plan: ReadPlan,
    entities: Sequence[Mapping[str, str]],
    rows: Sequence[Sequence[StoredRow | None]],
    now: datetime,
    tiers: Sequence[str],
    max_age: timedelta | None = None,
) -> OnlineFeatures:
    """The answer that stored rows give at `now`.

    Args:
        plan: What was asked.
        entities: The entity rows asked for, with the plan's join keys.
        rows: For each entity, for each of the plan's views, the newest stored row, with the values of the names that the plan wants.
        now: The instant that visibility and age are judged at.
        tiers: For each of the plan's views, who answered.
        max_age: Bound of the open-market age beside the TTL.

    Raises:
        PointInTimeViolation: A value of the answer would be from after `now`.
        UnknownPartitionError: A row, or `now`, lies outside the range of a calendar.
    """
    judge = _Judge(plan, tiers, (now - EPOCH) // MICROSECOND, None if max_age is None else max_age // MICROSECOND)
    answered = [OnlineRow(plan, entity, *judge.judged(stored)) for entity, stored in zip(entities, rows, strict=True)]
    refuse_future(judge.states_to_check(), now)
    return OnlineFeatures(now, plan, tuple(answered))


def refuse_future(states: Iterable[ViewState], as_of: datetime) -> None:
    """Check, after all is decided, that nothing of an answer was unknown at its instant.

    Raises:
        PointInTimeViolation: An event time or known-at lies after `as_of`.
    """
    moment = (as_of - EPOCH) // MICROSECOND
    for tier, event, known_at, _, _ in states:
        if (event is None or event <= moment) and (known_at is None or known_at <= moment):
            continue
        name, microseconds = ("event time", event) if event is not None and event > moment else ("known-at", known_at or 0)
        raise PointInTimeViolation(
            f"{tier} gave a row whose {name} is {(microseconds - moment) / 1e6:g} s after {as_of.isoformat()}; nothing of the answer is "
            "returned"
        )


@lru_cache(maxsize=16)
def _nothing(tier: str) -> ViewState:
    """The state of what a tier does not hold."""
    return ViewState(tier)


class _Judge:
    """What one answer shares between its entities, most of which are of the same bars."""

    def __init__(self, plan: ReadPlan, tiers: Sequence[str], moment: int, limit: int | None) -> None:
        self._plan = plan
        self._tiers = tiers
        self._moment = moment
        self._limit = limit
        self._arranged = None if plan.order is None else itemgetter(*plan.order)
        self._all_present = (PRESENT,) * len(plan.references)
        self._open_now: dict[str, int] = {}
        self._of_heads: dict[Heads, tuple[ViewState, ...] | None] = {}
        self._of_head: dict[tuple[int, Head], tuple[ViewState, bool]] = {}

    def states_to_check(self) -> list[ViewState]:
        """The states that rows of the answer have, but for those whose heads are known to be of the past."""
        late = [state for heads, states in self._of_heads.items() if heads.newest_microseconds > self._moment for state in states or ()]
        return late + [state for state, _ in self._of_head.values()]

    def judged(self, stored: Sequence[StoredRow | None]) -> Judged:
        """What is worth of one entity's rows."""
        if type(stored) is not WholeRow:
            return self._view_by_view(stored)
        heads = stored.heads
        if heads in self._of_heads:
            states = self._of_heads[heads]
        else:
            states = self._of_heads[heads] = self._states(heads)
        if states is None:
            return self._view_by_view(stored)
        numbers = stored.values if self._arranged is None else self._arranged(stored.values)
        if heads.with_nulls:
            return numbers, [NULL_VALUE if number is None else PRESENT for number in numbers], states
        return numbers, self._all_present, states

    def _states(self, heads: Heads) -> tuple[ViewState, ...] | None:
        """The states of rows with these heads, None unless every view gives its values."""
        if heads.newest_microseconds > self._moment:
            return None
        lives = _lives(self._plan, heads)
        open_now = {name: self._open_until_now(name) for name in set(lives.calendars)}
        ages = [open_now[name] - until_event for name, until_event in zip(lives.calendars, lives.open_until_event, strict=True)]
        if any(map(ge, ages, lives.times_to_live)) or (self._limit is not None and max(ages) >= self._limit):
            return None
        return tuple(map(tuple.__new__, repeat(ViewState), zip(self._tiers, lives.events, lives.known_at, ages, lives.flags, strict=True)))

    def _view_by_view(self, stored: Sequence[StoredRow | None]) -> Judged:
        numbers: list[float | int | None] = []
        statuses: list[Status] = []
        states: list[ViewState] = []
        for position, (row, (_, names), tier) in enumerate(zip(stored, self._plan.views, self._tiers, strict=True)):
            state, gives = _nothing(tier), False
            if row is not None:
                key = position, row[:4]
                found = self._of_head.get(key)
                if found is None:
                    found = self._of_head[key] = self._state(*key, tier)
                state, gives = found
            states.append(state)
            if row is None or state.event_microseconds is None:
                statuses += [Status.NOT_FOUND] * len(names)
                numbers += [None] * len(names)
            elif gives and row.is_whole:
                statuses += [PRESENT] * len(names)
                numbers += row.values  # type: ignore[arg-type] # a whole row has no ABSENT
            else:
                there, null = (PRESENT, NULL_VALUE) if gives else (Status.OUTSIDE_MAX_AGE, Status.OUTSIDE_MAX_AGE)
                own = [Status.NOT_FOUND if value is ABSENT else null if value is None else there for value in row.values]
                statuses += own
                numbers += [value if status is PRESENT else None for value, status in zip(row.values, own, strict=True)]  # type: ignore[misc]
        if self._arranged is None:
            return numbers, statuses, states
        return self._arranged(numbers), self._arranged(statuses), states

    def _state(self, view: int, head: Head, tier: str) -> tuple[ViewState, bool]:
        """The state of a view's rows with this head, and whether they give their values."""
        event, known_at, flags, stream = head
        if event > self._moment or (known_at is not None and known_at > self._moment):
            return _nothing(tier), False
        ageing = self._plan.ageing[view]
        name, time_to_live = ageing.get(stream) or ageing[None]
        age = self._open_until_now(name) - _open_until(name, event)
        return ViewState(tier, event, known_at, age, flags), age < time_to_live and (self._limit is None or age < self._limit)

    def _open_until_now(self, name: str) -> int:
        if name not in self._open_now:
            self._open_now[name] = calendar(name).open_microseconds_at(self._moment)
        return self._open_now[name]


class _Lives(NamedTuple):
    """What does not change while rows age: a column for each part of their states, and of what these are found by."""

    events: tuple[int, ...]
    known_at: tuple[int, ...]
    flags: tuple[int, ...]
    calendars: tuple[str, ...]
    open_until_event: tuple[int, ...]
    times_to_live: tuple[int, ...]


@lru_cache(maxsize=4096)
def _lives(plan: ReadPlan, heads: Heads) -> _Lives:
    events, known_at, flags, streams = zip(*heads.of, strict=True)
    calendars, times_to_live = zip(
        *(ageing.get(name) or ageing[None] for ageing, name in zip(plan.ageing, streams, strict=True)), strict=True
    )
    return _Lives(events, known_at, flags, calendars, tuple(map(_open_until, calendars, events)), times_to_live)


@lru_cache(maxsize=65_536)
def _open_until(name: str, microseconds: int) -> int:
    """Open-market microseconds of a calendar until an event, which many rows share."""
    return calendar(name).open_microseconds_at(microseconds)
