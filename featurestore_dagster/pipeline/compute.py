"""Feature rows from bars and macro series: one expression per feature, whatever asks for it.

Batch materialisation, the live path and the serving fallback call the same functions, so that they cannot differ.
"""

from datetime import datetime

import polars as pl

from featurestore_dagster.model.feature_view import FeatureView, Stream
from featurestore_dagster.model.flags import PROPAGATED, QualityFlag
from featurestore_dagster.model.indicator import Feature
from featurestore_dagster.pipeline.bitemporal import join_visible
from featurestore_dagster.projections.postgres_table import feature_dtype, feature_schema

WHOLE_FIRM = "GLOBAL"
"""The portfolio whose rows are snapshots of the market."""


def compute_bars(view: FeatureView, stream: Stream, bars: pl.DataFrame, start: datetime, end: datetime) -> pl.DataFrame:
    """Feature rows of a view over candles.

    Args:
        view: What to compute.
        stream: For which market and timeframe.
        bars: Output of `flag_bars`, with `view.look_back_bars` of history before `start`.
        start: Rows with start < event time <= end are returned.
        end: See `start`.

    Returns:
        Columns `feature_schema(view)`, sorted by keys and event time. A value that is not finite becomes NULL with COMPUTATION_ERROR.
    """
    series = bars.sort("symbol", "event_timestamp")
    values = series.select(
        pl.all(),
        *(feature.expression().over("symbol").alias(f"value:{feature.name}") for feature in view.features),
        pl.max_horizontal("known_at", "action_known_at").alias("row_known_at"),
    )
    unscaled = [
        (
            pl.col(f"value:{feature.name}") / pl.col("adjustment_factor") ** feature.indicator.price_exponent
            if feature.indicator.adjusted and feature.indicator.price_exponent
            else pl.col(f"value:{feature.name}")
        ).alias(f"value:{feature.name}")
        for feature in view.features
    ]
    known_at = pl.col("row_known_at").rolling_max(view.look_back_bars + 1, min_samples=1).over("symbol")
    rows = values.with_columns(*unscaled, known_at.alias("created_timestamp"), _window_flags(view, series).alias("flags"))
    return _finish(view, stream, rows.filter((pl.col("event_timestamp") > start) & (pl.col("event_timestamp") <= end)))


def compute_snapshots(
    view: FeatureView, stream: Stream, instants: pl.Series, benchmark: pl.DataFrame, observations: pl.DataFrame, *, is_substitute: bool
) -> pl.DataFrame:
    """Feature rows of a portfolio-level macro view, one per instant.

    Features of the benchmark alone are computed on its daily bars, then the newest row known at the instant is taken; a level is the
    newest observation of its series known at the instant; what combines both is computed on the snapshot.

    Args:
        view: What to compute; a feature's indicator names its inputs: `spy_*` columns and series columns.
        stream: For which calendar.
        instants: Snapshot times, UTC.
        benchmark: Daily adjusted bars of the benchmark: event_timestamp, known_at, close, flags.
        observations: Columns series_id, observation_date, event_timestamp, known_at, value, `column` (input name), `maximum_age_days`.
        is_substitute: The benchmark stands in for SPY: FALLBACK_SOURCE is set.

    Returns:
        Columns `feature_schema(view)`, sorted by event time.
    """
    daily = benchmark.sort("event_timestamp").with_columns(pl.col("close").alias("spy_close"))
    on_benchmark = [feature for feature in view.features if set(feature.input_columns) == {"spy_close"}]
    on_both = [feature for feature in view.features if "spy_close" in feature.input_columns and feature not in on_benchmark]
    on_series = [feature for feature in view.features if "spy_close" not in feature.input_columns]
    daily = daily.select(
        pl.col("event_timestamp").alias("bar_end"),
        "known_at",
        pl.col("known_at").cum_max().alias("input_known_at"),
        "spy_close",
        _propagated_flags(view, benchmark).alias("flags"),
        *(feature.expression().alias(f"value:{feature.name}") for feature in on_benchmark),
        (pl.int_range(pl.len()) < view.warm_up_bars).alias("is_short"),
    )
    snapshots = pl.DataFrame({"event_timestamp": instants}).sort("event_timestamp").with_columns(pl.lit(WHOLE_FIRM).alias("portfolio"))
    rows = join_visible(snapshots, daily, keys=[], at="event_timestamp", event_time="bar_end", known_at="known_at").drop("known_at")
    names = sorted({name for feature in view.features for name in feature.input_columns} - {"spy_close"})
    for name in names:
        series = observations.filter(pl.col("column") == name).select(
            pl.col("event_timestamp").alias("released_at"), "known_at", pl.col("value").alias(name), "observation_date", "maximum_age_days"
        )
        rows = join_visible(rows, series, keys=[], at="event_timestamp", event_time="released_at", known_at="known_at")
        age_days = (pl.col("event_timestamp").dt.date() - pl.col("observation_date")).dt.total_days()
        stale = (age_days > pl.col("maximum_age_days")).fill_null(value=True)
        rows = rows.with_columns(
            pl.when(stale).then(None).otherwise(pl.col(name)).alias(name),
            pl.when(stale).then(None).otherwise(pl.col("known_at")).alias(f"known:{name}"),
            stale.alias(f"stale:{name}"),
        ).drop("released_at", "known_at", "observation_date", "maximum_age_days")
    rows = _with_values_on_both(rows, daily, on_both, names)
    flags = (
        pl.col("flags").fill_null(0)
        | (QualityFlag.FALLBACK_SOURCE.value if is_substitute else 0)
        | pl.when(pl.any_horizontal(f"stale:{name}" for name in names)).then(QualityFlag.STALE_INPUT.value).otherwise(0)
        | pl.when(pl.col("is_short").fill_null(value=True)).then(QualityFlag.INSUFFICIENT_OHLCV.value).otherwise(0)
    )
    rows = rows.with_columns(
        *(feature.expression().alias(f"value:{feature.name}") for feature in on_series),
        pl.max_horizontal("event_timestamp", "input_known_at", *(f"known:{name}" for name in names)).alias("created_timestamp"),
        flags.cast(pl.Int64).alias("flags"),
    )
    return _finish(view, stream, rows)


def _with_values_on_both(rows: pl.DataFrame, daily: pl.DataFrame, features: list[Feature], names: list[str]) -> pl.DataFrame:
    """`rows` with the values of features that have windows over the benchmark's daily bars and read series as of the snapshot.

    Several snapshots see the same newest bar. The first of each bar make one daily frame, the second ones another, and so on: in each the
    windows run over all bars, and the series are those of the snapshot.
    """
    if not features:
        return rows
    numbered = rows.with_row_index("snapshot").with_columns(pl.int_range(pl.len()).over("bar_end").alias("ordinal"))
    parts = []
    for (_,), part in numbered.group_by("ordinal"):
        frame = (
            daily.select("bar_end", "spy_close").join(part.select("bar_end", "snapshot", *names), on="bar_end", how="left").sort("bar_end")
        )
        parts.append(
            frame.select("snapshot", *(feature.expression().alias(f"value:{feature.name}") for feature in features)).drop_nulls("snapshot")
        )
    return numbered.join(pl.concat(parts), on="snapshot", how="left", maintain_order="left").drop("snapshot", "ordinal")


def _propagated_flags(view: FeatureView, series: pl.DataFrame) -> pl.Expr:
    """OR of the flags that propagate over each row's longest window; `series` has columns symbol and flags, sorted."""
    present = QualityFlag.counts(series["flags"])
    mask = pl.lit(0, pl.Int64)
    for flag in QualityFlag:
        if flag & PROPAGATED and flag.name in present:
            is_set = (pl.col("flags") & flag.value != 0).cast(pl.Int8)
            touched = is_set.rolling_max(view.warm_up_bars + 1, min_samples=1).over("symbol")
            mask = mask | pl.when(touched == 1).then(flag.value).otherwise(0)
    return mask


def _window_flags(view: FeatureView, series: pl.DataFrame) -> pl.Expr:
    position = pl.col("bar_number")
    short = pl.when(position < view.warm_up_bars).then(QualityFlag.INSUFFICIENT_OHLCV.value).otherwise(0)
    converging = pl.when(position < view.look_back_bars).then(QualityFlag.WARMUP_CONVERGING.value).otherwise(0)
    late = pl.when(pl.col("row_known_at") > pl.col("event_timestamp") + view.slo.max_lag).then(QualityFlag.LATE.value).otherwise(0)
    recursive = any(feature.look_back_bars > feature.warm_up_bars for feature in view.features)
    return (_propagated_flags(view, series) | short | late | (converging if recursive else 0)).cast(pl.Int64)


def _finish(view: FeatureView, stream: Stream, rows: pl.DataFrame) -> pl.DataFrame:
    broken = pl.any_horizontal(
        pl.col(f"value:{f.name}").is_finite().not_() for f in view.features if rows.schema[f"value:{f.name}"].is_float()
    ).fill_null(value=False)
    finite = [
        (
            pl.when(pl.col(f"value:{f.name}").is_finite()).then(pl.col(f"value:{f.name}"))
            if rows.schema[f"value:{f.name}"].is_float()
            else pl.col(f"value:{f.name}")
        )
        .cast(feature_dtype(f.indicator.unit))
        .alias(f.name)
        for f in view.features
    ]
    return (
        rows.select(
            *view.join_keys,
            "event_timestamp",
            "created_timestamp",
            *finite,
            (pl.col("flags") | pl.when(broken).then(QualityFlag.COMPUTATION_ERROR.value).otherwise(0)).alias("flags"),
            pl.lit(view.version, pl.Int32).alias("feature_set_version"),
            pl.lit(stream.name).alias("stream"),
        )
        .select(list(feature_schema(view)))
        .sort(*view.join_keys, "event_timestamp")
    )
