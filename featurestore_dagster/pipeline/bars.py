"""Candles as the indicators want them: anchored adjustment for splits and dividends, and the quality flags of each bar.

Which bars are refused does not belong here (see `market_checks`), nor do features.
"""

from collections.abc import Iterable
from datetime import datetime

import numpy as np
import polars as pl

from featurestore_dagster.calendars import calendar
from featurestore_dagster.calendars.exchange_hours import ALWAYS_OPEN
from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.model.raw_table import Dataset
from featurestore_dagster.model.source import Listing
from featurestore_dagster.pipeline.expectations import missing_bars

PRICES = ("open", "high", "low", "close")
OUTLIER_WINDOW = 60
OUTLIER_DEVIATIONS = 10
OUTLIER_ROWS = 16_384
"""Bars that are judged together: a window of each is in memory."""
MAD_TO_SIGMA = 1.4826
TICK = 0.01
TICK_FOREIGN_EXCHANGE = 1e-5
REVERTED_SHARE = 0.9
"""An outlier of which the next bar takes back this much was no price: see `reverted_outliers`."""

Booleans = np.ndarray[tuple[int], np.dtype[np.bool_]]
Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def adjusted_bars(candles: pl.DataFrame, actions: pl.DataFrame) -> pl.DataFrame:
    """Bars on the adjusted basis beside the traded one.

    The factor F(s) is the product over actions with ex-date at or before s: a split a:b gives a/b, a dividend D gives
    1/(1 - D/previous close). Indicators run on raw*F and divide by F(t), so a later action never changes an old value.

    Args:
        candles: Rows of a candle dataset, one per symbol and bar end. Those that carry OUTLIER were taken back and are left out.
        actions: Columns symbol, event_timestamp (ex-date open), known_at, ratio, cash_amount, previous_close (raw); any order.

    Returns:
        Sorted by symbol and event time: symbol, timeframe, event_timestamp, known_at, source, flags, open high low close (raw*F), volume
        (raw / split factor), raw_open .. raw_close, raw_volume, adjustment_factor, split_factor, and `bar_number`, the position in the
        symbol's series.
    """
    factors = (
        actions.sort("symbol", "event_timestamp")
        .with_columns(
            pl.coalesce("ratio", 1 / (1 - pl.col("cash_amount") / pl.col("previous_close")), 1.0).alias("factor"),
            pl.col("ratio").fill_null(1.0).alias("split"),
        )
        .select(
            "symbol",
            "event_timestamp",
            pl.col("known_at").cum_max().over("symbol").alias("action_known_at"),
            pl.col("factor").cum_prod().over("symbol").alias("adjustment_factor"),
            pl.col("split").cum_prod().over("symbol").alias("split_factor"),
        )
        .unique(["symbol", "event_timestamp"], keep="last", maintain_order=True)
        .sort("event_timestamp")
    )
    factor, split = pl.col("adjustment_factor"), pl.col("split_factor")
    return (
        not_taken_back(candles)
        .sort("event_timestamp")
        .join_asof(factors, on="event_timestamp", by="symbol", strategy="backward", check_sortedness=False)
        .with_columns(factor.fill_null(1.0), split.fill_null(1.0))
        .sort("symbol", "event_timestamp")
        .with_columns(
            *(pl.col(name).alias(f"raw_{name}") for name in (*PRICES, "volume")),
            *((pl.col(name) * factor).alias(name) for name in PRICES),
            (pl.col("volume") / split).alias("volume"),
            pl.int_range(pl.len()).over("symbol").alias("bar_number"),
        )
    )


def flag_bars(bars: pl.DataFrame, dataset: Dataset) -> pl.DataFrame:
    """`bars` with ZERO_VOLUME, CORP_ACTION, GAP_BEFORE and OUTLIER set in `flags` where they hold, and `sessions_per_year` Float64.

    GAP_BEFORE: the calendar expects at least one bar between this one and the symbol's previous one.
    """
    market = calendar(dataset.calendar)
    bars = bars.with_columns(pl.lit(365.0 if dataset.calendar == ALWAYS_OPEN else 252.0).alias("sessions_per_year"))
    changed = pl.col("adjustment_factor") != pl.col("adjustment_factor").shift(1).over("symbol")
    if bars.is_empty():
        return bars
    low, high = bars["event_timestamp"].min(), bars["event_timestamp"].max()
    expected = market.bar_ends(dataset.timeframe, low, high)  # type: ignore[arg-type]
    grid = pl.DataFrame({"event_timestamp": expected}).with_row_index("grid_number").with_columns(pl.col("grid_number").cast(pl.Int64))
    outliers = pl.Series("outlier", _outliers(bars, _tick(dataset)))
    return (
        bars.with_columns(outliers)
        .join(grid, on="event_timestamp", how="left", maintain_order="left")
        .with_columns(
            flags=pl.col("flags")
            | pl.when(pl.col("raw_volume") == 0).then(QualityFlag.ZERO_VOLUME.value).otherwise(0)
            | pl.when(changed.fill_null(value=False)).then(QualityFlag.CORP_ACTION.value).otherwise(0)
            | pl.when(pl.col("grid_number").diff().over("symbol").fill_null(1) > 1).then(QualityFlag.GAP_BEFORE.value).otherwise(0)
            | pl.when(pl.col("outlier") & ~changed.fill_null(value=False)).then(QualityFlag.OUTLIER.value).otherwise(0)
        )
        .drop("outlier", "grid_number")
    )


def with_missing_bars(
    rows: pl.DataFrame, dataset: Dataset, listings: Iterable[Listing], start: datetime, end: datetime, now: datetime
) -> pl.DataFrame:
    """`rows` and one more for each bar that is due and absent: MISSING_OHLCV, known from the end of its grace on, everything else NULL.

    Windows count existing bars, so this comes after whatever is computed over bars.

    Args:
        rows: One per symbol and bar end, columns symbol, timeframe, event_timestamp, known_at, flags and any others, over all of the range.
        dataset: Whose bars they are.
        listings: Symbols that the dataset owes.
        start: Bars with start < bar end <= end are looked for.
        end: See `start`.
        now: Bars whose grace ends later are not missing yet.

    Returns:
        The columns of `rows`, sorted by symbol and event time.
    """
    absent = missing_bars(rows, dataset, listings, start, end, now).select(
        "symbol",
        pl.lit(dataset.timeframe.value).alias("timeframe"),
        "event_timestamp",
        "known_at",
        pl.lit(QualityFlag.MISSING_OHLCV.value, pl.Int64).alias("flags"),
    )
    return pl.concat([rows, absent], how="diagonal").sort("symbol", "event_timestamp")


def not_taken_back(candles: pl.DataFrame) -> pl.DataFrame:
    """Rows of a candle dataset without the newest versions that took an outlier back: stored OUTLIER says that it was no price."""
    return candles.filter(pl.col("flags") & QualityFlag.OUTLIER.value == 0)


def reverting() -> pl.Expr:
    """Whether the next bar of the symbol takes the bar's log return back, to within a tenth; columns symbol and close, sorted by time."""
    log_return = pl.col("close").log().diff().over("symbol")
    back = log_return.shift(-1).over("symbol")
    return ((log_return + back).abs() <= (1 - REVERTED_SHARE) * log_return.abs()) & (log_return != 0)


def reverted_outliers(series: pl.DataFrame, dataset: Dataset) -> pl.Series:
    """Whether each bar is an outlier (see `flag_bars`) that the next one reverts by 90 % or more.

    Args:
        series: Traded bars sorted by symbol and event time: symbol, close; a bar needs 61 before it and one after it.
        dataset: Whose bars they are.
    """
    tick = _tick(dataset)
    marked = series.select(
        (reverting() & (pl.int_range(pl.len()).over("symbol") > OUTLIER_WINDOW)).fill_null(value=False).alias("candidate"), "close"
    )
    result = marked["candidate"].to_numpy().copy()
    rows, close = np.flatnonzero(result), marked["close"].to_numpy()
    before = rows[:, None] - np.arange(1, OUTLIER_WINDOW + 1)
    result[rows] = _deviates(np.log(close[before] / close[before - 1]), np.log(close[rows] / close[rows - 1]), 2 * tick / close[rows])
    return pl.Series("reverted", result)


def _tick(dataset: Dataset) -> float:
    return TICK_FOREIGN_EXCHANGE if dataset.market == "fx" else TICK


def _outliers(bars: pl.DataFrame, tick: float) -> Booleans:
    """Whether each bar's log return lies further than ten robust deviations from the median of the 60 before it; bars sorted."""
    result = np.zeros(bars.height, dtype=bool)
    close, raw_close = bars["close"].to_numpy(), bars["raw_close"].to_numpy()
    with np.errstate(invalid="ignore", divide="ignore"):
        returns = np.log(close[1:] / close[:-1])
    if returns.size <= OUTLIER_WINDOW:
        return result
    windows = np.lib.stride_tricks.sliding_window_view(returns, OUTLIER_WINDOW)
    judged = np.flatnonzero(bars.select(pl.int_range(pl.len()).over("symbol")).to_series().to_numpy() > OUTLIER_WINDOW)
    for start in range(0, judged.size, OUTLIER_ROWS):
        rows = judged[start : start + OUTLIER_ROWS]
        result[rows] = _deviates(windows[rows - OUTLIER_WINDOW - 1], returns[rows - 1], 2 * tick / raw_close[rows])
    return result


def _deviates(windows: Floats, returns: Floats, floor: Floats) -> Booleans:
    """Whether each return lies further from its window's median than ten robust deviations of the window, or ten times the floor.

    Half of a window lies within the median absolute deviation of its median, so that the nearer quartile is no further away than that. Few
    returns are far enough from the median to ask for more.
    """
    low, high = OUTLIER_WINDOW // 4, OUTLIER_WINDOW - OUTLIER_WINDOW // 4
    middle = [OUTLIER_WINDOW // 2 - 1, OUTLIER_WINDOW // 2]
    ordered = np.partition(windows, [low, *middle, high], axis=1)
    median = ordered[:, middle].mean(axis=1)
    quartile = np.minimum(median - ordered[:, low], ordered[:, high] - median)
    result = np.asarray(np.abs(returns - median) > OUTLIER_DEVIATIONS * np.maximum(MAD_TO_SIGMA * quartile, floor))
    far = np.flatnonzero(result)
    median = np.median(windows[far], axis=1)
    deviation = np.median(np.abs(windows[far] - median[:, None]), axis=1)
    result[far] = np.abs(returns[far] - median) > OUTLIER_DEVIATIONS * np.maximum(MAD_TO_SIGMA * deviation, floor[far])
    return result
