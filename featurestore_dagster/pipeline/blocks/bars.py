"""Features over a symbol's bars: on the row's own bar, or taken from daily bars to rows of a finer grid.

Adjusting and flagging bars belongs to `pipeline.bars`.
"""

from collections.abc import Collection, Sequence
from datetime import timedelta

import polars as pl

from featurestore_dagster.calendars import calendar
from featurestore_dagster.indicators.binding import staged
from featurestore_dagster.model.flags import PROPAGATED, QualityFlag
from featurestore_dagster.model.indicator import Feature
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS
from featurestore_dagster.pipeline.bitemporal import join_visible

BATCH_ROWS = 100_000
"""Rows whose features are computed together, or those of one symbol if it has more."""


def bar_values(features: Sequence[Feature], bars: pl.DataFrame, served: Collection[str]) -> pl.DataFrame:
    """Each bar with the values of features that are evaluated over the bars themselves.

    Args:
        features: Features of grain BARS, DAILY or COMPLETED_DAYS.
        bars: Output of `pipeline.bars.flag_bars` with the look-back of all features; any order.
        served: Names of features whose value leaves the adjusted basis: it is divided by the bar's own factor. Components stay on it.

    Returns:
        `bars` sorted by symbol and event time, with `value:<feature>` and

        - `known:bars`: greatest known-at of the bars and corporate actions inside the longest look-back,
        - `flags:bars`: the bars' flags that propagate, over the longest window; INSUFFICIENT_OHLCV, WARMUP_CONVERGING.
    """
    warm_up = max((feature.warm_up_bars for feature in features), default=0)
    look_back = max((feature.look_back_bars for feature in features), default=0)
    series = bars.sort("symbol", "event_timestamp")
    known_at = pl.max_horizontal("known_at", "action_known_at").rolling_max(look_back + 1, min_samples=1).over("symbol")
    short = pl.when(pl.col("bar_number") < warm_up).then(QualityFlag.INSUFFICIENT_OHLCV.value).otherwise(0)
    converging = pl.when(pl.col("bar_number") < look_back).then(QualityFlag.WARMUP_CONVERGING.value).otherwise(0)
    recursive = any(feature.look_back_bars > feature.warm_up_bars for feature in features)
    flags = (propagated(series, warm_up) | short | (converging if recursive else 0)).cast(pl.Int64)
    values = series_values(features, series).rename(lambda name: f"value:{name}")
    return series.with_columns(*values, known_at.alias("known:bars"), flags.alias("flags:bars")).with_columns(
        unscaled(feature) for feature in features if feature.name in served
    )


def series_values(features: Sequence[Feature], series: pl.DataFrame) -> pl.DataFrame:
    """The features over each symbol's rows, with the bits that each expression has `.over("symbol")`.

    Whole symbols at a time, so that their columns stay in the processor's cache and what features share is soon forgotten.

    Args:
        features: Features of grain BARS, DAILY or COMPLETED_DAYS.
        series: symbol and the columns that the features read, sorted by symbol and time.

    Returns:
        A Float64 column for each feature, under its name; rows in the same order.
    """
    stages = [[_by_number(expression) for expression in stage] for stage in staged(feature.expression for feature in features)]
    inputs = sorted({name for feature in features for name in feature.input_columns})
    runs = series["symbol"].rle().struct.field("len")
    batches = runs.to_frame("rows").group_by((runs.cum_sum() - runs) // BATCH_ROWS, maintain_order=True).agg(pl.col("rows").sum())
    found, start = [], 0
    for rows in batches["rows"].to_list() or [0]:
        batch = series.slice(start, rows).select(*inputs, symbol_number=pl.col("symbol").rle_id().set_sorted())
        for stage in stages[:-1]:
            batch = batch.with_columns(stage)
        found.append(batch.select(stages[-1]))
        start += rows
    return pl.concat(found)


def _by_number(expression: pl.Expr) -> pl.Expr:
    """The expression over each symbol's rows: on its own where it looks at no other row, as that is the cheaper way."""
    return expression if _is_row_wise(expression) else expression.over("symbol_number", mapping_strategy="explode")


def _is_row_wise(expression: pl.Expr) -> bool:
    return expression.meta.is_row_separable() and all(map(_is_row_wise, expression.meta.pop()))


def unscaled(feature: Feature) -> pl.Expr:
    """The feature's value off the adjusted basis: divided by the row's own factor to the power of its price exponent."""
    value = pl.col(f"value:{feature.name}")
    exponent = feature.indicator.price_exponent if feature.indicator.adjusted else 0
    return value / pl.col("adjustment_factor") ** exponent if exponent else value


def daily_values(
    features: Sequence[Feature],
    rows: pl.DataFrame,
    daily: pl.DataFrame,
    served: Collection[str],
    *,
    calendar_name: str,
    earlier_sessions: bool,
    as_known: bool,
) -> pl.DataFrame:
    """Values over daily bars, taken to rows by event time.

    Args:
        features: Features of grain BARS, DAILY or COMPLETED_DAYS.
        rows: Columns symbol and event_timestamp, any others.
        daily: Output of `flag_bars`.
        served: As in `bar_values`.
        calendar_name: Whose sessions the rows belong to.
        earlier_sessions: Take the last bar of a session before the row's own, also on the closing row; else the last that had ended.
        as_known: Rows are snapshots: a bar counts from its known-at on. Else it counts at once, and makes the row known later.

    Returns:
        `rows` in the same order, with `value:<feature>`, `known:<block>` and `flags:<block>`, block daily or completed_days.
    """
    block = "daily" if earlier_sessions else "completed_days"
    values = bar_values(features, daily, served)
    sessions = calendar(calendar_name)
    if earlier_sessions:
        ends = {label: sessions.session(label).window_end for label in sessions.session_of(values["event_timestamp"]).unique()}
        usable = sessions.session_of(values["event_timestamp"]).replace_strict(ends, return_dtype=UTC_MICROSECONDS) + timedelta(
            microseconds=1
        )
    else:
        usable = values["event_timestamp"]
    bars = values.select(
        "symbol",
        usable.alias("usable_from"),
        pl.col("known_at" if as_known else "event_timestamp").alias("counts_from"),
        *(f"value:{feature.name}" for feature in features),
        pl.col("known:bars").alias(f"known:{block}"),
        pl.col("flags:bars").alias(f"flags:{block}"),
    )
    placed = join_visible(rows, bars, keys=["symbol"], at="event_timestamp", event_time="usable_from", known_at="counts_from")
    return placed.drop("usable_from", "counts_from").with_columns(pl.col(f"flags:{block}").fill_null(QualityFlag.INSUFFICIENT_OHLCV.value))


def propagated(series: pl.DataFrame, window: int) -> pl.Expr:
    """OR of the flags that propagate over each row's `window` bars before it and its own; `series`: columns symbol and flags, sorted."""
    present = QualityFlag.counts(series["flags"])
    mask = pl.lit(0, pl.Int64)
    for flag in QualityFlag:
        if flag & PROPAGATED and flag.name in present:
            is_set = (pl.col("flags") & flag.value != 0).cast(pl.Int8)
            touched = is_set.rolling_max(window + 1, min_samples=1).over("symbol")
            mask = mask | pl.when(touched == 1).then(flag.value).otherwise(0)
    return mask
