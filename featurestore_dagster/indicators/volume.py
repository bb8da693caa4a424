"""Traded volume against its own past; what volume says of the price of trading is in `liquidity`."""

import polars as pl

from featurestore_dagster.indicators.averages import window_mean
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
