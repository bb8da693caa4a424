"""Real series from the sample packages, in the columns that indicators read; raw prices, splits left in, no adjustment."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import polars as pl

PRICES = ("open", "high", "low", "close")

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RealSeries:
    """Bars or observations, and the decimals in which the prices are quoted."""

    frame: pl.DataFrame
    decimals: int = 0

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
    """vix, wti, moodys (aaa, baa) without their missing days, and sp500_vix: sessions that have both."""
    from arch.data import default, vix, wti

    found = {
        "vix": _observations(vix.load(), vix="vix"),
        "wti": _observations(wti.load(), wti="DCOILWTICO"),
        "moodys": _observations(default.load(), aaa="AAA", baa="BAA"),
    }
    # The market's whole history, so that its moving averages are warm where VIX begins.
    sessions = bar_series()["SP500"].frame.join(found["vix"].frame, on="time", how="left", maintain_order="left")
    found["sp500_vix"] = RealSeries(sessions)
    return found
