"""One view's answer for rows of keys and instants: which version each row could see, how old it was, and its values.

Two engines with one rule: the server looks each row up by its index, or the view's history streams through the rows. Validating what the
caller gave belongs to `entities`, reading to `history` and `stores.postgres.bulk`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import polars as pl

from featurestore_dagster.calendars import calendar
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS
from featurestore_dagster.pipeline.bitemporal import clock_time
from featurestore_dagster.projections.postgres_table import feature_schema
from featurestore_dagster.serving.point_in_time.entities import microseconds
from featurestore_dagster.serving.point_in_time.history import History, Span, as_instants
from featurestore_dagster.serving.point_in_time.winners import NEVER, Integers, Questions, Versions, carried, order_of, winners
from featurestore_dagster.stores.columnar_cache import ColumnarCache
from featurestore_dagster.stores.postgres.bulk import Snapshot

ROWS_LOOKED_UP_PER_SECOND = 40_000
"""By the server's index, measured on two cores."""

STREAMING_SECONDS = 0.1
"""What streaming costs beside reading: the ledger and the plan."""

ROWS_PER_LOOK_UP = 100_000

DETAILS: dict[str, pl.DataType] = {
    "event_timestamp": UTC_MICROSECONDS,
    "created_timestamp": UTC_MICROSECONDS,
    "age_seconds": pl.Float64(),
    "flags": pl.Int64(),
}
"""What can be asked of a view's row beside its features: event time, known-at, age in open-market time, quality flags."""


@dataclass(frozen=True)
class Lookup:
    """What is wanted of one view.

    `outputs` maps output columns to columns of the view or names of DETAILS. `as_of` is the column with the instant of knowledge, None:
    the instant itself. With a `horizon` the row is looked up that much later.
    """

    view: FeatureView
    outputs: dict[str, str]
    as_of: str | None = None
    horizon: timedelta = timedelta(0)

    @property
    def columns(self) -> list[str]:
        """Columns of the view's table that are read, join keys first."""
        times = ("event_timestamp", "created_timestamp")
        streams = ("stream",) if len(self.view.streams) > 1 else ()
        wanted = (name for name in self.outputs.values() if name != "age_seconds")
        return list(dict.fromkeys((*self.view.join_keys, *times, *streams, *wanted)))

    @property
    def schema(self) -> dict[str, pl.DataType]:
        """Output columns."""
        declared = feature_schema(self.view)
        return {output: DETAILS.get(source) or declared[source] for output, source in self.outputs.items()}

    @property
    def window(self) -> int:
        """Microseconds before an instant beyond which every version is older than any TTL."""
        return microseconds(clock_time(self.view.longest_ttl))


@dataclass(frozen=True)
class Rows:
    """Rows that have an answer: their positions in the caller's frame, keys, instants and instants of knowledge (microseconds)."""

    positions: Integers
    keys: pl.DataFrame
    instants: Integers
    knowledge: Integers


@dataclass(frozen=True)
class Answer:
    """Output columns for rows at `positions` of the caller's frame."""

    positions: Integers
    columns: pl.DataFrame


def askable(lookup: Lookup, entities: pl.DataFrame, now: int) -> Rows:
    """The rows of a checked entity frame that can see something.

    Those with a NULL key cannot, nor can those whose horizon ends after `now` (microseconds). Nothing is known later than now.
    """
    instants = entities["event_timestamp"].to_physical().to_numpy() + microseconds(lookup.horizon)
    knowledge = instants if lookup.as_of is None else entities[lookup.as_of].to_physical().to_numpy()
    keys = entities.select(lookup.view.join_keys)
    is_answerable = ~keys.select(pl.any_horizontal(pl.all().is_null())).to_series().to_numpy()
    if lookup.horizon:
        is_answerable &= instants <= now
    if not is_answerable.all():
        keys = keys.filter(is_answerable)
    positions = np.flatnonzero(is_answerable)
    return Rows(positions, keys, instants[positions], np.minimum(knowledge[positions], now))


def answers(
    lookup: Lookup, rows: Rows, snapshot: Snapshot, cache: ColumnarCache | None, *, streamed: bool | None = None
) -> Iterator[Answer]:
    """Answers for some of the rows at a time; a row that never comes sees nothing.

    `streamed` forces one of the engines; None takes the one that is estimated to be quicker.
    """
    if not rows.positions.size:
        return
    looking_up = rows.positions.size / ROWS_LOOKED_UP_PER_SECOND
    if streamed is False or (streamed is None and looking_up < STREAMING_SECONDS):
        yield from _looked_up(lookup, rows, snapshot)
        return
    distinct = {name: rows.keys[name].unique().to_list() for name in lookup.view.join_keys}
    history = History(snapshot, lookup.view, lookup.columns, distinct, cache)
    needed = history.needed(rows.instants, lookup.window)
    if streamed is None and looking_up < STREAMING_SECONDS + history.seconds(needed):
        yield from _looked_up(lookup, rows, snapshot)
    else:
        yield from _streamed(lookup, rows, history, needed)


def _looked_up(lookup: Lookup, rows: Rows, snapshot: Snapshot) -> Iterator[Answer]:
    for start in range(0, rows.positions.size, ROWS_PER_LOOK_UP):
        part = slice(start, start + ROWS_PER_LOOK_UP)
        instants = rows.instants[part]
        asked = rows.keys[part].with_columns(
            pl.Series("row", np.arange(instants.size), dtype=pl.Int64),
            as_instants(instants - lookup.window).alias("oldest"),
            as_instants(instants).alias("instant"),
            as_instants(rows.knowledge[part]).alias("knowledge"),
        )
        columns = [name for name in lookup.columns if name not in lookup.view.join_keys]
        # Neighbours in the index are looked up one after another.
        versions = snapshot.visible(lookup.view, columns, asked.sort(*lookup.view.join_keys, "instant"))
        found = np.full(instants.size, -1, np.int64)
        found[versions["row"].to_numpy()] = np.arange(versions.height)
        yield Answer(rows.positions[part], served(lookup, versions, found, instants))


def _streamed(lookup: Lookup, rows: Rows, history: History, needed: Sequence[Span]) -> Iterator[Answer]:
    """History in ascending time; rows are answered as soon as every version that they could see has come.

    What is kept for later rows is at most what could still win for one of them: of each key the version that is known to all of them, and
    those that are not known yet.
    """
    keys = [name for name in lookup.view.join_keys if name in history.columns]
    numbered = rows.keys.select(keys).unique().sort(keys).with_row_index("key") if keys else None
    row_keys = _key_numbers(rows.keys, numbered, keys)
    stretches = history.stretches(needed)
    starts = np.array([stretch[0].start for stretch in stretches], np.int64)
    stretch_of = np.searchsorted(starts, rows.instants, side="right") - 1
    least_knowledge = np.full(len(stretches) + 1, NEVER)
    np.minimum.at(least_knowledge, stretch_of + 1, rows.knowledge)
    least_knowledge = np.minimum.accumulate(least_knowledge[::-1])[::-1]
    kept: pl.DataFrame | None = None
    for number, stretch in enumerate(stretches):
        versions = history.read(stretch)
        versions = versions.with_columns(pl.Series("key", _key_numbers(versions, numbered, keys)))
        versions, order, ordered = _in_order(versions if kept is None else pl.concat([kept, versions]))
        whole = len(stretches) == 1 and bool((stretch_of == 0).all())
        mine = slice(None) if whole else np.flatnonzero(stretch_of == number)
        instants = rows.instants[mine]
        found = winners(ordered, Questions(row_keys[mine], instants, rows.knowledge[mine]))
        if order is not None:
            found = np.where(found < 0, -1, order[found])
        yield Answer(rows.positions[mine], served(lookup, versions, found, instants))
        if number + 1 < len(stretches):
            mask = carried(ordered, int(starts[number + 1]) - lookup.window, int(least_knowledge[number + 2]))
            kept = versions.filter(mask) if order is None else versions[order[mask]]


def _key_numbers(frame: pl.DataFrame, numbered: pl.DataFrame | None, keys: Sequence[str]) -> Integers:
    """Number of each row's key, -1 for one that nobody asked for."""
    if numbered is None:
        return np.zeros(frame.height, np.int64)
    found = frame.select(keys).join(numbered, on=keys, how="left", maintain_order="left")["key"]
    return found.cast(pl.Int64).fill_null(-1).to_numpy()


def _in_order(versions: pl.DataFrame) -> tuple[pl.DataFrame, Integers | None, Versions]:
    """Versions of numbered keys in one piece, their order by key number, event time and known-at (None: as they are), and that order's."""
    if (versions["key"] < 0).any():
        versions = versions.filter(pl.col("key") >= 0)
    versions = versions.rechunk()  # gathering from several chunks takes three times as long
    keys, event_times, known_at = (versions[name].to_physical().to_numpy() for name in ("key", "event_timestamp", "created_timestamp"))
    order = order_of(keys, event_times, known_at)
    if order is not None:
        keys, event_times, known_at = keys[order], event_times[order], known_at[order]
    return versions, order, Versions(keys, event_times, known_at)


def served(lookup: Lookup, versions: pl.DataFrame, found: Integers, instants: Integers) -> pl.DataFrame:
    """The output columns of each row from the version at its position in `found` (-1: none); NULL where none is within its TTL."""
    view = lookup.view
    if not versions.height:
        return pl.DataFrame({name: pl.repeat(None, found.size, dtype=dtype, eager=True) for name, dtype in lookup.schema.items()})
    # -1 takes the last version: it is set to NULL below, with those that are too old.
    event_times = versions["event_timestamp"].to_physical().to_numpy()[found]
    ages = instants - event_times
    limits = np.array([microseconds(view.ttl_of(stream)) for stream in view.streams])
    streams = _stream_numbers(view, versions)[found] if len(view.streams) > 1 else np.zeros(1, np.int64)
    wants_ages = "age_seconds" in lookup.outputs.values()
    # Open-market time is never longer than clock time: only what looks too old by the clock needs the calendar.
    is_doubtful = (ages >= limits[streams]) & (found >= 0)
    for number, stream in enumerate(view.streams):
        asked = np.flatnonzero((streams == number) & ((found >= 0) if wants_ages else is_doubtful))
        if asked.size:
            ages[asked] = _open_ages(stream.calendar, event_times[asked], instants[asked])
    is_served = (ages < limits[streams]) & (found >= 0)
    chosen = pl.Series(found, dtype=pl.Int64)
    if not is_served.all():
        chosen = chosen.set(pl.Series(~is_served), None)
    in_seconds = pl.Series(ages / 1e6).set(pl.Series(~is_served), None) if wants_ages else None
    return versions.select(
        (pl.col(source).gather(chosen) if in_seconds is None or source != "age_seconds" else pl.lit(in_seconds)).alias(output)
        for output, source in lookup.outputs.items()
    )


def _stream_numbers(view: FeatureView, versions: pl.DataFrame) -> Integers:
    """Number of each version's stream in the view; one that is not declared any more ages as the first, as it does online."""
    names = pl.Enum([stream.name for stream in view.streams])
    return versions["stream"].cast(names, strict=False).to_physical().cast(pl.Int64).fill_null(0).to_numpy()


def _open_ages(name: str, event_times: Integers, instants: Integers) -> Integers:
    """Open-market microseconds between two instants; beyond the calendar's range the market counts as closed."""
    market = calendar(name)
    low, high = market.table["window_start"][0], market.table["window_end"][-1]
    then, now = (market.open_microseconds(as_instants(times).clip(low, high)).to_numpy() for times in (event_times, instants))
    age: Integers = now - then
    return age
