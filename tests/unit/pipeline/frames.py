"""Small candle frames in canonical form, and the deployment around them; no assertion belongs here."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Any

import polars as pl

from featurestore_dagster.calendars import calendar
from featurestore_dagster.features.raw_tables import US_EQUITY_CANDLES_1D, US_EQUITY_CORPORATE_ACTIONS
from featurestore_dagster.model.raw_table import Dataset
from featurestore_dagster.model.source import Listing
from featurestore_dagster.model.time import FrozenClock, Timeframe
from featurestore_dagster.projections.relation import dataset_relation

EQUITIES = US_EQUITY_CANDLES_1D
NYSE = calendar("XNYS")
MONDAY = "2018-12-03"
"""A session like any other."""
HOLIDAY = "2018-12-05"
"""The day of mourning for a president: a Wednesday without session."""

LISTED = {symbol: Listing(symbol, date(2000, 1, 3)) for symbol in ("AAA", "BBB", "CCC", "DDD", "EEE")}
NO_ACTIONS = pl.DataFrame(schema=dataset_relation(US_EQUITY_CORPORATE_ACTIONS).frame_schema)


def close_of(day: str) -> datetime:
    """Close of a session of XNYS, UTC."""
    return NYSE.session(date.fromisoformat(day)).closes


def keys_between(first: str, last: str) -> list[str]:
    """Partition keys of XNYS."""
    return [day.isoformat() for day in NYSE.sessions(date.fromisoformat(first), date.fromisoformat(last))["session"]]


def clock_after(day: str) -> FrozenClock:
    """Three hours after a session's close: everything of it is due."""
    return FrozenClock(close_of(day) + timedelta(hours=3))


def bar(day: str, symbol: str | None = "AAA", /, **other: Any) -> dict[str, Any]:
    """A good daily bar; `other` replaces columns."""
    close = other.get("event_timestamp") or close_of(day)
    return {
        "dataset": EQUITIES.name,
        "symbol": symbol,
        "timeframe": "1d",
        "open": 100.0,
        "high": 102.0,
        "low": 99.0,
        "close": 101.0,
        "volume": 1000.0,
        "adjusted_close": None,
        "trade_count": None,
        "bar_vwap": None,
        "event_timestamp": close,
        "source": "files",
        "known_at": close,
        "known_at_basis": "assumed",
        "flags": 0,
    } | other


def frame(rows: Iterable[Mapping[str, Any]], dataset: Dataset = EQUITIES) -> pl.DataFrame:
    """Rows as the canonical frame that a source delivers."""
    schema = dataset_relation(dataset).frame_schema
    return pl.DataFrame([{name: row[name] for name in schema} for row in rows], schema=schema)


def session_bars(days: Sequence[str], symbols: Iterable[str] = LISTED, **other: Any) -> list[dict[str, Any]]:
    """Good bars of every symbol on every day, each day a little different: a feed that repeats itself is refused."""
    return [
        bar(day, symbol, volume=1000.0 + date.fromisoformat(day).toordinal() + number, **other)
        for day in days
        for number, symbol in enumerate(symbols)
    ]


def split(day: str, symbol: str, ratio: float, /, **other: Any) -> dict[str, Any]:
    """A split whose ex-date is this session."""
    opens = NYSE.session(date.fromisoformat(day)).opens
    return {
        "dataset": US_EQUITY_CORPORATE_ACTIONS.name,
        "symbol": symbol,
        "action": "split",
        "ratio": ratio,
        "cash_amount": None,
        "event_timestamp": opens,
        "source": "files",
        "known_at": opens,
        "known_at_basis": "assumed",
        "flags": 0,
    } | other


def intraday(dataset: Dataset = EQUITIES, timeframe: Timeframe = Timeframe.ONE_HOUR) -> Dataset:
    """The dataset with another timeframe."""
    return dataclasses.replace(dataset, timeframe=timeframe)
