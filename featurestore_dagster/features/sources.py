"""Sources and what each is expected to deliver. Fetching and parsing do not belong here (see package `sources`)."""

from datetime import date

from featurestore_dagster.features.raw_tables import FX_CANDLES_1H, US_EQUITY_CANDLES_1D, US_EQUITY_CORPORATE_ACTIONS, US_MACRO
from featurestore_dagster.model.source import Listing, Source

STOCKS_END = date(2013, 3, 1)
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
    datasets=(US_EQUITY_CANDLES_1D, US_EQUITY_CORPORATE_ACTIONS, US_MACRO, FX_CANDLES_1H),
    listings={FX_CANDLES_1H.name: (Listing("EURUSD", date(2017, 4, 19), description="euro in US dollars"),)},
)

SOURCES = (SAMPLES, FILES)
