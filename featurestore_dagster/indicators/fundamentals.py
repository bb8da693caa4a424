"""The firm behind the share: its figures beside the price as traded. How the figures come from filings does not belong here."""

import polars as pl

from featurestore_dagster.indicators.binding import bind, ratio
from featurestore_dagster.model.indicator import Grain, indicator
from featurestore_dagster.model.units import Unit

LEAST_EPS = 0.01
"""Earnings per share below which, in size, their growth means nothing."""


def _where_positive(figure: pl.Expr) -> pl.Expr:
    """The figure; NULL unless it is above 0."""
    return bind(lambda figure: pl.when(figure > 0).then(figure), figure=figure)


def _mean_of_year(now: str, year_ago: str) -> pl.Expr:
    """Mean of a figure of the balance sheet and the same a year earlier; NULL unless it is above 0."""
    return _where_positive((pl.col(now) + pl.col(year_ago)) / 2)


def _growth(now: str, year_ago: str) -> pl.Expr:
    """Growth over a year; NULL unless the earlier figure is above 0."""
    return pl.col(now) / _where_positive(pl.col(year_ago)) - 1


def _market_cap() -> pl.Expr:
    return pl.col("raw_close") * _where_positive(pl.col("shares_outstanding"))


@indicator(
    unit=Unit.QUOTE_CURRENCY,
    formula="raw close * shares outstanding; NULL without shares",
    inputs=("raw_close", "shares_outstanding"),
    oracle="hand",
    first=0,
    minimum=0,
    price_exponent=1,
    adjusted=False,
    grain=Grain.ROW,
)
def market_cap() -> pl.Expr:
    """What the market pays for the whole firm."""
    return _market_cap()


@indicator(
    unit=Unit.RATIO,
    formula="raw close / diluted EPS of the last four quarters; NULL when EPS <= 0",
    inputs=("raw_close", "eps_ttm"),
    oracle="hand",
    first=0,
    minimum=0,
    price_exponent=1,
    adjusted=False,
    grain=Grain.ROW,
)
def pe_ratio() -> pl.Expr:
    """Price to earnings."""
    return pl.col("raw_close") / _where_positive(pl.col("eps_ttm"))


@indicator(
    unit=Unit.RATIO,
    formula="market_cap / equity of the latest balance sheet; NULL when equity <= 0",
    inputs=("raw_close", "shares_outstanding", "equity"),
    oracle="hand",
    first=0,
    minimum=0,
    price_exponent=1,
    adjusted=False,
    grain=Grain.ROW,
)
def pb_ratio() -> pl.Expr:
    """Price to book."""
    return _market_cap() / _where_positive(pl.col("equity"))


@indicator(
    unit=Unit.FRACTION,
    formula="net income of the last four quarters / mean(equity, equity four quarters earlier); NULL when the mean <= 0",
    inputs=("net_income_ttm", "equity", "equity_year_ago"),
    oracle="hand",
    first=0,
    adjusted=False,
    grain=Grain.ROW,
)
def roe() -> pl.Expr:
    """Return on equity."""
    return pl.col("net_income_ttm") / _mean_of_year("equity", "equity_year_ago")


@indicator(
    unit=Unit.FRACTION,
    formula="net income of the last four quarters / mean(total assets, total assets four quarters earlier); NULL when the mean <= 0",
    inputs=("net_income_ttm", "total_assets", "total_assets_year_ago"),
    oracle="hand",
    first=0,
    adjusted=False,
    grain=Grain.ROW,
)
def roa() -> pl.Expr:
    """Return on assets."""
    return pl.col("net_income_ttm") / _mean_of_year("total_assets", "total_assets_year_ago")


@indicator(
    unit=Unit.RATIO,
    formula="(short-term + current portion + long-term debt) / equity, last balance sheet; NULL when equity <= 0 or no debt is given",
    inputs=("debt", "equity"),
    oracle="hand",
    first=0,
    adjusted=False,
    grain=Grain.ROW,
)
def debt_to_equity() -> pl.Expr:
    """Leverage on equity."""
    return pl.col("debt") / _where_positive(pl.col("equity"))


@indicator(
    unit=Unit.RATIO,
    formula="(short-term + current portion + long-term debt) / total assets, last balance sheet; NULL when assets <= 0 or no debt is given",
    inputs=("debt", "total_assets"),
    oracle="hand",
    first=0,
    adjusted=False,
    grain=Grain.ROW,
)
def debt_to_assets() -> pl.Expr:
    """Leverage on assets."""
    return pl.col("debt") / _where_positive(pl.col("total_assets"))


@indicator(
    unit=Unit.FRACTION,
    formula="revenue of the last four quarters / that of the four before - 1; NULL when the earlier <= 0",
    inputs=("revenue_ttm", "revenue_ttm_year_ago"),
    oracle="hand",
    first=0,
    adjusted=False,
    grain=Grain.ROW,
)
def revenue_growth_yoy() -> pl.Expr:
    """Growth of revenue."""
    return _growth("revenue_ttm", "revenue_ttm_year_ago")


@indicator(
    unit=Unit.FRACTION,
    formula="(EPS of the last four quarters - that of the four before) / abs(the earlier); NULL when abs(the earlier) < 0.01",
    inputs=("eps_ttm", "eps_ttm_year_ago"),
    oracle="hand",
    first=0,
    adjusted=False,
    grain=Grain.ROW,
)
def eps_growth_yoy() -> pl.Expr:
    """Growth of diluted earnings per share, also out of a loss."""
    return bind(
        lambda now, earlier: pl.when(earlier.abs() >= LEAST_EPS).then((now - earlier) / earlier.abs()),
        now=pl.col("eps_ttm"),
        earlier=pl.col("eps_ttm_year_ago"),
    )


@indicator(
    unit=Unit.FRACTION,
    formula="net income of the last four quarters / that of the four before - 1; NULL when the earlier <= 0",
    inputs=("net_income_ttm", "net_income_ttm_year_ago"),
    oracle="hand",
    first=0,
    adjusted=False,
    grain=Grain.ROW,
)
def net_income_growth_yoy() -> pl.Expr:
    """Growth of net income."""
    return _growth("net_income_ttm", "net_income_ttm_year_ago")


@indicator(
    unit=Unit.QUANTITY,
    formula="volume as traded of the last completed day",
    inputs=("raw_volume",),
    oracle="identity",
    first=0,
    minimum=0,
    volume_exponent=1,
    adjusted=False,
    grain=Grain.COMPLETED_DAYS,
)
def daily_volume() -> pl.Expr:
    """Traded quantity of a day."""
    return pl.col("raw_volume").cast(pl.Float64)


@indicator(
    unit=Unit.FRACTION,
    formula="daily_volume / shares outstanding (crypto: circulating supply); NULL without shares",
    inputs=("shares_outstanding",),
    oracle="hand",
    first=0,
    minimum=0,
    volume_exponent=1,
    adjusted=False,
    grain=Grain.ROW,
    components=lambda: (daily_volume.feature(),),
)
def turnover_ratio() -> pl.Expr:
    """Share of the firm that changed hands in a day."""
    return ratio(pl.col("daily_volume"), _where_positive(pl.col("shares_outstanding")))
