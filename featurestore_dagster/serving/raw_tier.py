"""The third tier: rows computed now from raw data, by the code that computes every published row, and audited like these.

It needs Postgres' raw tables only, and tenths of a second to seconds: a caller who wants it sets a deadline to match.
"""

import asyncio
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from datetime import date, datetime, timedelta
from typing import Any

import polars as pl

from featurestore_dagster.calendars import calendar
from featurestore_dagster.errors import StoreUnavailableError
from featurestore_dagster.features.universe import listings_of
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.feature_view import FeatureView, Stream
from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.model.time import Clock
from featurestore_dagster.serving.delisting import Delisting
from featurestore_dagster.serving.ladder import RAW_SECONDS, Question, Rows, TierRead, told
from featurestore_dagster.stores.postgres import Ledger, PostgresStore
from featurestore_dagster.stores.redis import StoredRow

LONGEST_HISTORY_SESSIONS = 40
"""No row is computed from raw data for an earlier session; its TTL is over anyway."""


class RawTier:
    """Rows computed now, flagged FALLBACK_SOURCE; one computation at a time."""

    name = "raw"

    def __init__(self, store: PostgresStore, catalogue: Catalogue, clock: Clock) -> None:
        """Nothing is read before the first call."""
        self._store = store
        self._catalogue = catalogue
        self._clock = clock
        self._delisting = Delisting(catalogue)
        self._busy = threading.Lock()

    def allowance(self, left_seconds: float) -> float:
        """All: it is the last."""
        return left_seconds

    def fair_seconds(self, values: int) -> float:  # noqa: ARG002 - see below
        """See `ladder.Tier`: a window of bars is computed for one value as for thousands."""
        return RAW_SECONDS

    def read(self, question: Question) -> TierRead:
        """See `ladder.Tier`."""
        try:
            return self._start(question).result(timeout=question.deadline_seconds)
        except FutureTimeoutError:
            raise self._too_slow(question.deadline_seconds) from None

    async def read_async(self, question: Question) -> TierRead:
        """See `ladder.Tier`."""
        try:
            return await asyncio.wait_for(asyncio.wrap_future(self._start(question)), question.deadline_seconds)
        except TimeoutError:
            raise self._too_slow(question.deadline_seconds) from None

    def warm_up(self, timeout_seconds: float) -> bool:  # noqa: ARG002 - there is nothing to connect
        """See `ladder.Tier`."""
        return False

    async def warm_up_async(self, timeout_seconds: float) -> bool:  # noqa: ARG002
        """See `ladder.Tier`."""
        return False

    @staticmethod
    def _too_slow(deadline_seconds: float) -> StoreUnavailableError:
        return StoreUnavailableError(f"raw data could not be computed within {deadline_seconds * 1000:.0f} ms; give a longer deadline")

    def _start(self, question: Question) -> "Future[TierRead]":
        """Compute in a thread that nobody has to wait for, not even at the end of the process."""
        if not self._busy.acquire(blocking=False):
            raise StoreUnavailableError("another read is being computed from raw data; one at a time")
        future: Future[TierRead] = Future()
        future.set_running_or_notify_cancel()  # who gives up waiting does not stop the work

        def work() -> None:
            try:
                future.set_result(self._compute(question))
            except BaseException as error:  # noqa: BLE001 - whoever waits for the future raises it
                future.set_exception(error)
            finally:
                self._busy.release()

        threading.Thread(target=work, name="featurestore-raw-tier", daemon=True).start()
        return future

    def _compute(self, question: Question) -> TierRead:
        entities, now = question.entities, question.now
        rows: Rows = [[None] * len(question.views) for _ in entities]
        unlisted: set[int] = set()
        for position, (view, names) in enumerate(question.views):
            newest = self._newest(view, entities, now)
            if newest is None:
                unlisted.add(position)
                continue
            gone = self._delisting.at(view, now)
            for row, entity in zip(rows, entities, strict=True):
                key = tuple(entity[name] for name in view.join_keys)
                found = newest.get(key)
                if found is None or key in gone:
                    continue
                flags = found["flags"] | QualityFlag.FALLBACK_SOURCE.value
                row[position] = StoredRow(found["event"], found["known"], flags, found["stream"], tuple(found[name] for name in names))
        return told(question, rows, unlisted)

    def _newest(
        self, view: FeatureView, entities: Sequence[Mapping[str, str]], now: datetime
    ) -> dict[tuple[str, ...], dict[str, Any]] | None:
        """Newest rows by key; None when no stream lists any of the entities, so that nothing can be said about them."""
        frames = [self._stream_rows(view, stream, now) for stream in view.streams if self._concerns(view, stream, entities)]
        if not frames:
            return None
        visible = pl.concat(frames).filter((pl.col("event_timestamp") <= now) & (pl.col("created_timestamp") <= now))
        newest = (
            visible.sort("event_timestamp", "created_timestamp")
            .unique(view.join_keys, keep="last")
            .with_columns(
                pl.col("event_timestamp").dt.epoch("us").alias("event"), pl.col("created_timestamp").dt.epoch("us").alias("known")
            )
        )
        return {tuple(row[key] for key in view.join_keys): row for row in newest.iter_rows(named=True)}

    def _concerns(self, view: FeatureView, stream: Stream, entities: Sequence[Mapping[str, str]]) -> bool:
        if "timeframe" in view.join_keys and stream.timeframe.value not in {entity["timeframe"] for entity in entities}:
            return False
        listed = listings_of(self._catalogue, view, stream)
        return any(entity[view.join_keys[0]] in listed for entity in entities)

    def _stream_rows(self, view: FeatureView, stream: Stream, now: datetime) -> pl.DataFrame:
        from featurestore_dagster.pipeline.audit import audit_stream
        from featurestore_dagster.pipeline.inputs import Inputs

        market = calendar(stream.calendar)
        labels = self._sessions(view, stream, now)
        start, end = market.session(labels[0]).window_start, market.session(labels[-1]).window_end
        inputs = Inputs(self._catalogue, self._store, Ledger(self._store.settings), self._clock)
        by_anchor: dict[datetime, list[date]] = {}
        for label in labels:
            by_anchor.setdefault(stream.timeframe.anchor(market.session(label).window_end), []).append(label)
        found = []
        for chunk in by_anchor.values():
            start, end = market.session(chunk[0]).window_start, market.session(chunk[-1]).window_end
            rows = inputs.compute(view, stream, start, end, chunk_start=start)
            listings = listings_of(self._catalogue, view, stream)
            found.append(audit_stream(view, stream, rows, [str(label) for label in chunk], listings=listings, now=now).rows)
        return pl.concat(found)

    @staticmethod
    def _sessions(view: FeatureView, stream: Stream, now: datetime) -> list[date]:
        """The session of `now` and those before it that a row within its TTL can belong to."""
        market = calendar(stream.calendar)
        current = market.session_of(pl.Series([now], dtype=pl.Datetime("us", "UTC")))[0]
        labels = [current]
        while len(labels) < LONGEST_HISTORY_SESSIONS:
            opened = market.session(labels[0]).window_start
            if market.open_time(opened, now) >= view.ttl_of(stream) + timedelta(seconds=1):
                break
            labels.insert(0, market.previous_sessions(labels[0], 1))
        return labels
