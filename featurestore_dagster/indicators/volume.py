"""Traded volume against its own past, and prices weighted by it; what restarts with each session is in `intraday`."""

import polars as pl

from featurestore_dagster.indicators.averages import window_mean, window_sum
from featurestore_dagster.indicators.binding import ratio
from featurestore_dagster.model.indicator import indicator
from featurestore_dagster.model.units import Unit

SMA_BARS = 20


@indicator(
    unit=Unit.RATIO,
    formula="volume / mean(volume, 20), the current bar included; NULL when the mean is 0",
    inputs=("volume",),
    oracle="TA-Lib SMA",
    first=SMA_BARS - 1,
    minimum=0,
)
def volume_sma_ratio() -> pl.Expr:
    """Volume in multiples of its 20-bar average."""
    volume = pl.col("volume").cast(pl.Float64)
    return ratio(volume, window_mean(volume, SMA_BARS))


@indicator(
    unit=Unit.PRICE,
    formula="sum(tp * volume, n) / sum(volume, n), tp = (high + low + close) / 3; NULL when nothing traded",
    inputs=("high", "low", "close", "volume"),
    oracle="numpy",
    first=lambda n: n - 1,
    minimum=0,
    price_exponent=1,
)
def rolling_vwap(n: int) -> pl.Expr:
    """Volume-weighted average price of the last n bars."""
    typical = (pl.col("high") + pl.col("low") + pl.col("close")) / 3
    volume = pl.col("volume").cast(pl.Float64)
    return ratio(window_sum(typical * volume, n), window_sum(volume, n))
