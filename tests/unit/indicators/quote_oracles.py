"""References of what quotes say, in plain Python over one row's quotes at a time."""

from collections.abc import Callable

import numpy as np

from featurestore_dagster.indicators import quotes
from tests.unit.indicators.oracle import Oracle
from tests.unit.indicators.series import RealSeries, Values

BOOKS = "books"

Level = dict[str, float]


def _each_row(reference: Callable[[list[Level]], float | None]) -> Callable[[RealSeries], Values]:
    """A reference of one row's levels, for all rows."""

    def references(series: RealSeries) -> Values:
        rows: dict[int, list[Level]] = {}
        for level in series.frame.to_dicts():
            rows.setdefault(level["row"], []).append(level)
        return np.array([reference(levels) for levels in rows.values()], dtype=np.float64)

    return references


def _book(levels: list[Level]) -> tuple[list[tuple[float, float]], list[tuple[float, float]], float | None]:
    """Bids, asks (price, quantity) of the newest quote, and the middle; the middle is None when a side is empty or the book is crossed."""
    newest = [level for level in levels if level["is_newest"]]
    bids, asks = (
        [(level[f"{side}_price"], level[f"{side}_quantity"]) for level in newest if level[f"{side}_price"] is not None]
        for side in ("bid", "ask")
    )
    return bids, asks, (bids[0][0] + asks[0][0]) / 2 if bids and asks and bids[0][0] < asks[0][0] else None


def _spread(levels: list[Level]) -> float | None:
    bids, asks, middle = _book(levels)
    return asks[0][0] - bids[0][0] if middle else None


def _imbalance(levels: list[Level]) -> float | None:
    bids, asks, middle = _book(levels)
    if bids and asks and middle is None:
        return None
    bought, sold = (sum(quantity for _, quantity in side[:5]) for side in (bids, asks))
    return (bought - sold) / (bought + sold) if bought + sold else None


def _depth(levels: list[Level]) -> float | None:
    bids, asks, middle = _book(levels)
    if middle is None:
        return None
    inside = [[(p, q) for p, q in side if 1e4 * abs(p - middle) / middle <= 10 + 1e-6] for side in (bids, asks)]
    if len(inside[0]) == len(bids) or len(inside[1]) == len(asks):
        return None
    return sum(p * q for side in inside for p, q in side)


def _impact(levels: list[Level]) -> float | None:
    bids, asks, middle = _book(levels)
    size = levels[0]["average_dollar_volume"] * 0.01
    if middle is None or size <= 0:
        return None
    impacts = []
    for side in (bids, asks):
        left, quantity = size, 0.0
        for p, q in side:
            filled = min(left, p * q)
            left, quantity = left - filled, quantity + filled / p
            if left <= 0:
                break
        else:
            return None
        impacts.append(1e4 * abs(size / quantity - middle) / middle)
    return sum(impacts) / 2


def _time_weighted_spread(levels: list[Level]) -> float | None:
    held = [
        (level["valid_seconds"], level["bid_price"], level["ask_price"])
        for level in levels
        if level["level"] == 0 and level["bid_price"] and level["ask_price"] and level["bid_price"] < level["ask_price"]
    ]
    covered = sum(seconds for seconds, _, _ in held)
    if covered < levels[0]["bar_seconds"] / 2:
        return None
    return sum(seconds * 1e4 * (ask - bid) / ((ask + bid) / 2) for seconds, bid, ask in held) / covered


QUOTE_ORACLES = (
    Oracle(quotes.bid_ask_spread.feature(), _each_row(_spread), series=(BOOKS,)),
    Oracle(quotes.order_book_imbalance.feature(), _each_row(_imbalance), series=(BOOKS,)),
    Oracle(quotes.market_depth.feature(), _each_row(_depth), rtol=1e-14, series=(BOOKS,)),
    Oracle(quotes.price_impact_1pct.feature(), _each_row(_impact), rtol=1e-10, series=(BOOKS,)),
    Oracle(quotes.bid_ask_spread_bps.feature(), _each_row(_time_weighted_spread), rtol=1e-13, series=(BOOKS,)),
    Oracle(quotes.trade_size_avg.feature(), lambda s: s.column("raw_volume") / s.column("trade_count"), series=("trades",)),
)
