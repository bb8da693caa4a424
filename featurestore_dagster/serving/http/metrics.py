"""Every metric of the HTTP server, named once. Counts are those of all worker processes together.

The supervisor names the folder that the workers share in `PROMETHEUS_MULTIPROC_DIR`; without it a process counts for itself.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from featurestore_dagster.errors import PointInTimeViolation
from featurestore_dagster.serving.answer import OnlineFeatures, Status

DURATION_BUCKETS_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0)

REQUESTS = Counter("feature_store_requests_total", "HTTP requests answered, by route and status code.", ["route", "status"])
DURATIONS = Histogram(
    "feature_store_request_duration_seconds", "Time from a request's head to its whole answer.", ["route"], buckets=DURATION_BUCKETS_SECONDS
)
IN_PROGRESS = Gauge("feature_store_requests_in_progress", "Requests that are being answered.", multiprocess_mode="livesum")
VALUES = Counter("feature_store_values_total", "Feature values answered online, by status.", ["status"])
VIEWS = Counter("feature_store_answered_views_total", "Views of entities answered online, by the store that answered.", ["tier"])
VIOLATIONS = Counter("feature_store_point_in_time_violations_total", "Answers refused because they held a value from the future.")

_statuses = {status: VALUES.labels(status.value) for status in Status}


class _Series(NamedTuple):
    add_one: Callable[[], None]
    observe: Callable[[float], None]


@cache
def _series(route: str, status: int) -> _Series:
    """Looking labels up costs more than counting."""
    return _Series(REQUESTS.labels(route, str(status)).inc, DURATIONS.labels(route).observe)


_tier = cache(VIEWS.labels)


def answered(route: str, status: int, seconds: float) -> None:
    """A request of a declared route (or `unknown`) was answered."""
    series = _series(route, status)
    series.add_one()
    series.observe(seconds)


def read(answer: OnlineFeatures) -> None:
    """Values were read for a request."""
    tiers: dict[str, int] = {}
    present = total = 0
    counted: object = None
    for row in answer.rows:
        if row.statuses is not counted:  # rows that miss nothing share one
            counted, present = row.statuses, row.statuses.count(Status.PRESENT)
        total += present
        if present != len(row.statuses):
            for status in (Status.NULL_VALUE, Status.NOT_FOUND, Status.OUTSIDE_MAX_AGE):
                if count := row.statuses.count(status):
                    _statuses[status].inc(count)
        for state in row.states:
            tiers[state.tier] = tiers.get(state.tier, 0) + 1
    _statuses[Status.PRESENT].inc(total)
    for tier, count in tiers.items():
        _tier(tier).inc(count)


def refused(error: BaseException) -> None:
    """A read raised."""
    if isinstance(error, PointInTimeViolation):
        VIOLATIONS.inc()


def exposition(folder: Path | None) -> bytes:
    """All metrics in Prometheus' text format: those in the folder that the workers share, or of this process alone."""
    if folder is None:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(folder))  # type: ignore[no-untyped-call]
    return generate_latest(registry)
