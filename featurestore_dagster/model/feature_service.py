"""Feature services: ordered lists of view features that a model or a strategy asks for under one name."""

from dataclasses import dataclass

from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.model.indicator import Feature


@dataclass(frozen=True)
class FeatureService:
    """An ordered selection of features; `features` names per view which (all when empty)."""

    name: str
    description: str
    views: tuple[FeatureView, ...]
    selection: tuple[tuple[str, str], ...] = ()

    @property
    def references(self) -> tuple[tuple[FeatureView, Feature], ...]:
        """(view, feature) pairs in canonical order."""
        by_name = {view.name: view for view in self.views}
        if self.selection:
            return tuple((by_name[view], by_name[view].feature(feature)) for view, feature in self.selection)
        return tuple((view, feature) for view in self.views for feature in view.features)
