"""The verdict on computed or fetched rows before anything is written: which are published, which quarantined, which partition blocked.

The rules themselves belong to `projections.pandera_schema`, `market_checks` and `batch_checks`; writing the outcome belongs to the stores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime

import polars as pl

from featurestore_dagster.calendars import calendar
from featurestore_dagster.features.entities import WHOLE_FIRM
from featurestore_dagster.model.feature_view import FeatureView, Stream
from featurestore_dagster.model.flags import QUARANTINED, QualityFlag
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS, Dataset
from featurestore_dagster.model.source import Listing
from featurestore_dagster.model.time import Timeframe
from featurestore_dagster.pipeline import batch_checks, market_checks
from featurestore_dagster.pipeline.batch_checks import EXAMPLES, FailedCheck, FailedChecks
from featurestore_dagster.pipeline.expectations import due_bar_ends, expected_rows
from featurestore_dagster.projections.relation import Relation, dataset_relation, stream_relation
from featurestore_dagster.stores.postgres.refused import REFUSED_SCHEMA, refused_rows, row_as_json

MINIMUM_ROW_SHARE = 0.5
"""A partition with fewer of its expected rows than this is blocked."""

USUAL_ROW_SHARE = (0.8, 1.2)
"""Outside of this a partition is published with a warning."""

TOLERATED_GAP = 0.05
"""Share of an intraday session's bars that one symbol may lack without a warning; its rows are flagged all the same."""

TOLERATED_FUTURE = 0.01

NOT_THE_FORM = "schema: the frame does not have the declared form"

EXPECTED = {"partition_key": pl.String(), "entity": pl.String(), "event_timestamp": UTC_MICROSECONDS}


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
    priority: Sequence[str] = (),
    null_history: Sequence[Mapping[str, float]] = (),
    whole: bool = True,
) -> Audit:
    """Judge rows of a dataset.

    Args:
        dataset: What the rows claim to be.
        rows: What the sources delivered for these partitions.
        partitions: Session labels that were asked for.
        context: Published rows of the sessions around these, for checks that look at a row's neighbours; earlier ones at least.
        actions: Known corporate actions: symbol, event_timestamp, ratio.
        jumped: Series refused since a split-like jump before these partitions: symbol, event_timestamp.
        listings: Expected symbols by name.
        now: The platform's instant.
        priority: Sources of the dataset, preferred first.
        null_history: NULL share by column of the last published partitions before these, oldest first; see `Ledger.null_shares`.
        whole: The rows are all that there is of the partitions: missing ones and the share of bad ones are judged.
    """
    from featurestore_dagster.projections.pandera_schema import dataset_schema, structure, violations

    relation, schema = dataset_relation(dataset), dataset_schema(dataset)
    if complaints := structure(schema, rows) or _without_time(rows):
        return _blocked_whole(relation, partitions, NOT_THE_FORM, complaints)
    if complaints := batch_checks.epoch_complaints(dataset, rows, now):
        return _blocked_whole(relation, partitions, "epoch_unit: event times cannot be instants", complaints)
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
    if not dataset.bars:
        return _verdict(
            relation, judged, reasons, partitions, pl.DataFrame(schema=EXPECTED), {}, dataset.quarantine_limit if whole else None
        )
    judged, neighbours = _judge_neighbours(dataset, judged, reasons, context, priority)
    if not whole:
        return _verdict(relation, judged, reasons, partitions, pl.DataFrame(schema=EXPECTED), {}, None)
    good = _good(relation, judged, reasons)
    batch = [
        neighbours,
        batch_checks.mostly_null(dataset, _labelled(relation, judged), null_history),
        batch_checks.unit_jumps(dataset, good, context),
        batch_checks.repeated_sessions(dataset, good, context),
    ]
    expected = _expected(relation, dataset, partitions, listings, now)
    return _verdict(relation, judged, reasons, partitions, expected, _merged(batch), dataset.quarantine_limit)


def audit_stream(
    view: FeatureView, stream: Stream, rows: pl.DataFrame, partitions: Sequence[str], *, listings: Mapping[str, Listing], now: datetime
) -> Audit:
    """Judge computed feature rows of a stream; arguments as in `audit_dataset`."""
    from featurestore_dagster.projections.pandera_schema import stream_schema, structure, violations

    relation, schema = stream_relation(view, stream), stream_schema(view, stream)
    if complaints := structure(schema, rows) or _without_time(rows):
        return _blocked_whole(relation, partitions, NOT_THE_FORM, complaints)
    reasons = violations(schema, rows)
    indexed = rows.with_row_index("row")
    flagged = indexed.filter(pl.col("flags") & QUARANTINED.value != 0).select(
        "row",
        pl.col("flags")
        .map_elements(lambda mask: f"flags: {', '.join(QualityFlag.names_of(mask & QUARANTINED))}", pl.String)
        .alias("reason"),
    )
    future = indexed.filter(pl.col("event_timestamp") > now + market_checks.CLOCK_TOLERANCE).select(
        "row", pl.lit(f"{market_checks.FUTURE_ROW}: event time is after {now.isoformat()}").alias("reason")
    )
    expected = _expected(relation, stream.inputs[0], partitions, listings, now, timeframe=stream.timeframe)
    return _verdict(relation, rows, pl.concat([reasons, flagged, future]), partitions, expected, {}, stream.inputs[0].quarantine_limit)


def _judge_neighbours(
    dataset: Dataset, rows: pl.DataFrame, reasons: pl.DataFrame, context: pl.DataFrame, priority: Sequence[str]
) -> tuple[pl.DataFrame, FailedChecks]:
    """What the next bar and a second source say about good rows: OUTLIER on reverted bars, FALLBACK_SOURCE on disagreeing ones."""
    relation = dataset_relation(dataset)
    good = _good(relation, rows, reasons)
    newest = good.sort("known_at").unique([*dataset.table.key, "event_timestamp"], keep="last", maintain_order=True)
    taken_back = market_checks.taken_back(dataset, newest.drop("row"), context)
    pairs = batch_checks.source_pairs(dataset, good.drop("row"), priority)
    marks = {
        QualityFlag.OUTLIER: newest["row"].gather(taken_back["row"].drop_nulls()),
        QualityFlag.FALLBACK_SOURCE: good["row"].gather(pairs.filter("differs")["row"]),
    }
    position, flags = pl.int_range(pl.len(), dtype=pl.UInt32), pl.col("flags")
    for flag, marked in marks.items():
        flags = flags | pl.when(position.is_in(marked.implode())).then(flag.value).otherwise(0)
    failed = batch_checks.source_conflicts(pairs)
    published = taken_back.filter(pl.col("row").is_null() & pl.col("reverted_by").is_in(newest["event_timestamp"].implode()))
    for key, found in _labelled(relation, published, "reverted_by").partition_by("partition_key", as_dict=True).items():
        texts = tuple(f"{symbol} {end.isoformat()}" for symbol, end in found.head(EXAMPLES).select("symbol", "event_timestamp").iter_rows())
        name = "reverted_outlier: published bars were no prices; materialise their partitions again"
        failed.setdefault(str(key[0]), []).append(FailedCheck(name, found.height, texts, blocking=False))
    return rows.with_columns(flags.alias("flags")), failed


def _merged(found: Sequence[FailedChecks]) -> FailedChecks:
    return {key: [check for part in found for check in part.get(key, [])] for part in found for key in part}


def _labelled(relation: Relation, rows: pl.DataFrame, instant: str = "event_timestamp") -> pl.DataFrame:
    """`rows` with the partition_key of each."""
    return rows.with_columns(calendar(relation.calendar).session_of(rows[instant]).cast(pl.String).alias("partition_key"))


def _good(relation: Relation, rows: pl.DataFrame, reasons: pl.DataFrame) -> pl.DataFrame:
    """Rows that nothing was found against, with their position `row` and partition_key."""
    return _labelled(relation, rows.with_row_index("row").join(reasons, on="row", how="anti"))


def _expected(
    relation: Relation,
    spine: Dataset,
    partitions: Sequence[str],
    listings: Mapping[str, Listing],
    now: datetime,
    timeframe: Timeframe | None = None,
) -> pl.DataFrame:
    """Rows that must have arrived by now, columns `EXPECTED`: each bar end for each listed symbol, or for the whole firm."""
    market, timeframe = calendar(relation.calendar), timeframe or spine.timeframe
    first, last = market.session(date.fromisoformat(min(partitions))), market.session(date.fromisoformat(max(partitions)))
    ends = due_bar_ends(relation.calendar, timeframe, spine.latency, first.window_start, last.window_end, now)
    ends = ends.filter(market.session_of(ends).cast(pl.String).is_in(list(partitions)))
    firm = [Listing(WHOLE_FIRM, market.first_day)]
    owed = expected_rows(relation.calendar, ends, firm if "portfolio" in relation.keys else listings.values())
    return owed.rename({"symbol": "entity"})


def _verdict(
    relation: Relation,
    rows: pl.DataFrame,
    reasons: pl.DataFrame,
    partitions: Sequence[str],
    expected: pl.DataFrame,
    batch: FailedChecks,
    quarantine_limit: float | None,
) -> Audit:
    """Bring everything together; a `quarantine_limit` of None says that rows are judged one by one."""
    judged = (
        _labelled(relation, rows)
        .with_row_index("row")
        .join(reasons.group_by("row").agg(pl.col("reason").unique(maintain_order=True).alias("reasons")), on="row", how="left")
        .with_columns(pl.col("reasons").is_null().alias("good"), pl.col(relation.keys[0]).alias("entity"))
    )
    foreign = judged.filter(~pl.col("partition_key").is_in(list(partitions)))
    if not foreign.is_empty():
        raise ValueError(f"{relation.name}: {foreign.height} rows lie outside the partitions asked for, first {foreign.row(0, named=True)}")
    good, bad = judged.filter("good"), judged.filter(~pl.col("good"))
    counts = {key: (total, found) for key, total, found in judged.group_by("partition_key").agg(pl.len(), pl.col("good").sum()).iter_rows()}
    failed = _failed_rows(relation, bad)
    absent = _missing(relation, judged, expected)
    owed = dict(expected.group_by("partition_key").len().iter_rows())
    audits = {}
    for key in partitions:
        total, found = counts.get(key, (0, 0))
        checks = [*failed.get(key, []), *absent.get(key, []), *batch.get(key, [])]
        if quarantine_limit is not None:
            checks += _too_many(total, total - found, failed.get(key, []), quarantine_limit)
        audits[key] = PartitionAudit(key, found, total - found, owed.get(key), tuple(checks))
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


def _missing(relation: Relation, judged: pl.DataFrame, expected: pl.DataFrame) -> FailedChecks:
    """Per partition: what is missing of the expected rows, or that there are far too many.

    A feature row that stands for a missing bar is itself missing. Intraday, a symbol may lack a few bars of a session.
    """
    row = ["entity", "event_timestamp"]
    present = judged.filter(pl.col("good") & (pl.col("flags") & QualityFlag.MISSING_OHLCV.value == 0)).select("partition_key", *row)
    came = judged.select("partition_key", *row).unique().group_by("partition_key").agg(pl.len().alias("came"))
    of_entity = expected.group_by("partition_key", "entity").agg(pl.len().alias("owed_by_entity"))
    missing = expected.join(present, on=row, how="anti").sort(*row)
    gap = missing.group_by("partition_key", "entity").len().join(of_entity, on=["partition_key", "entity"])
    summary = (
        expected.group_by("partition_key")
        .agg(pl.len().alias("owed"), pl.col("event_timestamp").max().alias("newest_due"))
        .join(present.group_by("partition_key").agg(pl.col("event_timestamp").max().alias("newest")), on="partition_key", how="left")
        .join(came, on="partition_key", how="left")
        .join(
            missing.group_by("partition_key", maintain_order=True).agg(pl.len().alias("missing"), pl.col(row).head(EXAMPLES)),
            on="partition_key",
            how="left",
        )
        .join(
            gap.group_by("partition_key").agg((pl.col("len") / pl.col("owed_by_entity")).max().alias("gap")), on="partition_key", how="left"
        )
    )
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


def _without_time(rows: pl.DataFrame) -> list[str]:
    """A row without event time belongs to no partition, so that it could not even be quarantined."""
    count = rows["event_timestamp"].null_count()
    return [f"event_timestamp is NULL in {count} of {rows.height} rows"] if count else []


def _blocked_whole(relation: Relation, partitions: Sequence[str], name: str, complaints: Sequence[str]) -> Audit:
    check = FailedCheck(name, 0, tuple(complaints), blocking=True)
    none = pl.DataFrame(schema=REFUSED_SCHEMA)
    return Audit(pl.DataFrame(schema=relation.frame_schema), none, {key: PartitionAudit(key, 0, 0, None, (check,)) for key in partitions})
