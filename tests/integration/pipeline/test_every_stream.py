"""Every stream of every view, from raw rows to published ones: nothing is blocked, and what its inputs give has values."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import polars as pl
import pytest

from featurestore_dagster.calendars import calendar
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.features.macro_series import RELEASED_SERIES
from featurestore_dagster.features.universe import instruments
from featurestore_dagster.model.feature_view import FeatureView, Stream
from featurestore_dagster.model.raw_table import Dataset
from featurestore_dagster.model.source import Source
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.postgres.connection import connect
from tests.integration.pipeline.conftest import Deployment, MovingClock

NOW = datetime(2024, 5, 3, 23, 50, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAYS_OF_BARS = {"1m": 2, "5m": 40, "15m": 10, "1h": 25, "4h": 90, "1d": 480}
STREAMS = [pytest.param(view, stream, id=f"{view.name}-{stream.name}") for view in CATALOGUE.views for stream in view.streams]


def _bars(dataset: Dataset) -> list[dict[str, Any]]:
    market = calendar(dataset.calendar)
    ends = market.bar_ends(dataset.timeframe, NOW - timedelta(days=DAYS_OF_BARS[dataset.timeframe]), NOW)
    rows = []
    for number, found in enumerate(instruments(dataset.market)):
        for place, end in enumerate(ends):
            price = 100 + 10 * math.sin(place / 9 + number) + 3 * math.sin(place * 1.7)
            prices = {"open": price, "high": price + 1, "low": price - 1, "close": price + 0.4 * math.cos(place)}
            volume = 1000.0 + 100 * math.sin(place * 0.7) + 7 * (place % 13)
            row = {"symbol": found.symbol, "timeframe": dataset.timeframe.value, "volume": volume, "trade_count": 50.0, **prices}
            rows.append({**row, "event_timestamp": end})
    return rows


def _quotes(_: Dataset) -> list[dict[str, Any]]:
    book = {"bids": [[100 - 0.1 * n, 5000.0] for n in range(20)], "asks": [[100.1 + 0.1 * n, 4000.0] for n in range(20)]}
    texts = {side: json.dumps(levels) for side, levels in book.items()}
    instants = [NOW - timedelta(seconds=30 * back) for back in range(2 * 60 * 24)]
    return [{"symbol": found.symbol, "event_timestamp": at, **texts} for found in instruments("crypto") for at in instants]


def _events(_: Dataset) -> list[dict[str, Any]]:
    symbols = [found.symbol for market in ("crypto", "us_equity") for found in instruments(market)]
    rows = []
    for number in range(3 * 24 * 12):
        at = NOW - timedelta(minutes=5 * number + 1)
        for symbol in symbols:
            kind = ("news", "social", "analyst")[number % 3]
            event = {"event_id": f"{symbol}-{number}", "symbol": symbol, "source_type": kind, "headline_hash": f"{symbol}{number}"}
            rated = {"firm": f"firm {number % 4}", "rating": 1.0 + number % 5} if kind == "analyst" else {}
            rows.append({**event, "event_timestamp": at, "score": math.sin(number), "confidence": 0.7, **rated})
    return rows


def _facts(dataset: Dataset) -> list[dict[str, Any]]:
    stocks = {"equity": 5e9, "total_assets": 9e9, "long_term_debt": 1e9}
    rows = []
    for found in instruments(dataset.market):
        for quarter in range(12):
            end = date(2024, 3, 31) - timedelta(days=91 * quarter)
            filed = datetime.combine(end, datetime.min.time(), UTC) + timedelta(days=20, hours=20)
            figures = {"net_income": ("USD", 1e8 + 1e6 * quarter), "revenue": ("USD", 1e9), "eps_diluted": ("USD/shares", 1.2)}
            figures |= {name: ("USD", value) for name, value in stocks.items()} | {"shares_outstanding": ("shares", 1e8)}
            for concept, (unit, value) in figures.items():
                start = end - timedelta(days=90) if concept in ("net_income", "revenue", "eps_diluted") else end
                row = {"symbol": found.symbol, "concept": concept, "period_start": start, "period_end": end, "accession": f"a{quarter}"}
                rows.append({**row, "form": "10-Q", "unit": unit, "value": value, "event_timestamp": filed})
    return rows


def _positions(_: Dataset) -> list[dict[str, Any]]:
    return [{"symbol": "USDCOP", "position": 0.25, "event_timestamp": NOW.replace(hour=13) + 0.5 * HOUR * n} for n in range(10)]


def _fear_greed(_: Dataset) -> list[dict[str, Any]]:
    days = [NOW.date() - timedelta(days=back) for back in range(5)]
    at = [datetime.combine(day, datetime.min.time(), UTC) + HOUR for day in days]
    return [{"series_id": "FNG", "observation_date": day, "value": 60.0, "event_timestamp": t} for day, t in zip(days, at, strict=True)]


ROWS: dict[str, Callable[[Dataset], list[dict[str, Any]]]] = {
    "candles": _bars,
    "quotes": _quotes,
    "events": _events,
    "company_facts": _facts,
    "positions": _positions,
    "macro_observations": _fear_greed,
    "corporate_actions": lambda _: [],
}


@pytest.fixture
def deployment(fresh_database: Settings) -> Deployment:
    """One source delivers every dataset for every instrument; the mart holds four hundred days of every series."""
    listings = {dataset.name: tuple(found.listing for found in instruments(dataset.market)) for dataset in CATALOGUE.datasets}
    catalogue = replace(CATALOGUE, sources=(Source("test", "by the test", datasets=CATALOGUE.datasets, listings=listings),))
    with connect(fresh_database.postgres) as connection:
        connection.execute(
            "create table marts.macro_series (series_id text, observation_date date, event_timestamp timestamptz, known_at timestamptz,"
            " value double precision, batch_id bigint, flags bigint not null default 0)"
        )
        for series in RELEASED_SERIES.values():
            step = 1 if series.frequency == "daily" else 30
            days = [NOW.date() - timedelta(days=back) for back in range(2, 420, step)]
            middle = (series.lowest + series.highest) / 2
            vintages = [(series.series_id, day, day + timedelta(days=1), day + timedelta(days=1), middle + day.day % 7) for day in days]
            connection.cursor().executemany("insert into marts.macro_series values (%s, %s, %s, %s, %s, 1)", vintages)
    return Deployment(fresh_database, catalogue, MovingClock(NOW))


@pytest.mark.parametrize(("view", "stream"), STREAMS)
def test_a_stream_is_computed_audited_and_published(deployment: Deployment, view: FeatureView, stream: Stream) -> None:
    for dataset in stream.inputs:
        rows = ROWS[dataset.table.name](dataset) if dataset.name != "us_macro" else []
        schema = {name: dtype for name, dtype in dataset.table.schema.items() if name != "ingested_at"}
        stamped = [
            {"dataset": dataset.name, "source": "test", "known_at": row["event_timestamp"], "known_at_basis": "observed", "flags": 0} | row
            for row in rows
        ]
        frame = pl.DataFrame(stamped, schema=schema, orient="row")
        if frame.is_empty():
            continue
        deployment.delivered[dataset.name] = frame
        sessions = sorted(set(calendar(dataset.calendar).session_of(frame["event_timestamp"]).cast(pl.String)))
        outcomes = deployment.ingest(*(sessions[1:] or sessions), dataset=dataset)
        assert [outcome.audit for outcome in outcomes if outcome.blocked] == []
    market = calendar(stream.calendar)
    newest = market.session_of(pl.Series([market.latest_bar_end(stream.timeframe, NOW)]).cast(pl.Datetime("us", "UTC")))[0]
    (outcome,) = deployment.pipeline.materialise(view, stream, [newest.isoformat()])
    assert outcome.audit is not None
    assert not outcome.blocked, outcome.audit
    assert outcome.rows.height > 0
    last = outcome.rows.sort("event_timestamp").tail(1)
    empty = {name for name in view.feature_names if last[name].null_count()}
    allowed = {f"{member.name}__{name}" for member in view.members for name in member.feature_names}
    allowed |= {"bid_ask_spread_bps", "market_depth", "price_impact_1pct"} if stream.name == "us_equity_1d" else set()
    allowed |= {"rate_spread"} if stream.market == "crypto" else set()
    allowed |= {"spread_roll_20_est_bps", "fear_greed_index"}
    assert empty - allowed == set()
