"""A store whose clock the test moves."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.postgres import PostgresStore


@dataclass(eq=False)
class MovingClock:
    """Stands still until the test moves it."""

    instant: datetime = datetime(2018, 12, 31, 22, tzinfo=UTC)
    replayed: str | None = None

    def now(self) -> datetime:
        return self.instant

    def advance(self, **duration: float) -> datetime:
        self.instant += timedelta(**duration)
        return self.instant


@pytest.fixture
def clock() -> MovingClock:
    return MovingClock()


@pytest.fixture
def store(fresh_database: Settings, clock: MovingClock) -> PostgresStore:
    """A store over an empty, applied database."""
    return PostgresStore(fresh_database.postgres, clock)
