"""Versions of a small view, questions about them, and the rule of visibility written as loops; no assertion belongs here."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import psycopg
from psycopg import sql

from featurestore_dagster.calendars import calendar
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.features.equity_views import TECHNICAL_INDICATORS_VIEW
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS
from featurestore_dagster.model.slo import SLO
from featurestore_dagster.model.time import FrozenClock
from featurestore_dagster.projections.postgres_table import feature_schema
from featurestore_dagster.projections.relation import stream_relation
from featurestore_dagster.serving.point_in_time import PointInTimeReader
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.columnar_cache import ColumnarCache
from featurestore_dagster.stores.postgres import PostgresStore
from featurestore_dagster.stores.postgres.schema import ensure_yearly_partitions

US, FX, CRYPTO = TECHNICAL_INDICATORS_VIEW.streams[0], TECHNICAL_INDICATORS_VIEW.streams[1], TECHNICAL_INDICATORS_VIEW.streams[-1]
VIEW = replace(
    TECHNICAL_INDICATORS_VIEW,
    streams=(
        replace(US, slo=SLO(timedelta(hours=1)), ttl=timedelta(minutes=390)),
        replace(FX, ttl=timedelta(hours=24)),
        replace(CRYPTO, ttl=timedelta(hours=30)),
    ),
)
"""Three calendars, and a TTL that ends on a session's close."""

GONE = replace(CRYPTO, name="gone_1d")
"""Its rows are published, and it is not declared any more: they age as those of the view's first stream."""

WITH_VIEW = replace(CATALOGUE, views=tuple(VIEW if view.name == VIEW.name else view for view in CATALOGUE.views), services=())
KEYS = [("A", "BX"), ("AB", "X"), ("A", ""), ("", "A"), ("é", "1d"), ("Z", "1d")]
"""Pairs that a join on their concatenation would mix up."""

NAMES = ("rsi_14", "macd", "atr")
FIRST, LAST = datetime(2018, 11, 20, tzinfo=UTC), datetime(2018, 12, 4, tzinfo=UTC)
NOW = datetime(2018, 12, 31, 22, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Case:
    """Versions with columns `feature_schema(VIEW)`, and rows with the join keys, event_timestamp and as_of."""

    versions: pl.DataFrame
    asked: pl.DataFrame


def random_case(seed: int, version_count: int, asked_count: int) -> Case:
    """Late, restated and tied versions in three streams and GONE; instants on and beside every edge; equal arguments give equal frames."""
    draw = np.random.Generator(np.random.PCG64(seed))
    sessions = calendar("XNYS").sessions(FIRST.date(), LAST.date())
    edges = [*sessions["opens"], *sessions["closes"], datetime(2018, 12, 1, tzinfo=UTC), datetime(2018, 11, 25, 22, tzinfo=UTC)]

    def pick(values: Sequence[Any], count: int) -> list[Any]:
        return [values[position] for position in draw.integers(0, len(values), count)]

    beside = [timedelta(0), timedelta(0), MICROSECOND, -MICROSECOND]
    delays = [timedelta(0), MICROSECOND, timedelta(seconds=5), timedelta(hours=7), timedelta(days=3), -timedelta(days=1)]
    shifts = [side + hours for side in beside for hours in (timedelta(0), timedelta(hours=1))]
    events = [edge + shift for edge, shift in zip(pick(edges, version_count), pick(shifts, version_count), strict=True)]
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    numbers = itertools.count()
    for event, delay, key, stream in zip(
        events, pick(delays, version_count), pick(KEYS[:5], version_count), pick((*VIEW.streams, GONE), version_count), strict=True
    ):
        number = next(numbers)
        rows[*key, event, event + delay] = {
            "symbol": key[0],
            "timeframe": key[1],
            "event_timestamp": event,
            "created_timestamp": event + delay,
            "rsi_14": float(number),
            "macd": None if number % 3 == 0 else -float(number),
            "atr": float("nan") if number % 7 == 0 else 0.5,
            "flags": number % 4,
            "feature_set_version": VIEW.version,
            "stream": stream.name,
        }
    offsets = [*delays, *(VIEW.ttl_of(stream) for stream in VIEW.streams), timedelta(days=2), timedelta(days=40)]
    bases = [*edges, *(events or edges), FIRST - timedelta(days=400)]
    asked = [
        {"symbol": key[0], "timeframe": key[1], "event_timestamp": base + offset + side, "as_of": base + other + side}
        for key, base, offset, side, other in zip(
            pick([*KEYS, ("A", None), (None, "1d")], asked_count),
            pick(bases, asked_count),
            pick(offsets, asked_count),
            pick(beside, asked_count),
            pick(offsets, asked_count),
            strict=True,
        )
    ]
    columns = {"symbol": pl.String(), "timeframe": pl.String(), "event_timestamp": UTC_MICROSECONDS, "as_of": UTC_MICROSECONDS}
    return Case(pl.DataFrame(list(rows.values()), schema=feature_schema(VIEW)), pl.DataFrame(asked, schema=columns))


def oracle(
    versions: pl.DataFrame, asked: pl.DataFrame, *, as_of: str | None = None, horizon: timedelta = timedelta(0), now: datetime = NOW
) -> list[dict[str, Any]]:
    """The rule, row by row: `NAMES`, event_timestamp, created_timestamp, age_seconds and flags of the winner, or NULLs."""
    by_key: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for version in versions.iter_rows(named=True):
        by_key.setdefault((version["symbol"], version["timeframe"]), []).append(version)
    answers = []
    for row in asked.iter_rows(named=True):
        at = row["event_timestamp"] + horizon
        knowledge = min(row[as_of] if as_of else at, now)
        visible = [
            version
            for version in by_key.get((row["symbol"], row["timeframe"]), [])
            if version["event_timestamp"] <= at and version["created_timestamp"] <= knowledge
        ]
        won = max(visible, key=lambda version: (version["event_timestamp"], version["created_timestamp"]), default=None)
        answer: dict[str, Any] = dict.fromkeys((*NAMES, "event_timestamp", "created_timestamp", "age_seconds", "flags"))
        if won is not None and not (horizon and at > now):
            stream = next((stream for stream in VIEW.streams if stream.name == won["stream"]), VIEW.streams[0])
            age = _open_time(stream.calendar, won["event_timestamp"], at)
            if age < VIEW.ttl_of(stream):
                answer = {name: won[name] for name in answer if name != "age_seconds"} | {"age_seconds": age / timedelta(seconds=1)}
        answers.append(answer)
    return answers


def _open_time(name: str, start: datetime, end: datetime) -> timedelta:
    """Sum of what each session has in common with the stretch; the tables around the clock have one session a day."""
    if name == "24/7":
        return end - start
    sessions = calendar(name).sessions(
        start.date() - timedelta(days=2), min(end.date(), start.date() + timedelta(days=60)) + timedelta(days=2)
    )
    common = (min(end, closes) - max(start, opens) for opens, closes in sessions.select("opens", "closes").iter_rows())
    return sum((part for part in common if part > timedelta(0)), start=timedelta(0))


def put(settings: Settings, versions: pl.DataFrame, view: FeatureView = VIEW) -> int:
    """Copy versions into the view's table and record one publication of each stream; returns the newest publication id.

    Unlike `PostgresStore.publish` it takes any known-at, so that every case of the rule can be laid out.
    """
    table = sql.Identifier("features", view.name)
    with psycopg.connect(settings.postgres.conninfo) as connection:
        newest = 0
        for (stream,), rows in versions.group_by("stream", maintain_order=True):
            batch = next(_numbers)
            years = rows["event_timestamp"].dt.year()
            ensure_yearly_partitions(connection, "features", view.name, int(years.min()), int(years.max()))  # type: ignore[arg-type]
            columns = sql.SQL(", ").join(map(sql.Identifier, (*versions.columns, "batch_id")))
            with connection.cursor() as cursor, cursor.copy(sql.SQL("copy {} ({}) from stdin").format(table, columns)) as copy:
                for row in rows.iter_rows():
                    copy.write_row((*row, batch))
            relation = stream_relation(view, next(s for s in (*view.streams, GONE) if s.name == stream)).name
            events = rows["event_timestamp"]
            inserted = connection.execute(
                "insert into ops.publications (batch_id, relation, partition_key, rows_published, rows_quarantined, rows_total,"
                " content_hash, min_event_timestamp, max_event_timestamp, changed, inputs, code_version, run_id, published_at)"
                " values (%s, %s, %s, %s, 0, %s, %s, %s, %s, %s, '{}', '', '', now()) returning publication_id",
                [
                    batch,
                    relation,
                    f"batch {batch}",
                    rows.height,
                    rows.height,
                    f"content {batch}",
                    events.min(),
                    events.max(),
                    json.dumps({}),
                ],
            ).fetchone()
            newest = int(inserted[0])  # type: ignore[index]
        return newest


def reader_of(settings: Settings, cache: ColumnarCache | None = None, now: datetime = NOW) -> PointInTimeReader:
    """A reader of the test's database; its clock stands still."""
    return PointInTimeReader(PostgresStore(settings.postgres, FrozenClock(now)), WITH_VIEW, cache)


def clear(settings: Settings) -> None:
    """No versions and no publications."""
    with psycopg.connect(settings.postgres.conninfo) as connection:
        connection.execute(sql.SQL("delete from {}").format(sql.Identifier("features", VIEW.name)))
        connection.execute("delete from ops.publications")


REFERENCES = [f"{VIEW.name}:{name}" for name in NAMES]
DETAILS = ("event_timestamp", "created_timestamp", "age_seconds", "flags")


def expected(answers: Sequence[Mapping[str, Any]], names: Sequence[str] = (*NAMES, *DETAILS)) -> pl.DataFrame:
    """The oracle's answers as the reader's columns."""
    dtypes = feature_schema(VIEW) | {"age_seconds": pl.Float64()}
    return pl.DataFrame({f"{VIEW.name}__{name}": pl.Series([answer[name] for answer in answers], dtype=dtypes[name]) for name in names})
