"""The fingerprint of a partition's content: a hash of each row, added up. Pure frames; no SQL.

A sum does not depend on the order of the rows nor on how they were cut, so that nothing is sorted and parts can be hashed as they come.
Not made against somebody who seeks collisions. Which rows are published is decided in `versions`.
"""

import hashlib

import numpy as np
import polars as pl

from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.projections.relation import Relation

NO_ROWS = hashlib.sha256().hexdigest()
"""Content hash of a partition without rows."""

BLOCK_ROWS = 32_768
"""Rows that are hashed together: they stay in the processor's cache."""

SEEDS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F)
MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
NULL = np.uint64(0xD6E8FEB86659FD93)
HALF = np.uint64(32)
SUMS = ("sum_0", "sum_1", "sum_2", "sum_3")

Words = np.ndarray[tuple[int], np.dtype[np.uint64]]


def content_sums(relation: Relation, frame: pl.DataFrame, partition: pl.Series) -> pl.DataFrame:
    """Hashes of identities, values and flags, added up by partition; those of parts of a partition may be added again.

    Known-at and RESTATED are excluded, so that a rebuild is recognised. Bit-exact: computations start at fixed anchors, so the same inputs
    give the same bits in any order of partitions.

    Args:
        relation: What the rows belong to.
        frame: One row per identity.
        partition: Partition key of each row, text.

    Returns:
        partition_key String, SUMS UInt64 (sums of 32 bits of each row's hash).
    """
    flags = pl.col("flags") & ~QualityFlag.RESTATED.value
    columns = [_words(column) for column in frame.select(*relation.identity, *relation.values, flags)]
    halves = np.empty((len(SUMS), frame.height), dtype=np.uint32)
    for start in range(0, frame.height, BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        for lane, (seed, multiplier) in enumerate(zip(SEEDS, MULTIPLIERS, strict=True)):
            hashed = _hashed([words[block] if words.size > 1 else words for words in columns], seed, multiplier)
            halves[2 * lane, block] = hashed & np.uint64(0xFFFFFFFF)
            halves[2 * lane + 1, block] = hashed >> HALF
    sums = pl.DataFrame(dict(zip(SUMS, halves, strict=True))).with_columns(partition.alias("partition_key"))
    return added_up(sums)


def added_up(sums: pl.DataFrame) -> pl.DataFrame:
    """One line per partition of `content_sums` of its parts."""
    return sums.group_by("partition_key").agg(pl.col(SUMS).cast(pl.UInt64).sum())


def content_hashes(sums: pl.DataFrame) -> dict[str, str]:
    """sha256 of the sums of each partition, in hexadecimal."""
    return {key: hashlib.sha256(repr(found).encode()).hexdigest() for key, *found in sums.select("partition_key", *SUMS).iter_rows()}


def _words(column: pl.Series) -> Words:
    """The values as 64 bits each; one word when they are all the same."""
    absent = column.is_null().to_numpy() if column.null_count() else None
    if column.dtype == pl.String:
        texts = column.unique().drop_nulls()
        hashed = [int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") for text in texts]
        if len(hashed) == 1 and absent is None:
            return np.array(hashed, dtype=np.uint64)
        words: Words = column.replace_strict(texts, pl.Series(hashed, dtype=pl.UInt64), default=0, return_dtype=pl.UInt64).to_numpy()
    else:
        wide = column.cast(pl.Float64) if column.dtype.is_float() else column.to_physical().cast(pl.Int64)
        words = wide.fill_null(0).to_numpy().view(np.uint64)
    return words if absent is None else np.where(absent, NULL, words)


def _hashed(columns: list[Words], seed: int, multiplier: np.uint64) -> Words:
    """Of each row its words one after the other; each step can be undone, so that no bit of the last word is lost."""
    result = np.full(1, seed, dtype=np.uint64)
    for words in columns:
        result = result ^ words
        result *= multiplier
        result ^= result >> HALF
    result *= MULTIPLIERS[0]
    result ^= result >> np.uint64(29)
    return result
