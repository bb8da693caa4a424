"""Real historical series from the packages bokeh_sampledata (daily stocks) and arch (indices, macro). Other providers do not belong here.

The packages state no publication times, so every `known_at` is assumed: a bar at its session's close, a corporate action at the open of
the ex-date, a macro value at the usual time of its release. arch's files are read where the package keeps them, because importing arch
takes seconds and pandas.
"""

from datetime import datetime
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import polars as pl

from featurestore_dagster.calendars import MarketCalendar, calendar
from featurestore_dagster.errors import ConfigurationError
from featurestore_dagster.features.macro_series import RELEASED_SERIES
from featurestore_dagster.features.raw_tables import US_EQUITY_CANDLES_1D, US_EQUITY_CORPORATE_ACTIONS, US_MACRO
from featurestore_dagster.features.sources import SAMPLES
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS, Dataset
from featurestore_dagster.model.time import Clock

STOCKS = ("AAPL", "MSFT", "IBM", "GOOG", "FB")
INDICES = {"SPX": "sp500", "IXIC": "nasdaq"}
DAILY_MACRO = {"VIXCLS": ("vix", "vix"), "DCOILWTICO": ("wti", "DCOILWTICO")}
MONTHLY_MACRO = {"AAA": ("default", "AAA"), "BAA": ("default", "BAA"), "CPILFESL": ("core_cpi", "CPILFESL")}

SPLIT_BEYOND = 1.4
"""A step of the vendor's factor above this, or below its inverse, is a split; the greatest dividend (MSFT, 3.08) is a step of 1.11."""

SMALLEST_DIVIDEND = 0.005
"""Dollars per share. Between actions the vendor's factor is constant to 1e-11 dollars; the smallest dividend is 0.08."""


def fetch(dataset: Dataset, start: datetime, end: datetime, *, clock: Clock) -> pl.DataFrame:
    """Rows of a dataset with start < event_timestamp <= min(end, now): a replay gets no bar that is not closed yet.

    Returns:
        The canonical columns but `ingested_at`, sorted by identity; NULL only in nullable columns, flags 0.

    Raises:
        ConfigurationError: The extra `samples` is not installed.
    """
    within = (pl.col("event_timestamp") > start) & (pl.col("event_timestamp") <= min(end, clock.now()))
    return _LOADERS[dataset.name]().filter(within)


@cache
def _candles() -> pl.DataFrame:
    bars = pl.concat([*(_stock(symbol) for symbol in STOCKS), *(_index(symbol, name) for symbol, name in INDICES.items())])
    closes = _exchange().table.select("session", event_timestamp="closes")
    timeframe = pl.lit(US_EQUITY_CANDLES_1D.timeframe.value)
    return _canonical(bars.with_columns(timeframe=timeframe).join(closes, on="session", how="left"), US_EQUITY_CANDLES_1D)


@cache
def _corporate_actions() -> pl.DataFrame:
    """Steps of adjusted_close / close. The vendor's step for a dividend D is 1 + D / close of the ex-date; for a split, its ratio."""
    step = (pl.col("adjusted_close") / pl.col("close")).pct_change() + 1
    cash = (step - 1) * pl.col("close")
    split = (step > SPLIT_BEYOND) | (step < 1 / SPLIT_BEYOND)
    steps = [
        _stock(symbol).select(
            "symbol",
            "session",
            action=pl.when(split).then(pl.lit("split")).when(cash.abs() > SMALLEST_DIVIDEND).then(pl.lit("dividend")),
            ratio=pl.when(split).then(step.round(6)),
            cash_amount=pl.when(~split).then(cash.round(6)),
        )
        for symbol in STOCKS
    ]
    actions = pl.concat(steps).drop_nulls("action")
    opens = _exchange().table.select("session", event_timestamp="opens")
    return _canonical(actions.join(opens, on="session", how="left"), US_EQUITY_CORPORATE_ACTIONS)


@cache
def _macro() -> pl.DataFrame:
    """Each series at the instants of its release rule; business days are XNYS sessions.

    What was released before the calendar's first session belongs to no partition and is left out.
    """
    business_days = _exchange().table["session"]
    parts = []
    for series_id, place in {**DAILY_MACRO, **MONTHLY_MACRO}.items():
        rule = RELEASED_SERIES[series_id].release
        observed = _series(series_id, *place).filter(rule.earliest_day(pl.col("session")) >= _exchange().first_day)
        parts.append(observed.with_columns(event_timestamp=rule.release_instants(observed["session"], business_days)))
    return _canonical(pl.concat(parts).rename({"session": "observation_date"}), US_MACRO)


_LOADERS = {
    US_EQUITY_CANDLES_1D.name: _candles,
    US_EQUITY_CORPORATE_ACTIONS.name: _corporate_actions,
    US_MACRO.name: _macro,
}


@cache
def _stock(symbol: str) -> pl.DataFrame:
    """symbol, session, open, high, low, close, volume, adjusted_close, in time order."""
    try:
        from bokeh_sampledata import stocks
    except ModuleNotFoundError:
        raise _not_installed("bokeh_sampledata") from None
    return pl.DataFrame(getattr(stocks, symbol)).select(
        pl.lit(symbol).alias("symbol"),
        pl.col("date").str.to_date().alias("session"),
        *(pl.col(column).cast(pl.Float64) for column in ("open", "high", "low", "close", "volume")),
        pl.col("adj_close").alias("adjusted_close"),
    )


def _index(symbol: str, name: str) -> pl.DataFrame:
    """As `_stock`, for an index of arch."""
    return _read_arch(name).select(
        pl.lit(symbol).alias("symbol"),
        "session",
        *(pl.col(column).cast(pl.Float64).alias(column.lower()) for column in ("Open", "High", "Low", "Close", "Volume")),
        pl.col("Adj Close").cast(pl.Float64).alias("adjusted_close"),
    )


def _series(series: str, name: str, column: str) -> pl.DataFrame:
    """series_id, session (the observed day, or first day of the month), value. Holidays, which arch keeps as ".", are dropped."""
    return _read_arch(name).select(pl.lit(series).alias("series_id"), "session", value=pl.col(column).cast(pl.Float64)).drop_nulls("value")


def _read_arch(name: str) -> pl.DataFrame:
    """A file of arch, every column as text, its date as `session`."""
    package = find_spec("arch")
    if package is None or package.origin is None:
        raise _not_installed("arch")
    path = Path(package.origin).parent / "data" / name / f"{name.replace('_', '-')}.csv.gz"
    if not path.is_file():
        raise ConfigurationError(f"the installed package arch has no {path.name}; install the version that requirements.lock names")
    return pl.read_csv(path, infer_schema=False, null_values=".").with_columns(session=pl.col("Date").str.to_date("%m/%d/%Y"))


def _exchange() -> MarketCalendar:
    return calendar(US_EQUITY_CANDLES_1D.calendar)


def _canonical(rows: pl.DataFrame, dataset: Dataset) -> pl.DataFrame:
    schema = {name: dtype for name, dtype in dataset.table.schema.items() if name != "ingested_at"}
    unreported = {column.name: None for column in dataset.table.columns if column.nullable and column.name not in rows.columns}
    return (
        rows.with_columns(
            **unreported,
            dataset=pl.lit(dataset.name),
            source=pl.lit(SAMPLES.name),
            event_timestamp=pl.col("event_timestamp").cast(UTC_MICROSECONDS),
            known_at=pl.col("event_timestamp").cast(UTC_MICROSECONDS) + dataset.latency,
            known_at_basis=pl.lit("assumed"),
            flags=pl.lit(0, pl.Int64),
        )
        .select(pl.col(name).cast(dtype) for name, dtype in schema.items())
        .sort(dataset.table.identity)
    )


def _not_installed(package: str) -> ConfigurationError:
    return ConfigurationError(
        f"the samples need the package {package}, which is not installed; run: pip install featurestore-dagster[samples]"
    )
