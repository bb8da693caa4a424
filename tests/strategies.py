"""Hypothesis strategies of market-data frames, with the seeded generator behind them; no assertion belongs here.

Prices are walks on an integer grid of ticks, so that ties, flat bars and bars without trade occur as often as in real data.
"""

import zlib
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
from hypothesis import strategies as st

FIRST_BAR_END = datetime(2001, 1, 2, 21, tzinfo=UTC)
LEAST_TICKS = 20
SPLIT_SHARE = 0.01
PRICES = ("open", "high", "low", "close")


def random_bars(
    bars: int,
    seed: int,
    *,
    symbol: str = "AAA",
    tick: float = 0.01,
    step: int = 30,
    zero_volume_share: float = 0.0,
    interval: timedelta = timedelta(days=1),
) -> pl.DataFrame:
    """Valid OHLCV bars as traded, one row each.

    Args:
        bars: Number of rows.
        seed: Equal arguments give equal frames.
        symbol: Value of the key column.
        tick: Price grid.
        step: Largest move in ticks between two points of the path; 0 gives a constant price.
        zero_volume_share: Expected share of bars with volume 0.
        interval: Time between two bars.

    Returns:
        symbol (String), event_timestamp (bar end, UTC, microseconds, strictly increasing), open, high, low, close, volume (Float64).
    """
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, zlib.crc32(symbol.encode())])))
    path = 5_000 + np.cumsum(generator.integers(-step, step + 1, size=(bars, 2)).ravel())
    path = LEAST_TICKS + np.abs(path - LEAST_TICKS)
    opened, closed = path[::2], path[1::2]
    wick = generator.integers(0, step // 2 + 1, size=(bars, 2))
    high = np.maximum(opened, closed) + wick[:, 0]
    low = np.maximum(np.minimum(opened, closed) - wick[:, 1], 1)
    volume = generator.integers(1, 1_000_000, size=bars) * (generator.random(bars) >= zero_volume_share)
    ticks = dict(zip(PRICES, (opened, high, low, closed), strict=True))
    return pl.DataFrame(
        {
            "symbol": [symbol] * bars,
            "event_timestamp": pl.Series([FIRST_BAR_END + i * interval for i in range(bars)], dtype=pl.Datetime("us", "UTC")),
            **{name: values * tick for name, values in ticks.items()},
            "volume": volume.astype(np.float64),
        }
    )


def with_adjustment(bars: pl.DataFrame, seed: int, split_share: float = SPLIT_SHARE) -> pl.DataFrame:
    """The input columns of indicators: bars as traded become raw_*, 2:1 splits fall at random, open .. volume become adjusted.

    Adds raw_open, raw_high, raw_low, raw_close, raw_volume, adjustment_factor (cumulative, 1 on the first bars).
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    factor = np.cumprod(np.where(generator.random(bars.height) < split_share, 2.0, 1.0))
    return bars.with_columns(
        *(pl.col(name).alias(f"raw_{name}") for name in (*PRICES, "volume")),
        *(pl.col(name) * factor for name in PRICES),
        pl.col("volume") / factor,
        pl.Series("adjustment_factor", factor),
    )


def with_series(frame: pl.DataFrame, names: list[str], seed: int) -> pl.DataFrame:
    """Adds a positive macro series (values 5 .. 80 on a grid of 0.01) under each name that the frame does not have yet."""

    def series(name: str) -> pl.Series:
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, zlib.crc32(name.encode())])))
        walk = 1_500 + np.cumsum(generator.integers(-60, 61, size=frame.height))
        return pl.Series(name, (500 + np.abs((walk - 500) % 15_000 - 7_500)) / 100)

    return frame.with_columns(series(name) for name in names if name not in frame.columns)


def candles(least: int = 1, most: int = 120) -> st.SearchStrategy[pl.DataFrame]:
    """OHLCV bars of one symbol as traded, `least` to `most` rows; see `random_bars`."""
    return st.builds(
        random_bars,
        bars=st.integers(least, most),
        seed=st.integers(0, 2**32 - 1),
        tick=st.sampled_from([0.01, 0.00001, 0.25]),
        step=st.sampled_from([0, 1, 4, 40]),
        zero_volume_share=st.sampled_from([0.0, 0.1, 0.6]),
    )


def indicator_inputs(least: int = 1, most: int = 120) -> st.SearchStrategy[pl.DataFrame]:
    """Bars of one symbol with raw and adjusted columns and random splits; see `with_adjustment`."""
    return st.builds(with_adjustment, candles(least, most), st.integers(0, 2**32 - 1))
