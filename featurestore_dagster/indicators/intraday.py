"""A row inside its session: what has traded since the open, and the price against earlier sessions' official closes.

The `*_session_*` columns are accumulated by `pipeline.blocks.sessions`; windows over bars do not belong here.
"""

import polars as pl

from featurestore_dagster.indicators.binding import ratio
from featurestore_dagster.model.indicator import Grain, indicator
from featurestore_dagster.model.units import Unit


@indicator(
    unit=Unit.PRICE,
    formula=(
        "sum(tp * volume) / sum(volume) since the session's open, prices and volumes as traded, tp = (high + low + close) / 3, or the "
        "vendor's VWAP of the bar while every bar of the session has one; NULL when nothing traded"
    ),
    inputs=("raw_session_turnover", "raw_session_volume"),
    oracle="numpy",
    first=0,
    minimum=0,
    price_exponent=1,
    adjusted=False,
)
def vwap() -> pl.Expr:
    """Volume-weighted average price of the session so far."""
    return ratio(pl.col("raw_session_turnover"), pl.col("raw_session_volume"))


@indicator(
    unit=Unit.QUANTITY,
    formula="sum(volume as traded) since the session's open",
    inputs=("raw_session_volume",),
    oracle="numpy",
    first=0,
    minimum=0,
    volume_exponent=1,
    adjusted=False,
)
def session_volume() -> pl.Expr:
    """Traded quantity of the session so far."""
    return pl.col("raw_session_volume").cast(pl.Float64)


@indicator(
    unit=Unit.RATIO,
    formula=(
        "session volume so far / mean over the 20 sessions before of their volume by the same minute of the session; on the closing row "
        "whole sessions, so v(t) / mean(v(t-20..t-1)) on daily bars"
    ),
    inputs=("session_volume", "usual_session_volume"),
    oracle="numpy",
    first=0,
    minimum=0,
)
def volume_ratio() -> pl.Expr:
    """Volume of the session so far in multiples of what is usual by this minute."""
    return ratio(pl.col("session_volume"), pl.col("usual_session_volume"))


@indicator(
    unit=Unit.PRICE,
    formula="daily close of k sessions before the row's own",
    inputs=("close",),
    oracle="numpy",
    first=lambda k: k - 1,
    minimum=0,
    price_exponent=1,
    grain=Grain.DAILY,
)
def official_close(k: int) -> pl.Expr:
    """Adjusted close of the session k sessions ago; 1 is the last one before the row's own."""
    return pl.col("close").shift(k - 1)


@indicator(
    unit=Unit.FRACTION,
    formula="close(t) / official_close(k sessions before the row's own) - 1; on a daily row close(t) / close(t-k) - 1",
    inputs=("close",),
    oracle="TA-Lib ROCP",
    first=0,
    minimum=-1,
    grain=Grain.ROW,
    components=lambda k: (official_close.feature(f"official_close_{k}", k=k),),
)
def session_return(k: int) -> pl.Expr:
    """Return over k sessions up to now."""
    return ratio(pl.col("close"), pl.col(f"official_close_{k}")) - 1
