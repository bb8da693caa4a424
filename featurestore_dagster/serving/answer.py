"""The answer to an online read. Values and statuses are kept as columns; an object for each value is made when one is asked for.

How a status is found belongs to `online`, which tier answers to `ladder`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import Any, NamedTuple

import polars as pl

from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS
from featurestore_dagster.model.units import Unit
from featurestore_dagster.projections.postgres_table import feature_dtype
from featurestore_dagster.serving.plan import ReadPlan

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Status(StrEnum):
    """Why a value is, or is not, there."""

    PRESENT = "PRESENT"
    NULL_VALUE = "NULL_VALUE"
    NOT_FOUND = "NOT_FOUND"
    OUTSIDE_MAX_AGE = "OUTSIDE_MAX_AGE"


STATUSES = tuple(Status)


class ViewState(NamedTuple):
    """Where one view's values of one entity come from; times are None, and flags 0, when no row was found.

    Microseconds: since 1970 for times, of open-market time for the age. `known_microseconds` is None too when a stock Feast client wrote
    the row.
    """

    tier: str
    event_microseconds: int | None = None
    known_microseconds: int | None = None
    age_microseconds: int | None = None
    flag_bits: int = 0

    @property
    def event_timestamp(self) -> datetime | None:
        """Event time of the row, UTC."""
        return None if self.event_microseconds is None else instant(self.event_microseconds)

    @property
    def known_at(self) -> datetime | None:
        """Known-at of the row, UTC."""
        return None if self.known_microseconds is None else instant(self.known_microseconds)

    @property
    def age_seconds(self) -> float | None:
        """Open-market seconds from the event to the answer's `as_of`."""
        return None if self.age_microseconds is None else self.age_microseconds / 1e6

    @property
    def flags(self) -> tuple[str, ...]:
        """Names of the row's quality flags."""
        return _flag_names(self.flag_bits)


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

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "value": self.value,
            "unit": self.unit.value,
            "status": self.status.value,
            "event_timestamp": self.event_timestamp and self.event_timestamp.isoformat(),
            "known_at": self.known_at and self.known_at.isoformat(),
            "age_seconds": self.age_seconds,
            "flags": list(self.flags),
            "tier": self.tier,
        }


@dataclass(eq=False, slots=True)
class OnlineRow:
    """One entity row as it was asked for. `numbers` and `statuses` are in the order asked, `states` in the order of the plan's views."""

    plan: ReadPlan
    entity: Mapping[str, str]
    numbers: Sequence[float | int | None]
    statuses: Sequence[Status]
    states: Sequence[ViewState]

    def __getitem__(self, reference: str) -> OnlineValue:
        """The value of a `view:feature` that was asked for, or KeyError."""
        try:
            return self._value(self.plan.references.index(reference))
        except ValueError:
            raise KeyError(reference) from None

    def __iter__(self) -> Iterator[OnlineValue]:
        """The values in the order asked."""
        return map(self._value, range(len(self.plan.references)))

    @property
    def values(self) -> tuple[OnlineValue, ...]:
        """The values in the order asked."""
        return tuple(self)

    @property
    def coverage(self) -> float:
        """Share of the values that are PRESENT."""
        return self.statuses.count(Status.PRESENT) / len(self.statuses)

    def state(self, view: str) -> ViewState:
        """Tier, times, age and flags of a view that was asked for, by its label, or KeyError."""
        for (declared, _), state in zip(self.plan.views, self.states, strict=True):
            if declared.label == view:
                return state
        raise KeyError(view)

    def _value(self, position: int) -> OnlineValue:
        reference = self.plan.references[position]
        state = self.states[self.plan.view_of[position]]
        return OnlineValue(
            reference=reference,
            value=self.numbers[position],
            unit=self.plan.units[position],
            status=self.statuses[position],
            event_timestamp=state.event_timestamp,
            known_at=state.known_at,
            age_seconds=state.age_seconds,
            flags=state.flags,
            tier=state.tier,
        )


@dataclass(frozen=True, eq=False, slots=True)
class OnlineFeatures:
    """The answer, rows in the order asked; `as_of` is the instant that ages are counted to."""

    as_of: datetime
    plan: ReadPlan
    rows: tuple[OnlineRow, ...]

    def status_counts(self) -> tuple[int, ...]:
        """Number of values of each status, in the order of `Status`."""
        present, *missing = STATUSES
        counts = [0] * len(STATUSES)
        counted: object = None
        number = 0
        for row in self.rows:
            if row.statuses is not counted:  # rows that miss nothing share one
                counted, number = row.statuses, row.statuses.count(present)
            counts[0] += number
            if number != len(row.statuses):
                for place, status in enumerate(missing, start=1):
                    counts[place] += row.statuses.count(status)
        return tuple(counts)

    def tier_counts(self) -> dict[str, int]:
        """Number of views of entities that each tier answered: a tier answers a view for all entities."""
        counts: dict[str, int] = {}
        for state in self.rows[0].states if self.rows else ():
            counts[state.tier] = counts.get(state.tier, 0) + len(self.rows)
        return counts

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: instants as ISO text, statuses and units as their names."""
        return {
            "as_of": self.as_of.isoformat(),
            "rows": [{"entity": dict(row.entity), "features": {value.reference: value.to_dict() for value in row}} for row in self.rows],
        }

    def to_polars(self) -> pl.DataFrame:
        """Values as a frame, one row for each entity row, in the order asked.

        Returns:
            The join keys, `event_timestamp` (the answer's `as_of`) and columns `view__feature`, Float64 or, for codes, Int64: what a
            historical read at that instant returns.
        """
        names = [reference.replace(":", "__", 1) for reference in self.plan.references]
        keys = {key: pl.Series([row.entity[key] for row in self.rows], dtype=pl.String) for key in self.plan.join_keys}
        as_of = pl.Series([self.as_of] * len(self.rows), dtype=UTC_MICROSECONDS)
        values = {
            name: pl.Series([row.numbers[position] for row in self.rows], dtype=feature_dtype(unit))
            for position, (name, unit) in enumerate(zip(names, self.plan.units, strict=True))
        }
        return pl.DataFrame(keys | {"event_timestamp": as_of} | values)


@lru_cache(maxsize=4096)
def instant(microseconds: int) -> datetime:
    """UTC instant of microseconds since 1970."""
    return EPOCH + timedelta(microseconds=microseconds)


@lru_cache(maxsize=1024)
def _flag_names(flags: int) -> tuple[str, ...]:
    return tuple(QualityFlag.names_of(flags))
