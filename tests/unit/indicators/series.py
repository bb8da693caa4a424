"""Real series from the sample packages, in the columns that indicators read; raw prices, splits left in, no adjustment."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import polars as pl

from featurestore_dagster.indicators import bars, quotes, sentiment_index
from featurestore_dagster.model.indicator import Grain
from featurestore_dagster.pipeline.blocks.facts import FIGURES
from featurestore_dagster.pipeline.blocks.sessions import with_session_columns
from tests.unit.indicators.event_frames import event_frames
from tests.unit.indicators.grains import random_frame

PRICES = ("open", "high", "low", "close")

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RealSeries:
    """Rows, the decimals in which prices are quoted, and the calendar of the sessions if they are told apart."""

    frame: pl.DataFrame
    decimals: int = 0
    calendar: str = ""

    def column(self, name: str) -> Values:
        """A column as numpy array."""
        return self.frame[name].to_numpy().astype(np.float64)

    def ticks(self, name: str) -> Values:
        """A price column on its integer grid: exact ties stay ties."""
        return np.round(self.column(name) * 10.0**self.decimals)


def _bars(times: object, columns: dict[str, object], decimals: int) -> RealSeries:
    raw = {name: pl.Series(name, np.asarray(values, dtype=np.float64)) for name, values in columns.items()}
    frame = pl.DataFrame({"time": pl.Series(np.asarray(times, dtype="datetime64[us]")), **raw}).with_columns(
        *(pl.col(name).alias(f"raw_{name}") for name in columns),
        pl.lit(1.0).alias("adjustment_factor"),
        pl.lit(252.0).alias("sessions_per_year"),
        pl.col("close").alias("spy_close"),
    )
    return RealSeries(frame, decimals)


def _observations(loaded: object, **columns: str) -> RealSeries:
    """A pandas frame of observations without its missing days, columns renamed."""
    frame = loaded[list(columns.values())].dropna()  # type: ignore[index]
    values = {name: pl.Series(name, frame[source].to_numpy(dtype=np.float64)) for name, source in columns.items()}
    return RealSeries(pl.DataFrame({"time": pl.Series(frame.index.to_numpy().astype("datetime64[us]")), **values}))


@cache
def bar_series() -> dict[str, RealSeries]:
    """AAPL, MSFT, IBM, GOOG, SP500, NASDAQ (daily) and EURUSD (hourly)."""
    from arch.data import nasdaq, sp500
    from backtesting.test import EURUSD
    from bokeh_sampledata import stocks

    names = (*PRICES, "volume")
    found = {
        symbol: _bars(getattr(stocks, symbol)["date"], {name: getattr(stocks, symbol)[name] for name in names}, decimals=4)
        for symbol in ("AAPL", "MSFT", "IBM", "GOOG")
    }
    for symbol, table, decimals in (("SP500", sp500.load(), 6), ("NASDAQ", nasdaq.load(), 6), ("EURUSD", EURUSD, 5)):
        found[symbol] = _bars(table.index.to_numpy(), {name: table[name.capitalize()].to_numpy() for name in names}, decimals)
    return found


@cache
def macro_series() -> dict[str, RealSeries]:
    """vix, wti, moodys (aaa, baa) without their missing days, sp500_vix: sessions that have both, and these under the names of others."""
    from arch.data import default, vix, wti

    found = {
        "vix": _observations(vix.load(), vix="vix"),
        "wti": _observations(wti.load(), wti="DCOILWTICO"),
        "moodys": _observations(default.load(), aaa="AAA", baa="BAA"),
    }
    # The market's whole history, so that its moving averages are warm where VIX begins.
    sessions = bar_series()["SP500"].frame.join(found["vix"].frame, on="time", how="left", maintain_order="left")
    found["sp500_vix"] = RealSeries(sessions)
    yields = found["moodys"].frame
    found["credit"] = RealSeries(yields.select("time", credit_spread=pl.col("baa") - pl.col("aaa")))
    found["two yields"] = RealSeries(yields.rename({"baa": "local_yield", "aaa": "treasury_10y"}))
    bonds = bar_series()["SP500"].frame.join_asof(yields.select("time", treasury_10y="aaa"), on="time")
    found["shares and bonds"] = RealSeries(bonds)
    found["moods"] = _moods(sessions)
    return found


def _moods(sessions: pl.DataFrame) -> RealSeries:
    """Each score some rank of the session, or absent; every fifth row is of a crypto pair, and some of those have no provider's value."""
    rank = pl.col("close").rank() * 100 / pl.len()
    row = pl.int_range(pl.len())
    scores = [
        pl.when((row // (number + 2)) % 3 > 0).then((rank * (number + 1)) % 100).alias(feature.name)
        for number, feature in enumerate(sentiment_index.COMPONENTS)
    ]
    return RealSeries(sessions.select(*scores, is_crypto=(row % 5 == 0).cast(pl.Float64), provider_fear_greed=pl.col("vix")))


def _by_session(series: RealSeries, calendar_name: str, bar_ends: pl.Expr) -> RealSeries:
    """Bars with the columns of their session, and the closes of 1, 5 and 20 bars before as official ones."""
    frame = series.frame.with_columns(
        *(bar_ends.dt.replace_time_zone("UTC").alias(name) for name in ("event_timestamp", "known_at", "action_known_at")),
        pl.lit("AAA").alias("symbol"),
        bar_vwap=pl.lit(None, pl.Float64),
        flags=pl.lit(0, pl.Int64),
    )
    official = (pl.col("close").shift(k).alias(f"official_close_{k}") for k in (1, 5, 20))
    return RealSeries(with_session_columns(frame, calendar_name).with_columns(official), series.decimals, calendar_name)


@cache
def session_series() -> dict[str, RealSeries]:
    """AAPL by session (daily) and EURUSD by session (hourly, FX sessions)."""
    found = bar_series()
    return {
        "AAPL by session": _by_session(found["AAPL"], "24/7", pl.col("time").dt.offset_by("1d")),
        "EURUSD by session": _by_session(found["EURUSD"], "FX", pl.col("time").dt.offset_by("1h")),
    }


@cache
def quote_series() -> dict[str, RealSeries]:
    """books: random quotes with crossed and one-sided books; trades: bars with numbers of trades and flags."""
    features = [quotes.price_impact_1pct.feature()]
    books = random_frame(Grain.QUOTES, features, seed=5, rows=600).with_columns(hit=pl.col("row").hash(seed=1) % 10)
    adv = pl.lit(1e5) * (1 + pl.col("row") % 300)
    crossed = pl.col("ask_price") - pl.when(pl.col("hit") == 0).then(0.2).otherwise(0.0)
    books = books.with_columns(ask_price=crossed, average_dollar_volume=adv).with_columns(
        pl.when(pl.col("hit") != bad).then(pl.col(f"{side}_{what}")).alias(f"{side}_{what}")
        for bad, side in ((1, "bid"), (2, "ask"))
        for what in ("price", "quantity")
    )
    trades = random_frame(Grain.ROW, [quotes.trade_size_avg.feature(), bars.quality_flags.feature()], seed=5)
    return {"books": RealSeries(books), "trades": RealSeries(trades)}


NEVER_NEGATIVE = ("raw_close", "daily_volume", "shares_outstanding", "debt")


@cache
def firm_series() -> dict[str, RealSeries]:
    """firms: invented figures of every sign, a twelfth of them 0 or beside a limit, a twelfth absent."""
    rows, edges = 4000, (0.0, 0.01, -0.01, 0.0099, -0.0099)
    draw = np.random.Generator(np.random.PCG64(11))
    columns = {}
    for name in (*FIGURES, "raw_close", "daily_volume"):
        values = np.where(draw.random(rows) < 1 / 12, draw.choice(edges, rows), draw.normal(2.0, 4.0, rows))
        figures = pl.Series(np.abs(values) if name in NEVER_NEGATIVE else values)
        columns[name] = figures.set(pl.Series(draw.random(rows) < 1 / 12), None)
    return {"firms": RealSeries(pl.DataFrame(columns))}


def every_series() -> dict[str, RealSeries]:
    """All series that an oracle or a golden value may name."""
    invented = {name: RealSeries(frame) for name, frame in event_frames().items()}
    return {**bar_series(), **macro_series(), **session_series(), **quote_series(), **firm_series(), **invented}
