"""What the exporter publishes, a collector for each concern: read the stores, give families of samples.

A collector raises when its store does not answer; deadlines, threads and HTTP belong to `exporter`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from featurestore_dagster.model.alert import AlertKind
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.monitoring import metrics
from featurestore_dagster.monitoring.metrics import Kind, Metric
from featurestore_dagster.serving.client_base import PROJECT
from featurestore_dagster.serving.freshness import FreshnessState
from featurestore_dagster.serving.slo_ledger import slo_months
from featurestore_dagster.serving.slo_state import all_states
from featurestore_dagster.settings import PostgresSettings, Settings
from featurestore_dagster.stores.embedded import last_known_settings
from featurestore_dagster.stores.postgres import AlertStore, Ledger, PostgresStore, durations, ledger_counts
from featurestore_dagster.stores.postgres.durations import WriteKind
from featurestore_dagster.stores.postgres.heartbeats import heartbeats
from featurestore_dagster.stores.postgres.slo_ledger import SloStore
from featurestore_dagster.stores.redis import RedisStore

Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily
Collect = Callable[[], Iterable[Family]]
EVERY = 1_000_000
"""No limit."""

Labels = TypeVar("Labels", bound=tuple[str, ...])


def scalar(metric: Metric, samples: Mapping[Labels, float]) -> Family:
    """A counter or gauge with its value by the values of its labels."""
    kind = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
    family = kind(metric.name, metric.help, labels=metric.labels)
    for labels, value in samples.items():
        family.add_metric(labels, value)
    return family


def histogram(metric: Metric, samples: Mapping[str, tuple[Sequence[int], float]]) -> Family:
    """A histogram with one label: by its value, observations by bucket (the last one infinite) and their sum."""
    family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
    bounds = [*map(str, metric.buckets), "+Inf"]
    for label, (counts, total) in samples.items():
        family.add_metric([label], list(zip(bounds, map(float, accumulate(counts)), strict=True)), total)
    return family


@dataclass
class Collectors:
    """Collectors over the stores that the settings describe; they are found anew each time, since embedded ones may move."""

    settings: Settings
    catalogue: Catalogue
    _counted: "LedgerTotals | None" = None

    def by_name(self) -> dict[str, Collect]:
        """Each collector by the value of the label `collector`; each is called by one thread at a time."""
        return {
            "freshness": self.freshness,
            "ledger": self.ledger,
            "quarantine": self.quarantine,
            "durations": self.durations,
            "slo": self.slo,
            "alerts": self.alerts,
            "sync": self.sync,
            "redis": self.redis,
            "dagster": self.dagster,
        }

    @property
    def _postgres(self) -> PostgresSettings:
        return last_known_settings(self.settings).postgres

    @property
    def _redis(self) -> RedisStore:
        return RedisStore(last_known_settings(self.settings).redis, PROJECT)

    def freshness(self) -> Iterable[Family]:
        """Lag, SLO, state, watermark and due time of each stream, by the platform's clock."""
        clock = self.settings.make_clock()
        states = all_states(self.catalogue, PostgresStore(self._postgres, clock), clock.now())
        found = {(state.view, state.stream): state.freshness for state in states}
        promised = {(view.label, stream.name): view.slo_of(stream) for view in self.catalogue.views for stream in view.streams}
        yield scalar(metrics.FRESHNESS_LAG, {key: state.lag.total_seconds() for key, state in found.items() if state.lag is not None})
        yield scalar(metrics.SLO, {key: promised[key].max_lag.total_seconds() for key in found})
        one_of = {(*key, name): float(state.state is name) for key, state in found.items() for name in FreshnessState}
        yield scalar(metrics.FRESHNESS_STATE, one_of)
        yield scalar(metrics.WATERMARK, {key: state.watermark.timestamp() for key, state in found.items() if state.watermark})
        yield scalar(metrics.DUE, {key: state.due_at.timestamp() for key, state in found.items()})

    def slo(self) -> Iterable[Family]:
        """Attainment, objective and error budget of this month, of the streams that the daemon has begun to count."""
        months = slo_months(self.catalogue, SloStore(self._postgres), self.settings.make_clock().now(), begun_only=True)
        found = {(month.view, month.stream): month for month in months if month.stream is not None}
        attained = {key: month.attainment for key, month in found.items() if month.attainment is not None}
        yield scalar(metrics.SLO_ATTAINMENT, attained)
        yield scalar(metrics.SLO_OBJECTIVE, {key: month.objective for key, month in found.items()})
        yield scalar(metrics.SLO_BUDGET_LEFT, {key: month.budget_left for key, month in found.items()})

    def alerts(self) -> Iterable[Family]:
        """What the alert sensor holds open, and what it could not deliver."""
        store = AlertStore(self._postgres)
        open_ones = Counter(alert.problem.kind for alert in store.alerts(limit=EVERY))
        yield scalar(metrics.ALERTS, {(kind.value,): float(open_ones[kind]) for kind in AlertKind})
        yield scalar(metrics.DEAD_LETTERS, {(): float(len(store.deliveries("dead", EVERY)))})

    def ledger(self) -> Iterable[Family]:
        """Rows published, of which only the new ones are read, and latencies of restatements."""
        settings = self._postgres
        if self._counted is None or self._counted.settings != settings:
            self._counted = LedgerTotals(settings)
        self._counted.advance()
        yield scalar(metrics.ROWS_PUBLISHED, {(relation,): rows for relation, rows in self._counted.rows.items()})
        bounds = metrics.RESTATEMENT_LATENCY.buckets
        yield histogram(metrics.RESTATEMENT_LATENCY, ledger_counts.restatement_latencies(settings, bounds))

    def quarantine(self) -> Iterable[Family]:
        """Refused rows and blocked partitions; 0 for a relation that has none."""
        settings = self._postgres
        refused = ledger_counts.refused(settings)
        blocked = Counter(block.relation for block in Ledger(settings).blocks())
        names = [f"raw.{dataset.name}" for dataset in self.catalogue.datasets]
        names += [f"features.{view.label}.{stream.name}" for view in self.catalogue.views for stream in view.streams]
        for metric, counts in (
            (metrics.ROWS_QUARANTINED, refused.rows),
            (metrics.QUARANTINED_OPEN, refused.rows_open),
            (metrics.BLOCKED, blocked),
        ):
            yield scalar(metric, {(name,): float(counts.get(name, 0)) for name in dict.fromkeys([*names, *counts])})

    def durations(self) -> Iterable[Family]:
        """How long publications and syncs took, and when each view was synced last."""
        settings = self._postgres
        published, synced = (durations.read(settings, kind) for kind in (WriteKind.PUBLISH, WriteKind.SYNC))
        for metric, found in ((metrics.PUBLISH_DURATION, published), (metrics.SYNC_DURATION, synced)):
            yield histogram(metric, {subject: (counted.writes, counted.seconds) for subject, counted in found.items()})
        yield scalar(metrics.SYNC_HEARTBEAT, {(view,): counted.newest_at.timestamp() for view, counted in synced.items()})

    def sync(self) -> Iterable[Family]:
        """Publications that Redis has not applied, by online view."""
        online = self._redis
        try:
            applied = {view.name: online.publication_id(view) or 0 for view in self.catalogue.views if view.online}
        finally:
            online.close()
        pending = ledger_counts.pending_publications(self._postgres, applied)
        yield scalar(metrics.SYNC_PENDING, {(view,): float(count) for view, count in pending.items()})

    def redis(self) -> Iterable[Family]:
        """Memory and keys of Redis."""
        online = self._redis
        try:
            used, maximum = online.memory()
            keys = online.keys()
        finally:
            online.close()
        yield scalar(metrics.REDIS_MEMORY_USED, {(): float(used)})
        yield scalar(metrics.REDIS_MEMORY_MAXIMUM, {(): float(maximum)})
        yield scalar(metrics.REDIS_KEYS, {(): float(keys)})

    def dagster(self) -> Iterable[Family]:
        """Heartbeats of Dagster's daemons and of the sensors that are switched on."""
        found = heartbeats(self._postgres)
        yield scalar(metrics.DAEMON_HEARTBEAT, {(name,): beat for name, beat in found.daemons.items()})
        yield scalar(metrics.SENSOR_HEARTBEAT, {(name,): beat.tick_timestamp for name, beat in found.sensors.items()})
        yield scalar(metrics.SENSOR_INTERVAL, {(name,): beat.interval_seconds for name, beat in found.sensors.items()})


@dataclass
class LedgerTotals:
    """Sums over the ledger of one database, from its first publication on."""

    settings: PostgresSettings
    rows: dict[str, float] = field(default_factory=dict)
    _last: int = 0

    def advance(self) -> None:
        """Add what was published since."""
        new = ledger_counts.publications_after(self.settings, self._last)
        for relation, rows in new.rows.items():
            self.rows[relation] = self.rows.get(relation, 0.0) + rows
        self._last = new.last_publication_id
