"""What each grain's expression is evaluated over: random frames with every column that it may name, and the evaluation itself.

A new input column of an indicator needs a line here only when a positive walk is no sensible value of it (`DRAWN`), or when it follows
prices or volumes (`EXPONENTS`).
"""

import zlib
from collections.abc import Callable, Iterable

import numpy as np
import polars as pl

from featurestore_dagster.model.indicator import Feature, Grain
from tests.strategies import PRICES, random_bars, with_adjustment, with_series

SERIES = (Grain.BARS, Grain.COMPLETED_DAYS, Grain.DAILY, Grain.BENCHMARK, Grain.OBSERVATIONS)
"""One value per row, which windows of rows before it decide."""

AGGREGATES = (Grain.EVENTS, Grain.QUOTES)
"""One value per group of rows; frames have the group in the column `row`."""

ADJUSTED = (*PRICES, "volume")
RAW = tuple(f"raw_{name}" for name in ADJUSTED)
QUOTE_LEVELS = 4

EXPONENTS: dict[str, tuple[int, int]] = {
    **dict.fromkeys((*PRICES, *(f"raw_{name}" for name in PRICES), "spy_close", "bid_price", "ask_price"), (1, 0)),
    **dict.fromkeys(("volume", "raw_volume", "bid_quantity", "ask_quantity"), (0, 1)),
    **dict.fromkeys(("session_volume", "raw_session_volume", "usual_session_volume"), (0, 1)),
    "raw_session_turnover": (1, 1),
}
"""Columns that follow prices and volumes: multiplying prices by k and volumes by m multiplies the column by k**p * m**q."""

DRAWN: dict[str, Callable[[np.random.Generator, int], pl.Series]] = {
    "source_type": lambda draw, rows: pl.Series(draw.choice(["news", "social", "analyst"], rows)),
    "score": lambda draw, rows: pl.Series(draw.integers(-100, 101, rows) / 100),
    "confidence": lambda draw, rows: pl.Series(draw.integers(0, 101, rows) / 100),
    "rating": lambda draw, rows: pl.Series(draw.integers(1, 6, rows).astype(np.float64)),
    "firm": lambda draw, rows: pl.Series(draw.choice(["Ash", "Birch", "Cedar"], rows)),
    "row_flags": lambda draw, rows: pl.Series(draw.integers(0, 1 << 24, rows)),
    "position": lambda draw, rows: pl.Series(draw.integers(-100, 101, rows) / 100),
    "session_seconds": lambda _draw, rows: pl.Series([18_000.0] * rows, dtype=pl.Float64),
    "seconds_since_open": lambda draw, rows: pl.Series(draw.integers(0, 18_001, rows).astype(np.float64)),
}
"""Input columns whose values are no positive walk."""


def columns_of(features: Iterable[Feature]) -> set[str]:
    """Columns that the features' expressions may name: declared inputs, and components under their names."""
    return {name for feature in features for name in (*feature.input_columns, *(part.name for part in feature.components))}


def exponents_of(features: Iterable[Feature]) -> dict[str, tuple[int, int]]:
    """`EXPONENTS`, and those of the features' components."""
    parts = {part.name: (part.indicator.price_exponent, part.indicator.volume_exponent) for f in features for part in f.components}
    return {**EXPONENTS, **parts}


def evaluated(frame: pl.DataFrame, features: Iterable[Feature]) -> pl.DataFrame:
    """One column per feature: over all rows, or for aggregates one row per group, in the order of their first rows."""
    features = list(features)
    if not any(feature.indicator.grain in AGGREGATES for feature in features):
        return frame.select(feature.expression() for feature in features)
    return frame.group_by("row", maintain_order=True).agg(feature.expression() for feature in features).drop("row")


def with_columns_of(frame: pl.DataFrame, features: Iterable[Feature], seed: int) -> pl.DataFrame:
    """`frame` with random values in each column that the features name and it lacks."""
    lacking = sorted(columns_of(features) - set(frame.columns))
    drawn = [
        DRAWN[name](np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, zlib.crc32(name.encode())]))), frame.height)
        for name in lacking
        if name in DRAWN
    ]
    named = [name for name in lacking if name in DRAWN]
    return with_series(frame.with_columns(values.alias(name) for name, values in zip(named, drawn, strict=True)), lacking, seed)


def bouncing_bars(seed: int, rows: int, symbol: str) -> pl.DataFrame:
    """Bars that all trade and always move, whose closes bounce (so that Roll's covariance is negative), with splits."""
    bars = with_adjustment(random_bars(rows, seed, symbol=symbol), seed)
    bounce = 1 + 0.02 * (pl.int_range(pl.len()) % 2) + 0.001 * (pl.int_range(pl.len()) % 7)
    return bars.with_columns(pl.col(name) * bounce for name in (*PRICES, *RAW[:-1]))


def random_events(seed: int, rows: int, symbol: str) -> pl.DataFrame:
    """Events of `rows` windows, 1 to 12 each, oldest first: row, symbol, event_timestamp."""
    draw = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, zlib.crc32(symbol.encode())])))
    windows = np.repeat(np.arange(rows), draw.integers(1, 13, rows))
    minutes = pl.Series(np.arange(windows.size)).cast(pl.Int64) * 60_000_000
    return pl.DataFrame({"row": windows, "symbol": symbol, "event_timestamp": minutes.cast(pl.Datetime("us", "UTC"))})


def random_quotes(seed: int, rows: int, symbol: str) -> pl.DataFrame:
    """Levels of the quotes of `rows` windows, 1 to 5 each, as `pipeline.blocks.quotes` makes them; the newest has 4 levels, others 1."""
    draw = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, zlib.crc32(symbol.encode())])))
    found = []
    for row in range(rows):
        quotes = int(draw.integers(1, 6))
        for quote in range(quotes):
            newest = quote == quotes - 1
            middle, apart = 10_000 + int(draw.integers(-500, 500)), int(draw.integers(1, 5))
            found += [
                {
                    "row": row,
                    "symbol": symbol,
                    "level": level,
                    "is_newest": newest,
                    "valid_seconds": float(draw.integers(1, 61)),
                    "bar_seconds": 60.0,
                    "bid_price": (middle - apart - 6 * level) / 100,
                    "ask_price": (middle + apart + 6 * level) / 100,
                    "bid_quantity": float(draw.integers(1, 900)),
                    "ask_quantity": float(draw.integers(1, 900)),
                }
                for level in range(QUOTE_LEVELS if newest else 1)
            ]
    return pl.DataFrame(found)


def random_frame(grain: Grain, features: Iterable[Feature], *, seed: int = 1, rows: int = 420, symbol: str = "AAA") -> pl.DataFrame:
    """A frame of the grain with `rows` rows (aggregates: groups) on which every feature has its first value where it is declared."""
    build = {Grain.EVENTS: random_events, Grain.QUOTES: random_quotes}.get(grain, bouncing_bars)
    return with_columns_of(build(seed, rows, symbol), features, seed)
