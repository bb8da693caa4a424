"""Position and session clock to feature rows. The formulas do not belong here (see `indicators.state`), nor do sessions (`calendars`)."""

import polars as pl

from featurestore_dagster.calendars import calendar
from featurestore_dagster.indicators.state import POSITION_MAXIMUM_AGE_SECONDS
from featurestore_dagster.model.flags import PROPAGATED, QualityFlag
from featurestore_dagster.pipeline.bitemporal import join_visible


def session_state(rows: pl.DataFrame, positions: pl.DataFrame, calendar_name: str) -> pl.DataFrame:
    """What the book and the session's clock say at each row's instant T.

    Args:
        rows: symbol String, event_timestamp (T) Datetime(us, UTC), and any others; any order.
        positions: Rows of raw.positions, every version: symbol String, position Float64, event_timestamp (the push), known_at
            Datetime(us, UTC), flags Int64; any order.
        calendar_name: Whose sessions count.

    Returns:
        `rows` in their order, and `position` (fraction of the greatest exposure) of the newest push visible at T with
        `position_age_seconds`; `seconds_since_open` of the last session that had opened and the `session_seconds` from its open to its
        close; all Float64, NULL before the first. `flags:state` Int64: STALE_INPUT where no push is young enough to be used, else the flags
        of the push that propagate. `known:state` Datetime(us, UTC): known_at of the push used, NULL without.
    """
    instants = rows.select("symbol", "event_timestamp")
    pushes = (
        positions.select("symbol", pl.col("event_timestamp").alias("pushed_at"), "known_at", "position", "flags")
        .sort("position", "flags")
        .unique(["symbol", "pushed_at", "known_at"], keep="last", maintain_order=True)
    )
    sessions = calendar(calendar_name).table.select("opens", "closes")
    clock = instants.with_row_index("row").sort("event_timestamp").join_asof(sessions, left_on="event_timestamp", right_on="opens")
    pushed = join_visible(instants, pushes, keys=["symbol"], at="event_timestamp", event_time="pushed_at", known_at="known_at")
    age = _seconds(pl.col("event_timestamp") - pl.col("pushed_at"))
    usable = (age <= POSITION_MAXIMUM_AGE_SECONDS).fill_null(value=False)
    return rows.hstack(
        pushed.select(
            "position",
            age.alias("position_age_seconds"),
            pl.when(usable).then(pl.col("flags") & PROPAGATED.value).otherwise(QualityFlag.STALE_INPUT.value).alias("flags:state"),
            pl.when(usable).then("known_at").alias("known:state"),
        )
    ).hstack(
        clock.sort("row").select(
            _seconds(pl.col("event_timestamp") - pl.col("opens")).alias("seconds_since_open"),
            _seconds(pl.col("closes") - pl.col("opens")).alias("session_seconds"),
        )
    )


def _seconds(duration: pl.Expr) -> pl.Expr:
    return duration.dt.total_microseconds() / 1e6
