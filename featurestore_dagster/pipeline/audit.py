"""The verdict on computed or fetched rows before anything is written: which are published, which quarantined, which partition blocked.

The rules themselves belong to `projections.pandera_schema` and `market_checks`; writing the outcome belongs to the stores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

import polars as pl

from featurestore_dagster.calendars import MarketCalendar, calendar
from featurestore_dagster.model.feature_view import FeatureView, Stream
from featurestore_dagster.model.flags import QUARANTINED, QualityFlag
from featurestore_dagster.model.raw_table import Dataset
from featurestore_dagster.model.source import Listing
from featurestore_dagster.model.time import Timeframe
from featurestore_dagster.pipeline import market_checks
from featurestore_dagster.pipeline.compute import WHOLE_FIRM
from featurestore_dagster.projections.relation import Relation, dataset_relation, stream_relation
from featurestore_dagster.stores.postgres.refused import REFUSED_SCHEMA, refused_rows, row_as_json

MINIMUM_ROW_SHARE = 0.5
"""A partition with fewer of its expected rows than this is blocked."""

EXAMPLES = 10

GRACE = {
    Timeframe.ONE_MINUTE: timedelta(seconds=30),
    Timeframe.FIVE_MINUTES: timedelta(seconds=60),
    Timeframe.FIFTEEN_MINUTES: timedelta(minutes=2),
    Timeframe.ONE_HOUR: timedelta(minutes=5),
    Timeframe.FOUR_HOURS: timedelta(minutes=5),
    Timeframe.ONE_DAY: timedelta(hours=2),
}
"""How long after bar end and latency a bar may be absent before it counts as missing."""


@dataclass(frozen=True)
class FailedCheck:
    """One check that some rows or the whole partition failed."""

    name: str
    rows: int
    examples: tuple[str, ...]
    blocking: bool

    def as_dict(self) -> dict[str, Any]:
        """For JSON: ledger, metadata, terminal."""
        return {"check": self.name, "rows": self.rows, "blocking": self.blocking, "examples": list(self.examples)}


@dataclass(frozen=True)
class PartitionAudit:
    """Verdict on one partition."""

    partition_key: str
    rows_good: int
    rows_quarantined: int
    rows_expected: int | None
    failed: tuple[FailedCheck, ...]

    @property
    def blocked(self) -> bool:
        """Whether nothing of the partition may be published."""
        return any(check.blocking for check in self.failed)


@dataclass(frozen=True)
class Audit:
    """Verdict on a chunk: `rows` holds the good rows of partitions that are not blocked, `quarantined` every refused row.

    `quarantined` has columns partition_key, row (JSON text), reasons (list of text).
    """

    rows: pl.DataFrame
    quarantined: pl.DataFrame
    partitions: dict[str, PartitionAudit]


def audit_dataset(
    dataset: Dataset,
    rows: pl.DataFrame,
    partitions: Sequence[str],
    *,
    context: pl.DataFrame,
    actions: pl.DataFrame,
    jumped: pl.DataFrame,
    listings: Mapping[str, Listing],
    now: datetime,
    whole: bool = True,
) -> Audit:
    """Judge rows of a dataset.

    Args:
        dataset: What the rows claim to be.
        rows: What the sources delivered for these partitions.
        partitions: Session labels that were asked for.
        context: Published rows of the sessions before, for checks that look back.
        actions: Known corporate actions: symbol, event_timestamp, ratio.
        jumped: Series refused since a split-like jump before these partitions: symbol, event_timestamp.
        listings: Expected symbols by name.
        now: The platform's instant.
        whole: The rows are all that there is of the partitions: missing ones and the share of bad ones are judged.
    """
    from featurestore_dagster.projections.pandera_schema import dataset_schema, structure, violations

    relation, schema = dataset_relation(dataset), dataset_schema(dataset)
    if complaints := structure(schema, rows) or _without_time(rows):
        return _blocked_whole(relation, partitions, complaints)
    clean, contradictions = market_checks.duplicates(dataset, rows.select(list(relation.frame_schema)))
    reasons = violations(schema, clean)
    finite = clean.with_row_index("row").join(reasons.select("row").unique(), on="row", how="anti")
    if not finite.is_empty():
        positions = finite["row"]
        found = market_checks.row_reasons(dataset, finite.drop("row"), context, actions, jumped, dict(listings), now)
        reasons = pl.concat([reasons, found.with_columns(positions.gather(found["row"]).alias("row"))])
    offset = clean.height
    judged = pl.concat([clean, contradictions])
    reasons = pl.concat(
        [
            reasons,
            pl.DataFrame(
                {
                    "row": range(offset, judged.height),
                    "reason": ["duplicate_key: the same key with different values"] * contradictions.height,
                },
                schema={"row": pl.UInt32, "reason": pl.String},
            ),
        ]
    )
    expected = _expected_bars(dataset, partitions, listings, now) if dataset.bars and whole else {}
    return _verdict(relation, judged, reasons, partitions, expected, dataset.quarantine_limit if whole else 1.0)


def audit_stream(
    view: FeatureView, stream: Stream, rows: pl.DataFrame, partitions: Sequence[str], *, listings: Mapping[str, Listing], now: datetime
) -> Audit:
    """Judge computed feature rows of a stream; arguments as in `audit_dataset`."""
    from featurestore_dagster.projections.pandera_schema import stream_schema, structure, violations

    relation, schema = stream_relation(view, stream), stream_schema(view, stream)
    if complaints := structure(schema, rows) or _without_time(rows):
        return _blocked_whole(relation, partitions, complaints)
    reasons = violations(schema, rows)
    indexed = rows.with_row_index("row")
    flagged = indexed.filter(pl.col("flags") & QUARANTINED.value != 0).select(
        "row",
        pl.col("flags")
        .map_elements(lambda mask: f"flags: {', '.join(QualityFlag.names_of(mask & QUARANTINED))}", pl.String)
        .alias("reason"),
    )
    future = indexed.filter(pl.col("event_timestamp") > now + market_checks.CLOCK_TOLERANCE).select(
        "row", pl.lit(f"future_row: event time is after {now.isoformat()}").alias("reason")
    )
    spine = stream.inputs[0]
    if spine.bars and spine.timeframe == stream.timeframe:
        expected = _expected_bars(spine, partitions, listings, now)
    else:
        expected = {
            key: {(WHOLE_FIRM, instant) for instant in bars}
            for key, bars in _due_bar_ends(stream.calendar, stream.timeframe, spine, partitions, now).items()
        }
    return _verdict(relation, rows, pl.concat([reasons, flagged, future]), partitions, expected, spine.quarantine_limit)


def _due_bar_ends(
    calendar_name: str, timeframe: Timeframe, dataset: Dataset, partitions: Sequence[str], now: datetime
) -> dict[str, list[datetime]]:
    """Bar ends of each partition that must have arrived by now."""
    market: MarketCalendar = calendar(calendar_name)
    due: dict[str, list[datetime]] = {}
    latest = now - dataset.latency - GRACE[timeframe]
    keys = set(partitions)
    first, last = market.session(date.fromisoformat(min(partitions))), market.session(date.fromisoformat(max(partitions)))
    ends = market.bar_ends(timeframe, first.window_start, min(last.window_end, max(latest, first.window_start)))
    labels = market.session_of(ends)
    for label, end in zip(labels, ends, strict=True):
        if (key := label.isoformat()) in keys and end <= latest:
            due.setdefault(key, []).append(end)
    return due


def _expected_bars(
    dataset: Dataset, partitions: Sequence[str], listings: Mapping[str, Listing], now: datetime
) -> dict[str, set[tuple[str, datetime]]]:
    due = _due_bar_ends(dataset.calendar, dataset.timeframe, dataset, partitions, now)
    return {
        key: {(listing.symbol, end) for listing in listings.values() if listing.covers(date.fromisoformat(key)) for end in ends}
        for key, ends in due.items()
    }


def _verdict(
    relation: Relation,
    rows: pl.DataFrame,
    reasons: pl.DataFrame,
    partitions: Sequence[str],
    expected: Mapping[str, set[tuple[str, datetime]]],
    quarantine_limit: float,
) -> Audit:
    labels = calendar(relation.calendar).session_of(rows["event_timestamp"]).cast(pl.String)
    judged = (
        rows.with_columns(labels.alias("partition_key"))
        .with_row_index("row")
        .join(reasons.group_by("row").agg(pl.col("reason").unique(maintain_order=True).alias("reasons")), on="row", how="left")
        .with_columns(pl.col("reasons").is_null().alias("good"))
    )
    foreign = judged.filter(~pl.col("partition_key").is_in(list(partitions)))
    if not foreign.is_empty():
        raise ValueError(f"{relation.name}: {foreign.height} rows lie outside the partitions asked for, first {foreign.row(0, named=True)}")
    good, bad = judged.filter("good"), judged.filter(~pl.col("good"))
    counts = {key: (total, found) for key, total, found in judged.group_by("partition_key").agg(pl.len(), pl.col("good").sum()).iter_rows()}
    failed = _failed_rows(relation, bad)
    delivered: dict[str, set[tuple[str, datetime]]] = {}
    for key, entity, end in good.select("partition_key", relation.keys[0], "event_timestamp").iter_rows():
        delivered.setdefault(key, set()).add((entity, end))
    audits = {}
    for key in partitions:
        total, found = counts.get(key, (0, 0))
        checks = [
            *failed.get(key, []),
            *_whole_partition(total, total - found, delivered.get(key, set()), expected.get(key, set()), quarantine_limit),
        ]
        audits[key] = PartitionAudit(key, found, total - found, len(expected.get(key, ())) or None, tuple(checks))
    blocked = [key for key, audit in audits.items() if audit.blocked]
    return Audit(
        good.filter(~pl.col("partition_key").is_in(blocked)).select(rows.columns),
        refused_rows(bad.select(rows.columns), bad["partition_key"], bad["reasons"]),
        audits,
    )


def _failed_rows(relation: Relation, bad: pl.DataFrame) -> dict[str, list[FailedCheck]]:
    """Per partition and reason: how many rows are bad, and examples."""
    found: dict[str, list[FailedCheck]] = {}
    by_reason = bad.explode("reasons").partition_by("partition_key", "reasons", as_dict=True)
    for (key, reason), group in sorted(by_reason.items()):
        shown = group.head(EXAMPLES).select(*relation.keys, "event_timestamp", *relation.values[:6])
        examples = tuple(row_as_json(row) for row in shown.iter_rows(named=True))
        found.setdefault(str(key), []).append(FailedCheck(str(reason), group.height, examples, blocking=False))
    return found


def _whole_partition(
    total: int, bad: int, delivered: set[tuple[str, datetime]], expected: set[tuple[str, datetime]], quarantine_limit: float
) -> list[FailedCheck]:
    """Too many bad rows, and what is missing of the expected (entity, bar end) pairs."""
    failed = []
    if bad > quarantine_limit * total:
        share = f"{bad} of {total} rows are bad, allowed {quarantine_limit:.0%}"
        failed.append(FailedCheck("mostly_quarantined", bad, (share,), blocking=True))
    missing = sorted(expected - delivered)
    if not missing:
        return failed
    newest_due = max(end for _, end in expected)
    if not total:
        name, blocking = "empty_partition: the session was open and rows are due", True
    elif len(missing) > (1 - MINIMUM_ROW_SHARE) * len(expected):
        name, blocking = "row_count: most expected rows are missing", True
    elif max(end for _, end in delivered) < newest_due:
        name, blocking = "stale_partition: the newest row is older than the calendar says", True
    else:
        name, blocking = "calendar_gap: expected rows are missing", False
    examples = tuple(f"{entity} {end.isoformat()}" for entity, end in missing[:EXAMPLES])
    return [*failed, FailedCheck(name, len(missing), examples, blocking)]


def _without_time(rows: pl.DataFrame) -> list[str]:
    """A row without event time belongs to no partition, so that it could not even be quarantined."""
    count = rows["event_timestamp"].null_count()
    return [f"event_timestamp is NULL in {count} of {rows.height} rows"] if count else []


def _blocked_whole(relation: Relation, partitions: Sequence[str], complaints: Sequence[str]) -> Audit:
    check = FailedCheck("schema: the frame does not have the declared form", 0, tuple(complaints), blocking=True)
    none = pl.DataFrame(schema=REFUSED_SCHEMA)
    return Audit(pl.DataFrame(schema=relation.frame_schema), none, {key: PartitionAudit(key, 0, 0, None, (check,)) for key in partitions})
