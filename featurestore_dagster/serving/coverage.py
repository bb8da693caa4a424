"""Whether the values that ought to be there are there: coverage of an answer against the bar that its views declare.

A cell is *eligible* when its symbol counts for the tier asked about, a source that is switched on is expected to deliver it now, and the
feature's warm-up is over. Reading the answer does not belong here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import polars as pl

from featurestore_dagster.calendars import calendar
from featurestore_dagster.errors import RefusedError
from featurestore_dagster.features.universe import INSTRUMENTS, listings_of
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS
from featurestore_dagster.serving.answer import OnlineFeatures, OnlineRow, Status

WARMING_UP = QualityFlag.INSUFFICIENT_OHLCV.value


@dataclass(frozen=True)
class FeatureCoverage:
    """Cells of one feature; `coverage` and `is_met` are None when none is eligible: there is nothing to judge."""

    reference: str
    eligible: int
    present: int
    demanded: float

    @property
    def coverage(self) -> float | None:
        """Share of the eligible cells that are PRESENT."""
        return self.present / self.eligible if self.eligible else None

    @property
    def is_met(self) -> bool | None:
        """Whether the bar is reached."""
        return None if self.coverage is None else self.coverage >= self.demanded


@dataclass(frozen=True)
class Coverage:
    """Coverage of every feature asked for, in the order asked.

    `not_judged` names the entities without an eligible cell: of another tier, not listed, not expected now, or still warming up.
    """

    as_of: datetime
    tier: int | None
    features: tuple[FeatureCoverage, ...]
    not_judged: tuple[str, ...]

    @property
    def is_met(self) -> bool | None:
        """Whether every feature that has eligible cells reaches its bar; None when none has any."""
        judged = [feature.is_met for feature in self.features if feature.is_met is not None]
        return all(judged) if judged else None


def coverage(answer: OnlineFeatures, catalogue: Catalogue, tier: int | None) -> Coverage:
    """Judge an answer.

    Args:
        answer: What was read.
        catalogue: With the sources that are switched on.
        tier: Only symbols of this tier count; None: all.

    Raises:
        RefusedError: No instrument is of this tier.
    """
    tiers = {instrument.symbol: instrument.tier for instrument in INSTRUMENTS}
    if tier is not None and tier not in (allowed := sorted(set(tiers.values()))):
        raise RefusedError(f"tier={tier!r}; allowed: {', '.join(map(str, allowed))}, or None for instruments of every tier")
    plan = answer.plan
    owed = [_owed(catalogue, view, answer.as_of) for view, _ in plan.views]
    eligible, present = [0] * len(plan.references), [0] * len(plan.references)
    not_judged = []
    for row in answer.rows:
        counts = tier is None or "symbol" not in plan.join_keys or tiers.get(row.entity["symbol"]) == tier
        is_judged = False
        due = [tuple(row.entity[key] for key in view.join_keys) in entities for (view, _), entities in zip(plan.views, owed, strict=True)]
        for position, status in enumerate(row.statuses):
            view = plan.view_of[position]
            warming_up = status is Status.NULL_VALUE and row.states[view].flag_bits & WARMING_UP
            if counts and due[view] and not warming_up:
                is_judged = True
                eligible[position] += 1
                present[position] += status is Status.PRESENT
        if not is_judged:
            not_judged.append(_named(row))
    demanded = [_demanded(view) for view, _ in plan.views]
    return Coverage(
        answer.as_of,
        tier,
        tuple(
            FeatureCoverage(reference, eligible[position], present[position], demanded[plan.view_of[position]])
            for position, reference in enumerate(plan.references)
        ),
        tuple(dict.fromkeys(not_judged)),
    )


def missing(answer: OnlineFeatures) -> Mapping[str, str]:
    """Each value that is not PRESENT, named by entity and reference, with its status."""
    return {
        f"{_named(row)} {reference}": status.value
        for row in answer.rows
        for reference, status in zip(answer.plan.references, row.statuses, strict=True)
        if status is not Status.PRESENT
    }


def _named(row: OnlineRow) -> str:
    return "/".join(row.entity[key] for key in row.plan.join_keys)


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
