"""Feature views: THE declaration from which table, asset, checks, online sync, freshness and documents are derived."""

from dataclasses import dataclass
from datetime import timedelta

from featurestore_dagster.errors import DeclarationError, UnknownNameError
from featurestore_dagster.model.entity import Entity
from featurestore_dagster.model.indicator import Feature
from featurestore_dagster.model.raw_table import Dataset
from featurestore_dagster.model.slo import SLO
from featurestore_dagster.model.time import Timeframe, cron_complaint

LONGEST_CLOSURE = timedelta(days=4)
"""Feast counts a TTL in clock time: the longest usual closure (a holiday weekend) is added to what it is told."""


@dataclass(frozen=True)
class Stream:
    """One market and timeframe of a view; one Dagster asset.

    `inputs` are the datasets it is computed from; the first one is its spine (its bars, or for snapshots its calendar, give the rows).
    `schedule` is a cron expression in the calendar's time zone.
    """

    name: str
    market: str
    calendar: str
    timeframe: Timeframe
    inputs: tuple[Dataset, ...]
    schedule: str


@dataclass(frozen=True)
class FeatureView:
    """Features of one entity kind with one SLO.

    `mart` names the dbt model that the view reads beside its inputs, if any. `version` changes when a formula does.
    """

    name: str
    description: str
    entities: tuple[Entity, ...]
    features: tuple[Feature, ...]
    streams: tuple[Stream, ...]
    slo: SLO
    ttl: timedelta
    group: str
    owner: str = "team:market-data"
    version: int = 1
    mart: str | None = None

    def __post_init__(self) -> None:
        """Refuse a declaration that contradicts itself."""
        names = [feature.name for feature in self.features]
        streams = [stream.name for stream in self.streams]
        duplicates = {name for part in (names, streams) for name in part if part.count(name) > 1} | (set(names) & set(self.join_keys))
        if duplicates:
            raise DeclarationError(f"view {self.name}: duplicate names {sorted(duplicates)}")
        if not names or not streams:
            raise DeclarationError(f"view {self.name}: needs at least one feature and one stream")
        if contradictions := self.slo.contradictions():
            raise DeclarationError(f"view {self.name}: {'; '.join(contradictions)}")
        if self.ttl < self.slo.max_lag:
            raise DeclarationError(f"view {self.name}: TTL {self.ttl} is below its SLO {self.slo.max_lag}; every value would expire early")
        for stream in self.streams:
            if complaint := cron_complaint(stream.schedule):
                raise DeclarationError(f"view {self.name}, stream {stream.name}: {complaint}")

    @property
    def join_keys(self) -> tuple[str, ...]:
        """Key columns, in declared order."""
        return tuple(entity.join_key for entity in self.entities)

    @property
    def look_back_bars(self) -> int:
        """Most bars that any feature needs before the current one."""
        return max(feature.look_back_bars for feature in self.features)

    @property
    def warm_up_bars(self) -> int:
        """Bars until every feature has a value."""
        return max(feature.warm_up_bars for feature in self.features)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Feature columns, in served order."""
        return tuple(feature.name for feature in self.features)

    @property
    def feast_ttl(self) -> timedelta:
        """TTL for tools that count clock time instead of open-market time."""
        return self.ttl + LONGEST_CLOSURE

    def feature(self, name: str) -> Feature:
        """The feature of this name.

        Raises:
            UnknownNameError: The view has none.
        """
        for feature in self.features:
            if feature.name == name:
                return feature
        raise UnknownNameError(f"feature of view {self.name}", name, self.feature_names)
