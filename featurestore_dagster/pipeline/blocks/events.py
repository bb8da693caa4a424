"""Events to feature rows: what the windows (T - w, T] of one symbol hold at T, for all symbols and rows in one sweep.

Which event counts at T, from versions that may arrive late, twice, restated and in any order:

- Rows of one symbol and event_id are versions of one event. It is what its first known version says (source type, publication, headline,
  firm, whether it carries a rating); its score, confidence and rating are those of the newest version known at T. A later version does
  not move it, so an event sent again counts once, where it was first published.
- An event is a repeat, and never counts, when another event of the symbol with the same headline, published within 24 h of it, could be
  used before it; whether that one is itself a repeat does not matter, so that the answer depends on 24 h and not on the whole past.
  Restating a repeat changes nothing; restating the event that it repeats counts.
- A version can be used from max(published_at, known_at) on. What arrives after T changes nothing at T.

So each version is in a window for one span of T: from the instant it can be used until it is superseded or leaves the window. Integer
sums over the spans that hold T are running sums over their starts and ends: exact, and independent of everything outside the window.
The formulas do not belong here (see `indicators.sentiment`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import groupby

import polars as pl

from featurestore_dagster.indicators.sentiment import event_count, sentiment_conf_mean, window
from featurestore_dagster.model.flags import PROPAGATED, QualityFlag
from featurestore_dagster.model.indicator import Feature

HEARTBEAT = "heartbeat"
HEARTBEAT_MAXIMUM_AGE = timedelta(minutes=10)
REPEAT_WINDOW = timedelta(hours=24)
FLAGGED_WINDOW = timedelta(hours=1)
"""The counts of this window decide NO_EVENTS, LOW_EVENT_COUNT and LOW_SENTIMENT_CONFIDENCE."""

FEW_EVENTS = 3
LOW_CONFIDENCE = 0.5

EVENT = ("symbol", "event_id")
FIXED = ("published_at", "source_type", "headline_hash", "firm")
RESTATED = ("score", "confidence", "rating", "flags")


def event_windows(features: Sequence[Feature], rows: pl.DataFrame, events: pl.DataFrame) -> pl.DataFrame:
    """Values of features of grain EVENTS at each row's instant T.

    Args:
        features: From `indicators.sentiment`, each with its `window_seconds`.
        rows: symbol String, event_timestamp (T) Datetime(us, UTC), and any others; any order.
        events: Rows of raw.events, every version: event_id, symbol, source_type, headline_hash, firm String; score, confidence, rating
            Float64; event_timestamp (published_at), known_at Datetime(us, UTC); flags Int64; any order. They reach back the longest
            window and `REPEAT_WINDOW` before the first T. Of symbols without a row they only show that the feed is alive.

    Returns:
        `rows` in their order, and per feature `value:<name>` Float64; `flags:events` Int64: STALE_INPUT where the newest event or heartbeat
        of any symbol was published 10 minutes before T or earlier (all values are NULL), NO_EVENTS, LOW_EVENT_COUNT and
        LOW_SENTIMENT_CONFIDENCE by the features of one hour, and the flags that propagate from the events of the longest window;
        `known:events` Datetime(us, UTC): greatest known_at of the feed's rows that could be used at T, NULL without any.
    """
    sums = _Sums()
    values = [feature.indicator.expression(**feature.parameters, total=sums.total).alias(f"value:{feature.name}") for feature in features]
    inherited = _inherited_flags(events, sums, max(window(feature) for feature in features))
    symbols = pl.Enum(rows["symbol"].unique().sort())
    asked = rows.select(pl.int_range(pl.len()).alias("row"), pl.col("symbol").cast(symbols), "event_timestamp").sort("event_timestamp")
    found = _with_totals(asked, _versions(events, symbols), sums).select("row", "event_timestamp", *values, inherited.alias("inherited"))
    alive = (pl.col("event_timestamp") - pl.col("heard_at") < HEARTBEAT_MAXIMUM_AGE).fill_null(value=False)
    answers = (
        found.join_asof(_feed(events), left_on="event_timestamp", right_on="usable_at", strategy="backward", check_sortedness=False)
        .with_columns(pl.when(alive).then(pl.col(f"value:{feature.name}")).alias(f"value:{feature.name}") for feature in features)
        .select(
            "row",
            *(f"value:{feature.name}" for feature in features),
            (pl.when(alive).then(_count_flags(features)).otherwise(QualityFlag.STALE_INPUT.value) | pl.col("inherited"))
            .cast(pl.Int64)
            .alias("flags:events"),
            pl.col("known_at").alias("known:events"),
        )
    )
    return rows.hstack(answers.sort("row").drop("row"))


def watermark(events: pl.DataFrame, allowed_lateness: timedelta) -> datetime | None:
    """Publication instant up to which every event has arrived if none arrives later than allowed after a newer one; None without events.

    Windows that end at or before it are complete, scores restated later aside.
    """
    newest = events["event_timestamp"].max()
    return newest - allowed_lateness if isinstance(newest, datetime) else None


@dataclass
class _Sums:
    """What the expressions ask to have summed: window, then whose latest event only, then the term; each under a column name."""

    terms: dict[tuple[int, bytes, bytes], tuple[str, pl.Expr, pl.Expr | None]] = field(default_factory=dict)

    def total(self, term: pl.Expr, window_seconds: int, latest_of: pl.Expr | None = None) -> pl.Expr:
        """The column that will hold the sum; the same question has the same column."""
        key = (window_seconds, b"" if latest_of is None else latest_of.meta.serialize(), term.meta.serialize())
        return pl.col(self.terms.setdefault(key, (f"sum:{len(self.terms)}", term, latest_of))[0])


def _with_totals(asked: pl.DataFrame, versions: pl.DataFrame, sums: _Sums) -> pl.DataFrame:
    """`asked`, sorted by event_timestamp, with a column per sum."""
    for (window_seconds, _), group in groupby(sorted(sums.terms), key=lambda key: key[:2]):
        terms = [sums.terms[key] for key in group]
        latest_of = terms[0][2]
        candidates = versions if latest_of is None else _until_overtaken(versions, latest_of)
        leaves_at = pl.min_horizontal(pl.col("published_at") + pl.duration(seconds=window_seconds), "ends_at")
        spans = candidates.with_columns(leaves_at.alias("leaves_at")).filter(pl.col("usable_at") < pl.col("leaves_at"))
        spans = spans.select("symbol", "usable_at", "leaves_at", *(term.fill_null(0).alias(name) for name, term, _ in terms))
        names = [name for name, _, _ in terms]
        moves = pl.concat(
            [
                spans.select("symbol", pl.col("usable_at").alias("at"), *names),
                spans.select("symbol", pl.col("leaves_at").alias("at"), *((0 - pl.col(name)).alias(name) for name in names)),
            ]
        ).sort("symbol", "at")
        # A symbol's moves add up to exactly 0, so the running sum starts anew with each symbol by itself.
        is_last = pl.any_horizontal((pl.col(name) != pl.col(name).shift(-1)) for name in ("symbol", "at")).fill_null(value=True)
        levels = moves.with_columns(pl.col(names).cum_sum()).filter(is_last)
        asked = (
            asked.join_asof(levels, left_on="event_timestamp", right_on="at", by="symbol", strategy="backward", check_sortedness=False)
            .with_columns(pl.col(names).fill_null(0))
            .drop("at")
        )
    return asked


def _versions(events: pl.DataFrame, symbols: pl.Enum) -> pl.DataFrame:
    """Versions that count at some instant: EVENT, FIXED, RESTATED, `usable_at`, and `ends_at`, when the next version takes over or NULL."""
    told = (
        events.filter(pl.col("source_type") != HEARTBEAT)
        .select(
            pl.col("symbol").cast(symbols, strict=False),
            "event_id",
            pl.col("event_timestamp").alias("published_at"),
            "source_type",
            "headline_hash",
            pl.when(pl.col("rating").is_not_null()).then(pl.col("firm")).alias("firm"),
            *RESTATED,
            "known_at",
        )
        .drop_nulls("symbol")
        .with_columns((pl.len().over(EVENT) > 1).alias("is_resent"))
    )
    usable_at = pl.max_horizontal("published_at", "known_at")
    resent = (
        told.filter("is_resent")
        .sort(*EVENT, "known_at", *FIXED, *RESTATED)
        .with_columns(pl.col(FIXED).first().over(EVENT))
        .with_columns(usable_at.alias("usable_at"))
        .with_columns(pl.col("usable_at").shift(-1).over(EVENT).alias("ends_at"))
        .filter((pl.col("usable_at") < pl.col("ends_at")).fill_null(value=True))
    )
    once = told.filter(~pl.col("is_resent")).with_columns(
        usable_at.alias("usable_at"), pl.lit(None, resent.schema["ends_at"]).alias("ends_at")
    )
    versions = pl.concat([once, resent]).drop("is_resent", "known_at")
    return versions.join(_repeats(versions), on=EVENT, how="anti")


def _repeats(versions: pl.DataFrame) -> pl.DataFrame:
    """EVENT of each event whose headline could be read before, within `REPEAT_WINDOW`."""
    headline = ("symbol", "headline_hash")
    first = (
        versions.select(*EVENT, "headline_hash", "published_at", "usable_at")
        .drop_nulls("headline_hash")
        .filter(pl.len().over(headline) > 1)
        .sort("usable_at", "published_at", "event_id")
        .unique(EVENT, keep="first", maintain_order=True)
        .with_row_index("place")
    )
    published, within = pl.col("published_at").to_physical(), f"{REPEAT_WINDOW // timedelta(microseconds=1)}i"
    least_place = pl.min_horizontal(
        pl.col("place").rolling_min_by(direction, within, closed="both") for direction in (published, -published)
    )
    return first.filter(least_place.over(headline) < pl.col("place")).select(EVENT)


def _until_overtaken(versions: pl.DataFrame, latest_of: pl.Expr) -> pl.DataFrame:
    """Versions for which `latest_of` is not NULL, ending when an event of the same value, published later, can be used."""
    overtaken_at = pl.col("usable_at").cum_min(reverse=True).shift(-1).over("symbol", "of")
    return (
        versions.with_columns(latest_of.alias("of"))
        .drop_nulls("of")
        .sort("symbol", "of", "published_at", "event_id", "usable_at")
        .with_columns(pl.min_horizontal("ends_at", overtaken_at).alias("ends_at"))
    )


def _feed(events: pl.DataFrame) -> pl.DataFrame:
    """The feed's newest publication (`heard_at`) and greatest known_at from each `usable_at` on."""
    return (
        events.select(
            pl.max_horizontal("event_timestamp", "known_at").alias("usable_at"), pl.col("event_timestamp").alias("heard_at"), "known_at"
        )
        .sort("usable_at")
        .with_columns(pl.col("heard_at", "known_at").cum_max())
        .filter((pl.col("usable_at") != pl.col("usable_at").shift(-1)).fill_null(value=True))
    )


def _count_flags(features: Sequence[Feature]) -> pl.Expr:
    """Flags that the one-hour features of a living feed set."""
    mask = pl.lit(0, pl.Int64)
    for feature in features:
        if window(feature) == FLAGGED_WINDOW:
            value = pl.col(f"value:{feature.name}")
            if feature.indicator is event_count:
                few = pl.when(value.is_between(1, FEW_EVENTS - 1)).then(QualityFlag.LOW_EVENT_COUNT.value).otherwise(0)
                mask = mask | pl.when(value == 0).then(QualityFlag.NO_EVENTS.value).otherwise(few)
            elif feature.indicator is sentiment_conf_mean:
                mask = mask | pl.when(value < LOW_CONFIDENCE).then(QualityFlag.LOW_SENTIMENT_CONFIDENCE.value).otherwise(0)
    return mask


def _inherited_flags(events: pl.DataFrame, sums: _Sums, longest: timedelta) -> pl.Expr:
    """Flags that any event of the longest window carries."""
    present = QualityFlag.counts(events["flags"])
    mask = pl.lit(0, pl.Int64)
    for flag in QualityFlag:
        if flag & PROPAGATED and flag.name in present:
            carrying = sums.total((pl.col("flags") & flag.value != 0).cast(pl.Int64), int(longest.total_seconds()))
            mask = mask | pl.when(carrying > 0).then(flag.value).otherwise(0)
    return mask
