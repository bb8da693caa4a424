"""Every metric, named once: exporter, HTTP server, alert rules, Grafana board and documentation take the name from here.

Counting and collecting do not belong here, nor does a client library. Names follow Prometheus' conventions: base units, `_total` for
counters, `_timestamp_seconds` for instants, which a rule compares with `time()` so that an age cannot stand still with its process.
"""

from dataclasses import dataclass
from enum import StrEnum

REQUEST_BUCKETS_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0)
WRITE_BUCKETS_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Of publications and syncs. Kept in `ops.durations` by these bounds: after a change, older counts stay at the old ones."""
RESTATEMENT_BUCKETS_SECONDS = (1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 21600.0, 86400.0)


class Kind(StrEnum):
    """Of a metric, as Prometheus calls them."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Job(StrEnum):
    """Who answers the scrape; the value is Prometheus' label `job`."""

    EXPORTER = "featurestore-exporter"
    SERVE = "featurestore-serve"


@dataclass(frozen=True)
class Metric:
    """One metric. `buckets` are the upper bounds of a histogram, without the infinite one."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    job: Job = Job.EXPORTER
    buckets: tuple[float, ...] = ()

    @property
    def series(self) -> tuple[str, ...]:
        """Names under which its samples are stored."""
        return tuple(f"{self.name}_{part}" for part in ("bucket", "sum", "count")) if self.kind is Kind.HISTOGRAM else (self.name,)


# Reads, counted by the HTTP server.
REQUESTS = Metric(
    "feature_store_requests_total", Kind.COUNTER, "HTTP requests answered, by route and status code.", ("route", "status"), Job.SERVE
)
REQUEST_DURATION = Metric(
    "feature_store_request_duration_seconds",
    Kind.HISTOGRAM,
    "Time from a request's head to its whole answer.",
    ("route",),
    Job.SERVE,
    REQUEST_BUCKETS_SECONDS,
)
REQUESTS_IN_PROGRESS = Metric("feature_store_requests_in_progress", Kind.GAUGE, "Requests that are being answered.", (), Job.SERVE)
VALUES = Metric("feature_store_values_total", Kind.COUNTER, "Feature values answered online, by status.", ("status",), Job.SERVE)
ANSWERED_VIEWS = Metric(
    "feature_store_answered_views_total",
    Kind.COUNTER,
    "Views of entities answered online, by the store that answered.",
    ("tier",),
    Job.SERVE,
)
VIOLATIONS = Metric(
    "feature_store_point_in_time_violations_total",
    Kind.COUNTER,
    "Answers refused because they held a value from the future.",
    (),
    Job.SERVE,
)

# Freshness: one row per stream that a source is switched on for.
STREAM = ("view", "stream")
FRESHNESS_LAG = Metric(
    "feature_store_freshness_lag_seconds", Kind.GAUGE, "Time since the next value became available; 0 before that.", STREAM
)
SLO = Metric("feature_store_slo_seconds", Kind.GAUGE, "The lag that the view promises to stay within.", STREAM)
FRESHNESS_STATE = Metric(
    "feature_store_freshness_state", Kind.GAUGE, "1 for the state that the stream is in, 0 for the others.", (*STREAM, "state")
)
WATERMARK = Metric("feature_store_watermark_timestamp_seconds", Kind.GAUGE, "Greatest event time published.", STREAM)
DUE = Metric("feature_store_due_timestamp_seconds", Kind.GAUGE, "When the next value must be served.", STREAM)

SLO_ATTAINMENT = Metric(
    "feature_store_slo_attainment_ratio", Kind.GAUGE, "Share of this month's evaluated time in which nothing was overdue.", STREAM
)
SLO_OBJECTIVE = Metric("feature_store_slo_objective_ratio", Kind.GAUGE, "The attainment that the view promises.", STREAM)
SLO_BUDGET_LEFT = Metric(
    "feature_store_slo_error_budget_left_ratio",
    Kind.GAUGE,
    "Share of this month's error budget that is left; negative: the objective is missed.",
    STREAM,
)

# Alerts of the platform's own sensor.
ALERTS = Metric("feature_store_alerts", Kind.GAUGE, "Streaks that have not ended.", ("kind",))
DEAD_LETTERS = Metric("feature_store_alert_dead_letters", Kind.GAUGE, "Messages that no channel took and nobody asked for again.")

# Writes: from the ledger, the quarantine and the quality log.
RELATION = ("relation",)
ROWS_PUBLISHED = Metric("feature_store_rows_published_total", Kind.COUNTER, "Row versions published.", RELATION)
ROWS_QUARANTINED = Metric("feature_store_rows_quarantined_total", Kind.COUNTER, "Rows ever refused by an audit.", RELATION)
QUARANTINED_OPEN = Metric("feature_store_quarantined_rows", Kind.GAUGE, "Refused rows that are open.", RELATION)
BLOCKED = Metric("feature_store_blocked_partitions", Kind.GAUGE, "Partitions whose last audit blocked them.", RELATION)
PUBLISH_DURATION = Metric(
    "feature_store_publish_duration_seconds",
    Kind.HISTOGRAM,
    "Time of one publication: waiting for the table, comparing versions, writing.",
    RELATION,
    buckets=WRITE_BUCKETS_SECONDS,
)
RESTATEMENT_LATENCY = Metric(
    "feature_store_restatement_latency_seconds",
    Kind.HISTOGRAM,
    "Time from the publication of a changed input until all that depends on it is published and online.",
    ("path",),
    buckets=RESTATEMENT_BUCKETS_SECONDS,
)

# The online store.
SYNC_DURATION = Metric(
    "feature_store_sync_duration_seconds",
    Kind.HISTOGRAM,
    "Time of one online sync of a view.",
    ("view",),
    buckets=WRITE_BUCKETS_SECONDS,
)
SYNC_PENDING = Metric(
    "feature_store_sync_pending_publications", Kind.GAUGE, "Publications with rows that Redis has not applied.", ("view",)
)
REDIS_MEMORY_USED = Metric("feature_store_redis_memory_used_bytes", Kind.GAUGE, "Memory that Redis has allocated.")
REDIS_MEMORY_MAXIMUM = Metric("feature_store_redis_memory_maximum_bytes", Kind.GAUGE, "Memory that Redis may allocate; 0: no limit.")
REDIS_KEYS = Metric("feature_store_redis_keys", Kind.GAUGE, "Keys in the database of the online store.")

# Heartbeats, in real time also under a replay clock.
DAEMON_HEARTBEAT = Metric(
    "feature_store_daemon_heartbeat_timestamp_seconds", Kind.GAUGE, "Newest heartbeat of a daemon of Dagster.", ("daemon",)
)
SENSOR_HEARTBEAT = Metric(
    "feature_store_sensor_heartbeat_timestamp_seconds",
    Kind.GAUGE,
    "Begin of the newest tick without error of a sensor that is switched on; 0 before the first.",
    ("sensor",),
)
SENSOR_INTERVAL = Metric("feature_store_sensor_interval_seconds", Kind.GAUGE, "Time between the ticks of a sensor.", ("sensor",))
SYNC_HEARTBEAT = Metric("feature_store_sync_heartbeat_timestamp_seconds", Kind.GAUGE, "End of the newest online sync.", ("view",))

# The exporter itself.
COLLECTOR_UP = Metric("feature_store_collector_up", Kind.GAUGE, "1 when the collector answered in time, 0 when not.", ("collector",))
COLLECTOR_DURATION = Metric(
    "feature_store_collector_duration_seconds", Kind.GAUGE, "Time that the collector's last answer took.", ("collector",)
)

METRICS: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
"""All of them, in the order above."""

BY_SERIES: dict[str, Metric] = {series: metric for metric in METRICS for series in metric.series}
"""Metric by the name of a stored series."""
