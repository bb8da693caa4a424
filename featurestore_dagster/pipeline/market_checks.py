"""Market-data checks on single rows that just arrived: each says which rows are bad, and why.

Types, NULLs and ranges belong to `projections.pandera_schema`; what judges a whole batch belongs to `batch_checks`; what happens to a bad
row belongs to `audit`.
"""

import math
from datetime import datetime, timedelta

import polars as pl

from featurestore_dagster.calendars import calendar
from featurestore_dagster.features.raw_tables import EVENTS
from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.model.raw_table import Dataset
from featurestore_dagster.model.source import Listing
from featurestore_dagster.model.time import Timeframe
from featurestore_dagster.pipeline.bars import not_taken_back, reverted_outliers, reverting

CLOCK_TOLERANCE = timedelta(seconds=2)
EVENTS_CLOCK_TOLERANCE = timedelta(minutes=5)
EVENT_RULES = {
    "score: outside -1 to 1": ~pl.col("score").is_between(-1, 1),
    "confidence: outside 0 to 1": ~pl.col("confidence").is_between(0, 1),
    "rating: outside 1 to 5": ~pl.col("rating").is_between(1, 5),
    "source_type: not news, social, analyst or heartbeat": ~pl.col("source_type").is_in(["news", "social", "analyst", "heartbeat"]),
    "duplicate_event: one id at two times": (pl.col("event_timestamp").n_unique().over("event_id", "symbol") > 1)
    & (pl.col("source_type") != "heartbeat"),
}
"""Which rows of events are bad; NULL is not."""

"""Publishers' clocks are looser than exchanges'."""

FUTURE_ROW = "future_row"
ORDER_TOLERANCE = 1e-9

STUCK_AFTER_BARS = {
    Timeframe.ONE_MINUTE: 30,
    Timeframe.FIVE_MINUTES: 12,
    Timeframe.FIFTEEN_MINUTES: 6,
    Timeframe.ONE_HOUR: 6,
    Timeframe.FOUR_HOURS: 3,
    Timeframe.ONE_DAY: 3,
}
STUCK_ZERO_VOLUME_FACTOR = 4

SPLIT_RATIOS = (3 / 2, 2, 3, 4, 5, 7, 10, 20)
SPLIT_MINIMUM_LOG_RETURN = 0.35
SPLIT_LOG_TOLERANCE = 0.12
SPLIT_DOLLAR_VOLUME_FACTOR = 5
SPLIT_MEDIAN_BARS = 20


SPLIT_LIKE = "split_like_jump"
EX_DATE_TOLERANCE = timedelta(days=5)
"""A split explains a jump on its ex-date or the symbol's first bar after it."""


def row_reasons(
    dataset: Dataset,
    rows: pl.DataFrame,
    context: pl.DataFrame,
    actions: pl.DataFrame,
    jumped: pl.DataFrame,
    listings: dict[str, Listing],
    now: datetime,
) -> pl.DataFrame:
    """Which rows are bad.

    Args:
        dataset: What the rows claim to be.
        rows: Rows of the dataset's canonical schema, one per identity (see `duplicates`), with finite values.
        context: Published rows around them, for the checks that look at a row's neighbours; earlier ones at least.
        actions: Known corporate actions: symbol, event_timestamp, ratio.
        jumped: Series that are refused since a jump before these rows: symbol, event_timestamp of the jump.
        listings: Expected symbols by name.
        now: Rows of later events are refused.

    Returns:
        One line per bad row and reason: `row` (UInt32, position in `rows`), `reason` (text).
    """
    indexed = rows.with_row_index("row")
    tolerated = EVENTS_CLOCK_TOLERANCE if dataset.table == EVENTS else CLOCK_TOLERANCE
    rules = {
        f"{FUTURE_ROW}: event time is after {now.isoformat()}": pl.col("event_timestamp") > now + tolerated,
        "known_at: known before it happened": pl.col("known_at") < pl.col("event_timestamp"),
        "flags: its source doubts the row's time": pl.col("flags") & QualityFlag.TIMESTAMP_MISMATCH.value != 0,
    }
    if dataset.table == EVENTS:
        rules |= EVENT_RULES
    if dataset.bars:
        low, high = rows["event_timestamp"].min(), rows["event_timestamp"].max()
        on_grid = calendar(dataset.calendar).bar_ends(dataset.timeframe, low - timedelta(microseconds=1), high)  # type: ignore[operator, arg-type]
        top, bottom = pl.max_horizontal("open", "close"), pl.min_horizontal("open", "close")
        tolerance = ORDER_TOLERANCE * pl.col("close").abs()
        rules |= {
            "ohlc_order: low above open or close": pl.col("low") > bottom + tolerance,
            "ohlc_order: high below open or close": pl.col("high") < top - tolerance,
            f"out_of_session: no {dataset.timeframe} bar of calendar {dataset.calendar} ends then": ~pl.col("event_timestamp").is_in(
                on_grid.implode()
            ),
            f"timeframe: not {dataset.timeframe}": pl.col("timeframe") != dataset.timeframe.value,
            f"unknown_symbol: not listed for {dataset.name}": ~pl.col("symbol").is_in(list(listings)),
        }
    found = [indexed.filter(rule.fill_null(value=False)).select("row", pl.lit(reason).alias("reason")) for reason, rule in rules.items()]
    if dataset.bars:
        series = _series(indexed, context)
        found += [_stuck(dataset, series), _split_like(dataset, series, actions, jumped)]
    return pl.concat(found)


def taken_back(dataset: Dataset, rows: pl.DataFrame, context: pl.DataFrame) -> pl.DataFrame:
    """Outliers that the next bar reverts, among bars that just arrived and published ones before them.

    Args:
        dataset: What the rows claim to be.
        rows: Good bars, one per identity.
        context: Published rows around them.

    Returns:
        row UInt32 (position in `rows`, NULL for a published bar), symbol, event_timestamp, reverted_by (bar end of the next bar).
    """
    series = _series(rows.with_row_index("row"), context)
    return (
        series.with_columns(reverted_outliers(series, dataset), pl.col("event_timestamp").shift(-1).over("symbol").alias("reverted_by"))
        .filter("reverted")
        .select("row", "symbol", "event_timestamp", "reverted_by")
    )


def duplicates(dataset: Dataset, rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split off what has the same identity and known-at: identical copies are dropped, contradictions are refused on both sides.

    Returns:
        (rows without copies and contradictions, contradicting rows)
    """
    key = [*dataset.table.identity, "known_at"]
    distinct = rows.unique(maintain_order=True)
    contradicts = pl.len().over(key) > 1
    return distinct.filter(~contradicts), distinct.filter(contradicts)


def _series(indexed: pl.DataFrame, context: pl.DataFrame) -> pl.DataFrame:
    """Bars of each symbol in time order: those that arrived, with their `row`, between published ones."""
    columns = ["symbol", "event_timestamp", "open", "high", "low", "close", "volume"]
    published = not_taken_back(context).select(pl.lit(None, pl.UInt32).alias("row"), *columns)
    return pl.concat([published, indexed.select("row", *columns)]).sort("symbol", "event_timestamp")


def _stuck(dataset: Dataset, series: pl.DataFrame) -> pl.DataFrame:
    limit = STUCK_AFTER_BARS[dataset.timeframe]
    previous = pl.col("close").shift(1).over("symbol")
    repeats = (
        (pl.col("open") == pl.col("close"))
        & (pl.col("high") == pl.col("close"))
        & (pl.col("low") == pl.col("close"))
        & (pl.col("close") == previous)
        & pl.col("volume").eq_missing(pl.col("volume").shift(1).over("symbol"))
    ).fill_null(value=False)
    run = pl.col("repeats").cast(pl.Int64).cum_sum().over("symbol", "segment")
    allowed = pl.when(pl.col("volume").fill_null(0) > 0).then(limit).otherwise(limit * STUCK_ZERO_VOLUME_FACTOR)
    return (
        series.with_columns(repeats.alias("repeats"))
        .with_columns((~pl.col("repeats")).cum_sum().over("symbol").alias("segment"))
        .filter((run >= allowed) & pl.col("row").is_not_null())
        .select("row", pl.format("stuck_feed: the bar repeats its predecessor for {} bars or more", allowed).alias("reason"))
    )


def _split_like(dataset: Dataset, series: pl.DataFrame, actions: pl.DataFrame, jumped: pl.DataFrame) -> pl.DataFrame:
    """Rows from a price jump on that looks like a split which no corporate action explains.

    Each row is compared with the newest row before it, refused ones included; a bar that the next one reverts is left out: no split does
    that. Once suspect, a series stays refused until the action is known, in later partitions too.
    """
    log_return = (pl.col("close") / pl.col("close").shift(1).over("symbol")).log()
    near = pl.any_horizontal(
        (log_return + sign * math.log(ratio)).abs() < SPLIT_LOG_TOLERANCE for ratio in SPLIT_RATIOS for sign in (1, -1)
    )
    dollar_volume = pl.col("close") * pl.col("volume")
    median = dollar_volume.rolling_median(SPLIT_MEDIAN_BARS, min_samples=1).shift(1).over("symbol")
    quiet = (dollar_volume < SPLIT_DOLLAR_VOLUME_FACTOR * median).fill_null(value=True)
    spike = (reverting() & (log_return.abs() > SPLIT_MINIMUM_LOG_RETURN)).fill_null(value=False)
    splits = actions.filter(pl.col("ratio").is_not_null()).select("symbol", pl.col("event_timestamp").alias("ex_date")).sort("ex_date")
    explained = (
        series.filter(~spike)
        .sort("event_timestamp")
        .join_asof(splits, left_on="event_timestamp", right_on="ex_date", by="symbol", strategy="backward", check_sortedness=False)
        .sort("symbol", "event_timestamp")
        .with_columns((pl.col("ex_date") > pl.col("event_timestamp").shift(1).over("symbol")).fill_null(value=False).alias("explained"))
    )
    suspect = (log_return.abs() > SPLIT_MINIMUM_LOG_RETURN) & near & quiet & ~pl.col("explained")
    since_before = pl.col("symbol").is_in(_refused_since_before(dataset, series, splits, jumped))
    return (
        explained.with_columns((suspect.fill_null(value=False) | since_before).alias("suspect"))
        .filter(pl.col("suspect").cum_max().over("symbol") & pl.col("row").is_not_null())
        .select(
            "row",
            pl.lit(
                f"{SPLIT_LIKE}: since a jump like a split that no corporate action explains; enter the action (ratio 1 confirms the price)"
            ).alias("reason"),
        )
    )


def _refused_since_before(dataset: Dataset, series: pl.DataFrame, splits: pl.DataFrame, jumped: pl.DataFrame) -> list[str]:
    """Symbols whose jump before these rows neither an action explains nor the very next bar took back."""
    unexplained = (
        jumped.sort("event_timestamp")
        .join_asof(splits, left_on="event_timestamp", right_on="ex_date", by="symbol", strategy="backward", check_sortedness=False)
        .filter((pl.col("ex_date") < pl.col("event_timestamp") - EX_DATE_TOLERANCE).fill_null(value=True))
    )
    refused = []
    for symbol, jump in unexplained.select("symbol", "event_timestamp").iter_rows():
        bars = series.filter(pl.col("symbol") == symbol)
        arriving = bars.filter(pl.col("row").is_not_null()).head(1)
        published = bars.join(arriving.select(pl.col("event_timestamp").alias("first")), how="cross").filter(
            pl.col("event_timestamp") < pl.col("first")
        )
        if arriving.is_empty() or published.is_empty():
            refused.append(symbol)
            continue
        is_next = arriving["event_timestamp"][0] == calendar(dataset.calendar).next_bar_end(dataset.timeframe, jump)
        is_back = abs(math.log(arriving["close"][0] / published["close"][-1])) < SPLIT_LOG_TOLERANCE
        if not (is_next and is_back) and published["event_timestamp"][-1] <= jump:
            refused.append(symbol)
    return refused
