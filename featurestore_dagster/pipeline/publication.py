"""The write-audit-publish loop: partitions of a dataset or of a view's stream, chunk by chunk.

Each chunk is computed from its calendar anchor, audited, and published in one transaction, so that a kill loses at most one chunk, and the
same inputs give the same bits in any order. Memory is bounded whatever the number of symbols: bars are fetched for fewer sessions at a
time, features computed for some of the symbols at a time. Dagster does not belong here: it consumes the outcomes.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import date, datetime
from itertools import groupby

import polars as pl

from featurestore_dagster.calendars import MarketCalendar, calendar
from featurestore_dagster.errors import RefusedError, UnknownPartitionError
from featurestore_dagster.features.raw_tables import CORPORATE_ACTIONS
from featurestore_dagster.features.universe import listings_of
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.feature_view import FeatureView, Stream
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS, Dataset
from featurestore_dagster.model.time import Clock, Timeframe
from featurestore_dagster.pipeline.audit import audit_dataset, audit_stream, judge_stream
from featurestore_dagster.pipeline.batch_checks import epoch_complaints
from featurestore_dagster.pipeline.inputs import Inputs, bars_before, is_by_symbol
from featurestore_dagster.pipeline.market_checks import SPLIT_LIKE
from featurestore_dagster.pipeline.spool import Spool
from featurestore_dagster.pipeline.verdict import Audit, Judged, PartitionAudit, verdicts, without
from featurestore_dagster.projections.relation import Relation, dataset_relation, stream_relation
from featurestore_dagster.stores.postgres import Ledger, PostgresStore, Publication

CHECK_CONTEXT_BARS = 65
"""Published bars before a chunk that the checks which look back may see at least: an outlier is judged by the 61 before it."""

ROWS_FETCHED = 2_000_000
"""Bars that are fetched and audited at a time, or those of one session if it has more."""

ROWS_COMPUTED = 1_000_000
"""Feature rows that are computed and judged at a time, or those of one symbol if it has more."""

GROUPS_AHEAD = 2

Fetch = Callable[[Dataset, datetime, datetime], pl.DataFrame]


@dataclass(frozen=True)
class PartitionOutcome:
    """What became of one partition. `publication` is None when it was blocked, or skipped because nothing had changed.

    `rows` are those of the first symbols only when the chunk was too large to be computed at once.
    """

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

    @property
    def inputs(self) -> Inputs:
        """What streams are computed from."""
        return Inputs(self.catalogue, self.store, self.ledger, self.clock)

    def ingest(self, dataset: Dataset, partitions: Sequence[str], run_id: str = "") -> Iterator[PartitionOutcome]:
        """Fetch, audit and publish partitions of a dataset, in calendar order; outcomes appear chunk by chunk.

        Raises:
            UnknownPartitionError: A key is not a session of the calendar.
            MalformedDataError: A source delivered what is not even a table; nothing of the chunk was published.
        """
        relation = dataset_relation(dataset)
        for chunk in self._fetched_together(dataset, partitions):
            began = time.perf_counter()
            start, end = self._range(relation, chunk)
            rows = self.fetch(dataset, start, end)
            timed = rows.schema.get("event_timestamp") == UTC_MICROSECONDS and not rows["event_timestamp"].null_count()
            if timed and not epoch_complaints(dataset, rows, self.clock.now()):
                rows = rows.filter(calendar(dataset.calendar).session_of(rows["event_timestamp"]).cast(pl.String).is_in(chunk))
            audit = self._audit_dataset(dataset, rows, chunk, start, end)
            yield from self._publish(relation, audit, chunk, {}, run_id, seconds=time.perf_counter() - began)

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
            began = time.perf_counter()
            inputs = self.inputs.publications(view, stream, relation.calendar, chunk)
            stale = self._stale(relation, inputs)
            changed = [key for key in chunk if key in blocked or key in stale]
            for key in chunk:
                if key not in changed:
                    yield PartitionOutcome(key, None, None, nothing)
            if not changed:
                continue
            chunk_start, parts = self._range(relation, chunk)[0], None
            with Spool() as spool:
                if groups := self._symbol_groups(view, stream, relation, changed):
                    audit, parts = self._audit_groups(view, stream, changed, chunk_start, groups, spool)
                else:
                    rows, listings = self._computed(view, stream, changed, chunk_start), listings_of(self.catalogue, view, stream)
                    audit = audit_stream(view, stream, rows, changed, listings=listings, now=self.clock.now())
                yield from self._publish(relation, audit, changed, inputs, run_id, parts=parts, seconds=time.perf_counter() - began)

    def _computed(
        self, view: FeatureView, stream: Stream, changed: Sequence[str], chunk_start: datetime, symbols: Sequence[str] | None = None
    ) -> pl.DataFrame:
        """Feature rows of these partitions of a chunk."""
        market, (start, end) = calendar(stream.calendar), self._range(stream_relation(view, stream), changed)
        rows = self.inputs.compute(view, stream, start, end, chunk_start=chunk_start, symbols=symbols)
        if market.sessions(date.fromisoformat(changed[0]), date.fromisoformat(changed[-1])).height == len(changed):
            return rows
        return rows.filter(market.session_of(rows["event_timestamp"]).cast(pl.String).is_in(list(changed)))

    def _symbol_groups(self, view: FeatureView, stream: Stream, relation: Relation, changed: Sequence[str]) -> list[list[str]]:
        """Symbols that are computed together; no group when all of them are."""
        listed = listings_of(self.catalogue, view, stream)
        rows = self._rows_of_symbol(stream.inputs[0], relation, changed)
        if stream.bars is None or not is_by_symbol(view, stream) or rows * len(listed) <= ROWS_COMPUTED:
            return []
        symbols = sorted({*listed, *self.store.symbols(stream.bars)})
        size = max(1, ROWS_COMPUTED // rows)
        return [symbols[first : first + size] for first in range(0, len(symbols), size)]

    def _audit_groups(
        self,
        view: FeatureView,
        stream: Stream,
        changed: Sequence[str],
        chunk_start: datetime,
        groups: Sequence[Sequence[str]],
        spool: Spool,
    ) -> tuple[Audit, Iterable[pl.DataFrame]]:
        """The verdict on all groups, with the good rows of the first; and those of each, to be read once while the spool is there."""
        relation, listings = stream_relation(view, stream), listings_of(self.catalogue, view, stream)
        judged: list[Judged] = []
        first = pl.DataFrame(schema=relation.frame_schema)
        # The server reads one group while another is computed and a third is judged.
        with ThreadPoolExecutor(GROUPS_AHEAD) as ahead:
            waiting = [ahead.submit(self._computed, view, stream, changed, chunk_start, symbols) for symbols in groups[:GROUPS_AHEAD]]
            for number, symbols in enumerate(groups):
                rows = waiting.pop(0).result()
                if number + GROUPS_AHEAD < len(groups):
                    waiting.append(ahead.submit(self._computed, view, stream, changed, chunk_start, groups[number + GROUPS_AHEAD]))
                owed = {symbol: listings[symbol] for symbol in symbols if symbol in listings}
                part = judge_stream(view, stream, rows, changed, listings=owed, now=self.clock.now())
                if isinstance(part, Audit):  # no frame of the view: no group is
                    return part, ()
                first = first if judged else part.rows
                spool.append(part.rows)
                judged.append(replace(part, rows=part.rows.clear()))
        audits = verdicts(relation, judged, changed, {}, stream.inputs[0].quarantine_limit)
        blocked = [key for key, audit in audits.items() if audit.blocked]
        quarantined = pl.concat([part.quarantined for part in judged])
        return Audit(without(relation, first, blocked), quarantined, audits), (without(relation, rows, blocked) for rows in spool)

    def stale(self, view: FeatureView, stream: Stream, partitions: Sequence[str]) -> list[str]:
        """Those of these partitions, ascending, that were never published, or from other inputs or by other code than the present ones.

        Raises:
            UnknownPartitionError: A key is not a session of the calendar.
        """
        relation = stream_relation(view, stream)
        keys = [key for chunk in self._chunks(relation, partitions) for key in chunk]
        stale = self._stale(relation, self.inputs.publications(view, stream, relation.calendar, keys)) if keys else set()
        return [key for key in keys if key in stale]

    def _stale(self, relation: Relation, inputs: Mapping[str, dict[str, int]]) -> set[str]:
        states = self.ledger.partitions(relation.name, list(inputs))
        return {
            key
            for key, present in inputs.items()
            if key not in states or (states[key].inputs, states[key].code_version) != (present, relation.code_version)
        }

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

    def _fetched_together(self, dataset: Dataset, partitions: Sequence[str]) -> Iterator[list[str]]:
        """Chunks, cut further where a fetch would be too large."""
        relation, symbols = dataset_relation(dataset), max(1, len(self.catalogue.listings(dataset)))
        for chunk in self._chunks(relation, partitions):
            rows = self._rows_of_symbol(dataset, relation, chunk[:1]) * symbols if dataset.bars else 1
            size = max(1, ROWS_FETCHED // max(1, rows))
            yield from (chunk[first : first + size] for first in range(0, len(chunk), size))

    def _rows_of_symbol(self, spine: Dataset, relation: Relation, chunk: Sequence[str]) -> int:
        """Bars that one symbol is owed in these partitions, about."""
        if relation.timeframe is Timeframe.ONE_DAY:
            return len(chunk)
        start, end = self._range(relation, chunk[:1])
        return len(chunk) * max(1, calendar(spine.calendar).bar_ends(relation.timeframe, start, end).len())

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
        seconds: float | None = None,
        parts: Iterable[pl.DataFrame] | None = None,
    ) -> Iterator[PartitionOutcome]:
        blocked = audit.blocked
        good = [key for key in chunk if key not in blocked]
        in_blocked = pl.col("partition_key").is_in(list(blocked))
        published: dict[str, Publication] = {}
        if good:
            refused = audit.quarantined.filter(~in_blocked)
            rows = audit.rows if parts is None else parts
            results = self.store.publish(
                relation, rows, good, quarantined=refused, inputs=inputs, run_id=run_id, supersede=supersede, seconds=seconds
            )
            published = {publication.partition_key: publication for publication in results}
        if blocked:
            self.store.block(relation, blocked, audit.quarantined.filter(in_blocked), run_id)
        session = calendar(relation.calendar).session_of(audit.rows["event_timestamp"]).cast(pl.String).alias("session")
        by_session = audit.rows.with_columns(session).partition_by("session", maintain_order=True, include_key=False, as_dict=True)
        of_key = {str(key): part for (key,), part in by_session.items()}
        nothing = audit.rows.clear()
        for key in chunk:
            yield PartitionOutcome(key, audit.partitions[key], published.get(key), of_key.get(key, nothing))

    # Inputs ---------------------------------------------------------------------------------------------------------------------------

    def _audit_dataset(
        self, dataset: Dataset, rows: pl.DataFrame, chunk: Sequence[str], start: datetime, end: datetime, *, whole: bool = True
    ) -> Audit:
        context = pl.DataFrame(schema=dataset.table.schema)
        actions = jumped = pl.DataFrame(schema=CORPORATE_ACTIONS.schema)
        if dataset.bars:
            market = calendar(dataset.calendar)
            session_before = market.session(market.previous_sessions(date.fromisoformat(chunk[0]), 1)).window_start
            since = min(bars_before(dataset.calendar, dataset.timeframe, start, CHECK_CONTEXT_BARS), session_before)
            spans = [(since, start), (end, market.next_bar_end(dataset.timeframe, end))]
            context = pl.concat([self.inputs.read(dataset, *span) for span in spans])
            actions = self.inputs.actions(dataset.market, end)
            jumped = self.ledger.first_refused(dataset_relation(dataset).name, SPLIT_LIKE, before=chunk[0])
        return audit_dataset(
            dataset,
            rows,
            chunk,
            context=context,
            actions=actions,
            jumped=jumped,
            listings=self.catalogue.listings(dataset),
            now=self.clock.now(),
            priority=[source.name for source in self.catalogue.sources if dataset in source.datasets],
            null_history=self.ledger.null_shares(dataset_relation(dataset).name, chunk[0]),
            whole=whole,
        )


def _is_session(market: MarketCalendar, key: str) -> bool:
    try:
        return market.is_session(date.fromisoformat(key))
    except ValueError:
        return False
