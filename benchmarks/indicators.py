"""`python -m benchmarks.indicators`: every indicator over bars of all views, on 1.44 million one-minute bars, in one process.

Beside each indicator that TA-Lib has: TA-Lib called once per symbol on the same bars, its arrays put back into one column with NULLs, as a
feature row needs them; and the features of each view that TA-Lib has, computed together as rows are computed, beside TA-Lib's loop, the
cutting of the bars by symbol included. Prints rows per second, the ratio of the times (above 1: faster than TA-Lib) and the peak memory.
Times are the processor's, of all threads, in the cheapest of three runs; elapsed ones are that run's.
"""

import argparse
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import polars as pl
import talib

from benchmarks.printing import show
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.model.indicator import Feature, Grain
from featurestore_dagster.pipeline.blocks.bars import series_values
from featurestore_dagster.pipeline.blocks.sessions import with_session_columns

SYMBOLS, DAYS, MINUTES = 100, 10, 1440
ROWS = SYMBOLS * DAYS * MINUTES
REPEATS = 3
OVER_BARS = (Grain.BARS, Grain.COMPLETED_DAYS, Grain.DAILY)

Values = npt.NDArray[np.float64]
Bars = dict[str, Values]
Row = dict[str, float | int | str]


def _ranges(bars: Bars) -> tuple[Values, Values, Values]:
    return bars["high"], bars["low"], bars["close"]


def _bollinger(bars: Bars) -> Values:
    upper, _, lower = talib.BBANDS(bars["close"], 20, 2, 2)
    return (bars["close"] - lower) / (upper - lower)


def _trend_strength(bars: Bars) -> Values:
    direction = np.sign(talib.PLUS_DI(*_ranges(bars), 14) - talib.MINUS_DI(*_ranges(bars), 14))
    return direction * talib.ADX(*_ranges(bars), 14) / 100


TALIB: dict[str, Callable[..., Values | tuple[Values, ...]]] = {
    "sma": lambda bars, n: talib.SMA(bars["close"], n),
    "ema": lambda bars, n: talib.EMA(bars["close"], n),
    "ret": lambda bars, k: talib.ROCP(bars["close"], k),
    "rsi": lambda bars, n: talib.RSI(bars["close"], n),
    "macd": lambda bars: talib.MACD(bars["close"], 12, 26, 9),
    "high_52w_position": lambda bars: bars["close"] / talib.MAX(bars["high"], 252) - 1,
    "low_52w_position": lambda bars: bars["close"] / talib.MIN(bars["low"], 252) - 1,
    "plus_di": lambda bars, n: talib.PLUS_DI(*_ranges(bars), n),
    "minus_di": lambda bars, n: talib.MINUS_DI(*_ranges(bars), n),
    "adx": lambda bars, n: talib.ADX(*_ranges(bars), n),
    "trend_strength": _trend_strength,
    "atr": lambda bars, n: talib.ATR(*_ranges(bars), n),
    "atr_pct": lambda bars: 100 * talib.ATR(*_ranges(bars), 14) / bars["close"],
    "bollinger_bands_position": _bollinger,
    "vol": lambda bars, n: talib.STDDEV(talib.ROCP(bars["close"], 1), n) * (n / (n - 1)) ** 0.5,
    "volume_sma_ratio": lambda bars: bars["volume"] / talib.SMA(bars["volume"], 20),
}
"""Indicator -> the same by TA-Lib, from one symbol's bars and the feature's parameters."""

TOGETHER = {"macd_signal": "macd", "macd_hist": "macd"}
"""Indicators that one call of TA-Lib gives together with another one."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    as_json = parser.parse_args().json
    results = measure(minute_bars())
    show(results, as_json=as_json)


def minute_bars() -> pl.DataFrame:
    """Bars of random walks with the columns that indicators read, sorted by symbol and time; equal in every run."""
    draw = np.random.Generator(np.random.PCG64(0))
    bars = DAYS * MINUTES
    path = 100 * np.exp(np.cumsum(5e-4 * draw.standard_normal((SYMBOLS, 2 * bars)), axis=1))
    opened, closed = path[:, ::2], path[:, 1::2]
    wick = 2e-4 * np.abs(draw.standard_normal((2, SYMBOLS, bars)))
    columns = {
        "open": opened,
        "high": np.maximum(opened, closed) * (1 + wick[0]),
        "low": np.minimum(opened, closed) * (1 - wick[1]),
        "close": closed,
        "volume": draw.integers(1, 10_000, (SYMBOLS, bars)).astype(np.float64),
    }
    minutes = np.tile(np.arange(1, bars + 1, dtype=np.int64), SYMBOLS)
    frame = pl.DataFrame(
        {
            "symbol": np.repeat([f"S{number:03d}" for number in range(SYMBOLS)], bars),
            "event_timestamp": pl.Series(minutes * 60_000_000).cast(pl.Duration("us")) + datetime(2024, 1, 1, tzinfo=UTC),
            **{name: values.ravel() for name, values in columns.items()},
        }
    ).with_columns(
        *(pl.col(name).alias(f"raw_{name}") for name in columns),
        adjustment_factor=pl.lit(1.0),
        sessions_per_year=pl.lit(365.0),
        bar_vwap=pl.lit(None, pl.Float64),
        known_at=pl.col("event_timestamp"),
        action_known_at=pl.lit(None, pl.Datetime("us", "UTC")),
        flags=pl.lit(0, pl.Int64),
    )
    return frame.sort("symbol", "event_timestamp")


def measure(bars: pl.DataFrame) -> dict[str, list[Row]]:
    """All measurements, by table."""
    session_seconds, _ = _seconds(lambda: with_session_columns(bars, "24/7"))
    bars = with_session_columns(bars, "24/7")
    by_view = {view.name: features for view in CATALOGUE.views if (features := [f for grain in OVER_BARS for f in view.by_grain[grain]])}
    views: list[Row] = []
    for name, features in by_view.items():
        seconds, elapsed = _seconds(lambda features=features: series_values(features, bars), repeats=1)  # type: ignore[misc]
        views.append({"view": name, "features": len(features), "seconds": seconds, "elapsed": elapsed, "rows per second": ROWS / elapsed})
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    prices = bars.select("symbol", "high", "low", "close", "volume")
    together: list[Row] = []
    for name, features in by_view.items():
        if families := [family for family in _families(features) if family[0].indicator.name in TALIB]:
            common = [feature for family in families for feature in family]
            ours = _seconds(lambda common=common: series_values(common, bars))  # type: ignore[misc]
            theirs = _seconds(lambda families=families: _all_by_talib(prices, families))  # type: ignore[misc]
            together.append({"view": name, "features": len(common), **_beside(ours, theirs)})
    symbols = _by_symbol(prices)
    alone: list[Row] = []
    for family in _families(feature for features in by_view.values() for feature in features):
        ours = _seconds(lambda family=family: series_values(family, bars))  # type: ignore[misc]
        row: Row = {"features": ", ".join(feature.name for feature in family), "ms": 1e3 * ours[0], "TA-Lib ms": "", "ratio": ""}
        if family[0].indicator.name in TALIB:
            theirs = _seconds(lambda family=family: _by_talib(symbols, family[0]))  # type: ignore[misc]
            row |= {"TA-Lib ms": 1e3 * theirs[0], "ratio": theirs[0] / ours[0]}
        alone.append(row)
    pairs = [(float(row["ms"]), float(row["TA-Lib ms"])) for row in alone if row["ratio"]]
    total = {name: sum(float(row[name]) for row in together) for name in ("ms", "TA-Lib ms", "wall ms", "TA-Lib wall ms")}
    totals: list[Row] = [
        {"measure": "bars", "value": ROWS},
        {"measure": "cores", "value": os.cpu_count() or 0},
        {"measure": "load average", "value": os.getloadavg()[0]},
        {"measure": "python", "value": sys.version.split()[0]},
        {"measure": "peak memory of all views (MiB)", "value": peak_bytes / 2**20},
        {"measure": "session columns (s)", "value": session_seconds},
        {"measure": "all views (s, processor)", "value": sum(float(view["seconds"]) for view in views)},
        {"measure": "rows per second, all views", "value": ROWS / sum(float(view["elapsed"]) for view in views)},
        {"measure": "what TA-Lib has, each alone (ms)", "value": sum(ms for ms, _ in pairs)},
        {"measure": "ratio, each alone", "value": sum(ms for _, ms in pairs) / sum(ms for ms, _ in pairs)},
        {"measure": "what TA-Lib has, by view (ms)", "value": total["ms"]},
        {"measure": "ratio, by view", "value": total["TA-Lib ms"] / total["ms"]},
        {"measure": "what TA-Lib has, by view (ms, wall)", "value": total["wall ms"]},
        {"measure": "ratio, by view, wall", "value": total["TA-Lib wall ms"] / total["wall ms"]},
    ]
    return {"views": views, "what TA-Lib has of each view": together, "indicators": alone, "total": totals}


def _beside(ours: tuple[float, float], theirs: tuple[float, float]) -> Row:
    return {
        "ms": 1e3 * ours[0],
        "TA-Lib ms": 1e3 * theirs[0],
        "ratio": theirs[0] / ours[0],
        "wall ms": 1e3 * ours[1],
        "TA-Lib wall ms": 1e3 * theirs[1],
        "wall ratio": theirs[1] / ours[1],
    }


def _families(features: Iterable[Feature]) -> list[list[Feature]]:
    """Different features; those that one call of TA-Lib gives are together, the one that `TALIB` names first."""
    distinct = {(feature.indicator.name, *feature.parameters.items()): feature for feature in features}
    families: dict[tuple[object, ...], list[Feature]] = {}
    for (name, *parameters), feature in sorted(distinct.items(), key=lambda item: item[1].name):
        families.setdefault((TOGETHER.get(str(name), name), *parameters), []).append(feature)
    return list(families.values())


def _by_symbol(prices: pl.DataFrame) -> list[Bars]:
    parts = prices.partition_by("symbol", maintain_order=True, include_key=False)
    return [{name: part[name].to_numpy() for name in part.columns} for part in parts]


def _by_talib(symbols: list[Bars], feature: Feature) -> list[pl.Series]:
    found = [TALIB[feature.indicator.name](bars, **feature.parameters) for bars in symbols]
    outputs = zip(*(values if isinstance(values, tuple) else (values,) for values in found), strict=True)
    return [pl.Series(np.concatenate(parts)).fill_nan(None) for parts in outputs]


def _all_by_talib(prices: pl.DataFrame, families: list[list[Feature]]) -> list[pl.Series]:
    symbols = _by_symbol(prices)
    return [values for family in families for values in _by_talib(symbols, family[0])]


def _seconds(run: Callable[[], object], repeats: int = REPEATS) -> tuple[float, float]:
    """Processor time of all threads and elapsed time of the repeat that took the least of the former."""
    found = []
    for _ in range(repeats):
        began = time.process_time(), time.perf_counter()
        run()
        found.append((time.process_time() - began[0], time.perf_counter() - began[1]))
    return min(found)


if __name__ == "__main__":
    main()
