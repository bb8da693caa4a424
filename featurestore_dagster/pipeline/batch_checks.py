"""Market-data checks on a whole batch, that is a partition's rows or all that one fetch brought: what no single row can tell.

Rows are judged one by one in `market_checks`; which partitions are blocked for it is decided in `audit`.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Any

import polars as pl

from featurestore_dagster.calendars import calendar
from featurestore_dagster.features.universe import CRYPTO
from featurestore_dagster.model.raw_table import Dataset
from featurestore_dagster.model.time import Timeframe

EXAMPLES = 10

EARLIEST = datetime(1990, 1, 1, tzinfo=UTC)
FUTURE_TOLERATED = timedelta(days=1)
UNIT_STEPS = (1e3, 1e6, 1e9, 1e-3, 1e-6, 1e-9)
"""Between seconds, milliseconds, microseconds and nanoseconds."""

NULL_SHARE = 0.2
NULL_MEDIAN_FACTOR = 3
NULL_HISTORY_BATCHES = 20

UNIT_RATIO = 50
MAJORITY = 0.5

CLOSE_TOLERANCE = 0.005
CLOSE_TOLERANCE_CRYPTO = 0.01
VOLUME_RATIO = (0.8, 1.25)


@dataclass(frozen=True)
class FailedCheck:
    """One check that some rows or the whole partition failed; what does not block is a warning."""

    name: str
    rows: int
    examples: tuple[str, ...]
    blocking: bool

    def as_dict(self) -> dict[str, Any]:
        """For JSON: ledger, metadata, terminal."""
        return {"check": self.name, "rows": self.rows, "blocking": self.blocking, "examples": list(self.examples)}


FailedChecks = dict[str, list[FailedCheck]]
"""Failed checks by partition key."""


def epoch_complaints(dataset: Dataset, rows: pl.DataFrame, now: datetime) -> list[str]:
    """Why event times cannot be instants: read in the wrong unit, or outside what the calendar knows; empty when they can.

    `rows` has `event_timestamp`, Datetime(us, UTC), no NULLs.
    """
    if rows.is_empty():
        return []
    covered = calendar(dataset.calendar).table.select(pl.col("window_start").min(), pl.col("window_end").max()).cast(pl.Int64).row(0)
    low, high = (int(instant.timestamp() * 1_000_000) for instant in (EARLIEST, now + FUTURE_TOLERATED))
    stamps = rows["event_timestamp"].to_physical().cast(pl.Float64)
    outside = stamps.filter(~stamps.is_between(low, high))
    for step in UNIT_STEPS:
        if rescaled := int((outside * step).is_between(low, high).sum()):
            return [f"event_timestamp of {rescaled} of {rows.height} rows would be plausible if multiplied by {step:g}: its unit is wrong"]
    unknown = int((~stamps.is_between(*covered)).sum())
    return [f"event_timestamp of {unknown} of {rows.height} rows lies outside calendar {dataset.calendar}"] if unknown else []


def mostly_null(dataset: Dataset, rows: pl.DataFrame, history: Iterable[Mapping[str, float]]) -> FailedChecks:
    """Partitions in which a column is NULL in more than a fifth of the rows, and three times more often than it usually is.

    Args:
        dataset: What the rows are.
        rows: Columns partition_key and the dataset's.
        history: NULL share by column of the last published batches before these, oldest first; an absent column did not exist yet.
    """
    columns = [column.name for column in dataset.table.columns if column.nullable]
    # A file that corrects prices need not repeat what another source delivers: a value counts as NULL when no source has it.
    by_key = rows.group_by("partition_key", *dataset.table.key, "event_timestamp").agg(pl.col(columns).is_null().all())
    batches = by_key.group_by("partition_key").agg(pl.col(columns).mean()).sort("partition_key")
    past: deque[Mapping[str, float]] = deque(history, maxlen=NULL_HISTORY_BATCHES)
    failed: FailedChecks = {}
    for line in batches.iter_rows(named=True):
        key = line.pop("partition_key")
        known = {name: [batch[name] for batch in past if name in batch] for name in columns}
        usual = {name: median(shares) for name, shares in known.items() if shares}
        found = [name for name in usual if line[name] > max(NULL_SHARE, NULL_MEDIAN_FACTOR * usual[name])]
        if found:
            texts = tuple(f"{name} is NULL in {line[name]:.0%} of the rows, usually in {usual[name]:.1%}" for name in found)
            failed[key] = [FailedCheck("mostly_null: a column is NULL far more often than usual", 0, texts, blocking=True)]
        else:
            past.append(line)
    return failed


def unit_jumps(dataset: Dataset, rows: pl.DataFrame, context: pl.DataFrame) -> FailedChecks:
    """Partitions in which most symbols' median close is 50 times, or a fiftieth of, that of the last accepted batch: cents, lots.

    Args:
        dataset: Whose bars they are.
        rows: Good bars with their partition_key.
        context: Published bars around them.
    """
    if rows.is_empty():
        return {}
    before = context.filter(pl.col("event_timestamp") < rows["event_timestamp"].min())
    sessions = calendar(dataset.calendar).session_of(before["event_timestamp"])
    newest = before.with_columns(sessions.alias("session")).filter(pl.col("session") == pl.col("session").max().over("symbol"))
    accepted = newest.group_by("symbol").agg(pl.col("close").median())
    failed: FailedChecks = {}
    medians = rows.group_by("partition_key", "symbol").agg(pl.col("close").median())
    for (key,), batch in sorted(medians.partition_by("partition_key", as_dict=True, include_key=False).items()):
        ratio = pl.col("close") / pl.col("close_before")
        both = batch.join(accepted, on="symbol", suffix="_before").sort("symbol")
        off = both.filter((ratio >= UNIT_RATIO) | (ratio <= 1 / UNIT_RATIO))
        if off.height > MAJORITY * both.height:
            texts = tuple(f"{symbol} {close:g} after {previous:g}" for symbol, close, previous in off.head(EXAMPLES).iter_rows())
            failed[str(key)] = [
                FailedCheck("units: most prices are fifty times those before, or a fiftieth", off.height, texts, blocking=True)
            ]
        else:
            accepted = pl.concat([accepted, batch]).unique("symbol", keep="last")
    return failed


def repeated_sessions(dataset: Dataset, rows: pl.DataFrame, context: pl.DataFrame) -> FailedChecks:
    """Partitions in which most bars are those of the session before once more: the provider repeats itself and calls it today.

    A bar without a range does not count: `market_checks` judges how long it may stand still.

    Args:
        dataset: Whose bars they are.
        rows: Good bars with their partition_key.
        context: Published bars around them.
    """
    market = calendar(dataset.calendar)
    sessions = market.table.select("session", "opens").with_row_index("number")
    contents = ["open", "high", "low", "close", "volume"]

    def placed(bars: pl.DataFrame) -> pl.DataFrame:
        """With the number of the session and the place in it."""
        labelled = bars.with_columns(market.session_of(bars["event_timestamp"]).alias("session")).join(sessions, on="session", how="left")
        since_open = pl.col("event_timestamp") - pl.col("opens")
        return labelled.with_columns(
            pl.when(pl.lit(dataset.timeframe is not Timeframe.ONE_DAY)).then(since_open).otherwise(timedelta(0)).alias("place")
        )

    arrived = placed(rows)
    published = pl.concat([placed(part).select("symbol", "number", "place", *contents) for part in (context, rows)])
    previous = published.with_columns(pl.col("number") + 1)
    same = pl.all_horizontal(pl.col(name).eq_missing(pl.col(f"{name}_before")) for name in contents) & (pl.col("high") > pl.col("low"))
    compared = arrived.join(previous, on=["symbol", "number", "place"], suffix="_before").with_columns(same.alias("same"))
    repeated = compared.group_by("partition_key").agg(
        pl.col("same").mean().alias("share"), pl.col("same").sum().alias("rows"), pl.col("symbol").filter("same").unique().sort()
    )
    return {
        key: [FailedCheck("stuck_feed: most bars repeat the session before", count, tuple(symbols[:EXAMPLES]), blocking=True)]
        for key, share, count, symbols in repeated.iter_rows()
        if share > MAJORITY
    }


def source_pairs(dataset: Dataset, rows: pl.DataFrame, priority: Sequence[str]) -> pl.DataFrame:
    """Bars that a second source has too, beside those of the first one in `priority` that has them.

    Args:
        dataset: Whose bars they are.
        rows: Good bars, any columns beside the dataset's.
        priority: Sources, preferred first; others come after them by name.

    Returns:
        The columns of `rows` for the second source's row, its position `row` (UInt32), primary (source), close_difference (fraction of
        the primary's close), volume_ratio (second over primary; NULL when either has none), differs (whether the closes are too far apart).
    """
    rank = pl.coalesce(*(pl.when(pl.col("source") == name).then(number) for number, name in enumerate(priority)), pl.lit(len(priority)))
    key = [*dataset.table.key, "event_timestamp"]
    newest = rows.with_row_index("row").sort("known_at").unique(dataset.table.identity, keep="last", maintain_order=True)
    ranked = newest.with_columns(rank.alias("rank")).sort("rank", "source")
    primary = ranked.unique(key, keep="first", maintain_order=True)
    tolerance = CLOSE_TOLERANCE_CRYPTO if dataset.market == CRYPTO else CLOSE_TOLERANCE
    return (
        ranked.join(primary.select(*key, "source", "close", "volume"), on=key, suffix=":primary")
        .filter(pl.col("source") != pl.col("source:primary"))
        .with_columns(
            pl.col("source:primary").alias("primary"),
            ((pl.col("close") - pl.col("close:primary")).abs() / pl.col("close:primary")).alias("close_difference"),
            pl.when(pl.col("volume:primary") > 0).then(pl.col("volume") / pl.col("volume:primary")).alias("volume_ratio"),
        )
        .with_columns((pl.col("close_difference") > tolerance).alias("differs"))
        .select("row", *rows.columns, "primary", "close_difference", "volume_ratio", "differs")
        .sort("row")
    )


def source_conflicts(pairs: pl.DataFrame) -> FailedChecks:
    """Warnings about sources that disagree, from `source_pairs` of rows with their partition_key."""
    failed: FailedChecks = {}
    for (key, source, primary), found in sorted(pairs.partition_by("partition_key", "source", "primary", as_dict=True).items()):
        far = found.filter("differs")
        if not far.is_empty():
            columns = far.head(EXAMPLES).select("symbol", "event_timestamp", "close_difference").iter_rows()
            texts = tuple(f"{symbol} {instant.isoformat()} {difference:.2%}" for symbol, instant, difference in columns)
            name = f"cross_source: closes of {source} are far from those of {primary}"
            failed.setdefault(str(key), []).append(FailedCheck(name, far.height, texts, blocking=False))
        ratio = found["volume_ratio"].median()
        if isinstance(ratio, float) and not VOLUME_RATIO[0] <= ratio <= VOLUME_RATIO[1]:
            name = f"cross_source_volume: volumes of {source} and {primary} are in different units"
            failed.setdefault(str(key), []).append(FailedCheck(name, found.height, (f"median ratio {ratio:.3f}",), blocking=False))
    return failed
