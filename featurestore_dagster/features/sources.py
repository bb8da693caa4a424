"""Sources and what each is expected to deliver. Fetching and parsing do not belong here (see package `sources`)."""

from dataclasses import replace
from datetime import date

from featurestore_dagster.features.macro_series import FEAR_GREED_INDEX, RELEASED_SERIES
from featurestore_dagster.features.raw_tables import (
    COP_CANDLES_1D,
    COP_CANDLES_5M,
    COP_POSITIONS,
    CRYPTO_CANDLES,
    CRYPTO_FEAR_GREED,
    CRYPTO_QUOTES,
    CRYPTO_SUPPLY,
    FX_CANDLES_1H,
    MARKET_EVENTS,
    US_COMPANY_FACTS,
    US_EQUITY_CANDLES_1D,
    US_EQUITY_CANDLES_5M,
    US_EQUITY_CORPORATE_ACTIONS,
    US_MACRO,
)
from featurestore_dagster.features.universe import instruments
from featurestore_dagster.model.raw_table import Dataset
from featurestore_dagster.model.source import Listing, Source

STOCKS_END = date(2013, 3, 1)
FIRST_VINTAGE = date(1990, 1, 2)
"""First session of the calendar; what was released before it belongs to no partition."""

INDICES_BEGIN, INDICES_END = date(1999, 1, 4), date(2018, 12, 31)

_STOCKS = (
    Listing("AAPL", date(2000, 3, 1), STOCKS_END, "Apple"),
    Listing("MSFT", date(2000, 3, 1), STOCKS_END, "Microsoft"),
    Listing("IBM", date(2000, 3, 1), STOCKS_END, "International Business Machines"),
    Listing("GOOG", date(2004, 8, 19), STOCKS_END, "Google, class A history"),
    Listing("FB", date(2012, 5, 18), STOCKS_END, "Facebook"),
)

SAMPLES = Source(
    "samples",
    "Historical series that the packages bokeh_sampledata and arch carry; known-at is assumed",
    datasets=(US_EQUITY_CANDLES_1D, US_EQUITY_CORPORATE_ACTIONS, US_MACRO),
    listings={
        US_EQUITY_CANDLES_1D.name: (
            *_STOCKS,
            Listing("SPX", INDICES_BEGIN, INDICES_END, "S&P 500 index"),
            Listing("IXIC", INDICES_BEGIN, INDICES_END, "NASDAQ Composite index"),
        ),
        US_EQUITY_CORPORATE_ACTIONS.name: _STOCKS,
        US_MACRO.name: (
            Listing("VIXCLS", date(2014, 1, 6), date(2019, 1, 4), "CBOE volatility index, close"),
            Listing("DCOILWTICO", date(1990, 1, 3), date(2019, 1, 4), "WTI crude oil at Cushing, dollars per barrel"),
            Listing("AAA", date(1990, 1, 2), date(2019, 1, 2), "Moody's Aaa corporate yield, monthly, per cent"),
            Listing("BAA", date(1990, 1, 2), date(2019, 1, 2), "Moody's Baa corporate yield, monthly, per cent"),
            Listing("CPILFESL", date(1990, 1, 15), date(2018, 12, 17), "core consumer prices, monthly, 1982-84 = 100"),
        ),
    },
)

FILES = Source(
    "files",
    "CSV and Parquet files put into the drop folder, read with the mapping declared beside them",
    datasets=(US_EQUITY_CANDLES_1D, US_EQUITY_CORPORATE_ACTIONS, US_MACRO, FX_CANDLES_1H, CRYPTO_SUPPLY),
    listings={
        FX_CANDLES_1H.name: (Listing("EURUSD", date(2017, 4, 19), description="euro in US dollars"),),
        CRYPTO_SUPPLY.name: tuple(found.listing for found in instruments(CRYPTO_SUPPLY.market)),
    },
)


def _listed(datasets: tuple[Dataset, ...], since: date = date.min) -> dict[str, tuple[Listing, ...]]:
    """Every instrument of each dataset's market, from the provider's first day on."""

    def listed(dataset: Dataset) -> tuple[Listing, ...]:
        found = (instrument.listing for instrument in instruments(dataset.market))
        return tuple(replace(one, first=max(one.first, since)) for one in found if one.last is None or one.last >= since)

    return {dataset.name: listed(dataset) for dataset in datasets}


_BINANCE_DATASETS = (*CRYPTO_CANDLES.values(), CRYPTO_QUOTES)
BINANCE = Source(
    "binance",
    "Spot bars and order books of the exchange Binance, public data",
    datasets=_BINANCE_DATASETS,
    listings=_listed(_BINANCE_DATASETS),
    requests_per_minute=600,
)
"""Binance counts 6000 of weight a minute; bars weigh 2, a book of 100 levels 5."""

_EODHD_DAILY = (US_EQUITY_CANDLES_1D, US_EQUITY_CORPORATE_ACTIONS)
_EODHD_INTRADAY = (US_EQUITY_CANDLES_5M, COP_CANDLES_5M, COP_CANDLES_1D)
EODHD = Source(
    "eodhd",
    "End of day, corporate actions and intraday bars of EODHD; not live: intraday bars come hours after the session",
    datasets=(*_EODHD_DAILY, *_EODHD_INTRADAY),
    listings=_listed(_EODHD_DAILY) | _listed(_EODHD_INTRADAY, since=date(2020, 10, 1)),
    requests_per_minute=600,
)

ALPACA_BEGIN = date(2016, 1, 4)
_ALPACA_DATASETS = (US_EQUITY_CANDLES_5M,)
ALPACA_IEX = Source(
    "alpaca_iex",
    "Intraday bars of US equities by Alpaca, from the trades of the exchange IEX: two to three hundredths of the volume",
    datasets=_ALPACA_DATASETS,
    listings=_listed(_ALPACA_DATASETS, since=ALPACA_BEGIN),
    requests_per_minute=200,
)
ALPACA_SIP = Source(
    "alpaca_sip",
    "Intraday bars of US equities by Alpaca, from the trades of all exchanges; fifteen minutes late on the free plan",
    datasets=_ALPACA_DATASETS,
    listings=_listed(_ALPACA_DATASETS, since=ALPACA_BEGIN),
    requests_per_minute=200,
)

FRED = Source(
    "fred",
    "Macro series of FRED and its archive ALFRED, every vintage; known-at is the release",
    datasets=(US_MACRO,),
    listings={US_MACRO.name: tuple(Listing(name, FIRST_VINTAGE) for name in RELEASED_SERIES if name != FEAR_GREED_INDEX)},
    requests_per_minute=120,
)
SEC = Source(
    "sec",
    "Figures of companies' filings with the SEC; known-at is the acceptance of the filing",
    datasets=(US_COMPANY_FACTS,),
    listings={US_COMPANY_FACTS.name: tuple(found.listing for found in instruments(US_COMPANY_FACTS.market) if found.cik)},
    requests_per_minute=600,
)
NEWS = Source(
    "news", "News, posts and analyst ratings of a JSON feed, with its heartbeat", datasets=(MARKET_EVENTS,), requests_per_minute=120
)
FEAR_GREED = Source(
    "fear_greed",
    "Daily fear and greed index of the crypto market by alternative.me",
    datasets=(CRYPTO_FEAR_GREED,),
    listings={CRYPTO_FEAR_GREED.name: (Listing(FEAR_GREED_INDEX, date(2018, 2, 1), description="fear and greed index, 0 to 100"),)},
    requests_per_minute=60,
)
POSITIONS = Source("positions", "Positions that the execution service appends to a file", datasets=(COP_POSITIONS,))

SOURCES = (
    SAMPLES,
    FILES,
    BINANCE,
    EODHD,
    ALPACA_SIP,
    ALPACA_IEX,
    FRED,
    SEC,
    NEWS,
    FEAR_GREED,
    POSITIONS,
)
