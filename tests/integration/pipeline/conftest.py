"""A deployment of its own for each test: Postgres, a clock that the test moves, and sources that deliver what the test says."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest

from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.features.raw_tables import US_EQUITY_CORPORATE_ACTIONS
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS, Dataset
from featurestore_dagster.model.source import Source
from featurestore_dagster.pipeline.publication import PartitionOutcome, Pipeline
from featurestore_dagster.projections.relation import dataset_relation, stream_relation
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.postgres import Ledger, PostgresStore
from featurestore_dagster.stores.postgres.connection import connect
from tests.unit.pipeline.frames import EQUITIES, LISTED, frame

EVER = datetime(1990, 1, 3, tzinfo=UTC), datetime(2040, 1, 1, tzinfo=UTC)


@dataclass
class MovingClock:
    """Stands still until the test moves it."""

    instant: datetime = datetime(2018, 12, 31, 22, tzinfo=UTC)
    replayed: str | None = None

    def now(self) -> datetime:
        return self.instant

    def advance(self, **duration: float) -> datetime:
        self.instant += timedelta(**duration)
        return self.instant

    __hash__ = object.__hash__


@dataclass
class Deployment:
    """The pipeline over real Postgres; `delivered` is what the sources hand over."""

    settings: Settings
    catalogue: Catalogue
    clock: MovingClock = field(default_factory=MovingClock)
    delivered: dict[str, pl.DataFrame] = field(default_factory=dict)

    @property
    def store(self) -> PostgresStore:
        return PostgresStore(self.settings.postgres, self.clock)

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.settings.postgres)

    @property
    def pipeline(self) -> Pipeline:
        return Pipeline(self.catalogue, self.store, self.ledger, self.clock, self.fetch)

    def fetch(self, dataset: Dataset, start: datetime, end: datetime) -> pl.DataFrame:
        rows = self.delivered.get(dataset.name, pl.DataFrame(schema=dataset_relation(dataset).frame_schema))
        if rows.schema.get("event_timestamp") != UTC_MICROSECONDS:
            return rows
        inside = (pl.col("event_timestamp") > start) & (pl.col("event_timestamp") <= end)
        return rows.filter(inside | pl.col("event_timestamp").is_null())

    def deliver(self, rows: Iterable[Mapping[str, Any]] | pl.DataFrame, dataset: Dataset = EQUITIES) -> None:
        self.delivered[dataset.name] = rows if isinstance(rows, pl.DataFrame) else frame(rows, dataset)

    def ingest(self, *keys: str, dataset: Dataset = EQUITIES, run_id: str = "") -> list[PartitionOutcome]:
        return list(self.pipeline.ingest(dataset, keys, run_id))

    def enter_actions(self, *actions: Mapping[str, Any]) -> None:
        """Publish corporate actions."""
        rows = frame(actions, US_EQUITY_CORPORATE_ACTIONS)
        self.deliver(rows, US_EQUITY_CORPORATE_ACTIONS)
        days = sorted({when.date().isoformat() for when in rows["event_timestamp"]})
        assert not any(outcome.blocked for outcome in self.ingest(*days, dataset=US_EQUITY_CORPORATE_ACTIONS))

    def materialise(self, view: FeatureView, *keys: str, run_id: str = "") -> list[PartitionOutcome]:
        return list(self.pipeline.materialise(view, view.streams[0], keys, run_id))

    def bars(self, dataset: Dataset = EQUITIES, as_of: datetime | None = None) -> pl.DataFrame:
        """Published rows, as known now or then."""
        return self.store.read_raw(dataset, *EVER, as_of=as_of)

    def features(self, view: FeatureView, *, all_versions: bool = False) -> pl.DataFrame:
        return self.store.read_features(view, *EVER, all_versions=all_versions)

    def hashes(self, relation: FeatureView | Dataset) -> dict[str, str]:
        """Content hash by partition, as the ledger has it."""
        declared = dataset_relation(relation) if isinstance(relation, Dataset) else stream_relation(relation, relation.streams[0])
        return {key: state.content_hash for key, state in self.ledger.partitions(declared.name).items()}

    def query(self, text: str, *parameters: object) -> list[tuple[Any, ...]]:
        with connect(self.settings.postgres) as connection:
            return connection.execute(text, parameters).fetchall()  # type: ignore[arg-type]


def with_listings(listings: Mapping[str, Any]) -> Catalogue:
    """The catalogue, its equities delivered by one source that lists these symbols."""
    source = Source("files", "delivered by the test", datasets=CATALOGUE.datasets, listings={EQUITIES.name: tuple(listings.values())})
    return replace(CATALOGUE, sources=(source,))


@pytest.fixture
def deployment(fresh_database: Settings) -> Deployment:
    """Five symbols, AAA to EEE, nothing delivered yet."""
    return Deployment(fresh_database, with_listings(LISTED))
