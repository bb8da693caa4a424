"""Raw tables and the datasets kept in them. Which provider fills a dataset does not belong here (see `features.sources`)."""

from datetime import timedelta

import polars as pl

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

RAW_TABLES = (CANDLES, MACRO_OBSERVATIONS, CORPORATE_ACTIONS)

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

DATASETS = (US_EQUITY_CANDLES_1D, US_EQUITY_CORPORATE_ACTIONS, US_MACRO, FX_CANDLES_1H)
