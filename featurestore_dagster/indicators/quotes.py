"""What quotes and order books say of the price of trading; estimates from bars are in `liquidity`.

Expressions are aggregates over the levels of the quotes of one row's bar, as `pipeline.blocks.quotes` brings them: one row per quote and
level, oldest quote and best level first, quotes other than the newest with their best level only. Columns: `level` (0 is best),
`bid_price`, `bid_quantity`, `ask_price`, `ask_quantity` (NULL where the side is not as deep), `is_newest` (level of the last quote, unless
that is too old), `valid_seconds` (how long the quote held inside the bar), `bar_seconds`.
"""

import polars as pl

from featurestore_dagster.indicators.liquidity import ADV_SHARE, BASIS_POINTS, average_dollar_volume
from featurestore_dagster.model.indicator import Grain, indicator
from featurestore_dagster.model.units import Unit

IMBALANCE_LEVELS = 5
DEPTH_BAND = 10 / BASIS_POINTS
DEPTH_TOLERANCE = 1e-9
"""Fraction of the band by which rounding of decimal prices may miss it."""

LEAST_COVERAGE = 0.5
"""Fraction of the bar for which a valid quote must have stood."""

TOP = ("level", "is_newest", "bid_price", "ask_price")
BOOK = (*TOP, "bid_quantity", "ask_quantity")


def _quotient(numerator: pl.Expr, denominator: pl.Expr) -> pl.Expr:
    """NULL where the denominator is 0. Without `bind`, which is for expressions over rows."""
    return pl.when(denominator != 0).then(numerator / denominator)


def _newest(name: str) -> pl.Expr:
    """A column of all levels of the newest quote that the side has."""
    return pl.col(name).filter(pl.col("is_newest") & pl.col(name).is_not_null())


def _best(name: str) -> pl.Expr:
    return pl.col(name).filter(pl.col("is_newest") & (pl.col("level") == 0)).first()


def _middle() -> pl.Expr:
    return (_best("bid_price") + _best("ask_price")) / 2


def is_stale() -> pl.Expr:
    """Whether the bar has no quote that is young enough at its end."""
    return ~pl.col("is_newest").any()


def is_crossed() -> pl.Expr:
    """Whether the newest quote has its bid at or above its ask; False when a side is empty."""
    return (_best("bid_price") >= _best("ask_price")).fill_null(value=False)


def _within_band(distance: pl.Expr) -> pl.Expr:
    return distance <= _middle() * (DEPTH_BAND * (1 + DEPTH_TOLERANCE))


def ends_in_band() -> pl.Expr:
    """Whether a side of the newest quote is empty, or its deepest level still lies in the band: what lies behind is unknown."""
    nearest_end = pl.min_horizontal(_middle() - _newest("bid_price").min(), _newest("ask_price").max() - _middle())
    return _within_band(nearest_end).fill_null(value=True)


def _order_size() -> pl.Expr:
    return ADV_SHARE * pl.col("average_dollar_volume").first()


def is_exhausted() -> pl.Expr:
    """Whether a side of the newest quote holds less than the order; False while the order's size is unknown."""
    held = pl.min_horizontal(*((_newest(f"{side}_price") * _newest(f"{side}_quantity")).sum() for side in ("bid", "ask")))
    return (held < _order_size()).fill_null(value=False)


def _walked(side: str) -> pl.Expr:
    """Average price at which the order is filled by the levels of one side."""
    price, value = _newest(f"{side}_price"), _newest(f"{side}_price") * _newest(f"{side}_quantity")
    before = value.cum_sum().shift(1).fill_null(0.0)
    taken = pl.min_horizontal(value, (_order_size() - before).clip(lower_bound=0))
    return _order_size() / (taken / price).sum()


@indicator(
    unit=Unit.PRICE,
    formula="best ask - best bid of the last quote; NULL when it is older than min(timeframe, 60 s), or bid >= ask",
    inputs=TOP,
    oracle="hand",
    first=0,
    minimum=0,
    price_exponent=1,
    adjusted=False,
    grain=Grain.QUOTES,
)
def bid_ask_spread() -> pl.Expr:
    """Quoted spread at the end of the bar."""
    return pl.when(~is_crossed()).then(_best("ask_price") - _best("bid_price"))


@indicator(
    unit=Unit.BASIS_POINTS,
    formula=(
        "mean over the bar of 1e4 * (ask - bid) / mid, weighted by the time for which each quote held: until the next one, at most 60 s; "
        "quotes with bid >= ask hold no time; NULL when less than half of the bar is covered"
    ),
    inputs=("level", "bid_price", "ask_price", "valid_seconds", "bar_seconds"),
    oracle="hand",
    first=0,
    minimum=0,
    maximum=2 * BASIS_POINTS,
    adjusted=False,
    grain=Grain.QUOTES,
)
def bid_ask_spread_bps() -> pl.Expr:
    """Time-weighted relative spread."""
    bid, ask = pl.col("bid_price"), pl.col("ask_price")
    counts = (pl.col("level") == 0) & (bid < ask)
    seconds = pl.col("valid_seconds").filter(counts)
    relative = ((ask - bid) / ((ask + bid) / 2)).filter(counts)
    covered = seconds.sum() >= LEAST_COVERAGE * pl.col("bar_seconds").first()
    return pl.when(covered).then(BASIS_POINTS * _quotient((relative * seconds).sum(), seconds.sum()))


@indicator(
    unit=Unit.RATIO,
    formula="(bids - asks) / (bids + asks), quantities of the 5 best levels of the last quote (fewer: all); NULL when bid >= ask",
    inputs=BOOK,
    oracle="hand",
    first=0,
    minimum=-1,
    maximum=1,
    adjusted=False,
    grain=Grain.QUOTES,
)
def order_book_imbalance() -> pl.Expr:
    """Which side of the book is heavier: 1 only bids, -1 only asks."""
    best = pl.col("is_newest") & (pl.col("level") < IMBALANCE_LEVELS)
    bid, ask = (pl.col(f"{side}_quantity").filter(best).sum() for side in ("bid", "ask"))
    return pl.when(~is_crossed()).then(_quotient(bid - ask, bid + ask))


@indicator(
    unit=Unit.QUOTE_CURRENCY,
    formula=(
        "sum of price * quantity, both sides of the last quote, within 10 bps of mid (inclusive); NULL when a side's deepest level still "
        "lies inside, or bid >= ask"
    ),
    inputs=BOOK,
    oracle="hand",
    first=0,
    minimum=0,
    price_exponent=1,
    volume_exponent=1,
    adjusted=False,
    grain=Grain.QUOTES,
)
def market_depth() -> pl.Expr:
    """What can be traded within 10 basis points of the middle."""
    bids = _newest("bid_price") * _newest("bid_quantity") * _within_band(_middle() - _newest("bid_price"))
    asks = _newest("ask_price") * _newest("ask_quantity") * _within_band(_newest("ask_price") - _middle())
    return pl.when(~is_crossed() & ~ends_in_band()).then(bids.sum() + asks.sum())


@indicator(
    unit=Unit.BASIS_POINTS,
    formula=(
        "1e4 * abs(average fill price - mid) / mid of an order of 1 % of average_dollar_volume walked through the last quote's book, mean "
        "of buying and selling; NULL when a side is exhausted, or bid >= ask"
    ),
    inputs=BOOK,
    oracle="hand",
    first=0,
    minimum=0,
    adjusted=False,
    grain=Grain.QUOTES,
    components=lambda: (average_dollar_volume.feature(),),
)
def price_impact_1pct() -> pl.Expr:
    """Price impact of 1 % of average daily volume."""
    impact = sum(((_walked(side) - _middle()).abs() / _middle() for side in ("bid", "ask")), start=pl.lit(0.0))
    return pl.when(~is_crossed() & ~is_exhausted() & (_order_size() > 0)).then(BASIS_POINTS * impact / 2)


@indicator(
    unit=Unit.QUANTITY,
    formula="volume as traded / number of trades of the bar; NULL without trades",
    inputs=("raw_volume", "trade_count"),
    oracle="numpy",
    first=0,
    minimum=0,
    volume_exponent=1,
    adjusted=False,
    grain=Grain.ROW,
)
def trade_size_avg() -> pl.Expr:
    """Average size of the bar's trades."""
    return _quotient(pl.col("raw_volume").cast(pl.Float64), pl.col("trade_count"))
