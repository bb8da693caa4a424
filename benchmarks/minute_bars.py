"""Simulated one-minute bars for the historical benchmarks: views of ten features, their versions in Postgres, and entity rows.

The history is drawn at random: 100 symbols around the clock, each bar known 5 seconds after its event time, 1 % of them restated a day
later; a TTL of one day. It is COPYed into the view's own table with the ledger rows of its days: publishing millions of bars would compute
and audit them, which is not what is measured. Measuring does not belong here.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt
import polars as pl
import psycopg
from psycopg import sql

from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.features.equity_views import MOMENTUM_FEATURES, TECHNICAL_INDICATORS_VIEW
from featurestore_dagster.features.streams import crypto
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS
from featurestore_dagster.model.slo import SLO
from featurestore_dagster.model.time import Timeframe
from featurestore_dagster.projections.postgres_table import feature_schema
from featurestore_dagster.projections.relation import stream_relation
from featurestore_dagster.settings import PostgresSettings

START = datetime(2024, 3, 4, tzinfo=UTC)
NOW = datetime(2027, 1, 1, tzinfo=UTC)
MINUTE = 60_000_000
BARS_PER_DAY = 1440
SYMBOLS = 100
RESTATED_SHARE = 0.01

COPY_HEAD, COPY_END = b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\xff\xff"
NUMBERS: dict[pl.DataType, str] = {pl.Float64(): ">f8", pl.Int64(): ">i8", pl.Int32(): ">i4", UTC_MICROSECONDS: ">i8"}
POSTGRES_EPOCH = 946_684_800_000_000
"""Microseconds from 1970 to 2000, where COPY's binary instants begin."""


def minute_view(name: str) -> FeatureView:
    """A view of ten features of one-minute bars."""
    return FeatureView(
        name,
        "Ten features of simulated one-minute bars",
        entities=TECHNICAL_INDICATORS_VIEW.entities,
        features=MOMENTUM_FEATURES.features[:10],
        streams=(replace(crypto(Timeframe.ONE_MINUTE), slo=SLO(timedelta(minutes=1))),),
        slo=SLO(timedelta(minutes=1)),
        ttl=timedelta(days=1),
        group="indicators",
    )


def with_views(views: Sequence[FeatureView]) -> Catalogue:
    """The catalogue, and these views."""
    return replace(CATALOGUE, views=(*CATALOGUE.views, *views))


def load_history(settings: PostgresSettings, view: FeatureView, days: int) -> int:
    """Fill the view's table, which was applied and has no partitions, in the order of event times; returns the number of versions.

    A year is copied before it becomes a partition and gets its indexes; it is not logged, as nobody needs it after a crash.
    """
    relation = stream_relation(view, view.streams[0]).name
    by_year: dict[int, list[int]] = {}
    for day in range(days):
        by_year.setdefault((START + timedelta(days=day)).year, []).append(day)

    def load(year: int) -> int:
        return _load_year(settings, view, relation, year, by_year[year])

    with ThreadPoolExecutor(2) as threads:
        count = sum(threads.map(load, by_year))
    with psycopg.connect(settings.conninfo, autocommit=True) as connection:
        connection.execute(sql.SQL("analyze {}").format(sql.Identifier("features", view.name)))
    return count


def _load_year(settings: PostgresSettings, view: FeatureView, relation: str, year: int, days: Sequence[int]) -> int:
    table, partition = sql.Identifier("features", view.name), sql.Identifier("features", f"{view.name}_{year}")
    low, high = (sql.Literal(f"{number}-01-01 00:00:00+00") for number in (year, year + 1))
    columns = [*feature_schema(view), "batch_id"]
    count = 0
    with psycopg.connect(settings.conninfo) as connection:
        connection.execute("set maintenance_work_mem = '1GB'")
        create = "create unlogged table {} (like {}, check (event_timestamp >= {} and event_timestamp < {}))"
        connection.execute(sql.SQL(create).format(partition, table, low, high))
        statement = sql.SQL("copy {} ({}) from stdin (format binary, freeze)").format(
            partition, sql.SQL(", ").join(map(sql.Identifier, columns))
        )
        with connection.cursor() as cursor, cursor.copy(statement) as copy:
            copy.write(COPY_HEAD)
            for day in days:
                rows = _versions_of_day(view, day)
                count += rows.size
                copy.write(rows.tobytes())
            copy.write(COPY_END)
        for day in days:
            _record_day(connection, relation, day)
        attach = "alter table {} attach partition {} for values from ({}) to ({})"
        connection.execute(sql.SQL(attach).format(table, partition, low, high))
    return count


def _record_day(connection: psycopg.Connection[tuple[object, ...]], relation: str, day: int) -> None:
    rows = _restated(day).size + BARS_PER_DAY * SYMBOLS
    first = START + timedelta(days=day)
    connection.execute(
        "insert into ops.publications (batch_id, relation, partition_key, rows_published, rows_quarantined, rows_total,"
        " content_hash, min_event_timestamp, max_event_timestamp, changed, inputs, code_version, run_id, published_at)"
        " values (%s, %s, %s, %s, 0, %s, '', %s, %s, '{}', '{}', '', '', now())",
        [day + 1, relation, str(first.date()), rows, rows, first, first + timedelta(minutes=BARS_PER_DAY - 1)],
    )


def _restated(day: int) -> npt.NDArray[np.int64]:
    return np.flatnonzero(np.random.Generator(np.random.PCG64(day)).random(BARS_PER_DAY * SYMBOLS) < RESTATED_SHARE)


def _versions_of_day(view: FeatureView, day: int) -> npt.NDArray[np.void]:
    """Rows of COPY's binary format: text of one length, so that all are records of one width."""
    again, draw = _restated(day), np.random.Generator(np.random.PCG64([day, 1]))
    first = int(START.timestamp()) * 1_000_000 + day * BARS_PER_DAY * MINUTE
    minutes = np.repeat(first + np.arange(BARS_PER_DAY) * MINUTE, SYMBOLS)
    symbols = np.tile(np.array([f"SIM{number:04d}" for number in range(SYMBOLS)], "S"), BARS_PER_DAY)
    known = minutes + 5_000_000
    known = np.append(known, known[again] + BARS_PER_DAY * MINUTE)
    minutes, symbols = np.append(minutes, minutes[again]), np.append(symbols, symbols[again])
    values: dict[str, npt.NDArray[np.generic] | int | bytes] = {
        "symbol": symbols,
        "timeframe": b"1m",
        "event_timestamp": minutes - POSTGRES_EPOCH,
        "created_timestamp": known - POSTGRES_EPOCH,
        **{name: draw.random(minutes.size) for name in view.feature_names},
        "flags": 0,
        "feature_set_version": view.version,
        "stream": view.streams[0].name.encode(),
        "batch_id": day + 1,
    }
    fields: list[tuple[str, np.dtype[np.generic] | str]] = [("field count", ">i2")]
    for name, dtype in {**feature_schema(view), "batch_id": pl.Int64()}.items():
        fields += [(f"{name} length", ">i4"), (name, np.asarray(values[name]).dtype if dtype == pl.String else NUMBERS[dtype])]
    rows = np.empty(minutes.size, np.dtype(fields))
    rows["field count"] = len(values)
    for name, value in values.items():
        rows[f"{name} length"] = rows.dtype[name].itemsize
        rows[name] = value
    return rows


def entity_rows(count: int, days: int) -> pl.DataFrame:
    """Random symbols and instants, none before the first half day; equal arguments give equal frames."""
    draw = np.random.Generator(np.random.PCG64(count))
    first = int(START.timestamp()) * 1_000_000
    instants = draw.integers(first + BARS_PER_DAY // 2 * MINUTE, first + days * BARS_PER_DAY * MINUTE, count)
    return pl.DataFrame(
        {
            "symbol": pl.Series([f"SIM{number:04d}" for number in range(SYMBOLS)]).gather(draw.integers(0, SYMBOLS, count)),
            "timeframe": pl.repeat("1m", count, eager=True),
            "event_timestamp": pl.Series(instants).cast(UTC_MICROSECONDS),
        }
    )
