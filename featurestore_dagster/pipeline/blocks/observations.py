"""Features over released series in the vintage that each row could know. Which series fill which column belongs to `features.macro_series`.

A value changes only at vintage instants. Between two revisions a series only grows, so that one pass over it serves all instants of such
a run; a revision, or an old observation that comes late, starts the next run with the look-back that it needs. A series that is never
revised is one run.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from featurestore_dagster.model.flags import PROPAGATED, QualityFlag
from featurestore_dagster.model.indicator import Feature
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS

OBSERVATION_SCHEMA: dict[str, pl.DataType] = {
    "column": pl.String(),
    "symbol": pl.String(),
    "series_id": pl.String(),
    "maximum_age_days": pl.Int64(),
    "is_revised": pl.Boolean(),
    "observation_date": pl.Date(),
    "event_timestamp": UTC_MICROSECONDS,
    "known_at": UTC_MICROSECONDS,
    "value": pl.Float64(),
    "flags": pl.Int64(),
}

BENCHMARK_MAXIMUM_AGE_DAYS = 7
RESTATEMENT_TOLERANCE = 1e-9
DAY = ["sequence", "observation_date"]
RUN = ["sequence", "run"]


@dataclass(frozen=True)
class _Target:
    """A value to bring: an expression over the columns `inputs`, of `warm_up` + 1 observations."""

    name: str
    expression: pl.Expr
    inputs: tuple[str, ...]
    warm_up: int
    look_back: int


def observation_windows(features: Sequence[Feature], rows: pl.DataFrame, observations: pl.DataFrame) -> pl.DataFrame:
    """`rows` with the values of features over observations, and the level of every series column, as each row could know them.

    At T an observation date has the version with the greatest known-at among those with event time <= T and known-at <= T; a feature sees
    the dates that all its columns have. When the newest of them is older than the least maximum age of its columns, or there is none, the
    value is NULL with STALE_INPUT. A symbol to which no series is assigned has NULL without a flag.

    Args:
        features: Features of grain OBSERVATIONS, whose input columns are all among `observations["column"]`.
        rows: event_timestamp Datetime(us, UTC), symbol String when a column is assigned by symbol, and any others; any order.
        observations: OBSERVATION_SCHEMA, any order: vintages, `event_timestamp` the release. `column` is the input that the series fills,
            for `symbol` or (NULL) for every row. A series without observations is one row, NULL from `observation_date` on.

    Returns:
        `rows` in the same order, with `value:<feature>` and a column per series column (Float64), and

        - `known:observations`: greatest known-at of the observations in the windows used, NULL when none,
        - `flags:observations`: RESTATED and PROVISIONAL observations and their own flags that propagate, over the windows; STALE_INPUT;
          INSUFFICIENT_OHLCV when there are fewer observations than the warm-up.
    """
    levels = [_Target(column, pl.col(column), (column,), 0, 0) for column in observations["column"].unique().sort()]
    windowed = [
        _Target(f"value:{f.name}", f.expression(), tuple(dict.fromkeys(f.input_columns)), f.warm_up_bars, f.look_back_bars)
        for f in features
    ]
    found = rows.with_row_index("row").sort("event_timestamp", maintain_order=True)
    by_inputs: dict[tuple[str, ...], tuple[pl.DataFrame, pl.DataFrame]] = {}
    flags, known_at = pl.lit(0, pl.Int64), []
    for number, target in enumerate([*levels, *windowed]):
        if target.inputs not in by_inputs:
            assigned = _assigned(target.inputs, observations)
            by_inputs[target.inputs] = assigned, _versions(target.inputs, assigned, observations)
        assigned, versions = by_inputs[target.inputs]
        found = _placed(target, found, assigned, _values(target, versions), number)
        flags = flags | pl.col(f"flags {number}")
        known_at.append(f"known {number}")
    return (
        found.with_columns(
            flags.alias("flags:observations"),
            pl.max_horizontal(known_at).alias("known:observations")
            if known_at
            else pl.lit(None, UTC_MICROSECONDS).alias("known:observations"),
        )
        .drop(f"{part} {number}" for part in ("flags", "known") for number in range(len(known_at)))
        .sort("row")
        .drop("row")
    )


def benchmark_observations(bars: pl.DataFrame, column: str) -> pl.DataFrame:
    """Daily bars as observations of their closes, for features over the benchmark and a series on the same days.

    Args:
        bars: Daily adjusted bars of one symbol: symbol, event_timestamp, known_at, close, flags.
        column: The input column that the closes fill.

    Returns:
        OBSERVATION_SCHEMA, one row per bar, dated by the day of its end.
    """
    return bars.select(
        pl.lit(column).alias("column"),
        pl.lit(None, pl.String).alias("symbol"),
        pl.col("symbol").alias("series_id"),
        pl.lit(BENCHMARK_MAXIMUM_AGE_DAYS, pl.Int64).alias("maximum_age_days"),
        pl.lit(value=False).alias("is_revised"),
        pl.col("event_timestamp").dt.date().alias("observation_date"),
        "event_timestamp",
        "known_at",
        pl.col("close").alias("value"),
        pl.col("flags").cast(pl.Int64),
    )


def _assigned(inputs: tuple[str, ...], observations: pl.DataFrame) -> pl.DataFrame:
    """Which series fill the inputs: symbol (absent when all are for every row), sequence, maximum_age_days, `series <input>`."""
    series = observations.select("column", "symbol", "series_id", pl.col("maximum_age_days").alias("age")).unique()
    found, by_symbol = pl.DataFrame({"maximum_age_days": [None]}, schema={"maximum_age_days": pl.Int64}), False
    for name in inputs:
        of_input = series.filter(pl.col("column") == name).drop("column").rename({"series_id": f"series {name}"})
        if of_input.is_empty():
            of_input = of_input.clear(1)
        if of_input["symbol"].null_count() == of_input.height:
            found = found.join(of_input.drop("symbol"), how="cross")
        elif by_symbol:
            found = found.join(of_input, on="symbol")
        else:
            found, by_symbol = found.join(of_input, how="cross"), True
        found = found.with_columns(pl.min_horizontal("maximum_age_days", "age").alias("maximum_age_days")).drop("age")
    names = [f"series {name}" for name in inputs]
    sequences = found.select(names).unique().sort(names).with_row_index("sequence")
    return found.join(sequences, on=names, nulls_equal=True)


def _versions(inputs: tuple[str, ...], assigned: pl.DataFrame, observations: pl.DataFrame) -> pl.DataFrame:
    """What was current when: sequence, observation_date, usable, known_at, mask, and a column per input, sorted by the first three.

    A row is current from its `usable` to that of the next row of its date; it has every input.
    """
    parts = [_current(name, assigned, observations) for name in inputs]
    if len(parts) == 1:
        return parts[0]
    joined = pl.concat(part.select(*DAY, "usable") for part in parts).unique().sort("usable")
    for number, part in enumerate(parts):
        right = part.rename({"known_at": f"known {number}", "mask": f"mask {number}"}).sort("usable")
        joined = joined.join_asof(right, on="usable", by=DAY, check_sortedness=False)
    masks = [pl.col(f"mask {number}") for number in range(len(parts))]
    mask = masks[0]
    for other in masks[1:]:
        mask = mask | other
    known_at = pl.max_horizontal(f"known {number}" for number in range(len(parts)))
    return joined.drop_nulls(inputs).select(*DAY, "usable", known_at.alias("known_at"), mask.alias("mask"), *inputs).sort(*DAY, "usable")


def _current(name: str, assigned: pl.DataFrame, observations: pl.DataFrame) -> pl.DataFrame:
    """`_versions` of one input: of each date the versions that were the best ones known when they became usable."""
    sequences = assigned.select("sequence", pl.col(f"series {name}").alias("series_id")).unique()
    released = (
        observations.filter(pl.col("column") == name)
        .select("series_id", "is_revised", "observation_date", "event_timestamp", "known_at", "value", "flags")
        .drop_nulls("observation_date")
        .unique()
        .join(sequences, on="series_id")
        .sort(*DAY, "known_at", "event_timestamp", "value", "flags")
        .with_row_index("rank")
        .with_columns(pl.max_horizontal("event_timestamp", "known_at").alias("usable"))
        .sort(*DAY, "usable", "rank")
    )
    best = released.filter(pl.col("rank") == pl.col("rank").cum_max().over(DAY)).unique([*DAY, "usable"], keep="last", maintain_order=True)
    before = pl.col("value").shift(1).over(DAY)
    differs = (pl.col("value") - before).abs() > RESTATEMENT_TOLERANCE * before.abs()
    restated = differs.fill_null(value=False).cum_max().over(DAY)
    first_print = pl.col("is_revised") & before.is_null()
    mask = (
        (pl.col("flags").fill_null(0) & PROPAGATED.value)
        | pl.when(restated).then(QualityFlag.RESTATED.value).otherwise(0)
        | pl.when(first_print).then(QualityFlag.PROVISIONAL.value).otherwise(0)
    )
    return best.select(*DAY, "usable", "known_at", mask.cast(pl.Int64).alias("mask"), pl.col("value").alias(name))


def _values(target: _Target, versions: pl.DataFrame) -> pl.DataFrame:
    """Of each sequence at each instant: sequence, usable, newest (observation date), value, known_at, mask, is_short; sorted by usable."""
    instants = (
        versions.group_by("sequence", "usable")
        .agg(earliest=pl.col("observation_date").min(), latest=pl.col("observation_date").max())
        .sort("sequence", "usable")
        .with_columns(newest=pl.col("latest").cum_max().over("sequence"))
        .with_columns(revises=(pl.col("earliest") <= pl.col("newest").shift(1).over("sequence")).fill_null(value=False))
        .with_columns(run=pl.col("revises").cast(pl.Int64).cum_sum().over("sequence"))
        .with_columns(run_start=pl.col("usable").min().over(RUN), runs=pl.col("run").max().over("sequence") + 1)
    )
    windows = _windows(versions, instants, target.look_back + 1)
    mask = pl.lit(0, pl.Int64)
    present = QualityFlag.counts(windows["mask"])
    for flag in QualityFlag:
        if flag.name in present:
            touched = (pl.col("mask") & flag.value != 0).cast(pl.Int8).rolling_max(target.warm_up + 1, min_samples=1).over(RUN)
            mask = mask | pl.when(touched == 1).then(flag.value).otherwise(0)
    values = windows.select(
        *RUN,
        "observation_date",
        target.expression.over(RUN).alias("value"),
        pl.col("known_at").rolling_max(target.warm_up + 1, min_samples=1).over(RUN).alias("known_at"),
        mask.alias("mask"),
        (pl.int_range(pl.len()).over(RUN) < target.warm_up).alias("is_short"),
    )
    return (
        instants.select("sequence", "usable", "run", "newest")
        .join(values, left_on=[*RUN, "newest"], right_on=[*RUN, "observation_date"])
        .drop("run")
        .sort("usable")
    )


def _windows(versions: pl.DataFrame, instants: pl.DataFrame, window: int) -> pl.DataFrame:
    """For each run the observations as known in it, with the last `window` of its first instant, sorted by sequence, run and date."""
    run_of = instants.select("sequence", "usable", "run", "run_start", "runs")
    # A date has left the window when `window` later dates are there; the next ones by date are there at the greatest of their instants.
    first = versions.group_by(DAY, maintain_order=True).agg(pl.col("usable").min())
    leaves = pl.col("usable").reverse().shift(1).rolling_max(window).reverse().over("sequence")
    last_run = (
        first.with_columns(leaves.alias("leaves"))
        .join(run_of, left_on=["sequence", "leaves"], right_on=["sequence", "usable"], how="left")
        .select(*DAY, (pl.col("run") + (pl.col("leaves") > pl.col("run_start")).cast(pl.Int64)).alias("left_by"))
    )
    spans = (
        versions.join(run_of, on=["sequence", "usable"])
        .sort(*DAY, "usable")
        .with_columns(pl.col("run").shift(-1).over(DAY).alias("superseded_by"))
        .join(last_run, on=DAY)
        .with_columns(pl.min_horizontal("superseded_by", "left_by", "runs").alias("until"))
        .filter(pl.col("run") < pl.col("until"))
        .drop("run_start", "runs", "superseded_by", "left_by")
        .with_columns(pl.int_ranges("run", "until").alias("run"))
        .explode("run", empty_as_null=False)
    )
    starts = instants.select(*RUN, "run_start").unique()
    at_start = (pl.col("usable") <= pl.col("run_start")).cast(pl.Int64).sum().over(RUN)
    return (
        spans.join(starts, on=RUN)
        .sort(*RUN, "observation_date")
        .filter(pl.int_range(pl.len()).over(RUN) >= at_start - window)
        .drop("until", "run_start")
    )


def _placed(target: _Target, rows: pl.DataFrame, assigned: pl.DataFrame, values: pl.DataFrame, number: int) -> pl.DataFrame:
    """`rows` (sorted by event time) with the target's value, `flags <number>` and `known <number>`."""
    of_row = assigned.select(*(name for name in ("symbol", "sequence", "maximum_age_days") if name in assigned.columns))
    left = (
        rows.join(of_row, on="symbol", how="left", maintain_order="left") if "symbol" in of_row.columns else rows.join(of_row, how="cross")
    )
    found = left.join_asof(values, left_on="event_timestamp", right_on="usable", by="sequence", check_sortedness=False)
    is_old = (pl.col("event_timestamp").dt.date() - pl.col("newest")).dt.total_days() > pl.col("maximum_age_days")
    stale = pl.col("sequence").is_not_null() & is_old.fill_null(value=True)
    found = found.with_columns(stale.alias("is_stale"))
    fresh = ~pl.col("is_stale") & pl.col("newest").is_not_null()
    short = pl.when(pl.col("is_short")).then(QualityFlag.INSUFFICIENT_OHLCV.value).otherwise(0)
    flags = (
        pl.when(pl.col("is_stale"))
        .then(QualityFlag.STALE_INPUT.value)
        .otherwise(pl.when(fresh).then(pl.col("mask") | short).otherwise(0))
        .cast(pl.Int64)
    )
    return found.select(
        *rows.columns,
        pl.when(fresh).then(pl.col("value")).alias(target.name),
        flags.alias(f"flags {number}"),
        pl.when(fresh).then(pl.col("known_at")).alias(f"known {number}"),
    )
