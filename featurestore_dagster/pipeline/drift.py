"""Drift of features: the newest values against those before, by population stability index and share of NULLs. Pure; reads nothing."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from featurestore_dagster.model.drift import BINS, LEVELS, MINIMUM_VALUES, NULL_INCREASE, PSI_THRESHOLD
from featurestore_dagster.model.feature_view import FeatureView

SMALLEST_SHARE = 1e-4
"""Stands for an empty bin, whose logarithm would be infinite."""


@dataclass(frozen=True)
class ReferenceStatistics:
    """A feature in the reference window.

    `edges` are the upper bounds of all bins but the last, ascending, by its deciles (fewer where values repeat); `shares` of the values,
    not the rows, lie in each bin.
    """

    values: int
    null_share: float
    edges: tuple[float, ...]
    shares: tuple[float, ...]


@dataclass(frozen=True)
class FeatureDrift:
    """A feature now against its reference. `psi` is None for a level, and where a window has too few values; `unjudged` says which."""

    feature: str
    psi: float | None
    null_share: float
    shares: tuple[float, ...]
    reference: ReferenceStatistics
    reasons: tuple[str, ...]
    unjudged: str | None = None


def reference_statistics(rows: pl.DataFrame, features: Sequence[str]) -> dict[str, ReferenceStatistics]:
    """Statistics of each feature.

    Args:
        rows: A column for each feature, Float64 or Int64; NULL where there was no value. Any number of rows.
        features: Their names.
    """
    found = {}
    for name in features:
        values = rows[name].drop_nulls().cast(pl.Float64)
        quantiles = [values.quantile(number / BINS, "lower") for number in range(1, BINS)] if values.len() else []
        edges = tuple(sorted({edge for edge in quantiles if edge is not None}))
        found[name] = ReferenceStatistics(values.len(), _null_share(rows[name]), edges, _shares(values, edges))
    return found


def feature_drift(view: FeatureView, reference: Mapping[str, ReferenceStatistics], rows: pl.DataFrame) -> list[FeatureDrift]:
    """Each feature of the view now against its reference, in declared order.

    Args:
        view: Declares the units: of a level only the NULLs are judged.
        reference: Output of `reference_statistics`.
        rows: The newest rows, columns as there; with none, nothing is said to drift.
    """
    found = []
    for feature in view.features:
        known, values = reference[feature.name], rows[feature.name].drop_nulls().cast(pl.Float64)
        shares, nulls = _shares(values, known.edges), _null_share(rows[feature.name])
        fewest, unjudged = min(known.values, values.len()), None
        if feature.indicator.unit in LEVELS:
            unjudged = "a level: only its NULLs are judged"
        elif fewest < MINIMUM_VALUES:
            unjudged = f"{fewest} values are too few to judge; {MINIMUM_VALUES} are needed"
        psi = population_stability_index(known.shares, shares) if unjudged is None else None
        reasons = []
        if psi is not None and psi > PSI_THRESHOLD:
            reasons.append(f"PSI {psi:.2f}, above {PSI_THRESHOLD:g}")
        if rows.height and known.values and nulls > known.null_share + NULL_INCREASE:
            reasons.append(f"{nulls:.0%} NULL, {known.null_share:.0%} before")
        found.append(FeatureDrift(feature.name, psi, nulls, shares, known, tuple(reasons), unjudged))
    return found


def population_stability_index(reference: Sequence[float], current: Sequence[float]) -> float:
    """Sum over bins of (current - reference) ln(current / reference) of their shares; 0 when they agree, and symmetric."""
    floored = ((max(was, SMALLEST_SHARE), max(now, SMALLEST_SHARE)) for was, now in zip(reference, current, strict=True))
    return math.fsum((now - was) * math.log(now / was) for was, now in floored)


def _shares(values: pl.Series, edges: Sequence[float]) -> tuple[float, ...]:
    """Share of the values up to each edge, and after the last."""
    if values.is_empty():
        return (0.0,) * (len(edges) + 1)
    bins = pl.Series(edges, dtype=pl.Float64).search_sorted(values, side="left")
    counts = dict(bins.value_counts().iter_rows())
    return tuple(counts.get(number, 0) / values.len() for number in range(len(edges) + 1))


def _null_share(column: pl.Series) -> float:
    return column.null_count() / column.len() if column.len() else 0.0
