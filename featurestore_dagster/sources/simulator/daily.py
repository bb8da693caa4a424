"""The symbols and their daily paths, splits and dividends. What happens within a day, and faults, do not belong here."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from featurestore_dagster.calendars import calendar
from featurestore_dagster.sources.simulator.simulation import YEAR, Booleans, Floats, Integers, Simulation, Stream

DRIFT = 0.05
PRICE_RANGE = (2.0, 500.0)
SIGMA_RANGE = (0.15, 0.80)
VOLUME_MEDIAN, VOLUME_SPREAD = 5e5, 1.5
LISTED_SHARE, DELISTED_SHARE, ILLIQUID_SHARE, DIVIDEND_SHARE = 0.01, 0.005, 0.01, 0.4
ZERO_VOLUME_SHARE = 0.3
MARKET_SHARE = 0.3
"""Of the variance."""

DEGREES = 5
SPLITS_PER_YEAR = 0.004
SPLIT_RATIOS = (2.0, 3.0, 4.0, 0.1)
QUARTER = 63
DIVIDEND_YIELDS = (0.002, 0.01)
TICK = 0.01
MARKET = "MARKET"


@dataclass(frozen=True)
class Paths:
    """Daily bars of some symbols as traded, arrays of (symbol, session); `first` and `last` are positions of each one's sessions.

    `opens` and `closes` are the sessions' instants in microseconds; `split` and `dividend` hold ratio and cash per share on ex-dates, else
    1 and 0; `sigma` is annual.
    """

    symbols: Sequence[str]
    sessions: pl.DataFrame
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Floats
    sigma: Floats
    first: Integers
    last: Integers
    split: Floats
    dividend: Floats

    @property
    def opens(self) -> Integers:
        """Microseconds."""
        return self.sessions["opens"].to_physical().to_numpy()

    @property
    def closes(self) -> Integers:
        """Microseconds."""
        return self.sessions["closes"].to_physical().to_numpy()

    @property
    def listed(self) -> Booleans:
        """Whether a symbol trades in a session."""
        position = np.arange(self.sessions.height)
        return np.asarray((position >= self.first[:, None]) & (position <= self.last[:, None]))


def paths(simulation: Simulation, symbols: Sequence[str], calendar_name: str) -> Paths:
    """Daily bars of these symbols over the whole simulated period."""
    sessions = calendar(calendar_name).sessions(simulation.first, simulation.last)
    count = sessions.height
    scale = np.sqrt((DEGREES - 2) / DEGREES)
    uniform, normal = np.empty((len(symbols), 9)), np.empty(len(symbols))
    own, shares, noise = np.empty((len(symbols), count)), np.empty((2, len(symbols), count)), np.empty((3, len(symbols), count))
    for number, symbol in enumerate(symbols):
        universe = simulation.generator(symbol, Stream.UNIVERSE)
        uniform[number], normal[number] = universe.random(9), universe.standard_normal()
        daily = simulation.generator(symbol, Stream.DAILY)
        own[number] = daily.standard_t(DEGREES, count)
        shares[:, number], noise[:, number] = daily.random((2, count)), daily.standard_normal((3, count))
    market = simulation.generator(MARKET, Stream.DAILY).standard_t(DEGREES, count)
    price, sigma = _log_uniform(PRICE_RANGE, uniform[:, 0]), _log_uniform(SIGMA_RANGE, uniform[:, 1])
    first = np.where(uniform[:, 2] < LISTED_SHARE, _mid_sample(uniform[:, 3], count), 0)
    delisted = (uniform[:, 4] < DELISTED_SHARE) & (first == 0)
    last = np.where(delisted, _mid_sample(uniform[:, 5], count), count - 1)
    deviation = (sigma / np.sqrt(YEAR))[:, None]
    shock = scale * (np.sqrt(MARKET_SHARE) * market + np.sqrt(1 - MARKET_SHARE) * own)
    log_return = DRIFT / YEAR - deviation**2 / 2 + deviation * shock
    split, dividend_yield = _actions(simulation, symbols, count, first, last, uniform[:, 6] < DIVIDEND_SHARE)
    factor = np.cumprod(split, axis=1)
    level = np.log(price)[:, None] + np.cumsum(log_return + np.log1p(-dividend_yield), axis=1) - np.log(factor)
    close = level
    opening = level - (1 - 0.4 * shares[0]) * log_return
    top, bottom = np.maximum(opening, close), np.minimum(opening, close)
    reach = 0.3 * deviation * np.abs(noise[:2])
    before = np.exp(close - log_return - np.log1p(-dividend_yield)) * split
    volume = VOLUME_MEDIAN * np.exp(VOLUME_SPREAD * normal)[:, None] * factor
    # A price that jumps trades far more: that is what tells a crash from a split.
    volume = np.round(volume * np.exp(0.5 * np.minimum(np.abs(shock), 12) - 0.35 + 0.3 * noise[2]))
    illiquid = (uniform[:, 7] < ILLIQUID_SHARE)[:, None] & (shares[1] < ZERO_VOLUME_SHARE)
    return Paths(
        symbols=symbols,
        sessions=sessions,
        open=to_ticks(np.exp(opening)),
        high=to_ticks(np.exp(top + reach[0])),
        low=to_ticks(np.exp(bottom - reach[1])),
        close=to_ticks(np.exp(close)),
        volume=np.where(illiquid, 0.0, volume),
        sigma=sigma,
        first=first,
        last=last,
        split=split,
        dividend=np.round(before / split * dividend_yield, 4),
    )


def to_ticks(price: Floats) -> Floats:
    """Prices as quoted: whole ticks, at least one."""
    return np.maximum(np.round(price, 2), TICK)


def action_rows(found: Paths) -> pl.DataFrame:
    """symbol, action, ratio, cash_amount, event_timestamp (microseconds of the session open)."""
    parts = []
    for action, values, column, neutral in (("split", found.split, "ratio", 1.0), ("dividend", found.dividend, "cash_amount", 0.0)):
        rows, positions = np.nonzero(values != neutral)
        parts.append(
            pl.DataFrame(
                {
                    "symbol": pl.Series(list(found.symbols), dtype=pl.String).gather(rows),
                    "action": pl.Series([action] * len(rows), dtype=pl.String),
                    column: values[rows, positions],
                    "event_timestamp": found.opens[positions],
                }
            )
        )
    return pl.concat(parts, how="diagonal")


def _actions(
    simulation: Simulation, symbols: Sequence[str], count: int, first: Integers, last: Integers, pays: Booleans
) -> tuple[Floats, Floats]:
    """Split ratio and dividend yield of each symbol and session: 1 and 0 where nothing happens."""
    split, dividend_yield = np.ones((len(symbols), count)), np.zeros((len(symbols), count))
    for number, symbol in enumerate(symbols):
        random = simulation.generator(symbol, Stream.ACTIONS)
        for _ in range(random.poisson(SPLITS_PER_YEAR * count / YEAR)):
            position, ratio = random.integers(count), random.choice(SPLIT_RATIOS)
            if first[number] < position <= last[number]:
                split[number, position] = ratio
        quarters = np.arange(random.integers(QUARTER), count, QUARTER)
        quarters = quarters[(quarters > first[number]) & (quarters <= last[number]) & (split[number, quarters] == 1)]
        if pays[number]:
            dividend_yield[number, quarters] = random.uniform(*DIVIDEND_YIELDS, len(quarters))
    return split, dividend_yield


def _log_uniform(bounds: tuple[float, float], uniform: Floats) -> Floats:
    low, high = np.log(bounds)
    return np.asarray(np.exp(low + (high - low) * uniform))


def _mid_sample(uniform: Floats, count: int) -> Integers:
    return (count * (0.2 + 0.6 * uniform)).astype(np.int64)
