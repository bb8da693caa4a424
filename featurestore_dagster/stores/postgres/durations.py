"""How long publications and syncs took: counted in `ops.durations` where they are written, read by the exporter.

Buckets instead of a line for each write: the table stays small for ever, and its newest instant is the heartbeat of the writer.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

import psycopg

from featurestore_dagster.monitoring.metrics import WRITE_BUCKETS_SECONDS
from featurestore_dagster.settings import PostgresSettings
from featurestore_dagster.stores.postgres.connection import connect

BOUNDS = (*WRITE_BUCKETS_SECONDS, float("inf"))


class WriteKind(StrEnum):
    """What was timed."""

    PUBLISH = "publish"
    SYNC = "sync"


@dataclass
class Durations:
    """Of one subject: writes by bucket (`BOUNDS`), the sum of their seconds, and the end of the newest."""

    newest_at: datetime
    writes: list[int] = field(default_factory=lambda: [0] * len(BOUNDS))
    seconds: float = 0.0


def record(connection: psycopg.Connection[tuple[Any, ...]], kind: WriteKind, subject: str, seconds: float) -> None:
    """Count one write, in the caller's transaction."""
    connection.execute(
        "insert into ops.durations as known (kind, subject, seconds_up_to, writes, seconds, newest_at)"
        " values (%s, %s, %s, 1, %s, clock_timestamp()) on conflict (kind, subject, seconds_up_to) do update"
        " set writes = known.writes + 1, seconds = known.seconds + excluded.seconds, newest_at = excluded.newest_at",
        [kind.value, subject, BOUNDS[bisect_left(BOUNDS, seconds)], seconds],
    )


def read(settings: PostgresSettings, kind: WriteKind) -> dict[str, Durations]:
    """What was counted, by subject in order."""
    with connect(settings) as connection:
        rows: Sequence[tuple[Any, ...]] = connection.execute(
            "select subject, seconds_up_to, writes, seconds, newest_at from ops.durations where kind = %s order by subject", [kind.value]
        ).fetchall()
    found: dict[str, Durations] = {}
    for subject, bound, writes, seconds, newest_at in rows:
        durations = found.setdefault(subject, Durations(newest_at))
        durations.writes[bisect_left(BOUNDS, bound)] += writes
        durations.seconds += seconds
        durations.newest_at = max(durations.newest_at, newest_at)
    return found
