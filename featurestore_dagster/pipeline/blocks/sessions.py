"""Bars inside their session: what has traded since the open, and what is usual by that minute. Formulas are in `indicators.intraday`."""

import numpy as np
import numpy.typing as npt
import polars as pl

from featurestore_dagster.calendars import calendar
from featurestore_dagster.model.flags import PROPAGATED
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS

USUAL_SESSIONS = 20
"""Sessions before the row's own that tell what is usual."""

VOLUMES = (("volume", ""), ("raw_volume", "raw_"))
"""Column, and the prefix of its sum."""


def with_session_columns(bars: pl.DataFrame, calendar_name: str) -> pl.DataFrame:
    """Bars with what their session has accumulated by the end of the bar.

    Args:
        bars: symbol, event_timestamp (bar end), volume, raw_high, raw_low, raw_close, raw_volume, bar_vwap Float64, known_at,
            action_known_at, flags Int64, and any others; one row per symbol and bar end, any order. The first session must be whole, and
            20 sessions must come before the first row whose `usual_session_volume` is wanted.
        calendar_name: Whose sessions the bars belong to.

    Returns:
        The same rows in the same order, with

        - `session` Date: label of the session;
        - `session_minute` Int64: minutes from its open to the bar's end;
        - `session_volume`, `raw_session_volume` Float64: sums of volume and raw_volume since its open;
        - `raw_session_turnover` Float64: sum of tp * raw_volume, tp = (raw_high + raw_low + raw_close) / 3, or of bar_vwap * raw_volume
          while every bar of the session has one;
        - `usual_session_volume` Float64: mean over the symbol's 20 sessions before of their session_volume at this session_minute, which is
          that of their last bar by then, 0 before their first; on a bar that ends with its session, of their whole volume;
        - `known:sessions` Datetime(us, UTC), `flags:sessions` Int64: greatest known-at, and the flags that propagate, of the bars behind
          these columns: those of the session so far, and of up to 20 sessions before by this minute.

        A sum is NULL from the session's first bar with a NULL in it on; the mean is NULL with fewer than 20 sessions or a NULL in them.
    """
    if bars.is_empty():
        return bars.with_columns(
            pl.lit(None, pl.Date).alias("session"),
            pl.lit(None, pl.Int64).alias("session_minute"),
            *(pl.lit(None, pl.Float64).alias(name) for name in ("session_volume", "raw_session_volume")),
            *(pl.lit(None, pl.Float64).alias(name) for name in ("raw_session_turnover", "usual_session_volume")),
            pl.lit(None, UTC_MICROSECONDS).alias("known:sessions"),
            pl.lit(None, pl.Int64).alias("flags:sessions"),
        )
    market = calendar(calendar_name)
    labels = market.session_of(bars["event_timestamp"])
    hours = market.table.select("session", "opens", "closes")
    ordered = (
        bars.with_columns(labels.alias("session"))
        .join(hours, on="session", how="left", maintain_order="left")
        .with_row_index("place")
        .sort("symbol", "event_timestamp")
        .with_columns(
            ((pl.col("event_timestamp") - pl.col("opens")).dt.total_minutes()).alias("session_minute"),
            (pl.col("event_timestamp") >= pl.col("closes")).alias("is_last"),
            *(_accumulated(pl.col(name).cast(pl.Float64)).alias(f"{prefix}session_volume") for name, prefix in VOLUMES),
            _turnover().alias("raw_session_turnover"),
        )
    )
    return ordered.with_columns(_earlier_sessions(ordered)).sort("place").drop("place", "opens", "closes", "is_last")


def _accumulated(values: pl.Expr) -> pl.Expr:
    """Sum since the session's open; NULL from the first NULL on."""
    complete = values.is_null().cum_sum().over("symbol", "session") == 0
    return pl.when(complete).then(values.cum_sum().over("symbol", "session"))


def _turnover() -> pl.Expr:
    typical, volume = (pl.col("raw_high") + pl.col("raw_low") + pl.col("raw_close")) / 3, pl.col("raw_volume").cast(pl.Float64)
    return pl.coalesce(_accumulated(pl.col("bar_vwap") * volume), _accumulated(typical * volume))


def _earlier_sessions(ordered: pl.DataFrame) -> list[pl.Series]:
    """Mean volume of the sessions before by each bar's minute, known-at and flags of all bars behind it; `ordered` by symbol and time."""
    keys = ordered.select(
        pl.struct("symbol", "session").rle_id().alias("row"),
        (pl.col("session_minute").rank("dense").cast(pl.Int64) - 1).alias("minute"),
        "symbol",
        "is_last",
    )
    row, minute = keys["row"].to_numpy(), keys["minute"].to_numpy()
    sessions = keys.unique("row", maintain_order=True).select(pl.int_range(pl.len()).over("symbol").alias("number"))["number"].to_numpy()
    minutes = int(minute.max()) + 1
    asked: npt.NDArray[np.int64] = np.where(keys["is_last"].to_numpy(), minutes - 1, minute)

    # One row per symbol and session, one column per minute: the volume by then, NaN when it is unknown.
    present = np.zeros((sessions.size, minutes), dtype=bool)
    volume = np.zeros((sessions.size, minutes))
    present[row, minute] = True
    volume[row, minute] = ordered["session_volume"].to_numpy()
    newest = np.maximum.accumulate(np.where(present, np.arange(minutes), 0), axis=1)
    by_minute = np.take_along_axis(volume, newest, axis=1)

    total = np.zeros_like(by_minute)
    for back in range(1, USUAL_SESSIONS + 1):
        total[USUAL_SESSIONS:] += by_minute[USUAL_SESSIONS - back : by_minute.shape[0] - back]
    total[sessions < USUAL_SESSIONS] = np.nan

    def over_both(values: pl.Expr, merge: np.ufunc) -> npt.NDArray[np.int64]:
        """Of the session by the bar and the sessions before by its minute."""
        by_bar = np.zeros((sessions.size, minutes), dtype=np.int64)
        by_bar[row, minute] = ordered.select(values).to_series().to_numpy()
        by_then = merge.accumulate(by_bar, axis=1)
        found: npt.NDArray[np.int64] = by_then[row, minute]
        for back in range(1, USUAL_SESSIONS + 1):
            earlier = by_then[np.maximum(row.astype(np.int64) - back, 0), asked]
            merge(found, earlier, out=found, where=sessions[row] >= back)
        return found

    known_at = over_both(pl.max_horizontal("known_at", "action_known_at").to_physical(), np.maximum)
    flags = over_both(pl.col("flags") & PROPAGATED.value, np.bitwise_or)
    return [
        pl.Series("usual_session_volume", total[row, asked] / USUAL_SESSIONS).fill_nan(None),
        pl.Series("known:sessions", known_at).cast(UTC_MICROSECONDS),
        pl.Series("flags:sessions", flags),
    ]
