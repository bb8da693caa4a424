"""Which entities are no longer listed: they leave the online store, and no tier answers for them.

Which symbols are listed when is declared in `features.universe` and by the sources.
"""

from datetime import datetime

import polars as pl

from featurestore_dagster.calendars import calendar
from featurestore_dagster.features.universe import listings_of
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS

Entities = frozenset[tuple[str, ...]]
"""Join key values, in the order of a view's `join_keys`."""


def delisted(catalogue: Catalogue, view: FeatureView, now: datetime) -> Entities:
    """The entities of a view that no stream's listing covers any more at `now`; none before its calendars begin."""
    ended: set[tuple[str, ...]] = set()
    listed: set[tuple[str, ...]] = set()
    for stream in view.streams:
        market = calendar(stream.calendar)
        if now <= market.table["window_start"][0]:
            continue
        session = market.session_of(pl.Series([now], dtype=UTC_MICROSECONDS))[0]
        for symbol, listing in listings_of(catalogue, view, stream).items():
            entity = {"symbol": symbol, "timeframe": stream.timeframe.value}
            key = tuple(entity.get(name, symbol) for name in view.join_keys)
            (ended if listing.last is not None and listing.last < session else listed).add(key)
    return frozenset(ended - listed)


class Delisting:
    """`delisted`, remembered for a minute of the clock: a listing ends with a session, and sessions end on full minutes."""

    def __init__(self, catalogue: Catalogue) -> None:
        """Nothing is worked out before it is asked for."""
        self._catalogue = catalogue
        self._remembered: dict[str, tuple[datetime, Entities]] = {}

    def at(self, view: FeatureView, now: datetime) -> Entities:
        """As `delisted`."""
        minute = now.replace(second=0, microsecond=0)
        remembered = self._remembered.get(view.label)
        if remembered is None or remembered[0] != minute:
            remembered = self._remembered[view.label] = (minute, delisted(self._catalogue, view, now))
        return remembered[1]
