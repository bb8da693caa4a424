"""Which partitions of views were computed from something else than what is published now, looking at what was written lately.

`Pipeline.stale` compares a partition's inputs; here is found which partitions are worth comparing. Asking for runs does not belong here.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime

import polars as pl

from featurestore_dagster.calendars import calendar
from featurestore_dagster.features.raw_tables import US_MACRO
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.feature_view import FeatureView, Stream
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS
from featurestore_dagster.pipeline.blocks.published import SETTLING
from featurestore_dagster.pipeline.inputs import BEGINNING
from featurestore_dagster.pipeline.publication import Pipeline
from featurestore_dagster.projections.relation import Relation, dataset_relation, stream_relation
from featurestore_dagster.settings import PostgresSettings
from featurestore_dagster.stores.postgres import Ledger, PartitionState
from featurestore_dagster.stores.postgres.restatements import Restatements

END = datetime(2200, 1, 1, tzinfo=UTC)

MART_SOURCE = US_MACRO
"""What dbt builds the marts from."""


@dataclass(frozen=True)
class StaleStream:
    """Partitions of a stream, ascending, that must be computed again."""

    view: FeatureView
    stream: Stream
    partitions: tuple[str, ...]


@dataclass(frozen=True)
class Staleness:
    """One look at the ledger: it is read once, however many streams and partitions are asked about."""

    pipeline: Pipeline
    restatements: Restatements
    marts: dict[tuple[int, ...], pl.DataFrame] = field(default_factory=dict)

    @classmethod
    def of(cls, pipeline: Pipeline, restatements: Restatements) -> "Staleness":
        """Over the pipeline's stores."""
        return cls(replace(pipeline, ledger=_RememberingLedger(pipeline.ledger.settings)), restatements)

    def stream(self, view: FeatureView, stream: Stream, writes: pl.DataFrame) -> StaleStream | None:
        """What of a stream these writes (see `Restatements.writes`) made stale; None when nothing.

        Rows that were true of the market before the write are not touched. A partition without publication counts when bars of it were
        written; one that was blocked after the writes does not: its audit would refuse it again.
        """
        relation = stream_relation(view, stream)
        mine = writes.filter(pl.col("relation").is_in(sorted(reads(view, stream))))
        if mine.is_empty():
            return None
        market = calendar(relation.calendar)
        # A session that was published may have become a holiday since.
        states = {
            key: state
            for key, state in self.pipeline.ledger.partitions(relation.name).items()
            if market.is_session(date.fromisoformat(key))
        }
        read = mine.filter(pl.col("relation").is_in(sorted(reads(view, stream, mart=False))))
        wanted = self._touched(states, read) | self._new(relation, stream, states, read)
        found = set(self.pipeline.stale(view, stream, sorted(wanted))) if wanted else set()
        if view.mart is not None:
            found |= self._reading_mart(view.mart, states, mine)
        if found:
            found -= self.restatements.blocked_since(relation.name, mine["published_at"].max())  # type: ignore[arg-type]
        return StaleStream(view, stream, tuple(sorted(found))) if found else None

    @staticmethod
    def _touched(states: dict[str, PartitionState], writes: pl.DataFrame) -> set[str]:
        """Published partitions with rows at or after the first written row."""
        if writes.is_empty():
            return set()
        of_view = pl.col("relation").str.starts_with("features.")
        first = writes.select(pl.when(of_view).then(pl.col("first_event") - SETTLING).otherwise("first_event").min()).item()
        return {key for key, state in states.items() if state.max_event_timestamp is not None and state.max_event_timestamp >= first}

    @staticmethod
    def _new(relation: Relation, stream: Stream, states: dict[str, PartitionState], writes: pl.DataFrame) -> set[str]:
        """Sessions without rows of which bars were written."""
        spine = stream.inputs[0]
        bars = writes.filter(pl.col("relation") == dataset_relation(spine).name)
        if not spine.bars or bars.is_empty():
            return set()
        market = calendar(relation.calendar)
        # A publication is of one session of the bars' own calendar; of another one it may touch two.
        days = {*market.session_of(bars["first_event"]), *market.session_of(bars["last_event"])}
        keys = {day.isoformat() for day in days}
        return {key for key in keys if key not in states or not states[key].rows_total}

    def _reading_mart(self, mart: str, states: dict[str, PartitionState], writes: pl.DataFrame) -> set[str]:
        """Published partitions that could use rows which the mart will hold once dbt has built it."""
        batches = writes.filter(pl.col("relation") == dataset_relation(MART_SOURCE).name)["batch_id"].unique().sort()
        if batches.is_empty():
            return set()
        if tuple(batches) not in self.marts:
            self.marts[tuple(batches)] = self.restatements.usable_from(MART_SOURCE.table.name, batches.to_list()).sort("usable")
        newest = self.marts[tuple(batches)].with_columns(pl.col("batch_id").cum_max())
        published = [(key, state.max_event_timestamp, state.inputs.get(f"marts.{mart}", 0)) for key, state in states.items()]
        schema = {"key": pl.String(), "last_event": UTC_MICROSECONDS, "read": pl.Int64()}
        rows = pl.DataFrame(published, schema=schema, orient="row").drop_nulls("last_event").sort("last_event")
        able = rows.join_asof(newest, left_on="last_event", right_on="usable", check_sortedness=False)
        return set(able.filter(pl.col("read") < pl.col("batch_id"))["key"])


def reads(view: FeatureView, stream: Stream, *, mart: bool = True) -> set[str]:
    """Names of the relations that a stream is computed from; `mart` adds what its mart is built from."""
    names = {dataset_relation(dataset).name for dataset in stream.inputs}
    names |= {stream_relation(member, part).name for member in view.members for part in member.streams}
    return names | ({dataset_relation(MART_SOURCE).name} if mart and view.mart else set())


def dependents(catalogue: Catalogue, written: Collection[str]) -> list[str]:
    """Labels of the views that follow when rows of these relations are written, directly or by way of another view; in declared order."""
    streams = [(view, stream) for view in catalogue.views for stream in filter(catalogue.is_fed, view.streams)]
    changed = set(written)
    while more := {stream_relation(*pair).name for pair in streams if not changed.isdisjoint(reads(*pair))} - changed:
        changed |= more
    return list(dict.fromkeys(view.label for view, stream in streams if stream_relation(view, stream).name in changed - set(written)))


class _RememberingLedger(Ledger):
    """Reads what was written and published once per relation."""

    def __init__(self, settings: PostgresSettings) -> None:
        super().__init__(settings)
        self._writes: dict[str, pl.DataFrame] = {}
        self._partitions: dict[str, dict[str, PartitionState]] = {}

    def writes(self, relation: str, since: datetime, end: datetime) -> pl.DataFrame:
        if relation not in self._writes:
            self._writes[relation] = super().writes(relation, BEGINNING, END)
        return self._writes[relation].filter((pl.col("last_event") > since) & (pl.col("first_event") <= end))

    def partitions(self, relation: str, keys: Sequence[str] | None = None) -> dict[str, PartitionState]:
        if relation not in self._partitions:
            self._partitions[relation] = super().partitions(relation)
        known = self._partitions[relation]
        return known if keys is None else {key: known[key] for key in keys if key in known}
