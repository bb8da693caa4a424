"""Published values of other views, as they were known shortly after each row's time. Views' own features do not belong here."""

from collections.abc import Mapping
from datetime import timedelta

import polars as pl

from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.pipeline.bitemporal import rows_as_known

SETTLING = timedelta(minutes=5)
"""Views of a bar are published some seconds after its end; a row of the joined view waits for them this long."""


def published_values(
    view: FeatureView, rows: pl.DataFrame, published: Mapping[str, pl.DataFrame], keys: Mapping[str, pl.Expr]
) -> pl.DataFrame:
    """Values of the members of a view at each row's event time + SETTLING, NULL when older than their TTL.

    Args:
        view: Whose `members` are joined.
        rows: event_timestamp Datetime(us, UTC), and any others.
        published: Per member's name its rows, every version, columns `feature_schema(member)`.
        keys: Every join key of a member as an expression over `rows`.

    Returns:
        `rows` in the same order, with `value:<member>__<feature>` and, per member, `known:<member>` and `flags:<member>`.
    """
    for member in view.members:
        asked = rows.select(*(keys[key].alias(key) for key in member.join_keys), (pl.col("event_timestamp") + SETTLING).alias("asked_at"))
        found = rows_as_known(member, asked, published[member.name])
        alive = pl.col("is_within_ttl")
        rows = rows.hstack(
            found.select(
                *(pl.when(alive).then(name).cast(pl.Float64).alias(f"value:{member.name}__{name}") for name in member.feature_names),
                pl.when(alive).then("created_timestamp").alias(f"known:{member.name}"),
                pl.when(alive).then("flags").otherwise(0).alias(f"flags:{member.name}"),
            )
        )
    return rows
