"""The first tier: Redis, as far as it can be believed.

A view is left to the next tier when Redis was never synced, was flushed, was put back to an older snapshot, or holds a row from after the
reader's clock. Which bytes are exchanged belongs to `stores.redis`.
"""

from datetime import UTC, datetime, timedelta

from featurestore_dagster.serving.ladder import FAIR_SECONDS, Question, TierRead
from featurestore_dagster.stores.redis import OnlineRead, RedisStore

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


class RedisTier:
    """Newest rows of all views of all entities in one round trip."""

    name = "redis"

    def __init__(self, store: RedisStore) -> None:
        """Nothing is read before the first call."""
        self._store = store
        self._newest_publications: dict[str, int] = {}

    def allowance(self, left_seconds: float) -> float:
        """A fifth, and a second at most: it answers in a fraction of a millisecond or not at all."""
        return min(left_seconds / 5, 1.0)

    def fair_seconds(self, values: int) -> float:
        """See `ladder.Tier`; several times what it takes."""
        return max(FAIR_SECONDS, values * 1.5e-6)

    def read(self, question: Question) -> TierRead:
        """See `ladder.Tier`."""
        views = question.views
        if not any(view.online for view, _ in views):
            return TierRead([], (False,) * len(views))
        found = self._store.read(views, question.entities, question.deadline_seconds, coherent=question.coherent)
        return self._believed(question, found)

    async def read_async(self, question: Question) -> TierRead:
        """See `ladder.Tier`."""
        views = question.views
        if not any(view.online for view, _ in views):
            return TierRead([], (False,) * len(views))
        found = await self._store.read_async(views, question.entities, question.deadline_seconds, coherent=question.coherent)
        return self._believed(question, found)

    def _believed(self, question: Question, found: OnlineRead) -> TierRead:
        newest = self._newest_publications
        unfit = found.after((question.now - EPOCH) // MICROSECOND)
        if question.coherent:
            unfit |= found.incoherent()
        answered = []
        for position, ((view, _), publication_id) in enumerate(zip(question.views, found.publication_ids, strict=True)):
            label = view.label
            if publication_id and publication_id >= newest.get(label, 0):  # number 0 is no publication: Redis is being filled
                newest[label] = publication_id
                answered.append(view.online and position not in unfit)
            else:
                answered.append(False)
        return TierRead(found.rows, tuple(answered))

    def warm_up(self, timeout_seconds: float) -> bool:
        """See `ladder.Tier`."""
        return self._store.warm_up(timeout_seconds)

    async def warm_up_async(self, timeout_seconds: float) -> bool:
        """See `ladder.Tier`."""
        return await self._store.warm_up_async(timeout_seconds)
