"""Features over the quotes of a row's bar. What is said of them is declared in `indicators.quotes`."""

from collections.abc import Sequence
from datetime import timedelta

import polars as pl

from featurestore_dagster.errors import MalformedDataError
from featurestore_dagster.indicators.quotes import ends_in_band, is_crossed, is_exhausted, is_stale, market_depth, price_impact_1pct
from featurestore_dagster.model.flags import PROPAGATED, QualityFlag
from featurestore_dagster.model.indicator import Feature
from featurestore_dagster.model.time import Timeframe

LONGEST_VALIDITY = timedelta(seconds=60)
"""How long a quote holds when no other follows."""

PARTIAL_BOOK = {market_depth.name: ends_in_band, price_impact_1pct.name: is_exhausted}
"""Indicator -> whether the book does not reach as deep as it needs."""

BOOK = pl.List(pl.List(pl.Float64))

DECODED_AT_ONCE = 10_000
"""Books; Polars decodes JSON with twelve times the memory of its result."""


def quote_windows(features: Sequence[Feature], rows: pl.DataFrame, quotes: pl.DataFrame, timeframe: Timeframe) -> pl.DataFrame:
    """Values over the quotes of each row's bar, (T - timeframe, T], as they were known at T.

    A quote holds until the next one, at most 60 s; the one before the bar holds into it. The newest one must be at most
    min(timeframe, 60 s) old at T.

    Args:
        features: Features of grain QUOTES.
        rows: symbol String, event_timestamp Datetime(us, UTC), `value:<component>` Float64 of the features' components (absent: NULL), and
            any others; any order.
        quotes: symbol, event_timestamp, known_at, flags Int64, bids and asks String (JSON arrays of [price, quantity], best first), every
            version, from 60 s before the first bar on; any order.
        timeframe: Length of the rows' bars.

    Returns:
        `rows` in the same order, with `value:<feature>`, `known:quotes` and `flags:quotes`: STALE_INPUT when no quote is young enough,
        CROSSED_BOOK, PARTIAL_BOOK when a feature needs more depth than the book has, and what propagates from the quotes.

    Raises:
        MalformedDataError: bids or asks that are no JSON array of [price, quantity] pairs.
    """
    components = [part.name for feature in features for part in feature.components]
    given = [f"value:{name}" for name in components if f"value:{name}" in rows.columns]
    instants = rows.select("symbol", "event_timestamp", *given).with_row_index("row")
    ordered = quotes.sort("symbol", "event_timestamp", "known_at").with_row_index("quote")
    levels = _levels(_held(instants, ordered, timeframe.duration), ordered).with_columns(
        pl.lit(float(timeframe.duration.total_seconds())).alias("bar_seconds")
    )
    levels = levels.join(instants.select("row", *given), on="row", how="left", maintain_order="left").rename(
        {name: name.removeprefix("value:") for name in given}
    )
    levels = levels.with_columns(pl.lit(None, pl.Float64).alias(name) for name in components if f"value:{name}" not in given)
    partial = [PARTIAL_BOOK[f.indicator.name]() & ~is_stale() & ~is_crossed() for f in features if f.indicator.name in PARTIAL_BOOK]
    flags = [
        pl.col("flags").bitwise_or().cast(pl.Int64) & int(PROPAGATED),
        pl.when(is_stale()).then(QualityFlag.STALE_INPUT.value).otherwise(0),
        pl.when(is_crossed()).then(QualityFlag.CROSSED_BOOK.value).otherwise(0),
        *(pl.when(condition).then(QualityFlag.PARTIAL_BOOK.value).otherwise(0) for condition in partial),
    ]
    found = levels.group_by("row").agg(
        *(feature.expression().alias(f"value:{feature.name}") for feature in features),
        pl.col("known_at").max().alias("known:quotes"),
        *(flag.cast(pl.Int64).alias(f"flag {place}") for place, flag in enumerate(flags)),
    )
    merged = pl.lit(0, pl.Int64)
    for place in range(len(flags)):
        merged = merged | pl.col(f"flag {place}")
    found = found.with_columns(merged.alias("flags:quotes")).drop(f"flag {place}" for place in range(len(flags)))
    return (
        rows.with_row_index("row")
        .join(found, on="row", how="left", maintain_order="left")
        .drop("row")
        .with_columns(pl.col("flags:quotes").fill_null(QualityFlag.STALE_INPUT.value))
    )


def _held(instants: pl.DataFrame, ordered: pl.DataFrame, span: timedelta) -> pl.DataFrame:
    """Quotes that held some time inside each row's bar, or are its newest: row, quote, valid_seconds, is_newest; sorted by both."""
    at = pl.col("event_timestamp")
    by_time = ordered.select("symbol", "event_timestamp", "quote").sort("event_timestamp", "quote")

    def last_quote(instant: pl.Expr) -> pl.Series:
        wanted = instants.select("row", "symbol", instant.alias("event_timestamp")).sort("event_timestamp")
        return wanted.join_asof(by_time, on="event_timestamp", by="symbol", check_sortedness=False).sort("row")["quote"].cast(pl.Int64)

    first_of_symbol = instants.select("symbol").join(
        ordered.group_by("symbol").agg(pl.col("quote").min()), on="symbol", how="left", maintain_order="left"
    )["quote"]
    bounds = instants.select(
        "row",
        pl.col("event_timestamp").alias("ends"),
        (last_quote(at - span - LONGEST_VALIDITY) + 1).fill_null(first_of_symbol.cast(pl.Int64)).alias("first"),
        (last_quote(at) + 1).alias("after"),
    ).drop_nulls("after")
    windows = bounds.with_columns(pl.int_ranges("first", "after").alias("quote")).explode("quote", empty_as_null=False)
    known = (
        windows.select("row", "ends", pl.col("quote").cast(pl.UInt32))
        .with_columns(ordered.select("event_timestamp", "known_at").select(pl.all().gather(windows["quote"])))
        .filter(pl.col("known_at") <= pl.col("ends"))
        .unique(["row", "event_timestamp"], keep="last", maintain_order=True)
    )
    starts = pl.max_horizontal("event_timestamp", pl.col("ends") - span)
    until = pl.min_horizontal(at.shift(-1).over("row"), at + LONGEST_VALIDITY, "ends")
    is_last = pl.col("row") != pl.col("row").shift(-1).fill_null(pl.col("row") + 1)
    is_newest = is_last & (pl.col("ends") - at <= min(span, LONGEST_VALIDITY))
    valid_seconds = (until - starts).dt.total_microseconds().clip(lower_bound=0) / 1e6
    return known.select("row", "quote", valid_seconds.alias("valid_seconds"), is_newest.alias("is_newest")).filter(
        (pl.col("valid_seconds") > 0) | pl.col("is_newest")
    )


def _levels(held: pl.DataFrame, ordered: pl.DataFrame) -> pl.DataFrame:
    """Levels of held quotes, of the newest ones all: `held` with known_at, flags, `level`, and price and quantity of each side."""
    used = held["quote"].unique().sort()
    books = ordered.select("quote", "known_at", "flags", "bids", "asks")[used]
    newest = held.filter("is_newest")["quote"].unique()
    books = books.with_columns(_decoded(books["bids"]), _decoded(books["asks"])).with_columns(
        pl.when(pl.col("quote").is_in(newest.implode())).then(side).otherwise(pl.col(side).list.head(1)).alias(side)
        for side in ("bids", "asks")
    )
    deepest = pl.max_horizontal(pl.col("bids").list.len(), pl.col("asks").list.len()).clip(lower_bound=1)
    levels = books.select("quote", "known_at", "flags", pl.int_ranges(0, deepest).alias("level")).explode("level")
    for side in ("bid", "ask"):
        levels = levels.join(_side(books, side), on=["quote", "level"], how="left", maintain_order="left")
    return held.join(levels, on="quote", how="left", maintain_order="left_right")


def _side(books: pl.DataFrame, side: str) -> pl.DataFrame:
    """One row per level that the side has."""
    entry = pl.col(f"{side}s")
    return (
        books.select("quote", entry, pl.int_ranges(0, entry.list.len()).alias("level"))
        .filter(entry.list.len() > 0)
        .explode(f"{side}s", "level")
        .select("quote", "level", entry.list.first().alias(f"{side}_price"), entry.list.last().alias(f"{side}_quantity"))
    )


def _decoded(texts: pl.Series) -> pl.Series:
    """JSON arrays of [price, quantity] as lists."""
    refused = (
        f"quotes: {texts.name} must be a JSON array of [price, quantity], price above 0, quantity not below; correct the source's parser"
    )
    try:
        decoded = (part.to_series().str.json_decode(BOOK) for part in texts.to_frame().iter_slices(DECODED_AT_ONCE))
        book = pl.concat([pl.Series(texts.name, [], BOOK), *decoded])
    except pl.exceptions.ComputeError as error:
        raise MalformedDataError(f"{refused} ({error})") from error
    level = pl.col(texts.name).list.explode(keep_nulls=False, empty_as_null=False)
    is_pair = (level.list.len() == 2) & (level.list.first() > 0) & (level.list.last() >= 0)
    if book.null_count() or not book.to_frame().select(is_pair.fill_null(value=False).all()).item():
        raise MalformedDataError(refused)
    return book
