"""The degradation ladder: one read, asked of one store after the other within one deadline, until every view is answered.

A tier is skipped while its breaker is open. A tier may leave a view unanswered (Redis after a flush, or one put back to an older snapshot);
the next one is asked for that view only. The steps are one generator, driven by the blocking and by the asynchronous client alike. How a
store is read belongs to the tiers, and what a stored row means at an instant to `online.judged`.
"""

import time
from collections.abc import Generator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from featurestore_dagster.errors import (
    ConfigurationError,
    FeatureStoreError,
    InsufficientCoverageError,
    NoTierAnsweredError,
    StoreUnavailableError,
    TransientError,
)
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.model.time import Clock
from featurestore_dagster.serving.answer import OnlineFeatures
from featurestore_dagster.serving.coverage import missing
from featurestore_dagster.serving.online import judged
from featurestore_dagster.serving.plan import ReadPlan
from featurestore_dagster.serving.policy import ReadPolicy
from featurestore_dagster.stores.redis import StoredRow

FAILURES_TO_OPEN = 3
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 5.0
FAIR_SECONDS = 0.004
"""What any store needs for an answer, however small."""
RAW_SECONDS = 0.5
"""What a computation from raw data needs at least."""

Rows = list[list[StoredRow | None]]

ViewRequest = tuple[FeatureView, tuple[str, ...]]
"""A view, and the names of the features wanted of it."""


@dataclass(frozen=True, slots=True)
class TierRead:
    """What a tier found: for each entity a row or None for each view, in the order asked.

    A view is unanswered where `answered` is False: then its rows mean nothing.
    """

    rows: Sequence[Sequence[StoredRow | None]]
    answered: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """What a tier is asked: rows of views for entities, visible at `now`, within `deadline_seconds`."""

    views: Sequence[ViewRequest]
    entities: Sequence[Mapping[str, str]]
    now: datetime
    deadline_seconds: float
    coherent: bool = False


class Tier(Protocol):
    """One store that can answer; every method raises a TransientError when it cannot do so in time."""

    @property
    def name(self) -> str:
        """What the answer calls it."""

    def allowance(self, left_seconds: float) -> float:
        """How much of the time left it may take, so that a later tier has what it needs."""

    def fair_seconds(self, values: int) -> float:
        """What it needs for so many values in health: given less, it is not blamed for its silence."""

    def read(self, question: Question) -> TierRead:
        """Newest rows that were visible; of coherent views only when they are of one bar."""

    async def read_async(self, question: Question) -> TierRead:
        """As `read`."""

    def warm_up(self, timeout_seconds: float) -> bool:
        """Connect, so that the next read need not; whether the store answered in time."""

    async def warm_up_async(self, timeout_seconds: float) -> bool:
        """As `warm_up`."""


class Breaker:
    """Stops asking a store that does not answer: after some failures in a row it is left alone, for longer each time.

    When a pause is over, one caller tries; the others go on without until it has an answer.
    """

    def __init__(self) -> None:
        """Closed: calls are allowed."""
        self._failures = 0
        self._opens_at = 0.0
        self._pause_seconds = FIRST_PAUSE_SECONDS

    @property
    def is_open(self) -> bool:
        """Whether calls are refused now."""
        return self._failures >= FAILURES_TO_OPEN and time.monotonic() < self._opens_at

    def allows(self) -> bool:
        """Whether the store may be asked; after a pause only one caller is told so."""
        if self._failures < FAILURES_TO_OPEN:
            return True
        if time.monotonic() < self._opens_at:
            return False
        self._pause()
        return True

    def succeeded(self) -> None:
        """The store answered."""
        self._failures, self._pause_seconds = 0, FIRST_PAUSE_SECONDS

    def failed(self) -> None:
        """The store did not answer. What fails while the breaker is open was asked before, or is the trial: it is accounted for."""
        self._failures += 1
        if self._failures == FAILURES_TO_OPEN:
            self._pause()

    def _pause(self) -> None:
        self._opens_at = time.monotonic() + self._pause_seconds
        self._pause_seconds = min(2 * self._pause_seconds, LONGEST_PAUSE_SECONDS)


def incoherent(rows: Rows) -> list[tuple[int, list[int]]]:
    """Entity, and positions of views of one stream, whose rows are of different bars."""
    found: list[tuple[int, list[int]]] = []
    for number, row in enumerate(rows):
        by_stream: dict[str | None, list[int]] = {}
        for position, stored in enumerate(row):
            if stored is not None:
                by_stream.setdefault(stored.stream, []).append(position)
        bars = {stream: {stored.event_microseconds for at in positions if (stored := row[at])} for stream, positions in by_stream.items()}
        found.extend((number, positions) for stream, positions in by_stream.items() if len(bars[stream]) > 1)
    return found


def together(views: Sequence[ViewRequest], answered: Sequence[bool]) -> tuple[bool, ...]:
    """`answered` less the views that share a stream, at any remove, with one that is not: bars of two tiers must not be mixed."""
    left = list(answered)
    streams = [{stream.name for stream in view.streams} for view, _ in views]
    unanswered = set[str]().union(*(names for names, is_answered in zip(streams, left, strict=True) if not is_answered))
    while touched := [place for place, names in enumerate(streams) if left[place] and names & unanswered]:
        for place in touched:
            left[place] = False
            unanswered |= streams[place]
    return tuple(left)


def told(question: Question, rows: Rows, unknown: AbstractSet[int] = frozenset()) -> TierRead:
    """The rows, less those of views that the tier knows nothing of, and of views that must be coherent and are not."""
    unfit = set(unknown)
    if question.coherent:
        unfit.update(position for _, positions in incoherent(rows) for position in positions)
    return TierRead(rows, tuple(position not in unfit for position in range(len(question.views))))


@dataclass
class Ladder:
    """Reads through its tiers, best first; safe to share between threads."""

    tiers: Sequence[Tier]
    clock: Clock
    _breakers: dict[str, Breaker] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """One breaker for each tier."""
        self._breakers = {tier.name: Breaker() for tier in self.tiers}

    @property
    def degraded(self) -> tuple[str, ...]:
        """Names of the tiers that are not asked now, because they did not answer."""
        return tuple(name for name, breaker in self._breakers.items() if breaker.is_open)

    def read(
        self, plan: ReadPlan, entities: Sequence[Mapping[str, str]], policy: ReadPolicy, as_of: datetime | None = None
    ) -> OnlineFeatures:
        """The newest values visible at `as_of`, or now; nothing is known before the clock says so, so that a later `as_of` is now.

        Raises:
            NoTierAnsweredError: No store answered in time; with `fail_closed` also when one view was answered by none.
            InsufficientCoverageError: Fewer values than the policy demands are there.
            PointInTimeViolation: A store gave a value from the future.
        """
        steps = self._steps(plan, entities, policy, as_of)
        try:
            step = next(steps)
            while True:
                try:
                    found = step[0].read(step[1])
                except FeatureStoreError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(found)
        except StopIteration as finished:
            answer: OnlineFeatures = finished.value
            return answer

    async def read_async(
        self, plan: ReadPlan, entities: Sequence[Mapping[str, str]], policy: ReadPolicy, as_of: datetime | None = None
    ) -> OnlineFeatures:
        """As `read`, without blocking the event loop."""
        steps = self._steps(plan, entities, policy, as_of)
        try:
            step = next(steps)
            while True:
                try:
                    found = await step[0].read_async(step[1])
                except FeatureStoreError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(found)
        except StopIteration as finished:
            answer: OnlineFeatures = finished.value
            return answer

    def _steps(
        self, plan: ReadPlan, entities: Sequence[Mapping[str, str]], policy: ReadPolicy, as_of: datetime | None
    ) -> Generator[tuple[Tier, Question], TierRead, OnlineFeatures]:
        deadline_seconds = policy.deadline_of(len(entities) * len(plan.references))
        ends = time.monotonic() + deadline_seconds
        now = self.clock.now() if as_of is None else min(as_of, self.clock.now())
        pending = list(range(len(plan.views)))
        rows: Rows = [[None] * len(pending) for _ in entities]
        tiers = ["none"] * len(pending)
        refusals: list[str] = []
        for tier in self.tiers:
            left, breaker = ends - time.monotonic(), self._breakers[tier.name]
            if left <= 0:
                refusals.append(f"{tier.name}: the deadline of {deadline_seconds:g} s was over")
                continue
            if not breaker.allows():
                refusals.append(f"{tier.name}: not asked, it did not answer just before")
                continue
            try:
                seconds = tier.allowance(left)
                asked = plan.views if len(pending) == len(tiers) else [plan.views[index] for index in pending]
                found = yield tier, Question(asked, entities, now, seconds, policy.coherent)
            except StoreUnavailableError as error:
                if seconds >= tier.fair_seconds(len(entities) * sum(len(names) for _, names in asked)):
                    breaker.failed()
                refusals.append(f"{tier.name}: {error}")
                continue
            except (TransientError, ConfigurationError) as error:  # a lower tier may still answer; other errors are the caller's
                refusals.append(f"{tier.name}: {error}")
                continue
            breaker.succeeded()
            answered = together(asked, found.answered) if policy.coherent else found.answered
            if len(pending) == len(tiers) and all(answered):
                return self._checked(judged(plan, entities, found.rows, now, [tier.name] * len(tiers), policy.max_age), policy)
            for position, index in enumerate(pending):
                if answered[position]:
                    tiers[index] = tier.name
                    for row, answer in zip(rows, found.rows, strict=True):
                        row[index] = answer[position]
            refusals.append(
                f"{tier.name}: holds nothing of {', '.join(plan.views[index][0].label for index in pending if tiers[index] == 'none')}"
            )
            pending = [index for index in pending if tiers[index] == "none"]
            if not pending:
                break
        if pending and (policy.fail_closed or len(pending) == len(tiers)):
            raise NoTierAnsweredError([plan.views[index][0].label for index in pending], refusals)
        return self._checked(judged(plan, entities, rows, now, tiers, policy.max_age), policy)

    @staticmethod
    def _checked(answer: OnlineFeatures, policy: ReadPolicy) -> OnlineFeatures:
        if policy.min_coverage:
            rows = answer.rows
            share = sum(row.coverage for row in rows) / len(rows) if rows else 1.0
            if share < policy.min_coverage:
                raise InsufficientCoverageError(share, policy.min_coverage, missing(answer))
        return answer
