"""The versions of a view in spans of time, each small enough for memory: from the columnar cache where it has them, else from Postgres."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl

from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS
from featurestore_dagster.projections.postgres_table import feature_schema
from featurestore_dagster.serving.point_in_time.winners import Integers
from featurestore_dagster.stores.columnar_cache import ColumnarCache
from featurestore_dagster.stores.postgres.bulk import Snapshot

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SECOND = 1_000_000
DAY = 86_400 * SECOND

SPAN_BYTES = 256 * 2**20
"""Most bytes of the columns of one span, estimated: what a read may hold beside the rows asked for is a small multiple of it."""

KEY_BYTES = 32
CACHED_SHARE = 0.5
"""A span is put into the cache when the rows asked for concern at least this share of its versions; else only what is needed is read."""

VERSIONS_WORTH_A_CONNECTION = 200_000
"""Stretches with more versions are read in two halves at once; opening the second connection costs as much as a tenth of them."""

MOST_KEYS = 50_000
"""More values of a key than these are not sent to the server: it would compare each row with all of them."""


@dataclass(frozen=True)
class Span:
    """Versions with start <= event time < end (microseconds); `digest` changes when they do."""

    start: int
    end: int
    version_count: int
    digest: int


def spans(days: pl.DataFrame, most_versions: int) -> list[Span]:
    """Months with published versions, ascending; one with too many is halved until its parts are small enough.

    Args:
        days: Columns `day`, `version_count`, `digest`, as `Snapshot.published_days`.
        most_versions: Of one span, assuming that a day's versions are spread evenly.
    """
    months = days.group_by(pl.col("day").dt.truncate("1mo").alias("month"), maintain_order=True).agg(
        pl.col("day").to_physical(), "version_count", "digest"
    )
    result: list[Span] = []
    for month, starts, counts, digests in months.iter_rows():
        start = (month - EPOCH) // timedelta(microseconds=1)
        following = (month.replace(day=28) + timedelta(days=4)).replace(day=1)
        end = (following - EPOCH) // timedelta(microseconds=1)
        result += _halved(list(zip(starts, counts, digests, strict=True)), start, end, most_versions)
    return result


def _halved(days: list[tuple[int, int, int]], start: int, end: int, most_versions: int) -> list[Span]:
    inside = [(low, count, digest) for low, count, digest in days if low < end and low + DAY > start]
    count = sum(count * (min(low + DAY, end) - max(low, start)) // DAY for low, count, _ in inside)
    if not inside:
        return []
    if count <= most_versions or end - start <= SECOND:
        content = hashlib.sha256(repr([(low, digest) for low, _, digest in inside]).encode()).digest()
        return [Span(start, end, count, int.from_bytes(content[:8], "little"))]
    middle = (start + end) // 2
    if end - start > DAY:
        middle -= middle % DAY
        middle = middle if middle > start else start + DAY
    return _halved(inside, start, middle, most_versions) + _halved(inside, middle, end, most_versions)


class History:
    """Versions of one view in one snapshot."""

    def __init__(
        self, snapshot: Snapshot, view: FeatureView, columns: Sequence[str], keys: dict[str, list[str]], cache: ColumnarCache | None
    ) -> None:
        """`columns` are read, for the values of `keys` only; a key with one value is not among the columns of the answer."""
        self._snapshot = snapshot
        self._view = view
        self._keys = keys
        self._fixed = {name: values[0] for name, values in keys.items() if len(values) == 1}
        self._columns = [name for name in columns if name not in self._fixed]
        self._cache = cache
        self._group = f"{view.name}@{view.version}"
        self._cached_columns = [name for name in feature_schema(view) if name != "feature_set_version"]
        self._layout = hashlib.sha256(repr(feature_schema(view)).encode()).hexdigest()[:8]
        self._sent_keys = {name: values for name, values in keys.items() if len(values) <= MOST_KEYS}
        self._fills_cache = False
        self._days = snapshot.published_days(view)

    @property
    def columns(self) -> list[str]:
        """Columns of the versions that come."""
        return self._columns

    def needed(self, instants: Integers, window: int) -> list[Span]:
        """Spans with versions that a row at one of `instants` could see, event time > instant - window; ascending.

        Instants count as whole days, so that a span may come which no row needs.
        """
        found = spans(self._days, SPAN_BYTES // (8 * len(self._cached_columns) + KEY_BYTES))
        days = np.unique(instants // DAY) * DAY
        bounds = np.array([(span.start - DAY, span.end + window) for span in found], np.int64).reshape(-1, 2)
        used = np.searchsorted(days, bounds[:, 0], side="right") < np.searchsorted(days, bounds[:, 1], side="left")
        return [span for span, is_used in zip(found, used, strict=True) if is_used]

    def seconds(self, needed: Sequence[Span]) -> float:
        """What reading is estimated to cost: a million versions a second from Postgres, ten from the cache (measured)."""
        return sum(span.version_count / (1e7 if self._is_cached(span) else 1e6) for span in needed)

    def stretches(self, needed: Sequence[Span]) -> list[list[Span]]:
        """Spans that are read at once: one of the cache, or neighbours that fit into memory together."""
        most = SPAN_BYTES // (8 * len(self._columns) + KEY_BYTES)
        self._fills_cache = self._is_worth_caching(needed)
        result: list[list[Span]] = []
        for span in needed:
            together = result and result[-1][-1].end == span.start and sum(s.version_count for s in (*result[-1], span)) <= most
            if together and not (self._fills_cache or self._is_cached(span) or self._is_cached(result[-1][-1])):
                result[-1].append(span)
            else:
                result.append([span])
        return result

    def read(self, stretch: Sequence[Span]) -> pl.DataFrame:
        """All versions of a stretch that may have one of the keys, any order."""
        found = self._from_cache(stretch[0]) if len(stretch) == 1 else None
        return self._from_postgres(stretch) if found is None else found

    def _key(self, span: Span) -> str:
        return f"{span.start}to{span.end}_{span.digest:016x}{self._layout}"

    def _is_cached(self, span: Span) -> bool:
        return self._cache is not None and self._cache.holds(self._group, self._key(span))

    def _is_worth_caching(self, needed: Sequence[Span]) -> bool:
        if self._cache is None or not self._cache.limit_bytes:
            return False
        absent = next((span for span in needed if not self._is_cached(span)), None)
        if absent is None:
            return True
        share = self._snapshot.share_of_keys(self._view, _instant(absent.start), _instant(absent.end), self._sent_keys)
        return share >= CACHED_SHARE

    def _from_cache(self, span: Span) -> pl.DataFrame | None:
        if self._cache is None:
            return None
        wanted = [*self._columns, *self._fixed]
        found = self._cache.read(self._group, self._key(span), wanted)
        if found is None:
            if not self._fills_cache:
                return None
            everything = self._snapshot.versions(self._view, self._cached_columns, self._halves([span]), {})
            everything = everything.sort(*self._view.join_keys, "event_timestamp", "created_timestamp")
            self._cache.write(self._group, self._key(span), everything)
            found = everything.select(wanted)
        if self._fixed:
            found = found.filter(pl.col(name) == value for name, value in self._fixed.items()).drop(list(self._fixed))
        return found

    def _from_postgres(self, stretch: Sequence[Span]) -> pl.DataFrame:
        return self._snapshot.versions(self._view, self._columns, self._halves(stretch), self._sent_keys)

    def _halves(self, stretch: Sequence[Span]) -> list[datetime]:
        """Start and end of a stretch, and between them an instant that halves its versions when they are worth it."""
        start, end = _instant(stretch[0].start), _instant(stretch[-1].end)
        if sum(span.version_count for span in stretch) < VERSIONS_WORTH_A_CONNECTION:
            return [start, end]
        inside = self._days.filter(pl.col("day").is_between(start, end, closed="left"))
        count = inside["version_count"].cum_sum()
        halved = inside.filter(count >= count.tail(1) / 2, pl.col("day") > start)["day"].first()
        return [start, halved if isinstance(halved, datetime) else start + (end - start) / 2, end]


def _instant(microseconds: int) -> datetime:
    return EPOCH + timedelta(microseconds=microseconds)


def as_instants(microseconds: Integers) -> pl.Series:
    """Microseconds as UTC instants."""
    return pl.Series(microseconds, dtype=pl.Int64).cast(UTC_MICROSECONDS)
