"""Whether the values that ought to be there are there: coverage of an answer against the bar that its views declare.

A cell is *eligible* when its symbol counts for the tier asked about, a source that is switched on is expected to deliver it now, and the
feature's warm-up is over. Reading the answer does not belong here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import polars as pl

from featurestore_dagster.calendars import calendar
from featurestore_dagster.features.universe import INSTRUMENTS, listings_of
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS
from featurestore_dagster.serving.answer import OnlineFeatures, Status

WARMING_UP = QualityFlag.INSUFFICIENT_OHLCV.value


@dataclass(frozen=True)
class FeatureCoverage:
    """Cells of one feature; `coverage` is None when none is eligible, which is no failure."""

    reference: str
    eligible: int
    present: int
    demanded: float

    @property
    def coverage(self) -> float | None:
        """Share of the eligible cells that are PRESENT."""
        return self.present / self.eligible if self.eligible else None

    @property
    def is_met(self) -> bool:
        """Whether the bar is reached."""
        return self.coverage is None or self.coverage >= self.demanded


@dataclass(frozen=True)
class Coverage:
    """Coverage of every feature asked for, in the order asked."""

    as_of: datetime
    tier: int | None
    features: tuple[FeatureCoverage, ...]

    @property
    def is_met(self) -> bool:
        """Whether every feature reaches its bar."""
        return all(feature.is_met for feature in self.features)


def coverage(answer: OnlineFeatures, catalogue: Catalogue, tier: int | None) -> Coverage:
    """Judge an answer.

    Args:
        answer: What was read.
        catalogue: With the sources that are switched on.
        tier: Only symbols of this tier count; None: all.
    """
    tiers = {instrument.symbol: instrument.tier for instrument in INSTRUMENTS}
    plan = answer.plan
    owed = [_owed(catalogue, view, answer.as_of) for view, _ in plan.views]
    eligible, present = [0] * len(plan.references), [0] * len(plan.references)
    for row in answer.rows:
        if tier is not None and "symbol" in row.entity and tiers.get(row.entity["symbol"]) != tier:
            continue
        due = [tuple(row.entity[key] for key in view.join_keys) in entities for (view, _), entities in zip(plan.views, owed, strict=True)]
        for position, status in enumerate(row.statuses):
            view = plan.view_of[position]
            warming_up = status is Status.NULL_VALUE and row.states[view].flag_bits & WARMING_UP
            if due[view] and not warming_up:
                eligible[position] += 1
                present[position] += status is Status.PRESENT
    demanded = [_demanded(view) for view, _ in plan.views]
    return Coverage(
        answer.as_of,
        tier,
        tuple(
            FeatureCoverage(reference, eligible[position], present[position], demanded[plan.view_of[position]])
            for position, reference in enumerate(plan.references)
        ),
    )


def missing(answer: OnlineFeatures) -> Mapping[str, str]:
    """Each value that is not PRESENT, named by entity and reference, with its status."""
    return {
        f"{'/'.join(row.entity[key] for key in answer.plan.join_keys)} {reference}": status.value
        for row in answer.rows
        for reference, status in zip(answer.plan.references, row.statuses, strict=True)
        if status is not Status.PRESENT
    }


def _demanded(view: FeatureView) -> float:
    return max(view.slo_of(stream).tier1_coverage for stream in view.streams)


def _owed(catalogue: Catalogue, view: FeatureView, now: datetime) -> set[tuple[str, ...]]:
    """Entities whose rows are expected now."""
    found = set()
    for stream in view.streams:
        if not catalogue.is_fed(stream):
            continue
        session = calendar(stream.calendar).session_of(pl.Series([now], dtype=UTC_MICROSECONDS))[0]
        for symbol, listing in listings_of(catalogue, view, stream).items():
            if listing.covers(session):
                entity = {"symbol": symbol, "portfolio": symbol, "timeframe": stream.timeframe.value}
                found.add(tuple(entity[key] for key in view.join_keys))
    return found
