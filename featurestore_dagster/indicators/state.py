"""State of the book and of the session at the row's instant; where its columns come from belongs in `pipeline.blocks.state`."""

import polars as pl

from featurestore_dagster.model.indicator import Grain, indicator
from featurestore_dagster.model.units import Unit

POSITION_MAXIMUM_AGE_SECONDS = 3600


@indicator(
    unit=Unit.FRACTION,
    formula="signed exposure over the greatest allowed one, as last pushed; NULL without a push within 1 h",
    inputs=("position", "position_age_seconds"),
    oracle="hand",
    first=0,
    minimum=-1,
    maximum=1,
    adjusted=False,
    grain=Grain.ROW,
)
def position() -> pl.Expr:
    """Position of the portfolio in the symbol; an unknown one is never 0."""
    return pl.when(pl.col("position_age_seconds") <= POSITION_MAXIMUM_AGE_SECONDS).then(pl.col("position"))


@indicator(
    unit=Unit.FRACTION,
    formula="(T - open) / (close - open) of the session, both ends included; NULL outside it; where the market never closes, of the day",
    inputs=("seconds_since_open", "session_seconds"),
    oracle="hand",
    first=0,
    minimum=0,
    maximum=1,
    adjusted=False,
    grain=Grain.ROW,
)
def time_normalized() -> pl.Expr:
    """Where the instant stands in its session."""
    elapsed, whole = pl.col("seconds_since_open"), pl.col("session_seconds")
    return pl.when(elapsed.is_between(0, whole)).then(elapsed / whole)
