"""Computed or fetched rows are judged before anything is written: which rules apply to them, and what they found.

The rules themselves belong to `projections.pandera_schema`, `market_checks` and `batch_checks`; what follows for partitions to `verdict`.
"""

from collections.abc import Mapping, Sequence
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
from featurestore_dagster.pipeline.verdict import Audit, Judged, blocked_whole, judged, labelled, whole_audit
from featurestore_dagster.projections.relation import Relation, dataset_relation, stream_relation

NOT_THE_FORM = "schema: the frame does not have the declared form"

EXPECTED = {"partition_key": pl.String(), "entity": pl.String(), "event_timestamp": UTC_MICROSECONDS}


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
        return blocked_whole(relation, partitions, NOT_THE_FORM, complaints)
    if complaints := batch_checks.epoch_complaints(dataset, rows, now):
        return blocked_whole(relation, partitions, "epoch_unit: event times cannot be instants", complaints)
    clean, contradictions = market_checks.duplicates(dataset, rows.select(list(relation.frame_schema)))
    reasons = violations(schema, clean)
    finite = clean.with_row_index("row").join(reasons.select("row").unique(), on="row", how="anti")
    if not finite.is_empty():
        positions = finite["row"]
        found = market_checks.row_reasons(dataset, finite.drop("row"), context, actions, jumped, dict(listings), now)
        reasons = pl.concat([reasons, found.with_columns(positions.gather(found["row"]).alias("row"))])
    offset = clean.height
    everything = pl.concat([clean, contradictions])
    reasons = pl.concat(
        [
            reasons,
            pl.DataFrame(
                {
                    "row": range(offset, everything.height),
                    "reason": ["duplicate_key: the same key with different values"] * contradictions.height,
                },
                schema={"row": pl.UInt32, "reason": pl.String},
            ),
        ]
    )
    none = pl.DataFrame(schema=EXPECTED)
    if not dataset.bars:
        part = judged(relation, everything, reasons, partitions, none)
        return whole_audit(relation, part, partitions, {}, dataset.quarantine_limit if whole else None)
    everything, neighbours = _judge_neighbours(dataset, everything, reasons, context, priority)
    if not whole:
        return whole_audit(relation, judged(relation, everything, reasons, partitions, none), partitions, {}, None)
    good = _good(relation, everything, reasons)
    batch = [
        neighbours,
        batch_checks.mostly_null(dataset, labelled(relation, everything), null_history),
        batch_checks.unit_jumps(dataset, good, context),
        batch_checks.repeated_sessions(dataset, good, context),
    ]
    part = judged(relation, everything, reasons, partitions, _expected(relation, dataset, partitions, listings, now))
    return whole_audit(relation, part, partitions, _merged(batch), dataset.quarantine_limit)


def audit_stream(
    view: FeatureView, stream: Stream, rows: pl.DataFrame, partitions: Sequence[str], *, listings: Mapping[str, Listing], now: datetime
) -> Audit:
    """Judge computed feature rows of a stream; arguments as in `audit_dataset`."""
    relation, part = stream_relation(view, stream), judge_stream(view, stream, rows, partitions, listings=listings, now=now)
    return part if isinstance(part, Audit) else whole_audit(relation, part, partitions, {}, stream.inputs[0].quarantine_limit)


def judge_stream(
    view: FeatureView, stream: Stream, rows: pl.DataFrame, partitions: Sequence[str], *, listings: Mapping[str, Listing], now: datetime
) -> Judged | Audit:
    """As `audit_stream`, of some of the entities, whose listings are given; an audit when the rows are no frame of the view."""
    from featurestore_dagster.projections.pandera_schema import stream_schema, structure, violations

    relation, schema = stream_relation(view, stream), stream_schema(view, stream)
    if complaints := structure(schema, rows) or _without_time(rows):
        return blocked_whole(relation, partitions, NOT_THE_FORM, complaints)
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
    return judged(relation, rows, pl.concat([reasons, flagged, future]), partitions, expected)


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
    for key, found in labelled(relation, published, "reverted_by").partition_by("partition_key", as_dict=True).items():
        texts = tuple(f"{symbol} {end.isoformat()}" for symbol, end in found.head(EXAMPLES).select("symbol", "event_timestamp").iter_rows())
        name = "reverted_outlier: published bars were no prices; materialise their partitions again"
        failed.setdefault(str(key[0]), []).append(FailedCheck(name, found.height, texts, blocking=False))
    return rows.with_columns(flags.alias("flags")), failed


def _merged(found: Sequence[FailedChecks]) -> FailedChecks:
    return {key: [check for part in found for check in part.get(key, [])] for part in found for key in part}


def _good(relation: Relation, rows: pl.DataFrame, reasons: pl.DataFrame) -> pl.DataFrame:
    """Rows that nothing was found against, with their position `row` and partition_key."""
    return labelled(relation, rows.with_row_index("row").join(reasons, on="row", how="anti"))


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


def _without_time(rows: pl.DataFrame) -> list[str]:
    """A row without event time belongs to no partition, so that it could not even be quarantined."""
    count = rows["event_timestamp"].null_count()
    return [f"event_timestamp is NULL in {count} of {rows.height} rows"] if count else []
