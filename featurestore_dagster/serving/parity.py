"""Proof that what is served is what would be computed.

Rows from Redis are held against the published version, and against a computation from raw data with what was known when the row was.

Printing and exit codes belong to the command; nothing is changed here.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from featurestore_dagster.errors import FeatureStoreError, StoreUnavailableError
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.model.time import FrozenClock
from featurestore_dagster.serving.answer import instant
from featurestore_dagster.serving.ladder import Question, Tier
from featurestore_dagster.serving.postgres_tier import PostgresTier
from featurestore_dagster.serving.raw_tier import RawTier
from featurestore_dagster.settings import PostgresSettings
from featurestore_dagster.stores.postgres import PostgresStore
from featurestore_dagster.stores.redis import StoredRow

PATIENCE_SECONDS = 300.0
ENTITIES_PER_READ = 1000
SET_BY_PUBLICATION = QualityFlag.RESTATED | QualityFlag.FALLBACK_SOURCE
"""Flags that say how a row came to be, not what it holds."""

Entity = Mapping[str, str]


@dataclass(frozen=True)
class Mismatch:
    """One value, flag word or time that is not what it should be; `against` says which comparison found it."""

    view: str
    entity: str
    field: str
    served: str
    expected: str
    against: str


@dataclass(frozen=True)
class Parity:
    """What was compared."""

    as_of: datetime
    views: int
    vectors: int
    values: int
    mismatches: tuple[Mismatch, ...]
    unproven: tuple[str, ...]
    """Views that could not be compared, with the reason."""

    @property
    def is_equal(self) -> bool:
        """Whether everything was compared and nothing differed."""
        return not self.mismatches and not self.unproven


def parity(
    catalogue: Catalogue,
    postgres: PostgresSettings,
    online: Tier,
    now: datetime,
    *,
    views: Sequence[FeatureView],
    sample: int,
    seed: int,
    progress: Callable[[str], None] = lambda _: None,
) -> Parity:
    """Sample entities of each view and compare what is served three ways.

    Args:
        catalogue: The declarations.
        postgres: Where the published rows and the raw data are.
        online: The tier under proof.
        now: The instant of the read.
        views: Which views; those that are not online are left out.
        sample: Entities for each view, at most.
        seed: Equal seeds sample equal entities.
        progress: Told each view before it is compared.
    """
    published = PostgresTier(postgres, catalogue)
    vectors = values = 0
    mismatches: list[Mismatch] = []
    unproven: list[str] = []
    compared = [view for view in views if view.online]
    try:
        for view in compared:
            progress(view.name)
            try:
                sampled = _sampled(postgres, online, published, view, now, sample, seed)
                served = {key: row for key, (row, _) in sampled.items() if row is not None}
                again = _recomputed(catalogue, postgres, view, served)
                for key, (row, expected) in sampled.items():
                    mismatches += _differences(view, key, row, expected, "published")
                    if row is not None:
                        mismatches += _differences(view, key, row, again[key], "recomputed")
            except FeatureStoreError as error:
                unproven.append(f"{view.name}: {error}")
                continue
            vectors += len(sampled)
            values += len(sampled) * len(view.features)
    finally:
        published.close()
    return Parity(now, len(compared), vectors, values, tuple(mismatches), tuple(unproven))


def _sampled(
    postgres: PostgresSettings, online: Tier, published: Tier, view: FeatureView, now: datetime, sample: int, seed: int
) -> dict[tuple[str, ...], tuple[StoredRow | None, StoredRow | None]]:
    """Newest rows, served and published, by key, of a sample of the entities that have either."""
    keys = PostgresStore(postgres, FrozenClock(now)).entities(view)
    shuffled = random.Random(f"{seed} {view.name}").sample(keys, len(keys))  # noqa: S311 - no secret
    found: dict[tuple[str, ...], tuple[StoredRow | None, StoredRow | None]] = {}
    for start in range(0, len(shuffled), ENTITIES_PER_READ):
        asked = shuffled[start : start + ENTITIES_PER_READ]
        served, expected = _rows(online, view, asked, now), _rows(published, view, asked, now)
        found |= {key: (served[key], expected[key]) for key in asked if served[key] is not None or expected[key] is not None}
        if len(found) >= sample:
            break
    return dict(list(found.items())[:sample])


def _rows(tier: Tier, view: FeatureView, keys: Sequence[tuple[str, ...]], now: datetime) -> dict[tuple[str, ...], StoredRow | None]:
    if not keys:
        return {}
    entities = [dict(zip(view.join_keys, key, strict=True)) for key in keys]
    found = tier.read(Question([(view, view.feature_names)], entities, now, PATIENCE_SECONDS))
    if not all(found.answered):
        raise StoreUnavailableError(f"{tier.name} holds no publication of {view.name} that can be believed; sync the view")
    return {key: rows[0] for key, rows in zip(keys, found.rows, strict=True)}


def _recomputed(
    catalogue: Catalogue, postgres: PostgresSettings, view: FeatureView, served: Mapping[tuple[str, ...], StoredRow]
) -> dict[tuple[str, ...], StoredRow | None]:
    """Each row computed again from raw data, with a clock that stands at the row's own known-at."""
    together: dict[datetime, list[tuple[str, ...]]] = defaultdict(list)
    for key, row in served.items():
        together[instant(max(row.event_microseconds, row.known_microseconds or 0))].append(key)
    found: dict[tuple[str, ...], StoredRow | None] = {}
    for moment, keys in together.items():
        clock = FrozenClock(moment)
        found |= _rows(RawTier(PostgresStore(postgres, clock), catalogue, clock), view, keys, moment)
    return found


def _differences(
    view: FeatureView, key: tuple[str, ...], row: StoredRow | None, expected: StoredRow | None, against: str
) -> list[Mismatch]:
    entity = "/".join(key)
    if row is None or expected is None:
        ours, theirs = ("none" if one is None else "a row" for one in (row, expected))
        return [Mismatch(view.name, entity, "row", ours, theirs, against)]
    fields: list[tuple[str, object, object]] = [
        ("event_timestamp", row.event_microseconds, expected.event_microseconds),
        ("known_at", row.known_microseconds, expected.known_microseconds),
        ("flags", row.flags & ~SET_BY_PUBLICATION, expected.flags & ~SET_BY_PUBLICATION),
        *zip(view.feature_names, row.values, expected.values, strict=True),
    ]
    return [Mismatch(view.name, entity, name, repr(ours), repr(theirs), against) for name, ours, theirs in fields if ours != theirs]
