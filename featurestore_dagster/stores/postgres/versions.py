"""Which staged rows are new versions, and the fingerprint of what is published. Pure frames; no SQL.

A version is written once per distinct content, so recomputing the same values writes nothing, and a correction never overwrites.
"""

import hashlib
from datetime import datetime, timedelta

import polars as pl

from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.projections.relation import Relation

RELATIVE_TOLERANCE = 1e-9
"""Values closer than this are the same content: a recursive indicator started elsewhere differs in its last bits."""

ABSOLUTE_TOLERANCE = 1e-12


def new_versions(relation: Relation, staged: pl.DataFrame, current: pl.DataFrame, now: datetime) -> pl.DataFrame:
    """Rows of `staged` whose identity is unknown to `current`, or known with another content.

    Args:
        relation: What is written.
        staged: Audited rows, one per identity, columns `relation.frame_schema` and more.
        current: Newest version of each identity in the staged event-time range, columns `relation.frame_schema`.
        now: When a correction is said to be known, unless the staged row says a later time.

    Returns:
        Rows to insert, columns of `staged`. A changed row has RESTATED set and a known-at later than the version it replaces.
    """
    old = current.select(
        *relation.identity,
        *(pl.col(name).alias(f"old:{name}") for name in (*relation.values, relation.known_at, "flags")),
        pl.lit(value=True).alias("old:exists"),
    )
    joined = staged.join(old, on=list(relation.identity), how="left", nulls_equal=True)
    unrestated = ~QualityFlag.RESTATED.value
    differs = [_differs(pl.col(name), pl.col(f"old:{name}"), staged.schema[name]) for name in relation.values]
    differs.append((pl.col("flags") & unrestated) != (pl.col("old:flags") & unrestated))
    is_known = pl.col("old:exists").fill_null(value=False)
    known_at, old_known_at = pl.col(relation.known_at), pl.col(f"old:{relation.known_at}")
    value_changed = pl.any_horizontal(differs[:-1]) if len(differs) > 1 else pl.lit(value=False)
    return (
        joined.filter(~is_known | pl.any_horizontal(differs))
        .with_columns(
            pl.when(is_known & (known_at <= old_known_at))
            .then(pl.max_horizontal(old_known_at + timedelta(microseconds=1), pl.lit(now)))
            .otherwise(known_at)
            .alias(relation.known_at),
            pl.when(is_known & value_changed).then(pl.col("flags") | QualityFlag.RESTATED.value).otherwise(pl.col("flags")).alias("flags"),
            *([pl.when(is_known).then(pl.lit("observed")).otherwise(pl.col("known_at_basis")).alias("known_at_basis")]
              if "known_at_basis" in staged.columns else []),
        )
        .select(staged.columns)
    )


def newest(relation: Relation, frame: pl.DataFrame) -> pl.DataFrame:
    """Newest version of each identity, sorted by identity."""
    return frame.sort(*relation.identity, relation.known_at).unique(relation.identity, keep="last", maintain_order=True)


def content_hash(relation: Relation, frame: pl.DataFrame) -> str:
    """sha256 over identities, values and flags of the newest versions; known-at and RESTATED excluded, so that a rebuild is recognised.

    Bit-exact: computations start at fixed anchors, so the same inputs give the same bits in any order of partitions.
    """
    columns = [*relation.identity, *relation.values]
    rows = frame.sort(relation.identity).select(*columns, pl.col("flags") & ~QualityFlag.RESTATED.value)
    digest = hashlib.sha256()
    for series in rows:
        digest.update(series.name.encode())
        digest.update(series.is_null().to_numpy().tobytes())
        values = series.fill_null(strategy="zero") if series.dtype.is_numeric() else series.cast(pl.String).fill_null("")
        digest.update(values.to_numpy().tobytes() if series.dtype.is_numeric() else "\x1f".join(values).encode())
    return digest.hexdigest()


def _differs(new: pl.Expr, old: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    if dtype.is_float():
        scale = pl.max_horizontal(new.abs(), old.abs())
        far = ((new - old).abs() > RELATIVE_TOLERANCE * scale + ABSOLUTE_TOLERANCE).fill_null(value=False)
        return far | (new.is_null() != old.is_null())
    return new.ne_missing(old)
