"""Feature services: ordered lists of view features that a model or a strategy asks for under one name."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from featurestore_dagster.errors import DeclarationError, UnknownNameError
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.model.indicator import Feature


@dataclass(frozen=True)
class FeatureService:
    """An ordered selection of features: `selection` holds (view, feature) names in order; all features of the views when empty.

    `version` changes with the selection or its order: it is what a model was trained on. A service whose vector can be normalised names
    the `standardised` features, which become (x - mean) / standard deviation of a frozen training range, and `bounds`: feature ->
    greatest absolute value, beyond which the normalised vector is clipped. Every other feature is left as stored.
    """

    name: str
    description: str
    views: tuple[FeatureView, ...]
    selection: tuple[tuple[str, str], ...] = ()
    version: int = 1
    standardised: tuple[str, ...] = ()
    bounds: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a normalisation of features that the vector does not have, or has twice."""
        names = [feature.name for _, feature in self.references]
        for name in (*self.standardised, *self.bounds):
            if names.count(name) != 1:
                raise DeclarationError(f"service {self.name} normalises {name!r}, which its vector holds {names.count(name)} times")
        if any(bound <= 0 for bound in self.bounds.values()):
            raise DeclarationError(f"service {self.name}: bounds {dict(self.bounds)} are not all positive")

    @property
    def references(self) -> tuple[tuple[FeatureView, Feature], ...]:
        """(view, feature) pairs in canonical order."""
        by_name = {view.label: view for view in self.views}
        for view, _ in self.selection:
            if view not in by_name:
                raise UnknownNameError(f"view of service {self.name}", view, by_name)
        if self.selection:
            return tuple((by_name[view], by_name[view].feature(feature)) for view, feature in self.selection)
        return tuple((view, feature) for view in self.views for feature in view.features)

    @property
    def is_online(self) -> bool:
        """Whether every feature can be read online: from Redis, or from Postgres for a superseded version."""
        return all(view.online or view.is_superseded for view in self.views)
