"""The state of the platform at one instant, for people: streams with their delays, blocked partitions. Showing it does not belong here.

The page `/status` and `featurestore status --watch` show the same; Prometheus has its own, in `monitoring.collectors`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.time import Clock
from featurestore_dagster.projections.relation import stream_relation
from featurestore_dagster.serving.slo_state import StreamState, all_states
from featurestore_dagster.stores.postgres import Ledger, PostgresStore
from featurestore_dagster.stores.postgres.ledger_counts import publication_delays, refused

DELAYS = 60
"""Publications of a stream that a sparkline shows."""


@dataclass(frozen=True)
class StreamOverview:
    """A stream: its SLO state, what it promises, and seconds from event to publication of its newest publications, oldest first."""

    state: StreamState
    max_lag: timedelta
    delays_seconds: tuple[float, ...]


@dataclass(frozen=True)
class Overview:
    """Everything at `at`, UTC; `replayed` says which clock it is, empty for real time.

    `streams` come worst state first, then in declared order. `blocked` maps (relation, partition) to the failed checks. `rows_open` counts
    refused rows that are open, by relation.
    """

    at: datetime
    replayed: str
    streams: tuple[StreamOverview, ...]
    blocked: Mapping[tuple[str, str], list[Mapping[str, Any]]]
    rows_open: Mapping[str, int]

    @property
    def overdue(self) -> int:
        """Streams that owe a value."""
        return sum(stream.state.freshness.state.overdue for stream in self.streams)


def overview(catalogue: Catalogue, store: PostgresStore, clock: Clock) -> Overview:
    """Read it.

    Raises:
        StoreUnavailableError: Postgres does not answer.
    """
    now = clock.now()
    declared = {(view.label, stream.name): (view, stream) for view in catalogue.views for stream in view.streams}
    states = all_states(catalogue, store, now)
    relations = {key: stream_relation(*pair).name for key, pair in declared.items()}
    delays = publication_delays(store.settings, [relations[state.view, state.stream] for state in states], DELAYS)
    streams = [
        StreamOverview(
            state,
            declared[state.view, state.stream][0].slo_of(declared[state.view, state.stream][1]).max_lag,
            tuple(delays.get(relations[state.view, state.stream], ())),
        )
        for state in states
    ]
    severity = {name: place for place, name in enumerate(("NEVER", "STALE", "LATE", "FRESH", "CLOSED"))}
    return Overview(
        now,
        clock.replayed or "",
        tuple(sorted(streams, key=lambda stream: severity[stream.state.freshness.state.value])),
        Ledger(store.settings).blocked(),
        {name: count for name, count in refused(store.settings).rows_open.items() if count},
    )


def duration_text(seconds: float) -> str:
    """A duration in its two greatest units: `35 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
    total = round(abs(seconds))
    days, hours, minutes = total // 86_400, total // 3_600 % 24, total // 60 % 60
    if days:
        return f"{days} d {hours} h" if hours else f"{days} d"
    if hours:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{minutes} min" if minutes else f"{total} s"


def due_text(state: StreamState, at: datetime) -> str:
    """When the next value falls due, or for how long it has been owed."""
    seconds = (state.freshness.due_at - at).total_seconds()
    return f"overdue for {duration_text(seconds)}" if seconds < 0 else f"in {duration_text(seconds)}"
