"""Filings for the tests of `blocks.facts`: rows, firms that file badly, and a brute-force reading of the dictionary's section 2d.

The reading takes one row at a time, in plain dictionaries. No assertion belongs here.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from functools import reduce
from operator import or_
from typing import Any

from hypothesis import strategies as st

from featurestore_dagster.model.flags import PROPAGATED, QualityFlag
from featurestore_dagster.pipeline.blocks.facts import FIGURES

CURRENCIES = {"AAPL": "USD", "IBM": "USD", "USDCOP": "COP"}
STALE = QualityFlag.STALE_INPUT.value
DAY = timedelta(days=1)

Row = dict[str, Any]


def instant(day: date, hour: int = 21) -> datetime:
    """An instant of the day, UTC."""
    return datetime(day.year, day.month, day.day, hour, tzinfo=UTC)


def fact(concept: str, start: date, end: date, value: float, filed: datetime, /, **other: Any) -> Row:
    """A fact of AAPL in dollars, known when it was filed; `other` replaces columns."""
    units = {"eps_diluted": "USD/shares", "shares_outstanding": "shares"}
    return {
        "symbol": "AAPL",
        "concept": concept,
        "period_start": start,
        "period_end": end,
        "accession": f"{filed:%Y%m%d}",
        "form": "10-Q",
        "unit": units.get(concept, "USD"),
        "value": value,
        "event_timestamp": filed,
        "known_at": filed,
        "flags": 0,
    } | other


def split(symbol: str, at: datetime, ratio: float | None, known_at: datetime | None = None, flags: int = 0) -> Row:
    """A split as `figures` reads it."""
    return {"symbol": symbol, "event_timestamp": at, "known_at": known_at or at, "ratio": ratio, "flags": flags}


@dataclass(frozen=True)
class _Known:
    """A figure, when its youngest part was known, and the flags of its parts; the value is None when reported in another unit."""

    value: float | None
    known_at: datetime
    flags: int


def _merged(value: float | None, parts: Iterable[_Known]) -> _Known:
    found = list(parts)
    return _Known(value, max(part.known_at for part in found), reduce(or_, (part.flags for part in found)))


def _visible(rows: Iterable[Row], symbol: str, at: datetime) -> list[Row]:
    return [row for row in rows if row["symbol"] == symbol and row["event_timestamp"] <= at and row["known_at"] <= at]


def _as_of(facts: Sequence[Row], splits: Sequence[Row], symbol: str, at: datetime) -> dict[tuple[str, date, date], _Known]:
    """Figures by concept and period, newest known-at wins, per-share items brought to `at`."""
    currency = CURRENCIES[symbol]

    def right_unit(row: Row) -> bool:
        expected = {"eps_diluted": f"{currency}/shares", "shares_outstanding": "shares"}.get(row["concept"], currency)
        return bool(row["unit"] == expected)

    def order(row: Row) -> tuple[Any, ...]:
        return (row["known_at"], row["event_timestamp"], right_unit(row), row["accession"])

    ratios: dict[datetime, Row] = {}
    for action in sorted(_visible(splits, symbol, at), key=lambda version: version["known_at"]):
        if action["ratio"] is not None:
            ratios[action["event_timestamp"]] = action
    winners: dict[tuple[str, date, date], _Known] = {}
    for row in sorted(_visible(facts, symbol, at), key=order):
        later = [action for action in ratios.values() if action["event_timestamp"] > row["event_timestamp"]]
        factor = math.prod(action["ratio"] for action in later)
        value, known_at, flags = row["value"] if right_unit(row) else None, row["known_at"], row["flags"]
        if row["concept"] in {"eps_diluted", "shares_outstanding"}:
            known_at = max([known_at, *(action["known_at"] for action in later)])
            flags = reduce(or_, (action["flags"] for action in later), flags)
            if value is not None:
                value = value / factor if row["concept"] == "eps_diluted" else value * factor
        winners[row["concept"], row["period_start"], row["period_end"]] = _Known(value, known_at, flags)
    return winners


def _discrete(winners: dict[tuple[str, date, date], _Known], concept: str) -> dict[date, _Known]:
    """Quarters by their last day: reported, else year-to-date differences."""

    def length(start: date, end: date) -> str | None:
        days = (end - start).days + 1
        spans = {"quarter": (80, 100), "half": (170, 190), "nine months": (260, 280), "year": (350, 380)}
        return next((name for name, (least, most) in spans.items() if least <= days <= most), None)

    flows = {(start, end): known for (name, start, end), known in winners.items() if name == concept}
    found = {}
    for longer, shorter in (("half", "quarter"), ("nine months", "half"), ("year", "nine months")):
        for (start, end), known in flows.items():
            for (other_start, other_end), before in flows.items():
                if length(start, end) != longer or length(other_start, other_end) != shorter or start != other_start:
                    continue
                if length(other_end + DAY, end) == "quarter":
                    value = None if known.value is None or before.value is None else known.value - before.value
                    found[end] = _merged(value, (known, before))
    return found | {end: known for (start, end), known in flows.items() if length(start, end) == "quarter"}


def _sum_of_four(quarters: dict[date, _Known], ends: list[date]) -> _Known | None:
    """Sum of the first four of `ends`, None unless all of them lie 80-100 days apart."""
    if len(ends) < 4 or any(not 80 <= (later - end).days <= 100 for end, later in itertools.pairwise(ends)):
        return None
    summed = [quarters[end] for end in ends[:4]]
    if any(quarter.value is None for quarter in summed):
        return None
    return _merged(math.fsum(quarter.value or 0 for quarter in summed), summed)


def oracle(facts: Sequence[Row], splits: Sequence[Row], symbol: str, at: datetime) -> Row:
    """What `figures` must add to the row of `symbol` at `at`."""
    winners = _as_of(facts, splits, symbol, at)
    found: dict[str, _Known | None] = dict.fromkeys(FIGURES)
    stale = not winners

    def too_old(end: date) -> bool:
        return (at.date() - end).days > 200

    for concept, name in (("net_income", "net_income_ttm"), ("revenue", "revenue_ttm"), ("eps_diluted", "eps_ttm")):
        quarters = _discrete(winners, concept)
        ends = sorted(quarters)
        if not ends or too_old(ends[-1]):
            stale |= any(key[0] == concept for key in winners)
            continue
        found[name] = _sum_of_four(quarters, ends[-4:])
        found[f"{name}_year_ago"] = _sum_of_four(quarters, ends[-8:]) if len(ends) >= 8 else None

    debts = ("short_term_debt", "current_portion_of_long_term_debt", "long_term_debt")
    sheets = sorted({end for concept, _, end in winners if concept in {"equity", "total_assets"}})
    if sheets and not too_old(sheets[-1]):
        end = sheets[-1]
        year_ago = max((earlier for earlier in sheets if 350 <= (end - earlier).days <= 380), default=None)
        for name in ("equity", "total_assets"):
            found[name] = winners.get((name, end, end))
            found[f"{name}_year_ago"] = winners.get((name, year_ago, year_ago)) if year_ago else None
        owed = [winners[name, end, end] for name in debts if (name, end, end) in winners]
        if owed and all(debt.value is not None for debt in owed):
            found["debt"] = _merged(math.fsum(debt.value or 0 for debt in owed), owed)
    elif any(concept in {"equity", "total_assets", *debts} for concept, _, _ in winners):
        stale = True

    if counts := sorted(end for concept, _, end in winners if concept == "shares_outstanding"):
        if too_old(counts[-1]):
            stale = True
        else:
            found["shares_outstanding"] = winners["shares_outstanding", counts[-1], counts[-1]]

    served = {name: known for name, known in found.items() if known and known.value is not None}
    return {
        **{name: served[name].value if name in served else None for name in FIGURES},
        "flags:facts": reduce(or_, (known.flags & PROPAGATED.value for known in served.values()), STALE if stale else 0),
        "known:facts": max((known.known_at for known in served.values()), default=None),
    }


@dataclass(frozen=True)
class Filing:
    """One quarter's report: when it came, what it says, and what went wrong with it."""

    lag_days: int
    delay_days: int
    style: str
    seed: int
    wrong_unit: bool
    repeats_last_year: bool
    amended_after_days: int | None
    debts: tuple[str, ...]
    flags: int = 0


filings = st.builds(
    Filing,
    lag_days=st.sampled_from([40, 25, 40, 40, 40, 40, 40, 95, 260]),
    delay_days=st.sampled_from([0, 0, 0, 4, 120, -3]),
    style=st.sampled_from(["both"] * 6 + ["quarter"] * 2 + ["year to date"] * 4 + ["none"]),
    seed=st.integers(0, 999),
    wrong_unit=st.sampled_from([False] * 23 + [True]),
    repeats_last_year=st.booleans(),
    amended_after_days=st.sampled_from([None, None, None, 30, 400]),
    debts=st.sampled_from([(), ("long_term_debt",), ("short_term_debt", "current_portion_of_long_term_debt", "long_term_debt")]),
    flags=st.sampled_from([0, 0, 0, 0, 0, *(flag.value for flag in QualityFlag)]),
)


def _ends(calendar: str, quarters: int) -> list[date]:
    """Ends of fiscal quarters; the first is the day before the first fiscal year."""
    if calendar == "weeks":
        return list(itertools.accumulate((timedelta(weeks=14 if n % 8 == 7 else 13) for n in range(quarters)), initial=date(2018, 2, 3)))
    if calendar == "moved":
        fiscal, moved = _ends("december", quarters), _ends("january", quarters)
        return [*fiscal[:6], *moved[6:]]
    months = [{"december": 12, "june": 18, "january": 13}[calendar] + 3 * n for n in range(quarters + 1)]
    return [date(2017 + month // 12, month % 12 + 1, 1) - DAY for month in months]


def _value(concept: str, quarter: int, seed: int) -> float:
    return float((sum(map(ord, concept)) * (quarter + 3) + seed * 7) % 97 - 20)


def _reported(symbol: str, ends: list[date], number: int, filing: Filing, filed: datetime, form: str) -> list[Row]:
    """What one filing says of quarter `number`."""
    currency = "EUR" if filing.wrong_unit else CURRENCIES[symbol]
    start, end, first = ends[number] + DAY, ends[number + 1], number - number % 4
    known_at = filed + filing.delay_days * DAY
    about = {"symbol": symbol, "form": form, "accession": f"{number}-{form}-{filed:%j}", "event_timestamp": filed, "known_at": known_at}
    about |= {"flags": filing.flags}
    money, per_share = about | {"unit": currency}, about | {"unit": f"{currency}/shares"}
    shift = filing.seed if form.endswith("/A") else 0
    rows = []
    for concept in ("net_income", "revenue", "eps_diluted"):
        unit = per_share if concept == "eps_diluted" else money
        alone = _value(concept, number, filing.seed) + shift
        to_date = sum(_value(concept, n, filing.seed) for n in range(first, number + 1)) + shift
        is_annual = number % 4 == 3
        if filing.style == "quarter" or (filing.style == "both" and not is_annual):
            rows.append(fact(concept, start, end, alone, filed, **unit))
        if filing.style in {"both", "year to date"} and number % 4:
            rows.append(fact(concept, ends[first] + DAY, end, to_date, filed, **unit))
        if filing.style == "year to date" and number % 4 == 0:
            rows.append(fact(concept, start, end, alone, filed, **unit))
    rows += [
        fact(concept, end, end, _value(concept, number, filing.seed) + shift, filed, **money)
        for concept in ("equity", "total_assets", *filing.debts)
    ]
    counted = filed.date() - 9 * DAY
    return [*rows, fact("shares_outstanding", counted, counted, 100.0 + filing.seed, filed, **about)]


def facts_of(symbol: str, calendar: str, firm: list[Filing]) -> list[Row]:
    """All facts of a firm's filings, amendments and last year's figures included."""
    ends = _ends(calendar, len(firm))
    rows: list[Row] = []
    for number, filing in enumerate(firm):
        if filing.style == "none":
            continue
        filed, form = instant(ends[number + 1] + filing.lag_days * DAY), "10-K" if number % 4 == 3 else "10-Q"
        rows += _reported(symbol, ends, number, filing, filed, form)
        if filing.repeats_last_year and number >= 4:
            rows += [
                row | {"accession": f"{number}-{form}"}
                for row in _reported(symbol, ends, number - 4, replace(filing, seed=filing.seed + 1, debts=()), filed, form)
                if row["concept"] != "shares_outstanding"
            ]
        if filing.amended_after_days is not None:
            amended = filed + filing.amended_after_days * DAY
            rows += _reported(symbol, ends, number, replace(filing, wrong_unit=False), amended, f"{form}/A")
    return rows


firms = st.tuples(
    st.sampled_from(["december", "june", "weeks", "january", "moved"]),
    st.lists(filings, min_size=6, max_size=13),
)
splits = st.lists(
    st.tuples(
        st.sampled_from(list(CURRENCIES)),
        st.integers(0, 1200),
        st.sampled_from([2.0, 3.0, 0.1, 1.5, 7.0, None]),
        st.sampled_from([0, 0, 90, -1]),
    ),
    max_size=4,
    unique_by=lambda action: action[:2],
)
