"""Feature rows of a stream: one expression per feature, whatever asks for it.

Batch materialisation, the live path and the serving fallback call the same functions, so that they cannot differ. How a grain's values
are found belongs to the blocks; reading the frames belongs to `inputs`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import polars as pl

from featurestore_dagster.features.entities import WHOLE_FIRM
from featurestore_dagster.model.feature_view import FeatureView, Stream
from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.model.indicator import Feature, Grain
from featurestore_dagster.model.source import Listing
from featurestore_dagster.pipeline.bars import with_missing_bars
from featurestore_dagster.pipeline.blocks.bars import bar_values, daily_values, unscaled
from featurestore_dagster.pipeline.blocks.benchmark import benchmark_values
from featurestore_dagster.pipeline.blocks.events import event_windows
from featurestore_dagster.pipeline.blocks.facts import figures
from featurestore_dagster.pipeline.blocks.observations import observation_windows
from featurestore_dagster.pipeline.blocks.published import published_values
from featurestore_dagster.pipeline.blocks.quotes import quote_windows
from featurestore_dagster.pipeline.blocks.state import session_state
from featurestore_dagster.projections.postgres_table import feature_dtype, feature_schema


@dataclass(frozen=True)
class Frames:
    """What the features of a stream are computed from; a frame is None when the stream declares no such input.

    Attributes:
        snapshots: For a stream that is not bar by bar, its rows to be: event_timestamp, and symbol unless the view is about the portfolio.
        bars: Bars of the stream's timeframe with look-back, output of `flag_bars`, with session columns where a feature reads them.
        daily: The same for the daily bars beside them.
        benchmark: The same for the market's benchmark alone; `is_substitute` when it stands in for the declared one.
        observations: Vintages of series: series_id, observation_date, event_timestamp, known_at, value, column, maximum_age_days.
        events, quotes, facts, positions: Rows of these raw tables, every version.
        splits: symbol, event_timestamp, known_at, ratio.
        published: Per member of the view its published rows, every version.
        owed: Symbols whose bars are expected, by `now`: one that is due and absent is a row without market values.
    """

    snapshots: pl.DataFrame | None = None
    bars: pl.DataFrame | None = None
    daily: pl.DataFrame | None = None
    benchmark: pl.DataFrame | None = None
    is_substitute: bool = False
    observations: pl.DataFrame | None = None
    events: pl.DataFrame | None = None
    quotes: pl.DataFrame | None = None
    facts: pl.DataFrame | None = None
    positions: pl.DataFrame | None = None
    splits: pl.DataFrame = field(default_factory=pl.DataFrame)
    published: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    owed: tuple[Listing, ...] = ()
    now: datetime | None = None


def compute(view: FeatureView, stream: Stream, frames: Frames, start: datetime, end: datetime) -> pl.DataFrame:
    """Feature rows of a stream.

    Args:
        view: What to compute.
        stream: For which market and timeframe.
        frames: Inputs with the look-back that the view needs.
        start: Rows with start < event time <= end are returned.
        end: See `start`.

    Returns:
        Columns `feature_schema(view)`, sorted by keys and event time. A value that is not finite becomes NULL with COMPUTATION_ERROR.
    """
    rows = _spine(view, stream, frames, start, end)
    if rows is None:
        return pl.DataFrame(schema=feature_schema(view))
    return _finish(view, stream, _with_row_values(view, _with_blocks(view, stream, frames, rows)))


def _spine(view: FeatureView, stream: Stream, frames: Frames, start: datetime, end: datetime) -> pl.DataFrame | None:
    """The rows to be, with what is computed on their own bars; None when the stream has neither bars nor snapshots."""
    within = (pl.col("event_timestamp") > start) & (pl.col("event_timestamp") <= end)
    if not stream.is_bar_by_bar:
        return None if frames.snapshots is None else frames.snapshots.filter(within).sort("event_timestamp")
    if frames.bars is None:
        return None
    rows = bar_values(view.by_grain[Grain.BARS], frames.bars, view.feature_names).filter(within)
    if frames.now is not None:
        rows = with_missing_bars(rows, stream.inputs[0], frames.owed, start, end, frames.now).with_columns(
            pl.col("flags:bars").fill_null(pl.col("flags")), pl.col("known:bars").fill_null(pl.col("known_at"))
        )
    late = pl.max_horizontal("known_at", "action_known_at") > pl.col("event_timestamp") + view.slo_of(stream).max_lag
    is_bar = pl.col("flags") & QualityFlag.MISSING_OHLCV.value == 0
    return rows.with_columns(pl.when(late & is_bar).then(QualityFlag.LATE.value).otherwise(0).alias("flags:late")).rename(
        {"flags": "bar_flags"}
    )


def _with_blocks(view: FeatureView, stream: Stream, frames: Frames, rows: pl.DataFrame) -> pl.DataFrame:
    """`rows` with the values of every grain but the row's own, and the columns that these read."""
    by_grain = view.by_grain
    on_bars = () if stream.is_bar_by_bar else by_grain[Grain.BARS]
    days = ((False, (*on_bars, *by_grain[Grain.COMPLETED_DAYS])), (True, by_grain[Grain.DAILY]))
    for earlier_sessions, features in days:
        if features and frames.daily is not None:
            rows = daily_values(
                features,
                rows,
                frames.daily,
                view.feature_names,
                calendar_name=stream.calendar,
                earlier_sessions=earlier_sessions,
                as_known=not stream.is_bar_by_bar,
            )
    if frames.observations is not None:
        rows = observation_windows(by_grain[Grain.OBSERVATIONS], rows, frames.observations)
    if by_grain[Grain.BENCHMARK] and frames.benchmark is not None:
        rows = benchmark_values(by_grain[Grain.BENCHMARK], rows, frames.benchmark, is_substitute=frames.is_substitute)
    if by_grain[Grain.EVENTS] and frames.events is not None:
        rows = event_windows(by_grain[Grain.EVENTS], rows, frames.events)
    if by_grain[Grain.QUOTES] and frames.quotes is not None:
        rows = quote_windows(by_grain[Grain.QUOTES], rows, frames.quotes, stream.timeframe)
    if frames.facts is not None:
        rows = figures(rows, frames.facts, frames.splits)
    if frames.positions is not None:
        rows = session_state(rows, frames.positions, stream.calendar)
    return published_values(view, rows, frames.published, _keys(stream)) if view.members else rows


def _keys(stream: Stream) -> dict[str, pl.Expr]:
    return {"symbol": pl.col("symbol"), "timeframe": pl.lit(stream.timeframe.value), "portfolio": pl.lit(WHOLE_FIRM)}


def _flags(rows: pl.DataFrame) -> pl.Expr:
    """OR of what all blocks found."""
    flags = pl.lit(0, pl.Int64)
    for name in rows.columns:
        if name.startswith("flags:"):
            flags = flags | pl.col(name).fill_null(0).cast(pl.Int64)
    return flags


def _with_row_values(view: FeatureView, rows: pl.DataFrame) -> pl.DataFrame:
    """`rows` with `value:<feature>` for every feature of the view; what no input of the stream can give is NULL."""
    features = [feature for grain in Grain for feature in view.by_grain[grain]]
    given = [feature for feature in features if f"value:{feature.name}" in rows.columns]
    absent = [feature for feature in features if feature not in given and feature.indicator.grain is not Grain.ROW]
    rows = rows.with_columns(pl.lit(None, pl.Float64).alias(f"value:{feature.name}") for feature in absent)
    rows = rows.with_columns(
        pl.col(f"value:{feature.name}").alias(feature.name) for feature in (*given, *absent) if feature.name not in view.feature_names
    )
    rows = rows.with_columns(_flags(rows).alias("row_flags"))
    for feature in view.by_grain[Grain.ROW]:
        inputs = {name: pl.lit(None, pl.Float64).alias(name) for name in feature.input_columns if name not in rows.columns}
        rows = rows.with_columns(inputs.values()).with_columns(feature.expression().alias(f"value:{feature.name}"))
        if "adjustment_factor" in rows.columns and feature.name in view.feature_names:
            rows = rows.with_columns(unscaled(feature))
        if feature.name not in view.feature_names:
            rows = rows.with_columns(pl.col(f"value:{feature.name}").alias(feature.name))
    return rows


def _finish(view: FeatureView, stream: Stream, rows: pl.DataFrame) -> pl.DataFrame:
    keys = _keys(stream)
    known_at = pl.max_horizontal("event_timestamp", *(name for name in rows.columns if name.startswith("known:")))
    values = [(feature, pl.col(f"value:{feature.name}").cast(pl.Float64)) for feature in view.features]
    broken = pl.any_horizontal(value.is_finite().not_() for _, value in values).fill_null(value=False)
    return rows.select(
        *(keys[key].alias(key) for key in view.join_keys),
        "event_timestamp",
        known_at.alias("created_timestamp"),
        *(_stored(feature, value) for feature, value in values),
        (_flags(rows) | pl.when(broken).then(QualityFlag.COMPUTATION_ERROR.value).otherwise(0)).alias("flags"),
        pl.lit(view.version, pl.Int32).alias("feature_set_version"),
        pl.lit(stream.name).alias("stream"),
    ).sort(*view.join_keys, "event_timestamp")


def _stored(feature: Feature, value: pl.Expr) -> pl.Expr:
    return pl.when(value.is_finite()).then(value).cast(feature_dtype(feature.indicator.unit)).alias(feature.name)
