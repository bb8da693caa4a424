"""The point-in-time rule on frames: which version of which row was visible at an instant. No I/O, no TTL.

A version is visible at t when event time <= t and known-at <= t; among those the greatest event time wins, then the greatest known-at.
"""

from collections.abc import Sequence

import polars as pl


def join_visible(
    instants: pl.DataFrame, versions: pl.DataFrame, *, keys: Sequence[str], at: str, event_time: str, known_at: str
) -> pl.DataFrame:
    """For each row of `instants` the version of `versions` that was visible at its `at`.

    Two inequalities become one: a version is usable from max(event time, known-at) on, and inside a key the running maximum of the rank by
    (event time, known-at) at that instant is the winner. One sort and one as-of join, whatever the number of corrections.

    Args:
        instants: Columns `keys` and `at` (UTC), and any others; any order.
        versions: Columns `keys`, `event_time`, `known_at`, and any others.
        keys: Equality columns, may be empty.
        at: Column of `instants`.
        event_time: Column of `versions`; when also a column of `instants`, the version's is suffixed `_right`.
        known_at: Column of `versions`.

    Returns:
        As many rows as `instants`, in the same order, with the version's other columns; NULL where nothing was visible.
    """
    ranked = versions.sort(*keys, event_time, known_at).with_row_index("_rank")
    best = pl.col("_rank").cum_max()
    usable = (
        ranked.select(*keys, pl.max_horizontal(event_time, known_at).alias("_usable"), "_rank")
        .sort(*keys, "_usable", "_rank")
        .with_columns(best.over(list(keys)) if keys else best)
        .unique([*keys, "_usable"], keep="last", maintain_order=True)
        .sort("_usable")
    )
    left = instants.with_row_index("_row").sort(at)
    matched = left.join_asof(usable, left_on=at, right_on="_usable", by=list(keys) or None, strategy="backward", check_sortedness=False)
    return matched.join(ranked.drop(keys), on="_rank", how="left", suffix="_right").sort("_row").drop("_row", "_rank", "_usable")
