"""The metrics of the HTTP server, counted; they are named in `monitoring.metrics`. Counts are those of all worker processes together.

The supervisor names the folder that the workers share in `PROMETHEUS_MULTIPROC_DIR`; without it a process counts for itself.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from featurestore_dagster.errors import PointInTimeViolation
from featurestore_dagster.monitoring import metrics
from featurestore_dagster.monitoring.metrics import Metric
from featurestore_dagster.serving.answer import OnlineFeatures, Status


def _counter(metric: Metric) -> Counter:
    return Counter(metric.name, metric.help, metric.labels)


REQUESTS, VALUES, VIEWS, VIOLATIONS = map(_counter, (metrics.REQUESTS, metrics.VALUES, metrics.ANSWERED_VIEWS, metrics.VIOLATIONS))
DURATIONS = Histogram(
    metrics.REQUEST_DURATION.name, metrics.REQUEST_DURATION.help, metrics.REQUEST_DURATION.labels, buckets=metrics.REQUEST_DURATION.buckets
)
IN_PROGRESS = Gauge(metrics.REQUESTS_IN_PROGRESS.name, metrics.REQUESTS_IN_PROGRESS.help, multiprocess_mode="livesum")

_statuses = [VALUES.labels(status.value) for status in Status]


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
    for series, count in zip(_statuses, answer.status_counts(), strict=True):
        if count:
            series.inc(count)
    for tier, count in answer.tier_counts().items():
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
