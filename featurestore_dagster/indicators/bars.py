"""The bar itself as features: prices and volume as traded, and the forward-adjusted close. No window belongs here."""

import polars as pl

from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.model.indicator import Grain, indicator
from featurestore_dagster.model.units import Unit


@indicator(
    unit=Unit.PRICE,
    formula="the column's price as traded",
    inputs=("column",),
    oracle="identity",
    first=0,
    minimum=0,
    price_exponent=1,
    adjusted=False,
)
def raw_price(column: str) -> pl.Expr:
    """One of raw_open, raw_high, raw_low, raw_close."""
    return pl.col(column)


@indicator(
    unit=Unit.QUANTITY,
    formula="volume as traded",
    inputs=("raw_volume",),
    oracle="identity",
    first=0,
    minimum=0,
    volume_exponent=1,
    adjusted=False,
)
def raw_volume() -> pl.Expr:
    """Traded quantity of the bar, Float64 like every feature (whole shares are exact up to 2**53)."""
    return pl.col("raw_volume").cast(pl.Float64)


@indicator(
    unit=Unit.PRICE,
    formula="raw close(t) * F(t), F the cumulative forward factor: a later corporate action never changes it",
    inputs=("raw_close", "adjustment_factor"),
    oracle="numpy",
    first=0,
    minimum=0,
    price_exponent=1,
    adjusted=False,
)
def adjusted_close() -> pl.Expr:
    """Forward-adjusted close; ratios of two values are total returns."""
    return pl.col("raw_close") * pl.col("adjustment_factor")


@indicator(
    unit=Unit.CODE,
    formula="bitmask of the row's quality flags, as a value that a model can be given",
    inputs=("row_flags",),
    oracle="identity",
    first=0,
    minimum=0,
    maximum=2 * max(QualityFlag) - 1,
    adjusted=False,
    grain=Grain.ROW,
)
def quality_flags() -> pl.Expr:
    """The row's own flags."""
    return pl.col("row_flags").cast(pl.Float64)
