"""The catalogue: all declarations of one deployment, looked up by name and checked against each other."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from featurestore_dagster.errors import DeclarationError, UnknownNameError
from featurestore_dagster.model.entity import Entity
from featurestore_dagster.model.feature_service import FeatureService
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.model.indicator import Feature
from featurestore_dagster.model.raw_table import Dataset, RawTable
from featurestore_dagster.model.source import Listing, Source


class Named(Protocol):
    """Anything with a name."""

    @property
    def name(self) -> str:
        """Its unique name."""


Item = TypeVar("Item", bound=Named)


@dataclass(frozen=True)
class Catalogue:
    """Every declaration, validated as a whole."""

    entities: tuple[Entity, ...]
    raw_tables: tuple[RawTable, ...]
    datasets: tuple[Dataset, ...]
    sources: tuple[Source, ...]
    views: tuple[FeatureView, ...]
    services: tuple[FeatureService, ...]

    def __post_init__(self) -> None:
        """Refuse duplicate names, and references to what is not declared."""
        families: tuple[Iterable[Named], ...] = (
            self.entities,
            self.raw_tables,
            self.datasets,
            self.sources,
            self.views,
            self.services,
        )
        for family in families:
            counts = Counter(item.name for item in family)
            duplicates = sorted(name for name, count in counts.items() if count > 1)
            if duplicates:
                raise DeclarationError(f"declared twice: {duplicates}")
        for view in self.views:
            for stream in view.streams:
                for dataset in stream.inputs:
                    if dataset not in self.datasets:
                        raise DeclarationError(f"view {view.name} reads dataset {dataset.name}, which is not in the catalogue")
        for service in self.services:
            for view, _ in service.references:
                if view not in self.views:
                    raise DeclarationError(f"service {service.name} refers to view {view.name}, which is not in the catalogue")

    def view(self, name: str) -> FeatureView:
        """The view of this name, or UnknownNameError."""
        return _find("feature view", name, self.views)

    def service(self, name: str) -> FeatureService:
        """The service of this name, or UnknownNameError."""
        return _find("feature service", name, self.services)

    def dataset(self, name: str) -> Dataset:
        """The dataset of this name, or UnknownNameError."""
        return _find("dataset", name, self.datasets)

    def source(self, name: str) -> Source:
        """The source of this name, or UnknownNameError."""
        return _find("source", name, self.sources)

    def references(self, names: Iterable[str]) -> tuple[tuple[FeatureView, Feature], ...]:
        """(view, feature) pairs of `view:feature` references, in the order given.

        Raises:
            UnknownNameError: A reference has no such view or feature, or no colon.
        """
        pairs = []
        for name in names:
            view_name, _, feature_name = name.partition(":")
            view = self.view(view_name)
            pairs.append((view, view.feature(feature_name)))
        return tuple(pairs)

    def listings(self, dataset: Dataset) -> dict[str, Listing]:
        """Expected symbols of a dataset over all of its sources; the widest range wins where sources overlap."""
        merged: dict[str, Listing] = {}
        for source in self.sources:
            for listing in source.listings.get(dataset.name, ()):
                known = merged.get(listing.symbol)
                if known is None or listing.first < known.first:
                    merged[listing.symbol] = listing
        return merged


def _find(kind: str, name: str, items: Iterable[Item]) -> Item:
    known = {item.name: item for item in items}
    if name not in known:
        raise UnknownNameError(kind, name, known)
    return known[name]
