"""Service-level objective of a feature view. Measuring it does not belong here (see `serving.freshness`)."""

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True)
class SLO:
    """The newest value must be served at most `max_lag` after it was due; Tier-1 symbols must have `tier1_coverage` of eligible cells.

    `objective` is the share of a month's time in which no value may be overdue; the rest is the error budget.
    """

    max_lag: timedelta
    tier1_coverage: float = 0.99
    objective: float = 0.99

    def contradictions(self) -> list[str]:
        """What neither Dagster nor a pager can honour, a sentence each; the view that declares it raises."""
        found = []
        if self.max_lag < timedelta(minutes=1):
            found.append(f"SLO of {self.max_lag} is under one minute, the shortest that can be watched")
        if not 0 < self.tier1_coverage <= 1:
            found.append(f"tier-1 coverage {self.tier1_coverage} is not in (0, 1]")
        if not 0 < self.objective < 1:
            found.append(f"objective {self.objective} is not in (0, 1)")
        return found
