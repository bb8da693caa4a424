"""Newest values from the online store, each with its unit, age, status and flags.

The rule is the same as offline: a row is visible when neither its event time nor its known-at lies after `now`; a value is NULL with
status OUTSIDE_MAX_AGE when its age, counted in open-market time, reaches the view's TTL. Other tiers do not belong here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import Any, Protocol

import polars as pl

from featurestore_dagster.calendars import calendar
from featurestore_dagster.errors import MalformedDataError
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.feature_view import FeatureView, Stream
from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.model.indicator import Feature
from featurestore_dagster.model.time import Clock
from featurestore_dagster.model.units import Unit
from featurestore_dagster.stores.redis import StoredRow


class RowStore(Protocol):
    """Where rows are read from: Redis, or a slower tier that answers the same."""

    @property
    def tier(self) -> str:
        """Name that the answer carries."""

    def read(
        self, requests: Sequence[tuple[FeatureView, Sequence[str]]], entities: Sequence[Mapping[str, str]]
    ) -> list[dict[str, StoredRow | None]]:
        """See `RedisStore.read`."""


class Status(StrEnum):
    """Why a value is, or is not, there."""

    PRESENT = "PRESENT"
    NULL_VALUE = "NULL_VALUE"
    NOT_FOUND = "NOT_FOUND"
    OUTSIDE_MAX_AGE = "OUTSIDE_MAX_AGE"


@dataclass(frozen=True, slots=True)
class OnlineValue:
    """One feature of one entity. Times, age and flags are those of the view's row; without a row they are None, and no flags.

    `age_seconds` counts open-market time only.
    """

    reference: str
    value: float | int | None
    unit: Unit
    status: Status
    event_timestamp: datetime | None
    known_at: datetime | None
    age_seconds: float | None
    flags: tuple[str, ...]
    tier: str


@dataclass(frozen=True, slots=True)
class OnlineRow:
    """One entity row as it was asked for, and its values in the order asked."""

    entity: Mapping[str, str]
    values: tuple[OnlineValue, ...]

    def __getitem__(self, reference: str) -> OnlineValue:
        """The value of a `view:feature` that was asked for."""
        return next(value for value in self.values if value.reference == reference)


@dataclass(frozen=True, slots=True)
class OnlineFeatures:
    """The answer, rows in the order asked; `as_of` is the instant that ages are counted to."""

    as_of: datetime
    rows: tuple[OnlineRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: instants as ISO text, statuses and units as their names."""
        return {
            "as_of": self.as_of.isoformat(),
            "rows": [
                {"entity": dict(row.entity), "features": {value.reference: _to_dict(value) for value in row.values}} for row in self.rows
            ],
        }


class OnlineReader:
    """Reads feature vectors; safe to share between threads."""

    def __init__(self, store: RowStore, catalogue: Catalogue, clock: Clock) -> None:
        """Nothing is read before the first call."""
        self._store = store
        self._catalogue = catalogue
        self._clock = clock

    def get_online_features(
        self, features: str | Sequence[str], entity_rows: Sequence[Mapping[str, str]], now: datetime | None = None
    ) -> OnlineFeatures:
        """Newest visible values of each entity row, in one round trip.

        Args:
            features: Name of a feature service, or `view:feature` or `view@version:feature` references; values come in this order.
            entity_rows: Join key -> value; keys that no view needs are ignored.
            now: The instant that visibility and age are judged at; the clock's when None.

        Raises:
            UnknownNameError: No such service, view or feature.
            MalformedDataError: (a ValueError) An entity row lacks a join key, or its value is not text; the message names it.
            StoreUnavailableError: Redis does not answer.
        """
        pairs = self._catalogue.service(features).references if isinstance(features, str) else self._catalogue.references(features)
        requested: dict[str, tuple[FeatureView, list[str]]] = {}
        for view, feature in pairs:
            names = requested.setdefault(view.label, (view, []))[1]
            if feature.name not in names:
                names.append(feature.name)
        _refuse_incomplete(entity_rows, [view for view, _ in requested.values()])
        moment = now or self._clock.now()
        found = self._store.read(list(requested.values()), entity_rows)
        visible = [{name: row for name, row in stored.items() if row is not None and _is_visible(row, moment)} for stored in found]
        ages = _ages([(requested[name][0], row) for rows in visible for name, row in rows.items()], moment)
        rows = tuple(
            OnlineRow(entity, tuple(_value(view, feature, stored.get(view.label), ages, self._store.tier) for view, feature in pairs))
            for entity, stored in zip(entity_rows, visible, strict=True)
        )
        return OnlineFeatures(moment, rows)


Ages = Mapping[tuple[str, datetime], int]
"""(calendar name, event time) -> open-market microseconds up to now."""


def _refuse_incomplete(entity_rows: Sequence[Mapping[str, str]], views: Sequence[FeatureView]) -> None:
    needed = {key: view.label for view in reversed(views) for key in view.join_keys}
    for number, row in enumerate(entity_rows):
        for key, view in needed.items():
            if not isinstance(row.get(key), str):
                was = f"has {key}={row[key]!r}" if key in row else f"lacks join key {key!r}"
                raise MalformedDataError(f"entity row {number} {was}; view {view} needs text there, for example {{{key!r}: 'AAPL'}}")


def _is_visible(row: StoredRow, moment: datetime) -> bool:
    return row.event_timestamp <= moment and (row.known_at is None or row.known_at <= moment)


def _stream(view: FeatureView, row: StoredRow) -> Stream:
    return next((stream for stream in view.streams if stream.name == row.stream), view.streams[0])


def _ages(rows: Sequence[tuple[FeatureView, StoredRow]], moment: datetime) -> Ages:
    events: dict[str, set[datetime]] = {}
    for view, row in rows:
        events.setdefault(_stream(view, row).calendar, set()).add(row.event_timestamp)
    ages: dict[tuple[str, datetime], int] = {}
    for name, instants in events.items():
        ordered = [*instants, moment]
        *opened, now_open = calendar(name).open_microseconds(pl.Series(ordered, dtype=pl.Datetime("us", "UTC"))).to_list()
        ages.update({(name, instant): now_open - then for instant, then in zip(instants, opened, strict=True)})
    return ages


@lru_cache(maxsize=1024)
def _flag_names(flags: int) -> tuple[str, ...]:
    return tuple(QualityFlag.names_of(flags))


def _value(view: FeatureView, feature: Feature, row: StoredRow | None, ages: Ages, tier: str) -> OnlineValue:
    reference, unit = f"{view.label}:{feature.name}", feature.indicator.unit
    if row is None or feature.name not in row.values:
        return OnlineValue(reference, None, unit, Status.NOT_FOUND, None, None, None, (), tier)
    value, age = row.values[feature.name], ages[_stream(view, row).calendar, row.event_timestamp]
    status = Status.NULL_VALUE if value is None else Status.PRESENT
    if age >= view.ttl_of(_stream(view, row)) // timedelta(microseconds=1):
        value, status = None, Status.OUTSIDE_MAX_AGE
    return OnlineValue(reference, value, unit, status, row.event_timestamp, row.known_at, age / 1e6, _flag_names(row.flags), tier)


def _to_dict(value: OnlineValue) -> dict[str, Any]:
    return {
        "value": value.value,
        "unit": value.unit.value,
        "status": value.status.value,
        "event_timestamp": value.event_timestamp and value.event_timestamp.isoformat(),
        "known_at": value.known_at and value.known_at.isoformat(),
        "age_seconds": value.age_seconds,
        "flags": list(value.flags),
        "tier": value.tier,
    }
