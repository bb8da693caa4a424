"""EODHD: daily bars, corporate actions and intraday bars. What it is expected to deliver is declared in `features.sources`.

Prices are as traded; `adjusted_close` belongs to the vintage of the request: the store keeps a changed one as a restatement. A currency's
daily bar there covers the whole day, so ours is made from the intraday bars of the local session.
"""

from collections.abc import Iterator, Sequence
from datetime import date, datetime, time, timedelta

import polars as pl
from pydantic import SecretStr

from featurestore_dagster.calendars import calendar
from featurestore_dagster.errors import MalformedDataError, SourceRefusedError, SymbolNotFoundError
from featurestore_dagster.features.raw_tables import (
    COP_CANDLES_1D,
    COP_CANDLES_5M,
    CORPORATE_ACTIONS,
    US_EQUITY_CANDLES_1D,
    US_EQUITY_CANDLES_5M,
)
from featurestore_dagster.features.sources import EODHD
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS, Dataset
from featurestore_dagster.model.time import Timeframe
from featurestore_dagster.sources.bars import arrived, in_range, instants, listed_symbols, within_session
from featurestore_dagster.sources.http import HttpClient, Payload
from featurestore_dagster.sources.payloads import Document, read
from featurestore_dagster.sources.provider_settings import EodhdSettings

LAG = timedelta(hours=3)
"""After the session's close; intraday bars come as late as daily ones."""

LIVE_FOR = timedelta(days=1)
LONGEST_SPAN = timedelta(days=600)
TIME_UNITS = {"seconds": 1_000_000}
EXCHANGES = {"us_equity": "US", "cop": "FOREX"}
CURRENCY = "USD"
UNKNOWN_SYMBOL = 404
NO_SESSION = time(21)
"""UTC; of a daily bar on a day that is no session: a bar off the grid, which the audit refuses."""

FIVE_MINUTES = {"us_equity": US_EQUITY_CANDLES_5M, "cop": COP_CANDLES_5M}


class _Daily(Document):
    date: date
    open: float | None
    high: float | None
    low: float | None
    close: float | None
    adjusted_close: float | None
    volume: float | None


class _Intraday(Document):
    timestamp: int
    open: float | None
    high: float | None
    low: float | None
    close: float | None
    volume: float | None


class _Split(Document):
    date: date
    split: str


class _Dividend(Document):
    date: date
    unadjustedValue: float  # noqa: N815 - the provider's name
    currency: str


_PRICES = ("open", "high", "low", "close")


def fetch(dataset: Dataset, start: datetime, end: datetime, *, settings: EodhdSettings, client: HttpClient) -> pl.DataFrame:
    """Rows with start < event_timestamp <= min(end, now), of every listed symbol.

    Returns:
        The canonical columns but `ingested_at`, sorted by identity. A currency has no volume: NULL.

    Raises:
        ConfigurationError: EODHD_API_TOKEN is not set.
        SymbolNotFoundError: EODHD does not know a listed symbol.
        MalformedDataError: An answer has not the documented form, or its times are not in seconds.
        SourceUnavailableError, SourceRefusedError: As `HttpClient.get`.
    """
    token, last = settings.required("api_token"), min(end, client.clock.now())
    if start >= last:
        return in_range([], dataset, start, end)
    pages = []
    for symbol in listed_symbols(EODHD, dataset, start, last):
        days: dict[str, str | int] = {"from": start.date().isoformat(), "to": last.date().isoformat()}
        if dataset.table == CORPORATE_ACTIONS:
            pages.append(parse_splits(_get(client, token, "splits", dataset, symbol, days), dataset, symbol))
            pages.append(parse_dividends(_get(client, token, "div", dataset, symbol, days), dataset, symbol))
        elif dataset == US_EQUITY_CANDLES_1D:
            pages.append(parse_daily(_get(client, token, "eod", dataset, symbol, {**days, "period": "d"}), dataset, symbol))
        else:
            pages += _intraday(client, token, dataset, symbol, start, last)
    return in_range(pages, dataset, start, end)


def parse_daily(payload: Payload, dataset: Dataset, symbol: str) -> pl.DataFrame:
    """Canonical daily bars of an answer to `eod`, each at its session's close.

    Raises:
        MalformedDataError: Not of the documented form.
    """
    days = read(list[_Daily], payload.body, payload.url)
    bars = _frame(days, {"date": pl.Date, **dict.fromkeys((*_PRICES, "adjusted_close", "volume"), pl.Float64)})
    closes = calendar(dataset.calendar).table.select(date="session", event_timestamp="closes")
    no_session = pl.col("date").dt.combine(NO_SESSION).dt.replace_time_zone("UTC").cast(UTC_MICROSECONDS)
    rows = bars.join(closes, on="date", how="left").with_columns(pl.coalesce("event_timestamp", no_session), symbol=pl.lit(symbol))
    return arrived(rows.with_columns(due=pl.col("event_timestamp") + LAG), dataset, EODHD, payload, LIVE_FOR)


def parse_intraday(payload: Payload, dataset: Dataset, symbol: str) -> pl.DataFrame:
    """Canonical bars of an answer to `intraday`, only those of the dataset's sessions. A bar without prices stays one, for the audit.

    For a daily dataset, one bar of each session that the provider has finished: of those of its bars that have prices.

    Raises:
        MalformedDataError: Not of the documented form, or the times are not in seconds.
    """
    bars = read(list[_Intraday], payload.body, payload.url)
    rows = _frame(bars, {"timestamp": pl.Int64, **dict.fromkeys((*_PRICES, "volume"), pl.Float64)}).with_columns(
        event_timestamp=instants([bar.timestamp for bar in bars], TIME_UNITS, payload) + Timeframe.FIVE_MINUTES.duration,
        symbol=pl.lit(symbol),
    )
    inside = within_session(rows, FIVE_MINUTES[dataset.market]).with_columns(due=pl.col("closes") + LAG)
    if dataset == COP_CANDLES_1D:
        finished = inside.filter(pl.col("due") <= pl.lit(payload.asked_at, UTC_MICROSECONDS)).drop_nulls(_PRICES)
        inside = finished.group_by("symbol", "due", event_timestamp="closes", maintain_order=True).agg(
            pl.col("open").first(), pl.col("high").max(), pl.col("low").min(), pl.col("close").last()
        )
    elif dataset == COP_CANDLES_5M:
        inside = inside.drop("volume")
    return arrived(inside, dataset, EODHD, payload, LIVE_FOR)


def parse_splits(payload: Payload, dataset: Dataset, symbol: str) -> pl.DataFrame:
    """Canonical splits, each at the open of its ex-date; "4.000000/1.000000" are four new shares for an old one.

    Raises:
        MalformedDataError: Not of the documented form.
    """
    try:
        parts = [(found.date, found.split.split("/")) for found in read(list[_Split], payload.body, payload.url)]
        rows: list[dict[str, object]] = [{"date": day, "action": "split", "ratio": float(new) / float(old)} for day, (new, old) in parts]
    except (ValueError, ZeroDivisionError) as error:
        raise MalformedDataError(f"{payload.url}: a split is not of the form 4.0/1.0 ({error}); nothing was taken") from None
    return _actions(rows, dataset, payload, symbol)


def parse_dividends(payload: Payload, dataset: Dataset, symbol: str) -> pl.DataFrame:
    """Canonical dividends, each at the open of its ex-date; the cash as it was paid, not as later splits adjust it.

    Raises:
        MalformedDataError: Not of the documented form, or not in the currency of the price.
    """
    found = read(list[_Dividend], payload.body, payload.url)
    if foreign := sorted({dividend.currency for dividend in found} - {CURRENCY}):
        raise MalformedDataError(f"{payload.url}: dividends in {', '.join(map(repr, foreign))}, allowed {CURRENCY}; nothing was taken")
    rows: list[dict[str, object]] = [{"date": one.date, "action": "dividend", "cash_amount": one.unadjustedValue} for one in found]
    return _actions(rows, dataset, payload, symbol)


def _actions(rows: list[dict[str, object]], dataset: Dataset, payload: Payload, symbol: str) -> pl.DataFrame:
    actions = pl.DataFrame(rows, schema={"date": pl.Date, "action": pl.String, "ratio": pl.Float64, "cash_amount": pl.Float64}).sort("date")
    opens = calendar(dataset.calendar).table.select("session", event_timestamp="opens").sort("session")
    dated = actions.join_asof(opens, left_on="date", right_on="session", strategy="forward").with_columns(symbol=pl.lit(symbol))
    return arrived(dated.with_columns(due="event_timestamp"), dataset, EODHD, payload, LIVE_FOR)


def _frame(items: Sequence[Document], schema: dict[str, type[pl.DataType]]) -> pl.DataFrame:
    return pl.DataFrame([item.model_dump() for item in items], schema=schema)


def _intraday(
    client: HttpClient, token: SecretStr, dataset: Dataset, symbol: str, start: datetime, end: datetime
) -> Iterator[pl.DataFrame]:
    """Pages of at most 600 days, cut at midnight UTC, when none of the sessions is open; a daily bar needs the whole of its first day."""
    first = start.replace(hour=0, minute=0, second=0, microsecond=0)
    while first <= end:
        last = min(first + LONGEST_SPAN, end)
        span: dict[str, str | int] = {"interval": "5m", "from": int(first.timestamp()), "to": int(last.timestamp())}
        yield parse_intraday(_get(client, token, "intraday", dataset, symbol, span), dataset, symbol)
        first += LONGEST_SPAN


def _get(client: HttpClient, token: SecretStr, kind: str, dataset: Dataset, symbol: str, params: dict[str, str | int]) -> Payload:
    try:
        return client.get(f"/api/{kind}/{symbol}.{EXCHANGES[dataset.market]}", {**params, "fmt": "json", "api_token": token})
    except SourceRefusedError as error:
        if error.status == UNKNOWN_SYMBOL:
            raise SymbolNotFoundError(
                f"{client.name} does not know {symbol}: where it was delisted or renamed, give its last session in features/universe.py",
                status=error.status,
                answer=error.answer,
            ) from None
        raise
