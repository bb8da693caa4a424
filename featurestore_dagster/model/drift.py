"""When the distribution of a feature counts as drifted: windows and thresholds. Measuring it does not belong here (see `pipeline.drift`).

Drift is a warning, never a reason to block: markets change, and a value may be right and unlike those before.
"""

from dataclasses import dataclass

from featurestore_dagster.model.time import Timeframe
from featurestore_dagster.model.units import Unit

LEVELS = frozenset({Unit.PRICE, Unit.QUANTITY, Unit.QUOTE_CURRENCY, Unit.INDEX_POINTS})
"""Units of what wanders by its nature: only their NULLs are judged, since a price index of 1.2 would be announced every quarter."""

BINS = 10
"""Deciles of the reference."""

PSI_THRESHOLD = 0.25
"""Population stability index from which on a shift is usually called large; below 0.1 it is called none."""

NULL_INCREASE = 0.1
"""A greater share of NULLs than the reference's by this much."""

MINIMUM_VALUES = 200
"""With fewer values in a window its index is mostly noise: about bins / values."""


@dataclass(frozen=True)
class DriftWindows:
    """The newest `current_sessions` are compared with the `reference_sessions` before them."""

    reference_sessions: int
    current_sessions: int


def drift_windows(timeframe: Timeframe) -> DriftWindows:
    """A quarter against a year of daily bars; less, and still thousands of values, of shorter ones."""
    if timeframe is Timeframe.ONE_DAY:
        return DriftWindows(252, 63)
    return DriftWindows(126, 21) if timeframe.duration >= Timeframe.ONE_HOUR.duration else DriftWindows(20, 5)
