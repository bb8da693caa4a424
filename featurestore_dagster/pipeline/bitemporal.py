"""The point-in-time rule on frames: which version of which row was visible at an instant, and how old it was. No I/O.

A version is visible at t when event time <= t and known-at <= t; among those the greatest event time wins, then the greatest known-at.
"""

from collections.abc import Sequence
from datetime import timedelta

import polars as pl

from featurestore_dagster.calendars import calendar
from featurestore_dagster.model.feature_view import LONGEST_CLOSURE, FeatureView

MICROSECOND = timedelta(microseconds=1)

CLOCK_TO_OPEN = 6
"""A market that opens 6.5 of 24 hours on five of seven days: this many clock hours hold at least one open hour."""


def clock_time(open_time: timedelta) -> timedelta:
    """Clock time that holds at least this much open-market time: history that far back has every row within a TTL."""
    return open_time * CLOCK_TO_OPEN + LONGEST_CLOSURE


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


def rows_as_known(view: FeatureView, asked: pl.DataFrame, versions: pl.DataFrame) -> pl.DataFrame:
    """The row of a view that was visible at each instant asked for, whatever its age.

    Args:
        view: Whose rows.
        asked: The view's join keys and `asked_at` (UTC); any others.
        versions: Rows of the view, every version, columns `feature_schema(view)`.

    Returns:
        The rows of `asked` in the same order, with the columns of `versions` (the event time as `value_timestamp`; NULL where nothing was
        visible), `age_microseconds` of open-market time, and `is_within_ttl` (never NULL).
    """
    rows = join_visible(
        asked,
        versions.rename({"event_timestamp": "value_timestamp"}),
        keys=view.join_keys,
        at="asked_at",
        event_time="value_timestamp",
        known_at="created_timestamp",
    )
    ages = pl.Series("age_microseconds", [None] * rows.height, dtype=pl.Int64)
    limits = pl.Series([None] * rows.height, dtype=pl.Int64)
    for stream in view.streams:
        market, other = calendar(stream.calendar), (rows["stream"] != stream.name).fill_null(value=True)
        age = market.open_microseconds(rows["asked_at"]) - market.open_microseconds(rows["value_timestamp"])
        ages = ages.zip_with(other, age)
        limits = limits.zip_with(other, pl.repeat(view.ttl_of(stream) // MICROSECOND, rows.height, dtype=pl.Int64, eager=True))
    return rows.with_columns(ages.alias("age_microseconds"), (ages < limits).fill_null(value=False).alias("is_within_ttl"))
