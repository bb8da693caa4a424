"""Which staged rows are new versions. Pure frames; no SQL. What is published is summed up in `contents`.

A version is written once per distinct content, so recomputing the same values writes nothing, and a correction never overwrites.
"""

from datetime import datetime, timedelta

import polars as pl

from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.projections.relation import Relation

RELATIVE_TOLERANCE = 1e-9
"""Values closer than this are the same content: a recursive indicator started elsewhere differs in its last bits."""

ABSOLUTE_TOLERANCE = 1e-12

SAME_INSTANT = timedelta(milliseconds=1)
"""Corrections that arrive within one reading of the clock are spread by microseconds; this tells them from an older vintage."""


def new_versions(relation: Relation, staged: pl.DataFrame, stored: pl.DataFrame, now: datetime) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows of `staged` whose identity is not stored, or stored with another content.

    A row is compared with the newest version; one whose known-at was observed before that version, with what was the newest then.

    Args:
        relation: What is written.
        staged: Audited rows, columns `relation.frame_schema`. Several of one identity are vintages, told apart by known-at.
        stored: Every stored version of the staged event-time range, columns `relation.frame_schema`.
        now: When a correction is said to be known, unless the staged row says a later time than the version it replaces.

    Returns:
        Rows to insert: a changed one has RESTATED set and a known-at later than the version it replaces. And vintages that came too late:
        another value than the one that was read here at their time; inserting them would rewrite what was known.
    """
    columns = list(relation.frame_schema)
    staged = staged.select(columns)
    if is_first(relation, staged, stored):
        return staged, staged.clear()
    last = newest(relation, stored.select(columns))
    current, late = _without_earlier_vintages(relation, staged, stored, last)
    return _changed(relation, current, last, now), late


def is_first(relation: Relation, staged: pl.DataFrame, stored: pl.DataFrame) -> bool:
    """Whether nothing is stored and no identity is staged twice: then all of it is new, and all of it is the newest."""
    return stored.is_empty() and not staged.select(relation.identity).is_duplicated().any()


def newest(relation: Relation, frame: pl.DataFrame) -> pl.DataFrame:
    """Newest version of each identity, sorted by identity."""
    return frame.sort(*relation.identity, relation.known_at).unique(relation.identity, keep="last", maintain_order=True)


def _changed(relation: Relation, staged: pl.DataFrame, last: pl.DataFrame, now: datetime) -> pl.DataFrame:
    """Staged rows that differ from their predecessor: the newest stored version, or an earlier vintage of the same batch."""
    identity, known_at = list(relation.identity), pl.col(relation.known_at)
    touched = last.join(staged.select(identity).unique(), on=identity, how="semi", nulls_equal=True)
    chain = pl.concat([touched.with_columns(is_staged=pl.lit(value=False)), staged.with_columns(is_staged=pl.lit(value=True))])
    # Sorted, so that a row's predecessor is the row above: no join and no window.
    follows = pl.all_horizontal(pl.col(name).eq_missing(pl.col(name).shift(1)) for name in identity)
    value_differs = pl.any_horizontal(_differs(pl.col(name), pl.col(name).shift(1), dtype) for name, dtype in _contents(relation).items())
    flags = pl.col("flags") & ~QualityFlag.RESTATED.value
    compared = chain.sort(*identity, "is_staged", relation.known_at).with_columns(
        follows.alias("follows"),
        (follows & value_differs).alias("restated"),
        (follows & (known_at <= known_at.shift(1))).alias("arrives_now"),
        pl.max_horizontal(known_at.shift(1) + timedelta(microseconds=1), pl.lit(now)).alias("arrived_at"),
        (~follows | value_differs | (flags != flags.shift(1))).alias("is_new"),
    )
    observed = pl.when("arrives_now").then(pl.lit("observed")).otherwise(pl.col("known_at_basis")).alias("known_at_basis")
    return (
        compared.filter(pl.col("is_staged") & pl.col("is_new"))
        .with_columns(
            pl.when("arrives_now").then("arrived_at").otherwise(known_at).alias(relation.known_at),
            pl.when("restated").then(pl.col("flags") | QualityFlag.RESTATED.value).otherwise("flags").alias("flags"),
            *([observed] if "known_at_basis" in staged.columns else []),
        )
        .select(staged.columns)
    )


def _without_earlier_vintages(
    relation: Relation, staged: pl.DataFrame, stored: pl.DataFrame, last: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """`staged` without rows observed before the newest stored version, and those of them that say something unheard of."""
    identity, known_at = list(relation.identity), relation.known_at
    if "known_at_basis" not in staged.columns:
        return staged, staged.clear()
    rows = staged.with_row_index("staged_row")
    boundary = last.select(*identity, (pl.col(known_at) - SAME_INSTANT).alias("boundary"))
    earlier = (
        rows.join(boundary, on=identity, how="inner", nulls_equal=True)
        .filter((pl.col("known_at_basis") == "observed") & (pl.col(known_at) < pl.col("boundary")))
        .drop("boundary")
    )
    if earlier.is_empty():
        return staged, staged.clear()
    pairs = earlier.join(stored, on=identity, how="inner", nulls_equal=True, suffix=":stored").sort(f"{known_at}:stored")
    then_newest = pairs.filter(pl.col(f"{known_at}:stored") <= pl.col(known_at)).unique("staged_row", keep="last", maintain_order=True)
    now_newest = pairs.unique("staged_row", keep="last", maintain_order=True)
    differs = pl.any_horizontal(_differs(pl.col(name), pl.col(f"{name}:stored"), dtype) for name, dtype in _contents(relation).items())
    heard_of = pl.concat([then_newest, now_newest]).filter(~differs).select("staged_row").unique()
    late = earlier.join(heard_of, on="staged_row", how="anti")
    return rows.join(earlier, on="staged_row", how="anti").drop("staged_row"), late.drop("staged_row")


def _contents(relation: Relation) -> dict[str, pl.DataType]:
    return {name: relation.frame_schema[name] for name in relation.values}


def _differs(new: pl.Expr, old: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    if dtype.is_float():
        scale = pl.max_horizontal(new.abs(), old.abs())
        far = ((new - old).abs() > RELATIVE_TOLERANCE * scale + ABSOLUTE_TOLERANCE).fill_null(value=False)
        return far | (new.is_null() != old.is_null())
    return new.ne_missing(old)
