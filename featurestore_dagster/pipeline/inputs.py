"""What a stream is computed from: which rows of which inputs, read for a range, and which publications they came from.

Formulas belong to `compute`; auditing and publishing belong to `publication`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from itertools import pairwise

import polars as pl

from featurestore_dagster.calendars import Session, calendar
from featurestore_dagster.features.macro_series import BENCHMARK_BARS, BENCHMARKS, series_inputs
from featurestore_dagster.features.raw_tables import (
    COMPANY_FACTS,
    CORPORATE_ACTIONS,
    EVENTS,
    MACRO_OBSERVATIONS,
    POSITIONS,
    QUOTES,
    US_MACRO,
)
from featurestore_dagster.features.universe import CRYPTO, listings_of
from featurestore_dagster.indicators.sentiment import window
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.feature_view import FeatureView, Stream
from featurestore_dagster.model.indicator import Grain
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS, Dataset
from featurestore_dagster.model.time import Clock, Timeframe
from featurestore_dagster.pipeline.bars import adjusted_bars, flag_bars
from featurestore_dagster.pipeline.bitemporal import clock_time
from featurestore_dagster.pipeline.blocks.benchmark import PRICE
from featurestore_dagster.pipeline.blocks.facts import FIGURES
from featurestore_dagster.pipeline.blocks.observations import OBSERVATION_SCHEMA, benchmark_observations
from featurestore_dagster.pipeline.blocks.published import SETTLING
from featurestore_dagster.pipeline.blocks.sessions import USUAL_SESSIONS, with_session_columns
from featurestore_dagster.pipeline.compute import Frames, compute
from featurestore_dagster.pipeline.expectations import expected_rows
from featurestore_dagster.projections.postgres_table import feature_schema
from featurestore_dagster.projections.relation import stream_relation
from featurestore_dagster.stores.postgres import Ledger, PostgresStore

SPARE_BARS = 10
SPARE_SESSIONS = 3
"""History read beyond the look-back, so that a symbol with a few missing bars still has its windows."""

SHARES = "shares_outstanding"
"""Concept, and figure: a view that reads no other is not stale for an old statement."""

LONGEST_AGE = timedelta(days=8)
"""No quote, push or daily series is used that is older."""

BEGINNING = datetime(1900, 1, 1, tzinfo=UTC)

MART_COLUMNS: dict[str, pl.DataType] = {
    "series_id": pl.String(),
    "observation_date": pl.Date(),
    "event_timestamp": UTC_MICROSECONDS,
    "known_at": UTC_MICROSECONDS,
    "value": pl.Float64(),
    "flags": pl.Int64(),
    "batch_id": pl.Int64(),
}


@dataclass(frozen=True)
class Inputs:
    """Reads for computations, over one store."""

    catalogue: Catalogue
    store: PostgresStore
    ledger: Ledger
    clock: Clock

    def compute(
        self,
        view: FeatureView,
        stream: Stream,
        start: datetime,
        end: datetime,
        *,
        chunk_start: datetime,
        symbols: Sequence[str] | None = None,
    ) -> pl.DataFrame:
        """Feature rows with start < event time <= end, from the newest versions; see `compute.compute`.

        `symbols` restricts a stream that is computed symbol by symbol (see `is_by_symbol`) to these; their bits are the same.

        History is read from the anchor of the whole chunk on, whichever part is asked for: a recursive value depends on where it began.

        A snapshot holds what was known at its time. Between two restatements each bar has one version, so one read serves all snapshots
        between them.
        """
        now = self.clock.now()
        if stream.is_bar_by_bar:
            return compute(view, stream, self._frames(view, stream, chunk_start, end, now, symbols=symbols), start, end)
        every, at = self._snapshots(view, stream, start, min(end, max(start, now))), pl.col("event_timestamp")
        rows = [pl.DataFrame(schema=feature_schema(view))]
        for since, until in pairwise([BEGINNING, *self._restatements(view, stream, chunk_start, end, now), None]):
            as_of = until - timedelta(microseconds=1) if until else now
            snapshots = every.filter((at >= since) & ((at < until) if until else True))
            if not snapshots.is_empty():
                frames = self._frames(view, stream, chunk_start, end, as_of, snapshots=snapshots)
                rows.append(compute(view, stream, frames, start, end))
        return pl.concat(rows)

    def bars(
        self, dataset: Dataset, start: datetime, end: datetime, as_of: datetime | None = None, *, symbols: Sequence[str] | None = None
    ) -> pl.DataFrame:
        """Adjusted and flagged bars with start < event time <= end, of these symbols or of all; see `pipeline.bars`."""
        candles = self.read(dataset, start, end, as_of, symbols=symbols)
        known = self.actions(dataset.market, end, as_of)
        actions = self.store.previous_closes(dataset, known if symbols is None else known.filter(pl.col("symbol").is_in(list(symbols))))
        return flag_bars(adjusted_bars(candles, actions), dataset)

    def actions(self, market: str, end: datetime, as_of: datetime | None = None) -> pl.DataFrame:
        """Corporate actions of a market up to `end`, from the beginning."""
        found = [d for d in self.catalogue.datasets if d.market == market and d.table == CORPORATE_ACTIONS]
        return self.read(found[0], BEGINNING, end, as_of) if found else pl.DataFrame(schema=CORPORATE_ACTIONS.schema)

    def read(
        self,
        dataset: Dataset,
        start: datetime,
        end: datetime,
        as_of: datetime | None = None,
        *,
        all_versions: bool = False,
        symbols: Sequence[str] | None = None,
    ) -> pl.DataFrame:
        """Rows of a dataset, the catalogue's first source preferred; see `PostgresStore.read_raw`."""
        priority = [source.name for source in self.catalogue.sources if dataset in source.datasets]
        return self.store.read_raw(dataset, start, end, as_of=as_of, priority=priority, all_versions=all_versions, symbols=symbols)

    def publications(self, view: FeatureView, stream: Stream, calendar_name: str, keys: Sequence[str]) -> dict[str, dict[str, int]]:
        """Per partition: newest publication of each input relation that its computation can see, and newest batch of the mart.

        What a partition can see depends on the partition alone, not on what is computed with it.
        """
        market = calendar(calendar_name)
        sessions = [market.session(date.fromisoformat(key)) for key in keys]
        starts, ends = [session.window_start for session in sessions], [session.window_end for session in sessions]
        inputs: dict[str, dict[str, int]] = {key: {} for key in keys}
        for dataset in stream.inputs:
            name = f"raw.{dataset.name}"
            newest_writes = self.ledger.newest_writes(name, self._sinces(view, stream, dataset, starts), ends)
            if dataset.bars and any("adjustment_factor" in feature.input_columns for feature in view.features):
                # The cumulative factor holds every action since the beginning, and the closes before each.
                newest_writes = list(map(max, newest_writes, self._closes_before_actions(dataset, ends)))
            for key, newest in zip(keys, newest_writes, strict=True):
                inputs[key][name] = newest
        for member in view.members:
            since = [start - _reach(member, stream) for start in starts]
            settled = [end + SETTLING for end in ends]
            for name in (stream_relation(member, part).name for part in member.streams):
                for key, newest in zip(keys, self.ledger.newest_writes(name, since, settled), strict=True):
                    inputs[key][name] = newest
        if view.mart is not None:
            for key, batch in zip(keys, self.mart_batches(view.mart, ends), strict=True):
                inputs[key][f"marts.{view.mart}"] = batch
        return inputs

    def _closes_before_actions(self, dataset: Dataset, ends: Sequence[datetime]) -> list[int]:
        """For each of `ends` (ascending): newest publication of bars of a session that is the last one before a corporate action, or 0."""
        actions = self.actions(dataset.market, ends[-1])["event_timestamp"].unique()
        market = calendar(dataset.calendar)
        before = {market.previous_sessions(day, 1) for day in market.session_of(actions)}
        written = self.ledger.writes(f"raw.{dataset.name}", BEGINNING, ends[-1]).sort("last_event")
        relevant = written.filter(market.session_of(written["last_event"]).is_in(list(before)))
        newest = relevant.with_columns(pl.col("publication_id").cum_max())
        asked = pl.DataFrame({"end": ends}, schema={"end": UTC_MICROSECONDS})
        seen = asked.join_asof(newest, left_on="end", right_on="last_event", check_sortedness=False)
        return seen["publication_id"].fill_null(0).to_list()

    def mart_batches(self, mart: str, ends: Sequence[datetime]) -> list[int]:
        """For each of `ends` (ascending): newest batch of a mart with a row that was usable by then, or 0; 0 before dbt has built it."""
        if not self.store.has_mart(mart):
            return [0] * len(ends)
        batches = self.store.read_mart(mart, MART_COLUMNS).select(
            pl.max_horizontal("event_timestamp", "known_at").alias("usable"), "batch_id"
        )
        newest = batches.sort("usable").with_columns(pl.col("batch_id").cum_max())
        asked = pl.DataFrame({"end": ends}, schema={"end": UTC_MICROSECONDS})
        seen = asked.join_asof(newest, left_on="end", right_on="usable", check_sortedness=False)
        return seen["batch_id"].fill_null(0).to_list()

    def _frames(
        self,
        view: FeatureView,
        stream: Stream,
        start: datetime,
        end: datetime,
        as_of: datetime,
        *,
        snapshots: pl.DataFrame | None = None,
        symbols: Sequence[str] | None = None,
    ) -> Frames:
        listings = listings_of(self.catalogue, view, stream)
        owed = listings if symbols is None else {name: listings[name] for name in symbols if name in listings}

        def versions(dataset: Dataset | None) -> pl.DataFrame | None:
            if dataset is None:
                return None
            return self.read(dataset, self._since(view, stream, dataset, start), end, as_of, all_versions=True)

        def bars(dataset: Dataset | None) -> pl.DataFrame | None:
            return None if dataset is None else self.bars(dataset, self._since(view, stream, dataset, start), end, as_of, symbols=symbols)

        own, daily = stream.bars, stream.daily_bars
        own_bars = bars(own) if stream.is_bar_by_bar else None
        if own_bars is not None and _reads_sessions(view):
            own_bars = with_session_columns(own_bars, stream.calendar)
        grains = [Grain.DAILY, Grain.COMPLETED_DAYS, *([] if stream.is_bar_by_bar else [Grain.BARS])]
        needs_daily = any(view.by_grain[grain] for grain in grains)
        benchmark, substitute = self._benchmark(view, stream, start, end, as_of) if view.by_grain[Grain.BENCHMARK] else (None, False)
        facts = stream.input_of(COMPANY_FACTS.name)
        filings = versions(facts)
        if filings is not None and not _reads_statements(view):
            filings = filings.filter(pl.col("concept") == SHARES)
        splits = self.actions(facts.market, end, as_of).filter(pl.col("ratio").is_not_null()) if facts else pl.DataFrame()
        return Frames(
            snapshots=snapshots,
            bars=own_bars,
            daily=None if not needs_daily else own_bars if own is daily and own_bars is not None else bars(daily),
            benchmark=benchmark,
            is_substitute=substitute,
            observations=self._observations(view, stream, benchmark, start, end, as_of),
            events=versions(stream.input_of(EVENTS.name)),
            quotes=versions(stream.input_of(QUOTES.name)),
            facts=filings,
            positions=versions(stream.input_of(POSITIONS.name)),
            splits=splits,
            owed=tuple(owed.values()),
            now=self.clock.now(),
            published={member.name: self._published(member, stream, start, end) for member in view.members},
        )

    def _snapshots(self, view: FeatureView, stream: Stream, start: datetime, end: datetime) -> pl.DataFrame:
        """Rows to be: the bar ends of the stream's calendar, for each symbol that is listed then."""
        ends = calendar(stream.calendar).bar_ends(stream.timeframe, start, end)
        rows = expected_rows(stream.calendar, ends, listings_of(self.catalogue, view, stream).values()).drop("partition_key")
        return rows.with_columns(pl.lit(float(stream.market == CRYPTO)).alias("is_crypto"))

    def _benchmark(self, view: FeatureView, stream: Stream, start: datetime, end: datetime, as_of: datetime) -> tuple[pl.DataFrame, bool]:
        bars = self.bars(BENCHMARK_BARS, self._since(view, stream, BENCHMARK_BARS, start), end, as_of, symbols=BENCHMARKS)
        symbol = next((name for name in BENCHMARKS if name in set(bars["symbol"])), BENCHMARKS[0])
        return bars.filter(pl.col("symbol") == symbol), symbol != BENCHMARKS[0]

    def _observations(
        self, view: FeatureView, stream: Stream, benchmark: pl.DataFrame | None, start: datetime, end: datetime, as_of: datetime
    ) -> pl.DataFrame | None:
        """Vintages of the series that a view reads, from its mart and from series that no mart holds.

        The benchmark's closes too, for features that want both on the same days.
        """
        if view.mart is None:
            return None
        vintages = [self.store.read_mart(view.mart, MART_COLUMNS).drop("batch_id")]
        for dataset in stream.inputs:
            if dataset.table == MACRO_OBSERVATIONS and dataset != US_MACRO:
                rows = self.read(dataset, self._since(view, stream, dataset, start), end, as_of, all_versions=True)
                vintages.append(rows.select(vintages[0].columns))
        found = series_inputs(view).join(pl.concat(vintages), on="series_id", how="left").select(list(OBSERVATION_SCHEMA))
        if benchmark is not None and any(PRICE in feature.input_columns for feature in view.by_grain[Grain.OBSERVATIONS]):
            found = pl.concat([found, benchmark_observations(benchmark, PRICE)])
        return found

    def _published(self, member: FeatureView, stream: Stream, start: datetime, end: datetime) -> pl.DataFrame:
        return self.store.read_features(member, start - _reach(member, stream), end + SETTLING, all_versions=True)

    def _restatements(self, view: FeatureView, stream: Stream, start: datetime, end: datetime, now: datetime) -> list[datetime]:
        """Instants up to now at which the bars behind these snapshots changed backwards, ascending."""
        found: set[datetime] = set()
        if view.by_grain[Grain.BENCHMARK]:
            since = self._since(view, stream, BENCHMARK_BARS, start)
            found |= set(self.store.restatements(BENCHMARK_BARS, BENCHMARKS, since, end))
        if (daily := stream.daily_bars) is not None and daily is not BENCHMARK_BARS:
            since = self._since(view, stream, daily, start)
            found |= set(self.store.restatements(daily, list(self.catalogue.listings(daily)), since, end))
        return sorted(instant for instant in found if instant <= now)

    def _sinces(self, view: FeatureView, stream: Stream, dataset: Dataset, starts: Sequence[datetime]) -> list[datetime]:
        """`_since` of each start; for bars it is that of the whole chunk."""
        if not dataset.bars:
            return [self._since(view, stream, dataset, start) for start in starts]
        chunks = [_chunk_start(stream.calendar, stream.inputs[0].timeframe, start) for start in starts]
        known = {chunk: self._since(view, stream, dataset, chunk) for chunk in set(chunks)}
        return [known[chunk] for chunk in chunks]

    def _since(self, view: FeatureView, stream: Stream, dataset: Dataset, start: datetime) -> datetime:
        """From where on an input is read for rows after `start`: its chunk's anchor less the look-back of what is computed on it."""
        if dataset.table in (CORPORATE_ACTIONS, COMPANY_FACTS):
            return BEGINNING
        if dataset.table == EVENTS:
            return start - max((window(feature) for feature in view.by_grain[Grain.EVENTS]), default=timedelta(0)) - timedelta(days=1)
        if not dataset.bars:
            return start - LONGEST_AGE
        daily_grains = (Grain.DAILY, Grain.COMPLETED_DAYS, Grain.BENCHMARK)
        on_own = dataset is stream.bars and stream.is_bar_by_bar
        grains = [grain for grain in Grain if (grain in daily_grains and dataset.timeframe is Timeframe.ONE_DAY) or grain is Grain.BARS]
        if not on_own and stream.is_bar_by_bar:
            grains = [grain for grain in grains if grain is not Grain.BARS]
        look_back = max((feature.look_back_bars for grain in grains for feature in view.by_grain[grain]), default=0)
        anchor = _chunk_start(stream.calendar, stream.inputs[0].timeframe, start)
        since = bars_before(dataset.calendar, dataset.timeframe, anchor, look_back + SPARE_BARS)
        if on_own and _reads_sessions(view):
            market = calendar(dataset.calendar)
            return min(since, market.session(market.previous_sessions(anchor.date(), USUAL_SESSIONS + SPARE_SESSIONS)).window_start)
        return since


def is_by_symbol(view: FeatureView, stream: Stream) -> bool:
    """Whether a row is computed from its own symbol's bars, and beside them from nothing that grows with the number of symbols."""
    return stream.is_bar_by_bar and not view.members and all(d.bars or d.table == CORPORATE_ACTIONS for d in stream.inputs)


@lru_cache(maxsize=10_000)
def _chunk_start(calendar_name: str, timeframe: Timeframe, start: datetime) -> datetime:
    """Start of the first session of the chunk that holds the session which begins at `start`."""
    market = calendar(calendar_name)

    def owner(instant: datetime) -> Session:
        return market.session_at(instant + timedelta(microseconds=1))

    return min(owner(timeframe.anchor(owner(start).window_end)).window_start, start)


def _reach(member: FeatureView, stream: Stream) -> timedelta:
    """How far back a published value can lie that is within its TTL."""
    return max(clock_time(member.longest_ttl), stream.timeframe.duration)


def _reads_statements(view: FeatureView) -> bool:
    return any(name in FIGURES and name != SHARES for feature in view.by_grain[Grain.ROW] for name in feature.input_columns)


def _reads_sessions(view: FeatureView) -> bool:
    return any("session_volume" in name or "session_turnover" in name for f in view.by_grain[Grain.BARS] for name in f.input_columns)


@lru_cache(maxsize=10_000)
def bars_before(calendar_name: str, timeframe: Timeframe, instant: datetime, count: int) -> datetime:
    """The instant just before the last `count` bar ends of a calendar up to `instant`."""
    market = calendar(calendar_name)
    span = timeframe.duration * count * 2 + timedelta(days=10)
    while (ends := market.bar_ends(timeframe, instant - span, instant)).len() < count:
        if instant - span < BEGINNING + span:
            return BEGINNING
        span *= 2
    return ends[-count] - timedelta(microseconds=1)  # type: ignore[no-any-return]
