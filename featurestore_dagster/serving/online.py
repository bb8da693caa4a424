"""What stored rows are worth at an instant: visibility, age, status. Pure; reading rows belongs to the stores, their order to `ladder`.

The rule is the same as offline: a row is visible when neither its event time nor its known-at lies after `now`; a value is NULL with
status OUTSIDE_MAX_AGE when its age, counted in open-market time, reaches the TTL of the row's stream.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import lru_cache

from featurestore_dagster.calendars import calendar
from featurestore_dagster.errors import PointInTimeViolation
from featurestore_dagster.serving.answer import EPOCH, OnlineFeatures, OnlineRow, Status, ViewState
from featurestore_dagster.serving.plan import ReadPlan
from featurestore_dagster.stores.redis import ABSENT, StoredRow

MICROSECOND = timedelta(microseconds=1)

Head = tuple[int, int | None, int, str | None]
"""The part of a stored row that its state depends on: event time, known-at, flags, stream. Many entities share one."""


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
    moment = (now - EPOCH) // MICROSECOND
    limit = None if max_age is None else max_age // MICROSECOND
    opened: dict[str, int] = {}
    views: list[tuple[ViewState, Mapping[str | None, tuple[str, int]], dict[Head, tuple[ViewState, bool]], int]] = [
        (_nothing(tier), ageing, {}, len(names)) for (_, names), ageing, tier in zip(plan.views, plan.ageing, tiers, strict=True)
    ]
    all_present, order = (Status.PRESENT,) * len(plan.references), plan.order
    answered = []
    for entity, stored in zip(entities, rows, strict=True):
        numbers: list[float | int | None] = []
        states: list[ViewState] = []
        exceptions: list[tuple[int, list[Status]]] = []
        for (nothing, ageing, known, width), row in zip(views, stored, strict=True):
            state, gives = nothing, False
            if row is not None:
                head = row[:4]
                found = known.get(head)
                if found is None:
                    found = known[head] = _state(head, nothing, ageing, moment, limit, opened)
                state, gives = found
            states.append(state)
            if row is not None and gives and row[5]:
                numbers += row[4]  # type: ignore[arg-type] # a whole row has no ABSENT
            elif row is None or state is nothing:
                exceptions.append((len(numbers), [Status.NOT_FOUND] * width))
                numbers += [None] * width
            else:
                there, null = (Status.PRESENT, Status.NULL_VALUE) if gives else (Status.OUTSIDE_MAX_AGE, Status.OUTSIDE_MAX_AGE)
                statuses = [Status.NOT_FOUND if value is ABSENT else null if value is None else there for value in row[4]]
                exceptions.append((len(numbers), statuses))
                numbers += [value if status is Status.PRESENT else None for value, status in zip(row[4], statuses, strict=True)]  # type: ignore[misc]
        answered.append(OnlineRow(plan, entity, numbers, _merged(all_present, exceptions), states))
    if order is not None:
        for given in answered:
            given.numbers = [given.numbers[position] for position in order]
            given.statuses = [given.statuses[position] for position in order]
    refuse_future((state for _, _, known, _ in views for state, _ in known.values()), now)
    return OnlineFeatures(now, plan, tuple(answered))


def refuse_future(states: Iterable[ViewState], as_of: datetime) -> None:
    """Check, after all is decided, that nothing of an answer was unknown at its instant.

    Raises:
        PointInTimeViolation: An event time or known-at lies after `as_of`.
    """
    moment = (as_of - EPOCH) // MICROSECOND
    for state in states:
        for name, microseconds in (("event time", state.event_microseconds), ("known-at", state.known_microseconds)):
            if microseconds is not None and microseconds > moment:
                raise PointInTimeViolation(
                    f"{state.tier} gave a row whose {name} is {(microseconds - moment) / 1e6:g} s after {as_of.isoformat()}; nothing of "
                    "the answer is returned"
                )


@lru_cache(maxsize=16)
def _nothing(tier: str) -> ViewState:
    """The state of what a tier does not hold."""
    return ViewState(tier)


def _state(
    head: Head, nothing: ViewState, ageing: Mapping[str | None, tuple[str, int]], moment: int, limit: int | None, opened: dict[str, int]
) -> tuple[ViewState, bool]:
    """The state of rows with this head, and whether they give their values; `opened` is the open time until the moment, by calendar."""
    event, known_at, flags, stream = head
    if event > moment or (known_at is not None and known_at > moment):
        return nothing, False
    name, time_to_live = ageing.get(stream) or ageing[None]
    if name not in opened:
        opened[name] = calendar(name).open_microseconds_at(moment)
    age = opened[name] - _open_microseconds(name, event)
    bound = time_to_live if limit is None else min(time_to_live, limit)
    return ViewState(nothing.tier, event, known_at, age, flags), age < bound


def _merged(all_present: tuple[Status, ...], exceptions: Sequence[tuple[int, list[Status]]]) -> Sequence[Status]:
    """PRESENT, but for the runs that begin at given positions; with a feature asked for twice the runs are shorter than the whole."""
    if not exceptions:
        return all_present
    statuses = list(all_present)
    for start, found in exceptions:
        statuses[start : start + len(found)] = found
    return statuses


@lru_cache(maxsize=65_536)
def _open_microseconds(name: str, microseconds: int) -> int:
    return calendar(name).open_microseconds_at(microseconds)
