"""Figures of filings as of a row: quarters, sums of four, balance sheets. What is divided by what does not belong here.

A figure changes only when a filing or a split becomes known. Each such instant of a symbol is computed once, for all symbols together;
a row then takes the newest one before it, and drops what has become too old by then.
"""

from datetime import UTC, datetime, timedelta

import polars as pl

from featurestore_dagster.features.universe import INSTRUMENTS
from featurestore_dagster.model.flags import PROPAGATED, QualityFlag
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS

TRAILING = {"net_income": "net_income_ttm", "revenue": "revenue_ttm", "eps_diluted": "eps_ttm"}
"""Flows, and the name of the sum of their last four quarters."""

ON_BALANCE_SHEET = ("equity", "total_assets")
DEBTS = ("current_portion_of_long_term_debt", "long_term_debt", "short_term_debt")
PER_SHARE = "eps_diluted"
SHARES = "shares_outstanding"
BALANCE_SHEET = "balance_sheet"

GROUPS = {**{name: name for name in (*TRAILING, SHARES)}, **dict.fromkeys((*ON_BALANCE_SHEET, *DEBTS), BALANCE_SHEET)}
"""What ages together, by concept."""

AGES = tuple(dict.fromkeys(GROUPS.values()))

FIGURES = {
    **{figure: concept for concept, ttm in TRAILING.items() for figure in (ttm, f"{ttm}_year_ago")},
    **{figure: BALANCE_SHEET for name in ON_BALANCE_SHEET for figure in (name, f"{name}_year_ago")},
    "debt": BALANCE_SHEET,
    SHARES: SHARES,
}
"""Columns that `figures` adds, and what each ages with."""

QUARTER_DAYS = (80, 100)
SPANS_DAYS = (QUARTER_DAYS, (170, 190), (260, 280), (350, 380))
"""Shortest and longest period of one, two, three and four quarters, first and last day included."""

MAXIMUM_AGE_DAYS = 200
LOOK_BACK_DAYS = MAXIMUM_AGE_DAYS + 8 * QUARTER_DAYS[1]
"""A period that ended earlier can be part of no figure that is fresh enough to be served."""

END_OF_TIME = datetime(9999, 12, 31, tzinfo=UTC)


def figures(rows: pl.DataFrame, facts: pl.DataFrame, splits: pl.DataFrame) -> pl.DataFrame:
    """`rows` with the figures of each symbol's filings as they were known at the row's instant.

    A fact or split is usable at T when event time <= T and known-at <= T; of one period's versions the newest known-at wins. A quarter is
    reported, or the difference of two periods with the same first day (the fourth: year minus nine months); `_ttm` sums the last four,
    whose ends must lie 80-100 days apart, `_ttm_year_ago` the four before, `_year_ago` is the balance sheet 350-380 days earlier. Figures
    per share and numbers of shares, as filed, are brought to T by the splits whose ex-date lies after the filing. A fact in another unit
    than the instrument's currency (money), `<currency>/shares` (eps_diluted) or `shares` counts as reported without a value: it is never
    mixed with others, and an older filing does not replace it.

    Args:
        rows: symbol String, event_timestamp Datetime(us, UTC), and any others; any order.
        facts: symbol, concept, period_start, period_end (Date), accession, unit, value, event_timestamp, known_at, flags; any order.
            Concepts other than those in `GROUPS` are ignored.
        splits: symbol, event_timestamp (ex-date open), known_at, flags, ratio (new shares per old); rows without ratio are ignored.

    Returns:
        The same rows in the same order, and: the columns of `FIGURES`, Float64, in the instrument's currency, currency per share or
        shares, NULL when a part is missing or when the newest quarter or balance sheet ended more than 200 days before T; `flags:facts`
        Int64, STALE_INPUT when that happened to a figure of which a filing was known, or when no filing was known at all, and the flags
        that propagate from the facts and splits behind the row's figures; `known:facts` Datetime(us, UTC), the greatest known-at behind
        them, NULL when there are none.
    """
    reported = _reported(facts)
    versions = _versions(
        reported, ("symbol", "concept", "period_start", "period_end"), ("has_value", "accession", "value", "flags"), _expiry("period_end")
    )
    ratios = _versions(splits.drop_nulls("ratio"), ("symbol", "event_timestamp"), ("ratio", "flags"), pl.lit(END_OF_TIME, UTC_MICROSECONDS))
    instants = (
        pl.concat([frame.select("symbol", pl.col("usable_from").alias("at")) for frame in (versions, ratios)])
        .unique()
        .sort("symbol", "at")
        .with_row_index("instant")
    )
    known = _split_adjusted(_at_instants(versions, instants), _at_instants(ratios, instants))
    dated = instants
    for part in (*_trailing_sums(known), _balance_sheets(known), _newest_shares(known)):
        dated = dated.join(part, on="instant", how="left")
    matched = (
        rows.select("symbol", "event_timestamp")
        .with_row_index("row")
        .sort("event_timestamp")
        .join_asof(dated.sort("at"), left_on="event_timestamp", right_on="at", by="symbol", strategy="backward", check_sortedness=False)
        .join(_first_known(versions), on="symbol", how="left")
        .sort("row")
    )
    return rows.hstack(_fresh(matched))


def _reported(facts: pl.DataFrame) -> pl.DataFrame:
    """Facts of known concepts, without a value where the unit is not the instrument's; a stock's period is its day."""
    currencies = pl.DataFrame(
        {"symbol": [found.symbol for found in INSTRUMENTS], "currency": [found.currency for found in INSTRUMENTS]}, orient="col"
    )
    unit = (
        pl.when(pl.col("concept") == SHARES)
        .then(pl.lit("shares"))
        .when(pl.col("concept") == PER_SHARE)
        .then(pl.col("currency") + "/shares")
        .otherwise(pl.col("currency"))
    )
    return (
        facts.filter(pl.col("concept").is_in(list(GROUPS)))
        .join(currencies, on="symbol", how="left")
        .with_columns(
            pl.when(pl.col("unit") == unit).then("value"),
            pl.when(pl.col("concept").is_in(list(TRAILING))).then("period_start").otherwise("period_end").alias("period_start"),
        )
        .with_columns(pl.col("value").is_not_null().alias("has_value"))
    )


def _expiry(period_end: str) -> pl.Expr:
    """First instant at which a period is too old for every figure."""
    return pl.col(period_end).cast(UTC_MICROSECONDS) + timedelta(days=LOOK_BACK_DAYS + 1)


def _versions(arrived: pl.DataFrame, period: tuple[str, ...], ties: tuple[str, ...], expiry: pl.Expr) -> pl.DataFrame:
    """The versions that ever win their period, each with the time from `usable_from` to (excluded) `usable_until` in which it does."""
    return (
        arrived.with_columns(pl.max_horizontal("event_timestamp", "known_at").alias("usable_from"))
        .sort(*period, "known_at", "event_timestamp", *ties)
        .with_row_index("rank")
        .sort(*period, "usable_from", "rank")
        .filter(pl.col("rank") == pl.col("rank").cum_max())
        .with_columns(pl.min_horizontal(pl.col("usable_from").shift(-1).over(period), expiry).alias("usable_until"))
    )


def _at_instants(versions: pl.DataFrame, instants: pl.DataFrame) -> pl.DataFrame:
    """One row per version and instant at which it wins."""
    return (
        versions.join(instants.rename({"instant": "first", "at": "usable_from"}), on=["symbol", "usable_from"])
        .sort("usable_until")
        .join_asof(
            instants.rename({"instant": "last"}).sort("at"),
            left_on="usable_until",
            right_on="at",
            by="symbol",
            strategy="backward",
            allow_exact_matches=False,
            check_sortedness=False,
        )
        .filter(pl.col("last") >= pl.col("first"))
        .with_columns(pl.int_ranges("first", pl.col("last") + 1, dtype=pl.UInt32).alias("instant"))
        .explode("instant")
    )


def _split_adjusted(known: pl.DataFrame, ratios: pl.DataFrame) -> pl.DataFrame:
    """`known` with figures per share and numbers of shares as after the splits since the filing."""
    later = (
        ratios.sort("instant", "event_timestamp", descending=[False, True])
        .select(
            "instant",
            "event_timestamp",
            pl.col("ratio").cum_prod().over("instant"),
            pl.col("known_at").cum_max().over("instant").alias("split_known_at"),
            _running_flags().over("instant").alias("split_flags"),
        )
        .sort("event_timestamp")
    )
    per_share, shares = pl.col("concept") == PER_SHARE, pl.col("concept") == SHARES
    touched = (
        known.filter(per_share | shares)
        .sort("event_timestamp")
        .join_asof(later, on="event_timestamp", by="instant", strategy="forward", allow_exact_matches=False, check_sortedness=False)
        .with_columns(
            pl.col("ratio").fill_null(1.0),
            pl.max_horizontal("known_at", "split_known_at").alias("known_at"),
            pl.col("flags") | pl.col("split_flags").fill_null(0),
        )
        .with_columns(pl.when(per_share).then(pl.col("value") / pl.col("ratio")).otherwise(pl.col("value") * pl.col("ratio")))
    )
    columns = ("instant", "concept", "period_start", "period_end", "value", "known_at", "flags")
    return pl.concat([known.filter(~(per_share | shares)).select(columns), touched.select(columns)])


def _running_flags() -> pl.Expr:
    """OR of the flags of a group's rows so far."""
    mask = pl.lit(0, pl.Int64)
    for flag in PROPAGATED:
        mask = mask | (pl.col("flags") & flag.value).cum_max()
    return mask


def _quarters(flows: pl.DataFrame) -> pl.DataFrame:
    """Discrete quarters: instant, concept, period_start, period_end, value, known_at, flags; one row per end."""
    days = (pl.col("period_end") - pl.col("period_start")).dt.total_days() + 1
    quarters = pl.coalesce(*(pl.when(days.is_between(*span)).then(number) for number, span in enumerate(SPANS_DAYS, start=1)))
    spans = flows.with_columns(quarters.alias("quarters")).drop_nulls("quarters")
    derived = spans.join(
        spans.with_columns(pl.col("quarters") + 1), on=["instant", "concept", "period_start", "quarters"], suffix="_before"
    ).select(
        "instant",
        "concept",
        pl.col("period_end_before").dt.offset_by("1d").alias("period_start"),
        "period_end",
        pl.col("value") - pl.col("value_before"),
        pl.max_horizontal("known_at", "known_at_before").alias("known_at"),
        pl.col("flags") | pl.col("flags_before"),
        pl.lit(value=False).alias("is_reported"),
    )
    reported = spans.filter(pl.col("quarters") == 1).select(
        "instant", "concept", "period_start", "period_end", "value", "known_at", "flags", pl.lit(value=True).alias("is_reported")
    )
    return (
        pl.concat([reported, derived.filter(days.is_between(*QUARTER_DAYS))])
        .sort("instant", "concept", "period_end", "is_reported", "known_at", "period_start", "value")
        .unique(["instant", "concept", "period_end"], keep="last", maintain_order=True)
    )


def _trailing_sums(known: pl.DataFrame) -> list[pl.DataFrame]:
    """Per flow: instant, `end:<flow>`, the sum of the last four quarters and of the four before, known-at and flags of each."""
    newest_first = (
        _quarters(known.filter(pl.col("concept").is_in(list(TRAILING))))
        .sort("instant", "concept", "period_end", descending=[False, False, True])
        .with_columns((pl.col("period_end") - pl.col("period_end").shift(-1)).dt.total_days().is_between(*QUARTER_DAYS).alias("is_next"))
    )
    value, is_next = pl.col("value"), pl.col("is_next")
    sums = newest_first.group_by("instant", "concept").agg(
        pl.col("period_end").first().alias("end"),
        pl.when((value.head(4).count() == 4) & is_next.head(3).all()).then(value.head(4).sum()).alias("now"),
        pl.when((value.slice(4, 4).count() == 4) & is_next.head(7).all()).then(value.slice(4, 4).sum()).alias("year_ago"),
        pl.col("known_at").head(4).max().alias("now_known_at"),
        pl.col("known_at").slice(4, 4).max().alias("year_ago_known_at"),
        pl.col("flags").head(4).bitwise_or().alias("now_flags"),
        pl.col("flags").slice(4, 4).bitwise_or().alias("year_ago_flags"),
    )
    return [
        sums.filter(pl.col("concept") == concept).select(
            "instant",
            pl.col("end").alias(f"end:{concept}"),
            pl.col("now").alias(figure),
            pl.col("now_known_at").alias(f"known:{figure}"),
            pl.col("year_ago").alias(f"{figure}_year_ago"),
            pl.col("year_ago_known_at").alias(f"known:{figure}_year_ago"),
            pl.col("now_flags").alias(f"flags:{figure}"),
            pl.col("year_ago_flags").alias(f"flags:{figure}_year_ago"),
        )
        for concept, figure in TRAILING.items()
    ]


def _balance_sheets(known: pl.DataFrame) -> pl.DataFrame:
    """instant, `end:balance_sheet`, the latest balance sheet's figures and those of a year before, known-at and flags of each.

    A balance sheet is a day with equity or total assets; debts of that day alone are summed, so that one repaid since does not linger.
    """
    concept, value, known_at, flags = pl.col("concept"), pl.col("value"), pl.col("known_at"), pl.col("flags")
    is_debt = concept.is_in(DEBTS)
    sheets = (
        known.filter(is_debt | concept.is_in(ON_BALANCE_SHEET))
        .sort("instant", "period_end", "concept")
        .group_by("instant", "period_end", maintain_order=True)
        .agg(
            *(value.filter(concept == name).first().alias(name) for name in ON_BALANCE_SHEET),
            *(known_at.filter(concept == name).first().alias(f"known:{name}") for name in ON_BALANCE_SHEET),
            *(flags.filter(concept == name).first().alias(f"flags:{name}") for name in ON_BALANCE_SHEET),
            pl.when(is_debt.any() & value.filter(is_debt).is_not_null().all()).then(value.filter(is_debt).sum()).alias("debt"),
            known_at.filter(is_debt).max().alias("known:debt"),
            flags.filter(is_debt).bitwise_or().alias("flags:debt"),
            concept.is_in(ON_BALANCE_SHEET).any().alias("is_sheet"),
        )
        .filter("is_sheet")
        .drop("is_sheet")
    )
    shortest, longest = SPANS_DAYS[3]
    earlier = sheets.select(
        "instant",
        pl.col("period_end").alias("end_year_ago"),
        *(pl.col(name).name.suffix("_year_ago") for name in ON_BALANCE_SHEET),
        *(pl.col(f"{part}:{name}").name.suffix("_year_ago") for part in ("known", "flags") for name in ON_BALANCE_SHEET),
    )
    return (
        sheets.unique("instant", keep="last", maintain_order=True)
        .with_columns(pl.col("period_end").dt.offset_by(f"-{shortest}d").alias("latest_year_ago"))
        .sort("latest_year_ago")
        .join_asof(
            earlier.sort("end_year_ago"),
            left_on="latest_year_ago",
            right_on="end_year_ago",
            by="instant",
            strategy="backward",
            tolerance=timedelta(days=longest - shortest),
            check_sortedness=False,
        )
        .drop("latest_year_ago", "end_year_ago")
        .rename({"period_end": f"end:{BALANCE_SHEET}"})
    )


def _newest_shares(known: pl.DataFrame) -> pl.DataFrame:
    """instant, `end:shares_outstanding`, the newest number of shares, its known-at and flags."""
    return (
        known.filter(pl.col("concept") == SHARES)
        .sort("instant", "period_end")
        .unique("instant", keep="last", maintain_order=True)
        .select(
            "instant",
            pl.col("period_end").alias(f"end:{SHARES}"),
            pl.col("value").alias(SHARES),
            pl.col("known_at").alias(f"known:{SHARES}"),
            pl.col("flags").alias(f"flags:{SHARES}"),
        )
    )


def _first_known(versions: pl.DataFrame) -> pl.DataFrame:
    """symbol, and per group of concepts `first:<group>`, when its first fact became usable."""
    group = pl.col("concept").replace_strict(GROUPS, return_dtype=pl.String)
    first = pl.col("usable_from")
    return versions.group_by("symbol").agg(
        first.filter(group == name).min().alias(f"first:{name}") for name in dict.fromkeys(GROUPS.values())
    )


def _fresh(matched: pl.DataFrame) -> pl.DataFrame:
    """The figures that are not too old at the row's instant, `flags:facts` and `known:facts`."""
    at = pl.col("event_timestamp")
    is_fresh = {name: ((at.dt.date() - pl.col(f"end:{name}")).dt.total_days() <= MAXIMUM_AGE_DAYS).fill_null(value=False) for name in AGES}
    is_known = {name: (pl.col(f"first:{name}") <= at).fill_null(value=False) for name in AGES}
    is_stale = pl.any_horizontal(is_known[name] & ~is_fresh[name] for name in AGES) | ~pl.any_horizontal(is_known.values())
    served = {figure: is_fresh[group] & pl.col(figure).is_not_null() for figure, group in FIGURES.items()}
    flags = pl.when(is_stale).then(QualityFlag.STALE_INPUT.value).otherwise(0).cast(pl.Int64)
    for figure, is_served in served.items():
        flags = flags | (pl.when(is_served).then(f"flags:{figure}").otherwise(0) & PROPAGATED.value)
    return matched.select(
        *(pl.when(is_served).then(figure).alias(figure) for figure, is_served in served.items()),
        flags.alias("flags:facts"),
        pl.max_horizontal(pl.when(is_served).then(f"known:{figure}") for figure, is_served in served.items()).alias("known:facts"),
    )
