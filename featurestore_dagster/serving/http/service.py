"""What one worker process has: the client, its settings, and how busy it is. Routes and processes do not belong here."""

import asyncio
import time
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from featurestore_dagster.errors import FeatureStoreError
from featurestore_dagster.serving.async_client import AsyncFeatureStoreClient
from featurestore_dagster.serving.http.answers import overloaded
from featurestore_dagster.serving.raw_tier import RawTier
from featurestore_dagster.settings import Settings

MAXIMUM_BACKGROUND_WORK = 4
"""Calls that work in threads: they end when they end, also after their request's deadline, so there must not be many of them.

Fewer than the event loop has threads (five or more), which also look up the addresses of stores."""

PROBE_SECONDS = 1.0
"""How long the answer of a probe holds, and how long one may take."""

Result = TypeVar("Result")


@dataclass
class Service:
    """Belongs to one event loop."""

    settings: Settings
    client: AsyncFeatureStoreClient
    metrics_folder: Path | None = None
    in_flight: int = 0
    is_draining: bool = False
    _background: set[asyncio.Task[Any]] = field(default_factory=set)
    _probe: asyncio.Task[str | None] | None = None
    _probed_at: float = 0.0

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered."""
        return not self.in_flight

    async def in_background(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Await work that occupies a thread; it goes on when the request gives up.

        Raises:
            HttpError: 503, too much of it is under way.
        """
        if len(self._background) >= MAXIMUM_BACKGROUND_WORK:
            work.close()
            raise overloaded(f"{MAXIMUM_BACKGROUND_WORK} long requests are being answered; try again")
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._finished)
        return await asyncio.shield(task)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        if not task.cancelled():
            task.exception()  # an error that nobody waited for is no news

    async def first_answering_tier(self) -> str | None:
        """Name of the best store that answers a read now, None when none does; asked at most once a second."""
        if self._probe is None or (self._probe.done() and time.monotonic() - self._probed_at > PROBE_SECONDS):
            self._probe = asyncio.ensure_future(self._ask())
        return await asyncio.shield(self._probe)

    async def _ask(self) -> str | None:
        tier = None
        with suppress(FeatureStoreError):
            tier = await self.client.probe(PROBE_SECONDS)
        self._probed_at = time.monotonic()
        return None if tier == RawTier.name else tier  # it knows without any store that nobody is called as the probe asks
