"""Heartbeats of Dagster's daemons and sensors, read from its own tables in its database.

By SQL and not by Dagster's instance: who watches the daemon must not import, configure or wait for what it watches (ADR 0016). The tables
are those of the version that pyproject.toml pins.
"""

from dataclasses import dataclass
from typing import Any

from featurestore_dagster.settings import PostgresSettings
from featurestore_dagster.stores.postgres.connection import connect

SWITCHED_ON = ("RUNNING", "DECLARED_IN_CODE")
"""States of a sensor that ticks: switched on in the UI, or by its own declaration."""

WITHOUT_ERROR = ("SUCCESS", "SKIPPED")


@dataclass(frozen=True)
class SensorBeat:
    """A sensor that is switched on: begin of its newest tick without error (0 before the first) and time between its ticks, in seconds."""

    tick_timestamp: float
    interval_seconds: float


@dataclass(frozen=True)
class Heartbeats:
    """Instants in seconds since 1970, by name; both are empty when Dagster never ran on this database."""

    daemons: dict[str, float]
    sensors: dict[str, SensorBeat]


def heartbeats(settings: PostgresSettings) -> Heartbeats:
    """Newest heartbeat of each daemon, and of each sensor that is switched on.

    Raises:
        StoreUnavailableError: Postgres does not answer.
    """
    with connect(settings.model_copy(update={"database": settings.dagster_database})) as connection:
        exists = connection.execute("select to_regclass('daemon_heartbeats') is not null and to_regclass('instigators') is not null")
        if exists.fetchone() != (True,):
            return Heartbeats({}, {})
        daemons: list[Any] = connection.execute(
            "select daemon_type, (body::jsonb ->> 'timestamp')::double precision from daemon_heartbeats order by 1"
        ).fetchall()
        sensors: list[Any] = connection.execute(
            "select body #>> '{origin,job_name}', coalesce(extract(epoch from tick.timestamp), 0)::double precision,"
            " coalesce((body #>> '{job_specific_data,min_interval}')::double precision, 0)"
            " from (select selector_id, instigator_body::jsonb as body from instigators"
            " where instigator_type = 'SENSOR' and status = any(%s)) sensor left join lateral (select timestamp from job_ticks"
            " where job_ticks.selector_id = sensor.selector_id and status = any(%s) order by timestamp desc limit 1) tick on true"
            " order by 1",
            [list(SWITCHED_ON), list(WITHOUT_ERROR)],
        ).fetchall()
    return Heartbeats(dict(daemons), {name: SensorBeat(tick, interval) for name, tick, interval in sensors})
