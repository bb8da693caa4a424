"""The catalogue: all declarations of one deployment, looked up by name and checked against each other."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, Self, TypeVar

from featurestore_dagster.errors import DeclarationError, UnknownNameError
from featurestore_dagster.model.entity import Entity
from featurestore_dagster.model.feature_service import FeatureService
from featurestore_dagster.model.feature_view import FeatureView, Stream
from featurestore_dagster.model.indicator import Feature
from featurestore_dagster.model.raw_table import Dataset, RawTable
from featurestore_dagster.model.source import Listing, Source
from featurestore_dagster.model.units import Unit


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
            self.services,
        )
        names = [[item.name for item in family] for family in families]
        names.append([name for view in self.views for name in (view.label, *view.aliases)])
        for family in names:
            counts = Counter(family)
            duplicates = sorted(name for name, count in counts.items() if count > 1)
            if duplicates:
                raise DeclarationError(f"declared twice: {duplicates}")
        self._refuse_contradicting_versions()
        for view in self.views:
            for stream in view.streams:
                for dataset in stream.inputs:
                    if dataset not in self.datasets:
                        raise DeclarationError(f"view {view.name} reads dataset {dataset.name}, which is not in the catalogue")
        for service in self.services:
            for view, _ in service.references:
                if view not in self.views:
                    raise DeclarationError(f"service {service.name} refers to view {view.name}, which is not in the catalogue")

    def _refuse_contradicting_versions(self) -> None:
        newest = {view.name: view for view in self.views if not view.is_superseded}
        for old in self.views:
            new = newest.get(old.name)
            if new is None or (old.is_superseded and old.version >= new.version):
                raise DeclarationError(f"view {old.label} is superseded, but no newer version of {old.name} is declared")
            if old.join_keys != new.join_keys:
                raise DeclarationError(f"views {old.label} and {new.label}@{new.version}: the versions of a view share their keys")
            for name in set(old.feature_names) & set(new.feature_names):
                if (old.feature(name).indicator.unit is Unit.CODE) != (new.feature(name).indicator.unit is Unit.CODE):
                    raise DeclarationError(f"{old.label}:{name} and {new.label}:{name} need columns of different types: rename one")

    def view(self, name: str) -> FeatureView:
        """The newest view of this name or alias, or the version asked for as `name@version`.

        Raises:
            UnknownNameError: There is none.
        """
        if "@" in name:
            known = {f"{view.name}@{view.version}": view for view in self.views}
        else:
            known = {called: view for view in self.views for called in (view.label, *view.aliases) if not view.is_superseded}
        if name not in known:
            raise UnknownNameError("feature view", name, known)
        return known[name]

    def service(self, name: str) -> FeatureService:
        """The service of this name, or UnknownNameError."""
        return _find("feature service", name, self.services)

    def dataset(self, name: str) -> Dataset:
        """The dataset of this name, or UnknownNameError."""
        return _find("dataset", name, self.datasets)

    def source(self, name: str) -> Source:
        """The source of this name, or UnknownNameError."""
        return _find("source", name, self.sources)

    def with_sources(self, names: Iterable[str]) -> Self:
        """This catalogue with only the named sources, in its own order: what the others would deliver is not expected.

        Raises:
            UnknownNameError: A name is not a source's.
        """
        wanted = {self.source(name).name for name in names}
        return replace(self, sources=tuple(source for source in self.sources if source.name in wanted))

    def is_fed(self, stream: Stream) -> bool:
        """Whether a source delivers what gives the stream its rows.

        That is its first input and, where this is about no symbol, bars of the stream's own market: series alone make no instrument.
        """
        delivered = [dataset for source in self.sources for dataset in source.datasets]
        first = stream.inputs[0]
        return first in delivered and (
            "symbol" in first.table.key or any(dataset.bars and dataset.market == stream.market for dataset in delivered)
        )

    def references(self, names: Iterable[str]) -> tuple[tuple[FeatureView, Feature], ...]:
        """(view, feature) pairs of `view:feature` or `view@version:feature` references, in the order given.

        Raises:
            UnknownNameError: A reference has no such view or feature, or no colon.
        """
        pairs = []
        for name in names:
            view_name, colon, feature_name = name.partition(":")
            if not colon:
                everything = [f"{view.label}:{feature}" for view in self.views for feature in view.feature_names]
                alike = [reference for reference in everything if name in reference]
                raise UnknownNameError("feature reference (view:feature)", name, alike or everything)
            view = self.view(view_name)
            pairs.append((view, view.feature(feature_name)))
        return tuple(pairs)

    def listings(self, dataset: Dataset) -> Mapping[str, Listing]:
        """Expected symbols of a dataset over all of its sources; the widest range wins where sources overlap."""
        return self._listings.get(dataset.name, {})

    @cached_property
    def _listings(self) -> dict[str, dict[str, Listing]]:
        """Asked for at every evaluation of every stream, and a universe has tens of thousands of symbols."""
        merged: dict[str, dict[str, Listing]] = {}
        for source in self.sources:
            for name, listings in source.listings.items():
                known = merged.setdefault(name, {})
                for listing in listings:
                    wider = known.get(listing.symbol)
                    if wider is None or listing.first < wider.first:
                        known[listing.symbol] = listing
        return merged


def _find(kind: str, name: str, items: Iterable[Item]) -> Item:
    known = {item.name: item for item in items}
    if name not in known:
        raise UnknownNameError(kind, name, known)
    return known[name]
