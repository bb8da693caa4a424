"""Binance spot: bars and order books. What is listed there is declared in `features.sources`.

A bar's event time is its open time plus the interval. The last bar of an answer is still open until the exchange's clock, which the answer
carries, has passed its end. An order book has no time of its own: its event is its arrival.
"""

import json
from datetime import datetime, timedelta

import polars as pl

from featurestore_dagster.errors import MalformedDataError, SourceRefusedError, SymbolNotFoundError
from featurestore_dagster.features.raw_tables import CRYPTO_QUOTES
from featurestore_dagster.features.sources import BINANCE
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS, Dataset
from featurestore_dagster.sources.bars import arrived, in_range, instants, listed_symbols
from featurestore_dagster.sources.http import HttpClient, Payload
from featurestore_dagster.sources.payloads import Document, canonical, read
from featurestore_dagster.sources.provider_settings import BinanceSettings

BARS_PER_PAGE = 1000
BOOK_LEVELS = 100
LAG = timedelta(seconds=2)
MILLISECOND = timedelta(milliseconds=1)
EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")

TIME_UNITS = {"milliseconds": 1000, "microseconds": 1}
"""The API counts milliseconds unless a header asks otherwise; the archive's files of 2025 and later count microseconds."""

INVALID_SYMBOL = '"code":-1121'

Kline = tuple[int, float, float, float, float, float, int, float, int, float, float, str]
"""Open time, open, high, low, close, volume, close time, quote volume, trades, taker volumes, unused. Prices come as text."""

_COLUMNS = {
    "open_time": pl.Int64, "open": pl.Float64, "high": pl.Float64, "low": pl.Float64, "close": pl.Float64, "volume": pl.Float64,
    "close_time": pl.Int64, "quote_volume": pl.Float64, "trade_count": pl.Float64, "taker_base": pl.Float64, "taker_quote": pl.Float64,
    "unused": pl.String,
}  # fmt: skip


class _Book(Document):
    bids: list[tuple[str, str]]
    asks: list[tuple[str, str]]


def fetch(dataset: Dataset, start: datetime, end: datetime, *, settings: BinanceSettings, client: HttpClient) -> pl.DataFrame:  # noqa: ARG001
    """Rows with start < event_timestamp <= min(end, now). Order books have no history: they come only where the range holds now.

    Returns:
        The canonical columns but `ingested_at`, sorted by identity. Minutes in which trading was halted have no bar.

    Raises:
        SymbolNotFoundError: Binance does not trade a listed symbol, or no longer.
        MalformedDataError: An answer has not the documented form, or its times no documented unit.
        SourceUnavailableError, SourceRefusedError: As `HttpClient.get`.
    """
    now = client.clock.now()
    symbols = listed_symbols(BINANCE, dataset, start, end)
    if dataset == CRYPTO_QUOTES:
        asked = symbols if start < now <= end else []
        pages = [parse_book(_get(client, symbol, "/api/v3/depth", limit=BOOK_LEVELS), symbol) for symbol in asked]
    else:
        pages = [page for symbol in symbols for page in _bars(client, dataset, symbol, start, min(end, now))]
    return in_range(pages, dataset, start, end)


def parse(payload: Payload, dataset: Dataset, symbol: str) -> pl.DataFrame:
    """Canonical rows of the closed bars of an answer to `klines`; `bar_vwap` is quote volume over volume, NULL without volume.

    Raises:
        MalformedDataError: Not of the documented form, or the times have no documented unit.
    """
    klines = read(list[Kline], payload.body, payload.url)
    bar_ends = instants([kline[0] for kline in klines], TIME_UNITS, payload) + dataset.timeframe.duration
    rows = pl.DataFrame(klines, schema=_COLUMNS, orient="row").with_columns(
        symbol=pl.lit(symbol),
        event_timestamp=bar_ends,
        due=bar_ends + LAG,
        bar_vwap=pl.when(pl.col("volume") > 0).then(pl.col("quote_volume") / pl.col("volume")),
    )
    return arrived(rows, dataset, BINANCE, payload, dataset.timeframe.duration)


def parse_book(payload: Payload, symbol: str) -> pl.DataFrame:
    """The canonical row of an answer to `depth`; a level of price or quantity zero stands for an empty side and is left out.

    Raises:
        MalformedDataError: Not of the documented form.
    """
    book = read(_Book, payload.body, payload.url)
    try:
        sides = {name: [[float(number) for number in level] for level in getattr(book, name)] for name in ("bids", "asks")}
    except ValueError as error:
        raise MalformedDataError(f"{payload.url}: {error}; nothing was taken") from None
    texts = {name: json.dumps([level for level in levels if all(level)]) for name, levels in sides.items()}
    at = pl.lit(payload.received_at, UTC_MICROSECONDS)
    row = pl.DataFrame({"symbol": symbol, **texts}).with_columns(event_timestamp=at, known_at=at, known_at_basis=pl.lit("observed"))
    return canonical(row, CRYPTO_QUOTES, BINANCE)


def _bars(client: HttpClient, dataset: Dataset, symbol: str, start: datetime, end: datetime) -> list[pl.DataFrame]:
    first = (start - dataset.timeframe.duration - EPOCH) // MILLISECOND + 1
    last = (end - dataset.timeframe.duration - EPOCH) // MILLISECOND
    pages = []
    while first <= last:
        payload = _get(
            client, symbol, "/api/v3/klines", interval=dataset.timeframe.value, startTime=first, endTime=last, limit=BARS_PER_PAGE
        )
        klines = read(list[Kline], payload.body, payload.url)
        pages.append(parse(payload, dataset, symbol))
        if len(klines) < BARS_PER_PAGE:
            break
        newest: datetime = instants([kline[0] for kline in klines], TIME_UNITS, payload).max()  # type: ignore[assignment]
        following = (newest - EPOCH) // MILLISECOND + 1
        if following <= first:
            raise MalformedDataError(f"{payload.url}: a full page of bars before the time asked for; nothing was taken")
        first = following
    return pages


def _get(client: HttpClient, symbol: str, path: str, **params: str | int) -> Payload:
    try:
        return client.get(path, {"symbol": symbol, **params})
    except SourceRefusedError as error:
        if INVALID_SYMBOL in error.answer.replace(" ", ""):
            raise SymbolNotFoundError(
                f"{client.name} does not trade {symbol}: where it was delisted or renamed, give its last session in features/universe.py",
                status=error.status,
                answer=error.answer,
            ) from None
        raise
