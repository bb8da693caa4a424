"""Candles as the indicators want them: anchored adjustment for splits and dividends, and the quality flags of each bar.

Which bars are refused does not belong here (see `market_checks`), nor do features.
"""

import numpy as np
import polars as pl

from featurestore_dagster.calendars import calendar
from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.model.raw_table import Dataset

PRICES = ("open", "high", "low", "close")
OUTLIER_WINDOW = 60
OUTLIER_DEVIATIONS = 10
MAD_TO_SIGMA = 1.4826
TICK = 0.01
TICK_FOREIGN_EXCHANGE = 1e-5


def adjusted_bars(candles: pl.DataFrame, actions: pl.DataFrame) -> pl.DataFrame:
    """Bars on the adjusted basis beside the traded one.

    The factor F(s) is the product over actions with ex-date at or before s: a split a:b gives a/b, a dividend D gives
    1/(1 - D/previous close). Indicators run on raw*F and divide by F(t), so a later action never changes an old value.

    Args:
        candles: Rows of a candle dataset, one per symbol and bar end.
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
        candles.sort("event_timestamp")
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
    """`bars` with ZERO_VOLUME, CORP_ACTION, GAP_BEFORE and OUTLIER set in `flags` where they hold.

    GAP_BEFORE: the calendar expects at least one bar between this one and the symbol's previous one.
    """
    market = calendar(dataset.calendar)
    changed = pl.col("adjustment_factor") != pl.col("adjustment_factor").shift(1).over("symbol")
    if bars.is_empty():
        return bars
    low, high = bars["event_timestamp"].min(), bars["event_timestamp"].max()
    expected = market.bar_ends(dataset.timeframe, low, high)  # type: ignore[arg-type]
    grid = pl.DataFrame({"event_timestamp": expected}).with_row_index("grid_number").with_columns(pl.col("grid_number").cast(pl.Int64))
    tick = TICK_FOREIGN_EXCHANGE if dataset.market == "fx" else TICK
    outliers = pl.Series("outlier", _outliers(bars, tick))
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


def _outliers(bars: pl.DataFrame, tick: float) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Whether each bar's log return lies further than ten robust deviations from the median of the 60 before it."""
    result = np.zeros(bars.height, dtype=bool)
    for _, indices in bars.with_row_index("row").group_by("symbol").agg("row").iter_rows():
        rows = np.asarray(indices, dtype=np.int64)
        close = bars["close"].gather(rows).to_numpy()
        raw_close = bars["raw_close"].gather(rows).to_numpy()
        if len(close) <= OUTLIER_WINDOW + 1:
            continue
        with np.errstate(invalid="ignore", divide="ignore"):
            returns = np.log(close[1:] / close[:-1])
        windows = np.lib.stride_tricks.sliding_window_view(returns[:-1], OUTLIER_WINDOW)
        median = np.median(windows, axis=1)
        deviation = np.median(np.abs(windows - median[:, None]), axis=1)
        floor = 2 * tick / raw_close[OUTLIER_WINDOW + 1 :]
        distance = np.abs(returns[OUTLIER_WINDOW:] - median)
        result[rows[OUTLIER_WINDOW + 1 :]] = distance > OUTLIER_DEVIATIONS * np.maximum(MAD_TO_SIGMA * deviation, floor)
    return result
