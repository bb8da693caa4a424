"""Features over the benchmark's daily bars and the series known at each row. Whether a substitute is used is decided by the caller."""

from collections.abc import Sequence

import polars as pl

from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.model.indicator import Feature
from featurestore_dagster.pipeline.bitemporal import join_visible
from featurestore_dagster.pipeline.blocks.bars import propagated

PRICE = "spy_close"
"""The input column that the benchmark's closes fill."""


def benchmark_values(features: Sequence[Feature], rows: pl.DataFrame, benchmark: pl.DataFrame, *, is_substitute: bool) -> pl.DataFrame:
    """Values over the benchmark's bars up to the newest one known at each row.

    Features of the benchmark alone are computed once on its bars; what combines windows over bars with series is computed with the series
    of the row at its newest bar.

    Args:
        features: Features of grain BENCHMARK: inputs `spy_close` and series columns, which `rows` must have as of each row.
        rows: Column event_timestamp and the series columns; any others.
        benchmark: Daily adjusted bars of one symbol: event_timestamp, known_at, close, flags, symbol.
        is_substitute: It stands in for the declared benchmark: FALLBACK_SOURCE is set.

    Returns:
        `rows` in the same order, with `value:<feature>`, `known:benchmark` and `flags:benchmark`.
    """
    alone = [feature for feature in features if set(feature.input_columns) == {PRICE}]
    warm_up = max(feature.warm_up_bars for feature in features)
    daily = (
        benchmark.sort("event_timestamp")
        .with_columns(pl.col("close").alias(PRICE))
        .select(
            pl.col("event_timestamp").alias("bar_end"),
            "known_at",
            PRICE,
            pl.col("known_at").cum_max().alias("known:benchmark"),
            (
                propagated(benchmark.sort("event_timestamp"), warm_up)
                | pl.when(pl.int_range(pl.len()) < warm_up).then(QualityFlag.INSUFFICIENT_OHLCV.value).otherwise(0)
                | (QualityFlag.FALLBACK_SOURCE.value if is_substitute else 0)
            ).alias("flags:benchmark"),
            *(feature.expression().alias(f"value:{feature.name}") for feature in alone),
        )
    )
    placed = join_visible(
        rows.drop("known_at", strict=False), daily.drop(PRICE), keys=[], at="event_timestamp", event_time="bar_end", known_at="known_at"
    )
    placed = _with_values_on_both(placed, daily, [feature for feature in features if feature not in alone])
    return placed.drop("bar_end", "known_at").with_columns(
        pl.col("flags:benchmark").fill_null(
            QualityFlag.INSUFFICIENT_OHLCV.value | (QualityFlag.FALLBACK_SOURCE.value if is_substitute else 0)
        )
    )


def _with_values_on_both(rows: pl.DataFrame, daily: pl.DataFrame, features: list[Feature]) -> pl.DataFrame:
    """`rows` with the values of features that have windows over the daily bars and read series as of the row.

    Several rows see the same newest bar. The first of each bar make one daily frame, the second ones another, and so on: in each the
    windows run over all bars, and the series are those of the row.
    """
    if not features:
        return rows
    names = sorted({name for feature in features for name in feature.input_columns} - {PRICE})
    numbered = rows.with_row_index("snapshot").with_columns(pl.int_range(pl.len()).over("bar_end").alias("ordinal"))
    parts = []
    for (_,), part in numbered.group_by("ordinal"):
        frame = daily.select("bar_end", PRICE).join(part.select("bar_end", "snapshot", *names), on="bar_end", how="left").sort("bar_end")
        parts.append(
            frame.select("snapshot", *(feature.expression().alias(f"value:{feature.name}") for feature in features)).drop_nulls("snapshot")
        )
    return numbered.join(pl.concat(parts), on="snapshot", how="left", maintain_order="left").drop("snapshot", "ordinal")
