"""Raw tables and the datasets kept in them. Which provider fills a dataset does not belong here (see `features.sources`)."""

from datetime import timedelta

import polars as pl

from featurestore_dagster.features.universe import CRYPTO
from featurestore_dagster.model.raw_table import Column, Dataset, RawTable
from featurestore_dagster.model.time import Timeframe
from featurestore_dagster.model.units import Unit

CANDLES = RawTable(
    "candles",
    "Closed bars as traded, one row per version; the event time is the bar's end",
    key=("symbol", "timeframe"),
    columns=(
        Column("symbol", pl.String(), "instrument"),
        Column("timeframe", pl.String(), "length of the bar"),
        Column("open", pl.Float64(), "first price", unit=Unit.PRICE),
        Column("high", pl.Float64(), "highest price", unit=Unit.PRICE),
        Column("low", pl.Float64(), "lowest price", unit=Unit.PRICE),
        Column("close", pl.Float64(), "last price", unit=Unit.PRICE),
        Column("volume", pl.Float64(), "quantity traded; NULL only where the market reports none", nullable=True, unit=Unit.QUANTITY),
        Column("adjusted_close", pl.Float64(), "close as the vendor adjusts it, from one vintage", nullable=True, unit=Unit.PRICE),
        Column("trade_count", pl.Float64(), "number of trades, where the vendor reports it", nullable=True, unit=Unit.COUNT),
        Column("bar_vwap", pl.Float64(), "volume-weighted price as the vendor computes it", nullable=True, unit=Unit.PRICE),
    ),
)

MACRO_OBSERVATIONS = RawTable(
    "macro_observations",
    "Releases of macro series, every vintage; the event time is the release",
    key=("series_id", "observation_date"),
    columns=(
        Column("series_id", pl.String(), "series, named as FRED names it"),
        Column("observation_date", pl.Date(), "day, or first day of the month, that the value describes"),
        Column("value", pl.Float64(), "value in the unit of the series"),
    ),
)

CORPORATE_ACTIONS = RawTable(
    "corporate_actions",
    "Splits and cash dividends; the event time is the session open of the ex-date",
    key=("symbol", "action"),
    columns=(
        Column("symbol", pl.String(), "instrument"),
        Column("action", pl.String(), "split or dividend"),
        Column("ratio", pl.Float64(), "new shares per old share of a split", nullable=True, unit=Unit.RATIO),
        Column("cash_amount", pl.Float64(), "cash per share of a dividend", nullable=True, unit=Unit.PRICE),
    ),
)

QUOTES = RawTable(
    "quotes",
    "Snapshots of the order book, best level first; the event time is the exchange's, or the arrival where it sends none",
    key=("symbol",),
    columns=(
        Column("symbol", pl.String(), "instrument"),
        Column("bids", pl.String(), "JSON array of [price, quantity], best first; [] when the side is empty"),
        Column("asks", pl.String(), "JSON array of [price, quantity], best first; [] when the side is empty"),
    ),
)

EVENTS = RawTable(
    "events",
    "News, posts and analyst ratings about one symbol; the event time is the publication",
    key=("event_id", "symbol"),
    columns=(
        Column("event_id", pl.String(), "the feed's identifier"),
        Column("symbol", pl.String(), "instrument that it is about"),
        Column("source_type", pl.String(), "news, social, analyst, or heartbeat: the feed was alive and had nothing"),
        Column("headline_hash", pl.String(), "sha256 of the casefolded headline, white space collapsed", nullable=True),
        Column("score", pl.Float64(), "sentiment, -1 to 1", nullable=True),
        Column("confidence", pl.Float64(), "confidence of the score, 0 to 1", nullable=True),
        Column("firm", pl.String(), "firm of an analyst's rating", nullable=True),
        Column("rating", pl.Float64(), "analyst's rating, 1 strong sell to 5 strong buy", nullable=True),
    ),
)

COMPANY_FACTS = RawTable(
    "company_facts",
    "Figures of filings, every filing kept; the event time is the acceptance of the filing",
    key=("symbol", "concept", "period_start", "period_end", "accession", "unit"),
    columns=(
        Column("symbol", pl.String(), "instrument of the filer"),
        Column("concept", pl.String(), "canonical figure, such as net_income"),
        Column("period_start", pl.Date(), "first day that a flow covers; the day itself for a stock"),
        Column("period_end", pl.Date(), "last day of the period"),
        Column("accession", pl.String(), "filing"),
        Column("form", pl.String(), "form of the filing, such as 10-Q or 10-K/A"),
        Column("unit", pl.String(), "currency, shares, or currency per share"),
        Column("value", pl.Float64(), "figure in the unit"),
    ),
)

POSITIONS = RawTable(
    "positions",
    "Positions as the execution service pushes them; the event time is the push",
    key=("symbol",),
    columns=(
        Column("symbol", pl.String(), "instrument"),
        Column("position", pl.Float64(), "signed exposure over the greatest allowed one, -1 to 1", unit=Unit.FRACTION),
    ),
)

RAW_TABLES = (CANDLES, MACRO_OBSERVATIONS, CORPORATE_ACTIONS, QUOTES, EVENTS, COMPANY_FACTS, POSITIONS)

US_EQUITY_CANDLES_1D = Dataset(
    "us_equity_candles_1d",
    CANDLES,
    market="us_equity",
    calendar="XNYS",
    timeframe=Timeframe.ONE_DAY,
    description="Daily bars of US equities and their indices, prices as traded",
    latency=timedelta(0),
    bars=True,
)
US_EQUITY_CORPORATE_ACTIONS = Dataset(
    "us_equity_corporate_actions",
    CORPORATE_ACTIONS,
    market="us_equity",
    calendar="XNYS",
    timeframe=Timeframe.ONE_DAY,
    description="Splits and dividends of US equities",
    latency=timedelta(0),
    bars=False,
)
US_MACRO = Dataset(
    "us_macro",
    MACRO_OBSERVATIONS,
    market="us_macro",
    calendar="XNYS",
    timeframe=Timeframe.ONE_DAY,
    description="Daily and monthly US macro and rates series",
    latency=timedelta(0),
    bars=False,
)
FX_CANDLES_1H = Dataset(
    "fx_candles_1h",
    CANDLES,
    market="fx",
    calendar="FX",
    timeframe=Timeframe.ONE_HOUR,
    description="Hourly bars of currency pairs",
    latency=timedelta(0),
    bars=True,
)


def _candles(market: str, calendar: str, timeframe: Timeframe, description: str) -> Dataset:
    name = f"{market}_candles_{timeframe}"
    return Dataset(name, CANDLES, market, calendar, timeframe, description, latency=timedelta(0), bars=True)


def _arrivals(name: str, table: RawTable, market: str, calendar: str, timeframe: Timeframe, description: str) -> Dataset:
    return Dataset(name, table, market, calendar, timeframe, description, latency=timedelta(0), bars=False)


US_EQUITY_CANDLES_5M = _candles("us_equity", "XNYS", Timeframe.FIVE_MINUTES, "Five-minute bars of US equities, regular session")
US_COMPANY_FACTS = _arrivals(
    "us_company_facts", COMPANY_FACTS, "us_equity", "XNYS", Timeframe.ONE_DAY, "Figures of US companies' filings with the SEC"
)
COP_CANDLES_5M = _candles("cop", "COP", Timeframe.FIVE_MINUTES, "Five-minute bars of the dollar in Colombian pesos, local session")
COP_CANDLES_1D = _candles("cop", "COP", Timeframe.ONE_DAY, "Daily bars of the dollar in Colombian pesos, local session")
COP_POSITIONS = _arrivals("cop_positions", POSITIONS, "cop", "COP", Timeframe.ONE_MINUTE, "Positions of the execution service")
CRYPTO_CANDLES = {timeframe: _candles(CRYPTO, "24/7", timeframe, f"{timeframe} bars of crypto pairs, spot") for timeframe in Timeframe}
CRYPTO_QUOTES = _arrivals("crypto_quotes", QUOTES, CRYPTO, "24/7", Timeframe.ONE_MINUTE, "Order books of crypto pairs, spot")
CRYPTO_SUPPLY = _arrivals(
    "crypto_supply", COMPANY_FACTS, CRYPTO, "24/7", Timeframe.ONE_DAY, "Circulating supply of coins, told like a firm's shares_outstanding"
)
CRYPTO_FEAR_GREED = _arrivals(
    "crypto_fear_greed", MACRO_OBSERVATIONS, CRYPTO, "24/7", Timeframe.ONE_DAY, "Daily fear and greed index of the crypto market"
)
MARKET_EVENTS = _arrivals("market_events", EVENTS, "news", "24/7", Timeframe.ONE_MINUTE, "News, posts and ratings of all symbols")

DATASETS = (
    US_EQUITY_CANDLES_1D,
    US_EQUITY_CORPORATE_ACTIONS,
    US_MACRO,
    FX_CANDLES_1H,
    US_EQUITY_CANDLES_5M,
    US_COMPANY_FACTS,
    COP_CANDLES_5M,
    COP_CANDLES_1D,
    COP_POSITIONS,
    *CRYPTO_CANDLES.values(),
    CRYPTO_QUOTES,
    CRYPTO_SUPPLY,
    CRYPTO_FEAR_GREED,
    MARKET_EVENTS,
)
