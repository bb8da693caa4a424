"""What the reads of this process were like: latency, missing values, tiers, violations, over the last minutes.

Metrics for a scraper do not belong here: this answers a person or a test that asks the client.
"""

import time
from collections import Counter, deque
from dataclasses import dataclass
from statistics import quantiles
from typing import TypeAlias

from featurestore_dagster.errors import PointInTimeViolation, RefusedError
from featurestore_dagster.serving.answer import OnlineFeatures, Status

REMEMBERED_READS = 100_000
LONGEST_WINDOW_MINUTES = 24 * 60


@dataclass(frozen=True)
class RetrievalStatistics:
    """Reads of the last `window_minutes`. Latencies are None without an answered read, rates without a value.

    `statuses` counts values by status, `tiers` views of entities by the store that answered, `errors` refused reads by type.
    """

    window_minutes: float
    reads: int
    latency_p50_milliseconds: float | None
    latency_p95_milliseconds: float | None
    latency_p99_milliseconds: float | None
    null_rate: float | None
    statuses: dict[str, int]
    tiers: dict[str, int]
    violations: int
    errors: dict[str, int]


Read: TypeAlias = tuple[float, float, tuple[int, ...], tuple[tuple[str, int], ...], str | None]
"""When it ended, its seconds, values by status, views of entities by tier, the type of its error.

A plain tuple of plain values: the garbage collector forgets those, and must not look at 100,000 others again and again.
"""


class RetrievalRecorder:
    """Remembers the newest reads; safe to share between threads."""

    def __init__(self) -> None:
        """Nothing is remembered yet."""
        self._reads: deque[Read] = deque(maxlen=REMEMBERED_READS)

    def answered(self, seconds: float, answer: OnlineFeatures) -> None:
        """A read that came back."""
        self._reads.append((time.monotonic(), seconds, answer.status_counts(), tuple(answer.tier_counts().items()), None))

    def refused(self, seconds: float, error: Exception) -> None:
        """A read that raised."""
        self._reads.append((time.monotonic(), seconds, (), (), type(error).__name__))

    def statistics(self, window_minutes: float) -> RetrievalStatistics:
        """Summary of the reads that ended within the window.

        Raises:
            RefusedError: The window is not positive, or longer than a day.
        """
        if not 0 < window_minutes <= LONGEST_WINDOW_MINUTES:
            raise RefusedError(f"window_minutes={window_minutes!r}; allowed: above 0, at most {LONGEST_WINDOW_MINUTES}")
        since = time.monotonic() - window_minutes * 60
        reads = [read for read in list(self._reads) if read[0] >= since]
        statuses, tiers, errors = Counter[str](), Counter[str](), Counter[str]()
        milliseconds = []
        for _, seconds, by_status, by_tier, error in reads:
            if error is not None:
                errors[error] += 1
                continue
            milliseconds.append(seconds * 1000)
            statuses.update({status.value: count for status, count in zip(Status, by_status, strict=True) if count})
            tiers.update(dict(by_tier))
        cuts = quantiles(milliseconds, n=100, method="inclusive") if len(milliseconds) > 1 else milliseconds * 99
        values = sum(statuses.values())
        return RetrievalStatistics(
            window_minutes=window_minutes,
            reads=len(reads),
            latency_p50_milliseconds=cuts[49] if cuts else None,
            latency_p95_milliseconds=cuts[94] if cuts else None,
            latency_p99_milliseconds=cuts[98] if cuts else None,
            null_rate=1 - statuses[Status.PRESENT.value] / values if values else None,
            statuses=dict(statuses),
            tiers=dict(tiers),
            violations=errors[PointInTimeViolation.__name__],
            errors=dict(errors),
        )
