"""Alpaca: intraday bars of US equities. What it is expected to deliver is declared in `features.sources`.

The feed is part of the source's name, for bars of two feeds are different data: IEX is one exchange, SIP is all of them.
"""

from datetime import datetime, timedelta

import polars as pl
from polars.datatypes import DataType, DataTypeClass
from pydantic import AwareDatetime, SecretStr

from featurestore_dagster.errors import MalformedDataError, SourceRefusedError, SymbolNotFoundError
from featurestore_dagster.features.sources import ALPACA_IEX, ALPACA_SIP
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS, Dataset
from featurestore_dagster.model.source import Source
from featurestore_dagster.sources.bars import arrived, in_range, listed_symbols, within_session
from featurestore_dagster.sources.http import HttpClient, Payload
from featurestore_dagster.sources.payloads import Document, read
from featurestore_dagster.sources.provider_settings import AlpacaSettings

BARS_PER_PAGE = 10_000
LAGS = {ALPACA_IEX.name: timedelta(seconds=1), ALPACA_SIP.name: timedelta(minutes=15)}
"""After the bar's end. The free plan refuses SIP bars that are younger."""

TIMEFRAMES = {"5m": "5Min"}


class _Bar(Document):
    t: AwareDatetime
    o: float
    h: float
    l: float  # noqa: E741 - the provider's name
    c: float
    v: float
    n: int
    vw: float


class _Page(Document):
    bars: dict[str, list[_Bar]] | None
    next_page_token: str | None


_COLUMNS = {"o": "open", "h": "high", "l": "low", "c": "close", "v": "volume", "n": "trade_count", "vw": "bar_vwap"}


def fetch(dataset: Dataset, start: datetime, end: datetime, *, settings: AlpacaSettings, client: HttpClient) -> pl.DataFrame:
    """Bars of the regular session with start < event_timestamp <= min(end, now), of every listed symbol; the client's name says the feed.

    Returns:
        The canonical columns but `ingested_at`, sorted by identity, prices as traded. An interval without a trade has no bar.

    Raises:
        ConfigurationError: ALPACA_API_KEY_ID or ALPACA_API_SECRET_KEY is not set.
        SymbolNotFoundError: Alpaca does not know a listed symbol.
        MalformedDataError: An answer has not the documented form, or its pages do not end.
        SourceUnavailableError, SourceRefusedError: As `HttpClient.get`.
    """
    headers = {"APCA-API-KEY-ID": settings.required("api_key_id"), "APCA-API-SECRET-KEY": settings.required("api_secret_key")}
    source = next(found for found in (ALPACA_IEX, ALPACA_SIP) if found.name == client.name)
    now = client.clock.now()
    last = min(end, now - LAGS[source.name] if source is ALPACA_SIP else now)
    symbols = listed_symbols(source, dataset, start, end)
    if start >= last or not symbols:
        return in_range([], dataset, start, end)
    length = dataset.timeframe.duration
    query: dict[str, str | int] = {
        "symbols": ",".join(symbols),
        "timeframe": TIMEFRAMES[dataset.timeframe.value],
        "start": _rfc3339(start - length),
        "end": _rfc3339(last - length),
        "limit": BARS_PER_PAGE,
        "adjustment": "raw",
        "feed": source.name.removeprefix("alpaca_"),
        "sort": "asc",
    }
    pages: list[pl.DataFrame] = []
    tokens = [""]
    while len(tokens) > len(pages):
        payload = _get(client, query | ({"page_token": tokens[-1]} if tokens[-1] else {}), headers)
        pages.append(parse(payload, dataset, source))
        token = read(_Page, payload.body, payload.url).next_page_token
        if token in tokens:
            raise MalformedDataError(f"{payload.url}: the page token comes again, so that the pages never end; nothing was taken")
        tokens += [token] if token else []
    return in_range(pages, dataset, start, end)


def parse(payload: Payload, dataset: Dataset, source: Source) -> pl.DataFrame:
    """Canonical rows of the closed bars of one page, only those of the regular session.

    Raises:
        MalformedDataError: Not of the documented form.
    """
    page = read(_Page, payload.body, payload.url)
    bars = [{"symbol": symbol, **bar.model_dump()} for symbol, series in (page.bars or {}).items() for bar in series]
    schema: dict[str, DataType | DataTypeClass] = {"symbol": pl.String, "t": UTC_MICROSECONDS, **dict.fromkeys(_COLUMNS, pl.Float64)}
    rows = pl.DataFrame(bars, schema=schema).rename(_COLUMNS).with_columns(event_timestamp=pl.col("t") + dataset.timeframe.duration)
    inside = within_session(rows, dataset).with_columns(due=pl.col("event_timestamp") + LAGS[source.name])
    return arrived(inside, dataset, source, payload, dataset.timeframe.duration)


def _rfc3339(instant: datetime) -> str:
    return instant.isoformat().replace("+00:00", "Z")


def _get(client: HttpClient, query: dict[str, str | int], headers: dict[str, SecretStr]) -> Payload:
    try:
        return client.get("/v2/stocks/bars", query, headers)
    except SourceRefusedError as error:
        if "invalid symbol" in error.answer:
            raise SymbolNotFoundError(
                f"{client.name} does not know one of {query['symbols']}: where it was delisted or renamed, give its last session in "
                f"features/universe.py; it answered {error.answer}",
                status=error.status,
                answer=error.answer,
            ) from None
        raise
