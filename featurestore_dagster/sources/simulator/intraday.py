"""One-minute bars between a session's open and close, and the order book each second. Faults do not belong here."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from featurestore_dagster.sources.simulator.daily import TICK, Paths, to_ticks
from featurestore_dagster.sources.simulator.simulation import YEAR, Floats, Integers, Simulation, Stream

MINUTE = 60_000_000
SECOND = 1_000_000
SUB_STEPS = 8
WITHIN_SESSION = 0.6
"""Share of a day's variance that falls into trading hours."""

SHARES_PER_TRADE = 200
SPREAD_MEDIAN_BPS, SPREAD_SIGMA = 4.0, 0.3
LEVELS, LEVEL_GROWTH = 5, 1.3
SIZE_MEDIAN = 300


@dataclass(frozen=True)
class Bars:
    """Bars of one dataset, arrays of (symbol, bar); `ends` in microseconds; `trade_count` NaN where none is reported."""

    ends: Integers
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Floats
    trade_count: Floats


def busyness(count: int) -> Floats:
    """U shape of a session over `count` equal parts, mean 1: high at the open and the close."""
    middle = (np.arange(count) + 0.5) / count
    shape = 1 + 2 * (2 * middle - 1) ** 2
    return np.asarray(shape / shape.mean())


def minute_bars(simulation: Simulation, found: Paths, position: int) -> Bars:
    """Bars of one session, a bridge from its open to its close; all symbols of `found`, listed or not."""
    opens, closes = int(found.opens[position]), int(found.closes[position])
    count = (closes - opens) // MINUTE
    busy = busyness(count)
    steps, noise = np.empty((len(found.symbols), count * SUB_STEPS)), np.empty((len(found.symbols), count))
    trades = np.empty_like(noise)
    volume = np.empty_like(noise)
    ordinal = found.sessions["session"][position].toordinal()
    for number, symbol in enumerate(found.symbols):
        random = simulation.generator(symbol, Stream.INTRADAY, ordinal)
        steps[number], noise[number] = random.standard_normal(count * SUB_STEPS), random.standard_normal(count)
        volume[number] = np.round(found.volume[number, position] / count * busy * np.exp(0.5 * noise[number] - 0.125))
        trades[number] = np.where(volume[number] > 0, np.maximum(random.poisson(volume[number] / SHARES_PER_TRADE), 1), 0)
    share = np.repeat(busy / (count * SUB_STEPS), SUB_STEPS)
    walk = np.cumsum(steps * np.sqrt(share * WITHIN_SESSION / YEAR) * found.sigma[:, None], axis=1)
    first, last = np.log(found.open[:, position]), np.log(found.close[:, position])
    bridge = walk - np.cumsum(share) * (walk[:, -1] - (last - first))[:, None]
    levels = np.concatenate([first[:, None], first[:, None] + bridge], axis=1)
    inside = levels[:, 1:].reshape(len(found.symbols), count, SUB_STEPS)
    start, end = levels[:, :-1:SUB_STEPS], levels[:, SUB_STEPS::SUB_STEPS]
    return Bars(
        ends=opens + MINUTE * np.arange(1, count + 1),
        open=to_ticks(np.exp(start)),
        high=to_ticks(np.exp(np.maximum(start, inside.max(axis=2)))),
        low=to_ticks(np.exp(np.minimum(start, inside.min(axis=2)))),
        close=to_ticks(np.exp(end)),
        volume=volume,
        trade_count=trades,
    )


def quote_rows(simulation: Simulation, found: Paths, position: int) -> pl.DataFrame:
    """Order books of one session's listed symbols, one each second: symbol, bids, asks, event_timestamp (microseconds)."""
    bars = minute_bars(simulation, found, position)
    count = len(bars.ends) * 60
    within = np.tile(np.arange(1, 61) / 60, len(bars.ends))
    busy = np.repeat(busyness(len(bars.ends)), 60)
    instants = int(found.opens[position]) + SECOND * np.arange(1, count + 1)
    ordinal = found.sessions["session"][position].toordinal()
    parts = []
    for number in np.flatnonzero(found.listed[:, position]).tolist():
        random = simulation.generator(found.symbols[number], Stream.QUOTES, ordinal)
        start, end = np.repeat(bars.open[number], 60), np.repeat(bars.close[number], 60)
        middle = start + (end - start) * within
        spread_bps = SPREAD_MEDIAN_BPS * (1 + busy / 2) * np.exp(SPREAD_SIGMA * random.standard_normal(count))
        ticks = np.maximum(1, np.round(middle * spread_bps / 1e4 / TICK))
        # Five levels of bids fit above zero.
        best_bid = np.maximum(np.round(middle / TICK - ticks / 2), LEVELS)
        sizes = SIZE_MEDIAN * np.exp(0.5 * random.standard_normal((2, count)))
        rows = pl.DataFrame({"bid": best_bid, "ask": best_bid + ticks, "bid_size": sizes[0], "ask_size": sizes[1]})
        parts.append(
            rows.select(
                pl.lit(found.symbols[number]).alias("symbol"),
                _side("bid", -1).alias("bids"),
                _side("ask", 1).alias("asks"),
                pl.Series("event_timestamp", instants),
            )
        )
    nothing = pl.DataFrame(schema={"symbol": pl.String, "bids": pl.String, "asks": pl.String, "event_timestamp": pl.Int64})
    return pl.concat([nothing, *parts])


def _side(name: str, direction: int) -> pl.Expr:
    """JSON of one side, levels one tick apart, each 1.3 times the size of the one before."""
    levels = [
        pl.format("[{},{}]", ((pl.col(name) + direction * level) * TICK).round(2), (pl.col(f"{name}_size") * LEVEL_GROWTH**level).round(0))
        for level in range(LEVELS)
    ]
    return pl.format("[{}]", pl.concat_str(levels, separator=","))
