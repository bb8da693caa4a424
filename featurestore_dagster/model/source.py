"""Sources: who fills which dataset. Fetching and parsing do not belong here (see package `sources`)."""

from dataclasses import dataclass, field
from datetime import date

from featurestore_dagster.model.raw_table import Dataset


@dataclass(frozen=True)
class Listing:
    """A symbol and the sessions (inclusive) for which its source is expected to deliver; `last` None is open-ended."""

    symbol: str
    first: date
    last: date | None = None
    description: str = ""

    def covers(self, session: date) -> bool:
        """Whether a bar of this session is expected."""
        return self.first <= session and (self.last is None or session <= self.last)


@dataclass(frozen=True)
class Source:
    """A provider, the datasets it fills, and the symbols it delivers for each.

    Where several sources have the same bar, known at the same instant, the one declared first in the catalogue wins. A symbol outside a
    dataset's listings is refused.
    """

    name: str
    description: str
    datasets: tuple[Dataset, ...]
    listings: dict[str, tuple[Listing, ...]] = field(default_factory=dict)
    requests_per_minute: int | None = None
