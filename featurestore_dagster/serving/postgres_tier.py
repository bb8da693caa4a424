"""The second tier: published rows in Postgres, newest version visible at an instant.

It answers what Redis would, had Redis every publication: nothing for what is delisted. How the server is asked belongs to
`stores.postgres.newest_rows`.
"""

import time
from collections.abc import Sequence
from datetime import datetime

from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.serving.answer import instant
from featurestore_dagster.serving.delisting import Delisting
from featurestore_dagster.serving.ladder import FAIR_SECONDS, RAW_SECONDS, Question, Rows, TierRead, incoherent, told
from featurestore_dagster.settings import PostgresSettings
from featurestore_dagster.stores.postgres.newest_rows import NewestRows, Query, Records, query
from featurestore_dagster.stores.redis import StoredRow


class PostgresTier:
    """Newest published rows, all views in one round trip."""

    name = "postgres"

    def __init__(self, settings: PostgresSettings, catalogue: Catalogue) -> None:
        """No connection is made before the first read."""
        self._rows = NewestRows(settings, catalogue.views)
        self._delisting = Delisting(catalogue)

    def allowance(self, left_seconds: float) -> float:
        """All, unless a computation from raw data could still be done in the rest."""
        return left_seconds if left_seconds < RAW_SECONDS else min(left_seconds * 0.8, 5.0)

    def fair_seconds(self, values: int) -> float:
        """See `ladder.Tier`; several times what it takes."""
        return max(FAIR_SECONDS, values * 5e-6)

    def close(self) -> None:
        """Close the blocking reads' connections; the next read opens new ones."""
        self._rows.close()

    async def close_async(self) -> None:
        """Close the asynchronous reads' connections."""
        await self._rows.close_async()

    def warm_up(self, timeout_seconds: float) -> bool:
        """See `ladder.Tier`."""
        return self._rows.warm_up(timeout_seconds)

    async def warm_up_async(self, timeout_seconds: float) -> bool:
        """See `ladder.Tier`."""
        return await self._rows.warm_up_async(timeout_seconds)

    def read(self, question: Question) -> TierRead:
        """See `ladder.Tier`."""
        ends = time.monotonic() + question.deadline_seconds
        rows = self._stored(question, self._rows.read(_queries(question), question.deadline_seconds))
        if question.coherent and (oldest := _oldest(question, rows)):
            rows = self._stored(question, self._rows.read(_queries(question, oldest), ends - time.monotonic()))
        return told(question, rows)

    async def read_async(self, question: Question) -> TierRead:
        """See `ladder.Tier`."""
        ends = time.monotonic() + question.deadline_seconds
        rows = self._stored(question, await self._rows.read_async(_queries(question), question.deadline_seconds))
        if question.coherent and (oldest := _oldest(question, rows)):
            rows = self._stored(question, await self._rows.read_async(_queries(question, oldest), ends - time.monotonic()))
        return told(question, rows)

    def _stored(self, question: Question, found: Sequence[Records]) -> Rows:
        rows: Rows = [[None] * len(question.views) for _ in question.entities]
        for position, ((view, names), records) in enumerate(zip(question.views, found, strict=True)):
            gone = self._delisting.at(view, question.now)
            wanted = [view.feature_names.index(name) for name in names]
            for number, event, known, flags, stream, *values in records:
                entity = question.entities[number - 1]
                if not (gone and tuple(entity[key] for key in view.join_keys) in gone):
                    rows[number - 1][position] = StoredRow(event, known, flags, stream, tuple(values[place] for place in wanted))
        return rows


def _queries(question: Question, until: Sequence[Sequence[datetime]] = ()) -> list[Query]:
    bounds = until or [[question.now] * len(question.entities)] * len(question.views)
    return [query(view, question.entities, at, question.now) for (view, _), at in zip(question.views, bounds, strict=True)]


def _oldest(question: Question, rows: Rows) -> list[list[datetime]]:
    """For each view, of each entity: the oldest bar among its stream's rows, where they are of several; else `now`. Empty when none are."""
    bounds = [[question.now] * len(rows) for _ in question.views]
    for number, positions in incoherent(rows):
        for position in positions:
            bounds[position][number] = instant(min(row.event_microseconds for place in positions if (row := rows[number][place])))
    return bounds if incoherent(rows) else []
