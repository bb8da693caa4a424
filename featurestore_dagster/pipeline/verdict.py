"""What was found against rows -> which partitions are published, blocked or warned about. What is wrong with a row is found in `audit`.

Rows may be judged in parts, so that a session of any number of symbols fits into memory; a partition is judged over all of its parts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from featurestore_dagster.calendars import calendar
from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.model.time import Timeframe
from featurestore_dagster.pipeline import market_checks
from featurestore_dagster.pipeline.batch_checks import EXAMPLES, FailedCheck, FailedChecks
from featurestore_dagster.projections.relation import Relation
from featurestore_dagster.stores.postgres.refused import REFUSED_SCHEMA, refused_rows, row_as_json

MINIMUM_ROW_SHARE = 0.5
"""A partition with fewer of its expected rows than this is blocked."""

USUAL_ROW_SHARE = (0.8, 1.2)
"""Outside of this a partition is published with a warning."""

TOLERATED_GAP = 0.05
"""Share of an intraday session's bars that one symbol may lack without a warning; its rows are flagged all the same."""

TOLERATED_FUTURE = 0.01


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

    @property
    def blocked(self) -> dict[str, list[dict[str, Any]]]:
        """Failed checks of each blocked partition, as JSON."""
        return {key: [check.as_dict() for check in part.failed] for key, part in self.partitions.items() if part.blocked}


@dataclass(frozen=True)
class Judged:
    """Rows of some entities, judged one by one.

    Attributes:
        rows: The good ones, also of partitions that will be blocked; columns of the relation.
        quarantined: The bad ones: partition_key, row (JSON text), reasons (list of text).
        counts: partition_key, total, good.
        failed: Per partition what is wrong with the bad ones.
        completeness: Per partition what is owed, came and is missing.
    """

    rows: pl.DataFrame
    quarantined: pl.DataFrame
    counts: pl.DataFrame
    failed: FailedChecks
    completeness: pl.DataFrame


def judged(relation: Relation, rows: pl.DataFrame, reasons: pl.DataFrame, partitions: Sequence[str], expected: pl.DataFrame) -> Judged:
    """Sort rows into good and bad ones.

    Args:
        relation: What they belong to.
        rows: Rows of these partitions.
        reasons: row (position in `rows`), reason; several lines may be about one row.
        partitions: What was asked for.
        expected: Rows that must have arrived by now: partition_key, entity, event_timestamp.

    Raises:
        ValueError: A row lies outside the partitions.
    """
    found = (
        labelled(relation, rows)
        .with_row_index("row")
        .join(reasons.group_by("row").agg(pl.col("reason").unique(maintain_order=True).alias("reasons")), on="row", how="left")
        .with_columns(pl.col("reasons").is_null().alias("good"), pl.col(relation.keys[0]).alias("entity"))
    )
    counts = found.group_by("partition_key").agg(pl.len().alias("total"), pl.col("good").sum())
    if not set(counts["partition_key"]) <= set(partitions):
        foreign = found.filter(~pl.col("partition_key").is_in(list(partitions)))
        raise ValueError(f"{relation.name}: {foreign.height} rows lie outside the partitions asked for, first {foreign.row(0, named=True)}")
    good, bad = found.filter("good"), found.filter(~pl.col("good"))
    return Judged(
        good.select(rows.columns),
        refused_rows(bad.select(rows.columns), bad["partition_key"], bad["reasons"]),
        counts,
        _failed_rows(relation, bad),
        _completeness(found, expected),
    )


def verdicts(
    relation: Relation, parts: Sequence[Judged], partitions: Sequence[str], batch: FailedChecks, quarantine_limit: float | None
) -> dict[str, PartitionAudit]:
    """Bring everything together; a `quarantine_limit` of None says that rows are judged one by one. No entity is in two parts."""
    counts = pl.concat(part.counts for part in parts).group_by("partition_key").agg(pl.col("total", "good").sum())
    by_key = {key: (total, good) for key, total, good in counts.iter_rows()}
    summary = _whole(pl.concat(part.completeness for part in parts))
    absent, owed = _missing(relation, summary), dict(summary.select("partition_key", "owed").iter_rows())
    audits = {}
    for key in partitions:
        total, good = by_key.get(key, (0, 0))
        failed = _added_up([check for part in parts for check in part.failed.get(key, [])])
        checks = [*failed, *absent.get(key, []), *batch.get(key, [])]
        if quarantine_limit is not None:
            checks += _too_many(total, total - good, failed, quarantine_limit)
        audits[key] = PartitionAudit(key, good, total - good, owed.get(key), tuple(checks))
    return audits


def whole_audit(relation: Relation, part: Judged, partitions: Sequence[str], batch: FailedChecks, quarantine_limit: float | None) -> Audit:
    """The audit of rows that were judged in one part."""
    audits = verdicts(relation, [part], partitions, batch, quarantine_limit)
    return Audit(without(relation, part.rows, [key for key, audit in audits.items() if audit.blocked]), part.quarantined, audits)


def blocked_whole(relation: Relation, partitions: Sequence[str], name: str, complaints: Sequence[str]) -> Audit:
    """The audit of a frame that cannot be judged row by row."""
    check = FailedCheck(name, 0, tuple(complaints), blocking=True)
    none = pl.DataFrame(schema=REFUSED_SCHEMA)
    return Audit(pl.DataFrame(schema=relation.frame_schema), none, {key: PartitionAudit(key, 0, 0, None, (check,)) for key in partitions})


def without(relation: Relation, rows: pl.DataFrame, partitions: Sequence[str]) -> pl.DataFrame:
    """Rows that belong to none of these partitions."""
    if not partitions:
        return rows
    sessions = calendar(relation.calendar).session_of(rows["event_timestamp"]).cast(pl.String)
    return rows.filter(~sessions.is_in(list(partitions)))


def labelled(relation: Relation, rows: pl.DataFrame, instant: str = "event_timestamp") -> pl.DataFrame:
    """`rows` with the partition_key of each."""
    return rows.with_columns(calendar(relation.calendar).session_of(rows[instant]).cast(pl.String).alias("partition_key"))


def _failed_rows(relation: Relation, bad: pl.DataFrame) -> dict[str, list[FailedCheck]]:
    """Per partition and reason: how many rows are bad, and examples."""
    found: dict[str, list[FailedCheck]] = {}
    by_reason = bad.explode("reasons").partition_by("partition_key", "reasons", as_dict=True)
    for (key, reason), group in sorted(by_reason.items()):
        shown = group.head(EXAMPLES).select(*relation.keys, "event_timestamp", *relation.values[:6])
        examples = tuple(row_as_json(row) for row in shown.iter_rows(named=True))
        found.setdefault(str(key), []).append(FailedCheck(str(reason), group.height, examples, blocking=False))
    return found


def _added_up(checks: Sequence[FailedCheck]) -> list[FailedCheck]:
    """One for each name."""
    by_name: dict[str, list[FailedCheck]] = {}
    for check in checks:
        by_name.setdefault(check.name, []).append(check)
    added_up = []
    for _, found in sorted(by_name.items()):
        examples = [text for check in found for text in check.examples]
        added_up.append(replace(found[0], rows=sum(check.rows for check in found), examples=tuple(examples[:EXAMPLES])))
    return added_up


def _too_many(total: int, bad: int, failed: Sequence[FailedCheck], quarantine_limit: float) -> list[FailedCheck]:
    """Bad rows, or rows of the future, in such a number that the others are not to be trusted either."""
    checks = []
    if bad > quarantine_limit * total:
        share = f"{bad} of {total} rows are bad, allowed {quarantine_limit:.0%}"
        checks.append(FailedCheck("mostly_quarantined", bad, (share,), blocking=True))
    future = sum(check.rows for check in failed if check.name.startswith(market_checks.FUTURE_ROW))
    if future > TOLERATED_FUTURE * total:
        share = f"{future} of {total} rows lie in the future, allowed {TOLERATED_FUTURE:.0%}"
        checks.append(FailedCheck("future_rows: the clock of the source or the time zone is wrong", future, (share,), blocking=True))
    return checks


def _completeness(judged: pl.DataFrame, expected: pl.DataFrame) -> pl.DataFrame:
    """Per partition with expected rows: how many are owed, came and are missing, with examples. A row for a missing bar is missing."""
    row = ["entity", "event_timestamp"]
    present = judged.filter(pl.col("good") & (pl.col("flags") & QualityFlag.MISSING_OHLCV.value == 0)).select("partition_key", *row)
    came = judged.select("partition_key", *row).unique().group_by("partition_key").agg(pl.len().alias("came"))
    owed = expected.group_by("partition_key").agg(pl.len().alias("owed"), pl.col("event_timestamp").max().alias("newest_due"))
    missing = expected.join(present, on=row, how="anti").sort(*row)
    concerned = expected.join(missing, on=["partition_key", "entity"], how="semi") if missing.height else missing
    gap = missing.group_by("partition_key", "entity").len("missing").join(
        concerned.group_by("partition_key", "entity").len("owed"), on=["partition_key", "entity"]
    )  # fmt: skip
    return (
        owed.join(came, on="partition_key", how="full", coalesce=True)
        .join(present.group_by("partition_key").agg(pl.col("event_timestamp").max().alias("newest")), on="partition_key", how="left")
        .join(
            missing.group_by("partition_key", maintain_order=True).agg(pl.len().alias("missing"), pl.col(row).head(EXAMPLES)),
            on="partition_key",
            how="left",
        )
        .join(gap.group_by("partition_key").agg((pl.col("missing") / pl.col("owed")).max().alias("gap")), on="partition_key", how="left")
    )


def _whole(parts: pl.DataFrame) -> pl.DataFrame:
    """`_completeness` of all entities from that of some of them each; only partitions that are owed rows."""
    whole = parts.group_by("partition_key", maintain_order=True).agg(
        pl.col("owed", "came", "missing").sum(),
        pl.col("newest_due", "newest", "gap").max(),
        pl.col("entity", "event_timestamp").explode().drop_nulls().head(EXAMPLES),
    )
    return whole.filter(pl.col("owed") > 0)


def _missing(relation: Relation, summary: pl.DataFrame) -> FailedChecks:
    """Per partition: what is missing of the expected rows, or that there are far too many; intraday, a symbol may lack a few bars."""
    failed: FailedChecks = {}
    for line in summary.iter_rows(named=True):
        owed, count, came_count = line["owed"], line["missing"] or 0, line["came"] or 0
        low, high = USUAL_ROW_SHARE
        name, blocking = None, True
        if not came_count:
            name = "empty_partition: the session was open and rows are due"
        elif owed - count < MINIMUM_ROW_SHARE * owed:
            name = "row_count: most expected rows are missing"
        elif count and (line["newest"] is None or line["newest"] < line["newest_due"]):
            name = "stale_partition: the newest row is older than the calendar says"
        elif owed - count < low * owed:
            name, blocking = f"row_count: fewer than {low:.0%} of the expected rows came", False
        elif count and (relation.timeframe is Timeframe.ONE_DAY or line["gap"] > TOLERATED_GAP):
            name, blocking = "calendar_gap: expected rows are missing", False
        if name is not None:
            texts = tuple(f"{entity} {end.isoformat()}" for entity, end in zip(line["entity"], line["event_timestamp"], strict=True))
            failed.setdefault(line["partition_key"], []).append(FailedCheck(name, count, texts, blocking))
        if came_count > high * owed:
            texts = (f"{came_count} rows, {owed} expected",)
            name = f"row_count: more than {high:.0%} of the expected rows came"
            failed.setdefault(line["partition_key"], []).append(FailedCheck(name, came_count - owed, texts, blocking=False))
    return failed
