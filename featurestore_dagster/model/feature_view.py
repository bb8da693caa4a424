"""Feature views: THE declaration from which table, asset, checks, online sync, freshness and documents are derived."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property

from featurestore_dagster.errors import DeclarationError, UnknownNameError
from featurestore_dagster.model.entity import Entity
from featurestore_dagster.model.indicator import Feature, Grain
from featurestore_dagster.model.raw_table import Dataset
from featurestore_dagster.model.slo import SLO
from featurestore_dagster.model.time import Timeframe, cron_complaint

LONGEST_CLOSURE = timedelta(days=4)
"""Feast counts a TTL in clock time: the longest usual closure (a holiday weekend) is added to what it is told."""


@dataclass(frozen=True)
class Stream:
    """One market and timeframe of a view; one Dagster asset.

    `inputs` are the datasets it is computed from. When the first one has bars of the stream's timeframe, each is a row; else the rows are
    snapshots at the bar ends of the calendar, of the market's instruments. `schedule` is a cron expression in the calendar's time zone.
    `slo` and `ttl` are given where they differ from the view's.
    """

    name: str
    market: str
    calendar: str
    timeframe: Timeframe
    inputs: tuple[Dataset, ...]
    schedule: str
    slo: SLO | None = None
    ttl: timedelta | None = None

    @property
    def bars(self) -> Dataset | None:
        """The input whose bars have the stream's own timeframe."""
        return self._candles(self.timeframe)

    @property
    def daily_bars(self) -> Dataset | None:
        """The input with daily bars."""
        return self._candles(Timeframe.ONE_DAY)

    @property
    def is_bar_by_bar(self) -> bool:
        """Whether each row belongs to a bar of the first input; else rows are snapshots at the bar ends of the calendar."""
        return self.bars is self.inputs[0]

    def input_of(self, table: str) -> Dataset | None:
        """The first input kept in this raw table."""
        return next((dataset for dataset in self.inputs if dataset.table.name == table), None)

    def _candles(self, timeframe: Timeframe) -> Dataset | None:
        return next((dataset for dataset in self.inputs if dataset.bars and dataset.timeframe == timeframe), None)


@dataclass(frozen=True)
class FeatureView:
    """Features of one entity kind with one SLO.

    `mart` names the dbt model that the view reads beside its inputs, if any. `version` changes when a formula does; an older version that
    is still computed is declared with `superseded()`, beside the newest. A view with `online=False` is for training only: it has no row
    in Redis and no online asset. `aliases` are other names that readers may use. `members` are the views whose published values it joins,
    features made by `model.indicator.published`.
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
    online: bool = True
    aliases: tuple[str, ...] = ()
    members: "tuple[FeatureView, ...]" = ()
    is_superseded: bool = False

    def __post_init__(self) -> None:
        """Refuse a declaration that contradicts itself."""
        names = [feature.name for feature in self.features]
        streams = [stream.name for stream in self.streams]
        duplicates = {name for part in (names, streams) for name in part if part.count(name) > 1} | (set(names) & set(self.join_keys))
        if duplicates:
            raise DeclarationError(f"view {self.name}: duplicate names {sorted(duplicates)}")
        if not names or not streams:
            raise DeclarationError(f"view {self.name}: needs at least one feature and one stream")
        for stream in self.streams:
            slo, ttl = self.slo_of(stream), self.ttl_of(stream)
            if contradictions := slo.contradictions():
                raise DeclarationError(f"view {self.name}: {'; '.join(contradictions)}")
            if ttl < slo.max_lag:
                raise DeclarationError(f"view {self.name}: TTL {ttl} is below its SLO {slo.max_lag}; every value would expire early")
            if complaint := cron_complaint(stream.schedule):
                raise DeclarationError(f"view {self.name}, stream {stream.name}: {complaint}")

    @property
    def label(self) -> str:
        """How readers name it: a superseded version is `name@version`."""
        return f"{self.name}@{self.version}" if self.is_superseded else self.name

    def superseded(self) -> "FeatureView":
        """This version beside a newer one of the same name: computed and readable from Postgres, not in Redis."""
        return replace(self, is_superseded=True, online=False, aliases=())

    def slo_of(self, stream: Stream) -> SLO:
        """What the stream promises."""
        return stream.slo or self.slo

    def ttl_of(self, stream: Stream) -> timedelta:
        """Open-market time for which a value of the stream may be served."""
        return stream.ttl or self.ttl

    @property
    def join_keys(self) -> tuple[str, ...]:
        """Key columns, in declared order."""
        return tuple(entity.join_key for entity in self.entities)

    @cached_property
    def by_grain(self) -> dict[Grain, tuple[Feature, ...]]:
        """Features and their components, by what they are evaluated over; a component comes before what reads it."""
        found: dict[str, Feature] = {}

        def collect(features: Iterable[Feature]) -> None:
            for feature in features:
                collect(feature.components)
                if found.setdefault(feature.name, feature) != feature:
                    raise DeclarationError(f"view {self.name}: two different features or components are called {feature.name}")

        collect(self.features)
        return {grain: tuple(f for f in found.values() if f.indicator.grain is grain) for grain in Grain}

    @property
    def look_back_bars(self) -> int:
        """Most bars that any feature needs before the current one."""
        return max((feature.look_back_bars for features in self.by_grain.values() for feature in features), default=0)

    @property
    def warm_up_bars(self) -> int:
        """Bars until every feature has a value."""
        return max((feature.warm_up_bars for features in self.by_grain.values() for feature in features), default=0)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Feature columns, in served order."""
        return tuple(feature.name for feature in self.features)

    @property
    def feast_ttl(self) -> timedelta:
        """TTL for tools that count clock time instead of open-market time."""
        return self.longest_ttl + LONGEST_CLOSURE

    @property
    def longest_ttl(self) -> timedelta:
        """The greatest TTL of its streams."""
        return max(map(self.ttl_of, self.streams))

    def feature(self, name: str) -> Feature:
        """The feature of this name.

        Raises:
            UnknownNameError: The view has none.
        """
        for feature in self.features:
            if feature.name == name:
                return feature
        raise UnknownNameError(f"feature of view {self.label}", name, self.feature_names)
