"""A feed of news, posts and analyst ratings. Windows over the events, and which of two copies counts, do not belong here.

The feed answers GET /events?since=..&until=..[&cursor=..] with the events published in since < published_at <= until, in any order;
a token, where one is set, comes in the header X-Api-Key:

    {"events": [{"id": "n-1", "symbol": "AAPL", "published_at": "2024-05-03T13:30:00Z", "source_type": "news", "headline": "..",
                 "score": 0.4, "confidence": 0.9, "firm": null, "rating": null}, ..],
     "next": "opaque cursor of the next page, or null",
     "heartbeat": "2024-05-03T13:31:00Z"}

`source_type` is news, social, analyst or heartbeat; `headline`, `score`, `confidence`, `firm` and `rating` (1 strong sell to 5 strong
buy) may be null or absent. `heartbeat` is the instant at which the feed itself last looked for events: it tells a feed that has nothing
from one that is dead, and becomes a row of its own. To tell it of the past too, a feed repeats old heartbeats among its events.
"""

import hashlib
from datetime import UTC, datetime

import polars as pl

from featurestore_dagster.errors import MalformedDataError
from featurestore_dagster.features.raw_tables import EVENTS
from featurestore_dagster.features.sources import NEWS
from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS, Dataset
from featurestore_dagster.sources.http import HttpClient
from featurestore_dagster.sources.payloads import Document, arrival, canonical, read, refuse_implausible
from featurestore_dagster.sources.provider_settings import NewsSettings

HEARTBEAT, EVERY_SYMBOL = "heartbeat", "*"

ROWS = {**{column.name: column.dtype for column in EVENTS.columns}, "event_timestamp": UTC_MICROSECONDS, "flags": pl.Int64()}


class _Event(Document):
    id: str
    symbol: str
    published_at: datetime
    source_type: str
    headline: str | None = None
    score: float | None = None
    confidence: float | None = None
    firm: str | None = None
    rating: float | None = None


class _Page(Document):
    events: list[_Event]
    next: str | None
    heartbeat: datetime


def fetch(dataset: Dataset, start: datetime, end: datetime, *, settings: NewsSettings, client: HttpClient) -> pl.DataFrame:
    """Events published in start < event_timestamp <= end, and the feed's heartbeat when it lies there; every page or none.

    Returns:
        The canonical columns but `ingested_at`, sorted by identity. Values are as delivered, an id that comes twice too: the audit refuses
        rows. A time without zone is read as UTC and flagged TIMESTAMP_MISMATCH, with which no row is published.

    Raises:
        MalformedDataError: A page is not of the declared form, an instant is implausible, or the pages go round in circles.
        SourceRefusedError, SourceUnavailableError: As `HttpClient.get`.
    """
    headers = {"X-Api-Key": settings.token} if settings.token.get_secret_value() else {}
    query = {"since": start.astimezone(UTC).isoformat(), "until": end.astimezone(UTC).isoformat()}
    payload = client.get("/events", query, headers)
    rows, cursor = parse(payload.body, payload.received_at)
    pages, seen = [rows], set()
    while cursor is not None:
        if cursor in seen:
            raise MalformedDataError(f"news: cursor {cursor!r} came twice; nothing was taken")
        seen.add(cursor)
        payload = client.get("/events", query | {"cursor": cursor}, headers)
        rows, cursor = parse(payload.body, payload.received_at)
        pages.append(rows)
    within = (pl.col("event_timestamp") > start) & (pl.col("event_timestamp") <= end)
    # One arrival for all pages: an id that comes on two of them with different contents contradicts itself, it restates nothing.
    return canonical(pl.concat(pages).filter(within).with_columns(**arrival(payload.received_at, dataset)), dataset, NEWS)


def parse(body: bytes, received_at: datetime) -> tuple[pl.DataFrame, str | None]:
    """A page to rows: the table's own columns, event_timestamp and flags, in the page's order, the heartbeat last; and the next cursor.

    Args:
        body: The page.
        received_at: When it came; what is a day later than that has a wrong unit of time.

    Raises:
        MalformedDataError: The page is not of the declared form, or an instant is implausible.
    """
    page = read(_Page, body, "news")
    beat = _Event(id=HEARTBEAT, symbol=EVERY_SYMBOL, published_at=page.heartbeat, source_type=HEARTBEAT)
    events = [*page.events, beat]
    refuse_implausible((_utc(event.published_at) for event in events), received_at, "news")
    rows = [
        (
            event.id,
            event.symbol,
            event.source_type,
            headline_hash(event.headline),
            event.score,
            event.confidence,
            event.firm,
            event.rating,
            _utc(event.published_at),
            0 if event.published_at.tzinfo else QualityFlag.TIMESTAMP_MISMATCH.value,
        )
        for event in events
    ]
    return pl.DataFrame(rows, schema=ROWS, orient="row"), page.next


def headline_hash(headline: str | None) -> str | None:
    """Hex sha256 of the headline in UTF-8, casefolded, each run of white space one blank; None when there is none or it is blank."""
    words = " ".join((headline or "").casefold().split())
    return hashlib.sha256(words.encode()).hexdigest() if words else None


def _utc(instant: datetime) -> datetime:
    return instant.astimezone(UTC) if instant.tzinfo else instant.replace(tzinfo=UTC)
