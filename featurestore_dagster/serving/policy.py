"""What a caller demands of an online answer. How it is obtained belongs to `ladder`."""

from dataclasses import dataclass
from datetime import timedelta

from featurestore_dagster.errors import RefusedError

DEADLINE_SECONDS = 0.025
DEADLINE_SECONDS_PER_VALUE = 1e-5
"""Beyond 2,500 values: what Postgres needs for them, and as much again for Redis before it."""

LONGEST_DEADLINE_SECONDS = 60.0
AS_OF_DEADLINE_SECONDS = 5.0
"""A read of the past has one store to ask, and no trading decision waits for it."""


@dataclass(frozen=True, slots=True)
class ReadPolicy:
    """Demands of one read; the defaults answer whatever can be answered, quickly.

    Attributes:
        deadline_seconds: The answer, or the refusal, comes within this time, whichever store hangs. None: 25 ms, for more than 2,500 values
            10 microseconds each, and 5 s for an instant of the past.
        max_age: Values whose open-market age reaches it are withheld as OUTSIDE_MAX_AGE, also within their TTL.
        min_coverage: Share of the values, 0 to 1, that must be PRESENT; less is refused with `InsufficientCoverageError`.
        fail_closed: Refuse also when a view could be asked of no store; else its values come back as NOT_FOUND.
        coherent: Views of one stream must be of the same bar; else the next store is asked, which knows all bars.

    Raises:
        RefusedError: A demand is out of its bounds.
    """

    deadline_seconds: float | None = None
    max_age: timedelta | None = None
    min_coverage: float = 0.0
    fail_closed: bool = False
    coherent: bool = False

    def __post_init__(self) -> None:
        """Refuse demands that nothing can meet."""
        for name, value in (("deadline_seconds", self.deadline_seconds or 1), ("min_coverage", self.min_coverage)):
            if not isinstance(value, int | float):
                raise RefusedError(f"{name}={value!r}; allowed: a number")
        if self.deadline_seconds is not None and not 0 < self.deadline_seconds <= LONGEST_DEADLINE_SECONDS:
            raise RefusedError(f"deadline_seconds={self.deadline_seconds!r}; allowed: above 0, at most {LONGEST_DEADLINE_SECONDS:g}")
        if not 0 <= self.min_coverage <= 1:
            raise RefusedError(f"min_coverage={self.min_coverage!r}; allowed: 0 to 1")
        if self.max_age is not None and not (isinstance(self.max_age, timedelta) and self.max_age > timedelta(0)):
            raise RefusedError(f"max_age={self.max_age!r}; allowed: a positive timedelta, or None for the views' TTLs")

    def deadline_of(self, values: int) -> float:
        """Seconds for an answer of so many values."""
        return self.deadline_seconds or max(DEADLINE_SECONDS, values * DEADLINE_SECONDS_PER_VALUE)


DEFAULT_POLICY = ReadPolicy()
