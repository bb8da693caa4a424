"""The write-audit-publish loop: partitions of a dataset or of a view's stream, chunk by chunk.

Each chunk is computed from its calendar anchor, audited, and published in one transaction, so that memory is bounded, a kill loses at
most one chunk, and the same inputs give the same bits in any order. Dagster does not belong here: it consumes the outcomes.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from featurestore_dagster.model.time import Clock
from featurestore_dagster.pipeline.audit import Audit, PartitionAudit, audit_dataset, audit_stream
from featurestore_dagster.pipeline.batch_checks import epoch_complaints
from featurestore_dagster.pipeline.inputs import Inputs, bars_before
from featurestore_dagster.pipeline.market_checks import SPLIT_LIKE
from featurestore_dagster.projections.relation import Relation, dataset_relation, stream_relation
from featurestore_dagster.stores.postgres import Ledger, PostgresStore, Publication

CHECK_CONTEXT_BARS = 65
"""Published bars before a chunk that the checks which look back may see at least: an outlier is judged by the 61 before it."""

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
        for chunk in self._chunks(relation, partitions):
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
            start, end = self._range(relation, changed)
            rows = self.inputs.compute(view, stream, start, end, chunk_start=self._range(relation, chunk)[0])
            keep = calendar(stream.calendar).session_of(rows["event_timestamp"]).cast(pl.String).is_in(changed)
            listings = listings_of(self.catalogue, view, stream)
            audit = audit_stream(view, stream, rows.filter(keep), changed, listings=listings, now=self.clock.now())
            yield from self._publish(relation, audit, changed, inputs, run_id, seconds=time.perf_counter() - began)

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
    ) -> Iterator[PartitionOutcome]:
        blocked = {key: [check.as_dict() for check in part.failed] for key, part in audit.partitions.items() if part.blocked}
        good = [key for key in chunk if key not in blocked]
        in_blocked = pl.col("partition_key").is_in(list(blocked))
        published: dict[str, Publication] = {}
        if good:
            refused = audit.quarantined.filter(~in_blocked)
            results = self.store.publish(
                relation, audit.rows, good, quarantined=refused, inputs=inputs, run_id=run_id, supersede=supersede, seconds=seconds
            )
            published = {publication.partition_key: publication for publication in results}
        if blocked:
            self.store.block(relation, blocked, audit.quarantined.filter(in_blocked), run_id)
        session = calendar(relation.calendar).session_of(audit.rows["event_timestamp"]).cast(pl.String).alias("session")
        parts = audit.rows.with_columns(session).partition_by("session", maintain_order=True, include_key=False, as_dict=True)
        rows = {str(key): part for (key,), part in parts.items()}
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
