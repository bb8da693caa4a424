"""What a backfill of a view would do, and in which pieces: counted before anything runs. Running it belongs to the command line."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import groupby

from featurestore_dagster.calendars import calendar
from featurestore_dagster.features.universe import listings_of
from featurestore_dagster.model.feature_view import FeatureView, Stream
from featurestore_dagster.model.raw_table import Dataset
from featurestore_dagster.pipeline.expectations import expected_rows
from featurestore_dagster.pipeline.publication import Pipeline
from featurestore_dagster.pipeline.staleness import MART_SOURCE, dependents
from featurestore_dagster.projections.postgres_table import feature_schema
from featurestore_dagster.projections.relation import Relation, dataset_relation, stream_relation
from featurestore_dagster.stores.postgres.measurements import Measurements

ROWS_PER_CHUNK = 150_000
"""Of the widest view, with its history, these stay far below a gibibyte."""

POSTGRES_BYTES_PER_ROW, POSTGRES_BYTES_PER_COLUMN = 150, 10
"""With indexes, where the table is too young to be measured."""

LOADING_SECONDS = 5
"""Of the process that runs the chunks: it imports Dagster and loads the code location."""

DAGSTER_SECONDS_PER_PARTITION = 0.003
"""Of each asset of a run, beside what the ledger measures: Dagster's events and the check's evaluation."""

REDIS_BYTES_PER_ENTITY, REDIS_BYTES_PER_FEATURE = 250, 72
"""Feast's hash and the packed row together."""


@dataclass(frozen=True)
class StreamBackfill:
    """A stream's part.

    Attributes:
        sessions: What was asked for, ascending.
        stale: Those of them to compute; the others are up to date.
        unfetched: Inputs of which a stale session was never fetched.
        chunks: `stale` in pieces of one run each.
        rows: Rows that the calendar and the listings owe in `stale`.
        seconds: None where nothing like it was ever measured; a person's wait, from the start of the process to Redis.
        postgres_bytes: Of rows that are new; what is computed again is written only where it changed.
        redis_bytes: Of entities that never had a row.
        dependents: Views that the propagation sensor computes afterwards, since they read what is published; where inputs are fetched, the
            view itself too, over later sessions.
        is_newest: Whether it reaches the newest published session: then online values may change, else none does.
    """

    view: FeatureView
    stream: Stream
    sessions: tuple[str, ...]
    stale: tuple[str, ...]
    unfetched: tuple[Dataset, ...]
    chunks: tuple[tuple[str, ...], ...]
    rows: int
    seconds: float | None
    postgres_bytes: int
    redis_bytes: int
    dependents: tuple[str, ...]
    is_newest: bool


def plan_backfill(
    pipeline: Pipeline, measured: Measurements, view: FeatureView, stream: Stream, sessions: Sequence[str], fetchable: Sequence[Dataset]
) -> StreamBackfill:
    """What must be done so that these sessions (ascending) of a stream are up to date; `fetchable` are inputs that can be fetched with it.

    Raises:
        UnknownPartitionError: A key is not a session of the calendar.
    """
    relation = stream_relation(view, stream)
    states = pipeline.ledger.partitions(relation.name)
    stale = pipeline.stale(view, stream, sessions)
    inputs = (*stream.inputs, *([MART_SOURCE] if view.mart else []))
    unfetched = [
        dataset
        for dataset in fetchable
        if dataset in inputs and set(stale) - pipeline.ledger.partitions(dataset_relation(dataset).name).keys()
    ]
    rows = _owed(pipeline, relation, view, stream, stale)
    written = [dataset_relation(dataset).name for dataset in unfetched] or [relation.name]
    paces = [measured.seconds_per_partition(name) for name in {relation.name, *written}]
    per_row = measured.bytes_per_row("features", view.name)
    entities = len(listings_of(pipeline.catalogue, view, stream)) if view.online and not states else 0
    return StreamBackfill(
        view=view,
        stream=stream,
        sessions=tuple(sessions),
        stale=tuple(stale),
        unfetched=tuple(unfetched),
        chunks=tuple(_chunks(relation, rows)),
        rows=sum(rows.values()),
        seconds=_seconds(len(stale), paces, len(paces) + view.online),
        postgres_bytes=int(
            sum(count for key, count in rows.items() if key not in states)
            * (per_row or POSTGRES_BYTES_PER_ROW + POSTGRES_BYTES_PER_COLUMN * len(feature_schema(view)))
        ),
        redis_bytes=entities * (REDIS_BYTES_PER_ENTITY + REDIS_BYTES_PER_FEATURE * len(view.features)),
        dependents=tuple(dependents(pipeline.catalogue, written)) if stale else (),
        is_newest=bool(stale) and stale[-1] >= max((key for key, state in states.items() if state.rows_total), default=""),
    )


def _seconds(partitions: int, paces: Sequence[float | None], assets: int) -> float | None:
    if not partitions:
        return 0.0
    measured = [pace for pace in paces if pace is not None]
    if len(measured) < len(paces):
        return None
    return LOADING_SECONDS + partitions * (sum(measured) + assets * DAGSTER_SECONDS_PER_PARTITION)


def _owed(pipeline: Pipeline, relation: Relation, view: FeatureView, stream: Stream, keys: Sequence[str]) -> dict[str, int]:
    """Rows per session: listed symbols times the bars of the last session."""
    if not keys:
        return {}
    market = calendar(relation.calendar)
    sessions = market.sessions(date.fromisoformat(keys[0]), date.fromisoformat(keys[-1]))
    last = market.session(date.fromisoformat(keys[-1]))
    bars = market.bar_ends(stream.timeframe, last.window_start, last.window_end).len()
    listed = expected_rows(relation.calendar, sessions["closes"], listings_of(pipeline.catalogue, view, stream).values())
    counts = dict(listed.group_by("partition_key").len().iter_rows())
    return {key: counts.get(key, 0) * bars for key in keys}


def _chunks(relation: Relation, rows: Mapping[str, int]) -> Iterator[tuple[str, ...]]:
    """As many whole units of computation as `ROWS_PER_CHUNK` allows, at least one: a part of one would read its history again."""
    market, chunk, size = calendar(relation.calendar), list[str](), 0
    for _, unit in groupby(rows, lambda key: relation.timeframe.anchor(market.session(date.fromisoformat(key)).window_end)):
        keys = list(unit)
        count = sum(rows[key] for key in keys)
        if chunk and size + count > ROWS_PER_CHUNK:
            yield tuple(chunk)
            chunk, size = [], 0
        chunk += keys
        size += count
    if chunk:
        yield tuple(chunk)
