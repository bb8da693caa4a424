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

RECORD_SEPARATOR = "\x1e"

NO_ROWS = hashlib.sha256().hexdigest()
"""Content hash of a partition without rows."""


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
            *(
                [pl.when(is_known).then(pl.lit("observed")).otherwise(pl.col("known_at_basis")).alias("known_at_basis")]
                if "known_at_basis" in staged.columns
                else []
            ),
        )
        .select(staged.columns)
    )


def newest(relation: Relation, frame: pl.DataFrame) -> pl.DataFrame:
    """Newest version of each identity, sorted by identity."""
    return frame.sort(*relation.identity, relation.known_at).unique(relation.identity, keep="last", maintain_order=True)


def content_hashes(relation: Relation, frame: pl.DataFrame, partition: pl.Series) -> dict[str, str]:
    """sha256 per partition over identities, values and flags of the newest versions.

    Known-at and RESTATED are excluded, so that a rebuild is recognised. Bit-exact: floats are written in their shortest form that reads
    back the same, and computations start at fixed anchors, so the same inputs give the same bits in any order of partitions.

    Args:
        relation: What the rows belong to.
        frame: One row per identity.
        partition: Partition key of each row, text.
    """
    rows = frame.with_columns(partition.alias("partition_key"), pl.col("flags") & ~QualityFlag.RESTATED.value).sort(relation.identity)
    text = rows.select(*relation.identity, *relation.values, "flags").write_csv(include_header=False, line_terminator=RECORD_SEPARATOR)
    digests: dict[str, hashlib._Hash] = {}
    for key, line in zip(rows["partition_key"], text.split(RECORD_SEPARATOR), strict=False):
        digests.setdefault(key, hashlib.sha256()).update(line.encode() + RECORD_SEPARATOR.encode())
    return {key: digest.hexdigest() for key, digest in digests.items()}


def _differs(new: pl.Expr, old: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    if dtype.is_float():
        scale = pl.max_horizontal(new.abs(), old.abs())
        far = ((new - old).abs() > RELATIVE_TOLERANCE * scale + ABSOLUTE_TOLERANCE).fill_null(value=False)
        return far | (new.is_null() != old.is_null())
    return new.ne_missing(old)
