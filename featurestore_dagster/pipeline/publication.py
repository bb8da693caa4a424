"""The write-audit-publish loop: partitions of a dataset or of a view's stream, chunk by chunk.

Each chunk is computed from its calendar anchor, audited, and published in one transaction, so that memory is bounded, a kill loses at
most one chunk, and the same inputs give the same bits in any order. Dagster does not belong here: it consumes the outcomes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import groupby, pairwise

import polars as pl

from featurestore_dagster.calendars import MarketCalendar, calendar
from featurestore_dagster.errors import ConfigurationError, RefusedError, UnknownPartitionError
from featurestore_dagster.features.macro_series import BENCHMARKS, series_of
from featurestore_dagster.features.raw_tables import CORPORATE_ACTIONS
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.feature_view import FeatureView, Stream
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS, Dataset
from featurestore_dagster.model.time import Clock, Timeframe
from featurestore_dagster.pipeline.audit import Audit, PartitionAudit, audit_dataset, audit_stream
from featurestore_dagster.pipeline.bars import adjusted_bars, flag_bars
from featurestore_dagster.pipeline.compute import compute_bars, compute_snapshots
from featurestore_dagster.pipeline.market_checks import SPLIT_LIKE
from featurestore_dagster.projections.postgres_table import feature_schema
from featurestore_dagster.projections.relation import Relation, dataset_relation, stream_relation
from featurestore_dagster.stores.postgres import Ledger, PostgresStore, Publication

SPARE_BARS = 10
"""History read beyond the look-back, so that a symbol with a few missing bars still has its windows."""

CHECK_CONTEXT_BARS = 25
"""Published bars before a chunk that the checks which look back may see."""

BEGINNING = datetime(1900, 1, 1, tzinfo=UTC)

Fetch = Callable[[Dataset, datetime, datetime], pl.DataFrame]


@dataclass(frozen=True)
class PartitionOutcome:
    """What became of one partition. `publication` is None when it was blocked, or skipped because nothing had changed."""

    partition_key: str
    audit: PartitionAudit | None
    publication: Publication | None
    rows: pl.DataFrame

    @property
    def blocked(self) -> bool:
        """Whether the audit refused it."""
        return self.audit is not None and self.audit.blocked

    @property
    def unchanged(self) -> bool:
        """Whether nothing was written."""
        return not self.blocked and (self.publication is None or self.publication.rows_published == 0)


@dataclass(frozen=True)
class Pipeline:
    """What the loops need; `fetch(dataset, start, end)` returns what the sources have for start < event time <= end."""

    catalogue: Catalogue
    store: PostgresStore
    ledger: Ledger
    clock: Clock
    fetch: Fetch

    def ingest(self, dataset: Dataset, partitions: Sequence[str], run_id: str = "") -> Iterator[PartitionOutcome]:
        """Fetch, audit and publish partitions of a dataset, in calendar order; outcomes appear chunk by chunk.

        Raises:
            UnknownPartitionError: A key is not a session of the calendar.
            MalformedDataError: A source delivered what is not even a table; nothing of the chunk was published.
        """
        relation = dataset_relation(dataset)
        for chunk in self._chunks(relation, partitions):
            start, end = self._range(relation, chunk)
            rows = self.fetch(dataset, start, end)
            if rows.schema.get("event_timestamp") == UTC_MICROSECONDS and not rows["event_timestamp"].null_count():
                rows = rows.filter(calendar(dataset.calendar).session_of(rows["event_timestamp"]).cast(pl.String).is_in(chunk))
            yield from self._publish(relation, self._audit_dataset(dataset, rows, chunk, start, end), chunk, {}, run_id)

    def materialise(self, view: FeatureView, stream: Stream, partitions: Sequence[str], run_id: str = "") -> Iterator[PartitionOutcome]:
        """Compute, audit and publish partitions of a stream, in calendar order.

        A partition whose inputs and code are those of its last publication is skipped.

        Raises:
            UnknownPartitionError: A key is not a session of the calendar.
        """
        relation = stream_relation(view, stream)
        blocked = {key for _, key in self.ledger.blocked(relation.name)}
        nothing = pl.DataFrame(schema=relation.frame_schema)
        for chunk in self._chunks(relation, partitions):
            history = self._history_start(view, stream, self._range(relation, chunk)[0])
            inputs = self._inputs(view, stream, relation, chunk, history)
            states = self.ledger.partitions(relation.name, chunk)
            changed = [
                key
                for key in chunk
                if key in blocked
                or key not in states
                or (states[key].inputs, states[key].code_version) != (inputs[key], relation.code_version)
            ]
            for key in chunk:
                if key not in changed:
                    yield PartitionOutcome(key, None, None, nothing)
            if not changed:
                continue
            start, end = self._range(relation, changed)
            rows = self._compute(view, stream, history, start, end)
            keep = calendar(stream.calendar).session_of(rows["event_timestamp"]).cast(pl.String).is_in(changed)
            listings = self.catalogue.listings(stream.inputs[0])
            audit = audit_stream(view, stream, rows.filter(keep), changed, listings=listings, now=self.clock.now())
            yield from self._publish(relation, audit, changed, inputs, run_id)

    def replay(self, dataset: Dataset, rows: pl.DataFrame, run_id: str = "") -> Iterator[PartitionOutcome]:
        """Audit quarantined rows of a dataset again, with what is known now, and publish those that pass.

        Args:
            dataset: Where they belong.
            rows: Canonical schema without `ingested_at`.
            run_id: Who asked.

        Raises:
            RefusedError: A partition is blocked; nothing was done.
        """
        relation = dataset_relation(dataset)
        partitions = sorted(set(calendar(dataset.calendar).session_of(rows["event_timestamp"]).cast(pl.String)))
        if blocked := [key for _, key in self.ledger.blocked(relation.name) if key in partitions]:
            raise RefusedError(
                f"{relation.name}: {blocked} are blocked, so their good rows are not published either; mend what the source delivers and "
                "materialise them again"
            )
        for chunk in self._chunks(relation, partitions):
            start, end = self._range(relation, chunk)
            inside = rows.filter((pl.col("event_timestamp") > start) & (pl.col("event_timestamp") <= end))
            # The partition's other rows are published already: completeness was judged when they were.
            audit = self._audit_dataset(dataset, inside, chunk, start, end, whole=False)
            yield from self._publish(relation, audit, chunk, {}, run_id, supersede=False)

    # Chunks ---------------------------------------------------------------------------------------------------------------------------

    def _chunks(self, relation: Relation, partitions: Sequence[str]) -> Iterator[list[str]]:
        market = calendar(relation.calendar)
        for key in partitions:
            if not _is_session(market, key):
                raise UnknownPartitionError(
                    f"{relation.name}: {key!r} is no session of calendar {relation.calendar} (a date such as 2018-12-31); nothing was done"
                )

        def anchor(key: str) -> datetime:
            return relation.timeframe.anchor(market.session(date.fromisoformat(key)).window_end)

        for _, keys in groupby(sorted(set(partitions)), anchor):
            yield list(keys)

    @staticmethod
    def _range(relation: Relation, chunk: Sequence[str]) -> tuple[datetime, datetime]:
        market = calendar(relation.calendar)
        return market.session(date.fromisoformat(chunk[0])).window_start, market.session(date.fromisoformat(chunk[-1])).window_end

    def _publish(
        self,
        relation: Relation,
        audit: Audit,
        chunk: Sequence[str],
        inputs: dict[str, dict[str, int]],
        run_id: str,
        *,
        supersede: bool = True,
    ) -> Iterator[PartitionOutcome]:
        blocked = {key: [check.as_dict() for check in part.failed] for key, part in audit.partitions.items() if part.blocked}
        good = [key for key in chunk if key not in blocked]
        in_blocked = pl.col("partition_key").is_in(list(blocked))
        published: dict[str, Publication] = {}
        if good:
            refused = audit.quarantined.filter(~in_blocked)
            results = self.store.publish(relation, audit.rows, good, quarantined=refused, inputs=inputs, run_id=run_id, supersede=supersede)
            published = {publication.partition_key: publication for publication in results}
        if blocked:
            self.store.block(relation, blocked, audit.quarantined.filter(in_blocked), run_id)
        labels = calendar(relation.calendar).session_of(audit.rows["event_timestamp"]).cast(pl.String)
        rows = {str(key): part for (key,), part in audit.rows.group_by(labels.alias("session"), maintain_order=True)}
        nothing = audit.rows.clear()
        for key in chunk:
            yield PartitionOutcome(key, audit.partitions[key], published.get(key), rows.get(key, nothing))

    # Inputs ---------------------------------------------------------------------------------------------------------------------------

    def _audit_dataset(
        self, dataset: Dataset, rows: pl.DataFrame, chunk: Sequence[str], start: datetime, end: datetime, *, whole: bool = True
    ) -> Audit:
        context = pl.DataFrame(schema=dataset.table.schema)
        actions = jumped = pl.DataFrame(schema=CORPORATE_ACTIONS.schema)
        if dataset.bars:
            context = self._read(dataset, self._bars_before(dataset.calendar, dataset.timeframe, start, CHECK_CONTEXT_BARS), start)
            actions = self._actions(dataset.market, end)
            jumped = self.ledger.first_refused(dataset_relation(dataset).name, SPLIT_LIKE, before=chunk[0])
        listings, now = self.catalogue.listings(dataset), self.clock.now()
        return audit_dataset(dataset, rows, chunk, context=context, actions=actions, jumped=jumped, listings=listings, now=now, whole=whole)

    def _compute(self, view: FeatureView, stream: Stream, history: datetime, start: datetime, end: datetime) -> pl.DataFrame:
        spine = stream.inputs[0]
        if view.mart is None:
            return compute_bars(view, stream, self._bars(spine, history, end), start, end)
        now, observations = self.clock.now(), self._observations(view)
        instants = calendar(stream.calendar).bar_ends(stream.timeframe, start, min(end, max(start, now)))
        # A snapshot holds what was known at its time. Between two restatements each bar has one version, so one read serves all of them.
        restated = [instant for instant in self.store.restatements(spine, BENCHMARKS, history, end) if instant <= now]
        rows = [pl.DataFrame(schema=feature_schema(view))]
        for since, until in pairwise([BEGINNING, *restated, None]):
            snapshots = instants.filter((instants >= since) & ((instants < until) if until else True))
            if snapshots.is_empty():
                continue
            bars = self._bars(spine, history, end, as_of=until - timedelta(microseconds=1) if until else now)
            symbol = next((name for name in BENCHMARKS if name in set(bars["symbol"])), BENCHMARKS[0])
            benchmark, is_substitute = bars.filter(pl.col("symbol") == symbol), symbol != BENCHMARKS[0]
            rows.append(compute_snapshots(view, stream, snapshots, benchmark, observations, is_substitute=is_substitute))
        return pl.concat(rows)

    def _bars(self, dataset: Dataset, start: datetime, end: datetime, as_of: datetime | None = None) -> pl.DataFrame:
        candles = self._read(dataset, start, end, as_of)
        actions = self.store.previous_closes(dataset, self._actions(dataset.market, end, as_of))
        return flag_bars(adjusted_bars(candles, actions), dataset)

    def _observations(self, view: FeatureView) -> pl.DataFrame:
        series = series_of(view)
        mapping = pl.DataFrame(
            [(item.series_id, item.column, item.maximum_age_days) for item in series],
            schema={"series_id": pl.String, "column": pl.String, "maximum_age_days": pl.Int64},
            orient="row",
        )
        return self._mart(view).join(mapping, on="series_id")

    def _mart(self, view: FeatureView) -> pl.DataFrame:
        columns = {
            "series_id": pl.String(), "observation_date": pl.Date(), "event_timestamp": UTC_MICROSECONDS, "known_at": UTC_MICROSECONDS,
            "value": pl.Float64(), "batch_id": pl.Int64(),
        }  # fmt: skip
        if view.mart is None:
            raise ConfigurationError(f"view {view.name} reads no mart")
        return self.store.read_mart(view.mart, columns)

    def _actions(self, market: str, end: datetime, as_of: datetime | None = None) -> pl.DataFrame:
        found = [d for d in self.catalogue.datasets if d.market == market and d.table == CORPORATE_ACTIONS]
        if not found:
            return pl.DataFrame(schema=CORPORATE_ACTIONS.schema)
        return self._read(found[0], BEGINNING, end, as_of)

    def _read(self, dataset: Dataset, start: datetime, end: datetime, as_of: datetime | None = None) -> pl.DataFrame:
        priority = [source.name for source in self.catalogue.sources if dataset in source.datasets]
        return self.store.read_raw(dataset, start, end, as_of=as_of, priority=priority)

    def _history_start(self, view: FeatureView, stream: Stream, start: datetime) -> datetime:
        spine = stream.inputs[0]
        return self._bars_before(spine.calendar, spine.timeframe, spine.timeframe.anchor(start), view.look_back_bars + SPARE_BARS)

    @staticmethod
    def _bars_before(calendar_name: str, timeframe: Timeframe, instant: datetime, count: int) -> datetime:
        market = calendar(calendar_name)
        span = timeframe.duration * count * 2 + timedelta(days=10)
        while (ends := market.bar_ends(timeframe, instant - span, instant)).len() < count:
            if instant - span < BEGINNING + span:
                return BEGINNING
            span *= 2
        return ends[-count] - timedelta(microseconds=1)  # type: ignore[no-any-return]

    def _inputs(
        self, view: FeatureView, stream: Stream, relation: Relation, chunk: Sequence[str], history: datetime
    ) -> dict[str, dict[str, int]]:
        """Per partition: newest publication of each input relation that its computation can see, and newest batch of the mart."""
        market = calendar(relation.calendar)
        ends = [market.session(date.fromisoformat(key)).window_end for key in chunk]
        inputs: dict[str, dict[str, int]] = {key: {} for key in chunk}
        for dataset in stream.inputs:
            # The cumulative factor holds every action since the beginning, and the closes before each.
            cumulative = dataset.table == CORPORATE_ACTIONS or any("adjustment_factor" in f.input_columns for f in view.features)
            since = BEGINNING if cumulative else history
            name = f"raw.{dataset.name}"
            for key, newest in zip(chunk, self.ledger.newest_writes(name, since, ends), strict=True):
                inputs[key][name] = newest
        if view.mart is not None:
            batches = self._mart(view).select(pl.max_horizontal("event_timestamp", "known_at").alias("usable"), "batch_id").sort("usable")
            newest_batch = batches.with_columns(pl.col("batch_id").cum_max())
            seen = pl.DataFrame({"end": ends}, schema={"end": UTC_MICROSECONDS}).join_asof(
                newest_batch, left_on="end", right_on="usable", check_sortedness=False
            )
            for key, batch in zip(chunk, seen["batch_id"].fill_null(0), strict=True):
                inputs[key][f"marts.{view.mart}"] = batch
        return inputs


def _is_session(market: MarketCalendar, key: str) -> bool:
    try:
        return market.is_session(date.fromisoformat(key))
    except ValueError:
        return False
