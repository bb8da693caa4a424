"""Figures of filings as of a row, against a brute-force reading of the dictionary's section 2d and against a firm done by hand."""

from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore_dagster.features.raw_tables import COMPANY_FACTS, CORPORATE_ACTIONS
from featurestore_dagster.indicators import fundamentals
from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS
from featurestore_dagster.pipeline.blocks.facts import FIGURES, figures
from tests.unit.pipeline.filings import CURRENCIES, DAY, STALE, Filing, Row, fact, facts_of, firms, instant, oracle, split, splits

TICK = timedelta(microseconds=1)
RESTATED, LATE = QualityFlag.RESTATED.value, QualityFlag.LATE.value

FACT_SCHEMA = {
    name: COMPANY_FACTS.schema[name] for name in (*(c.name for c in COMPANY_FACTS.columns), "event_timestamp", "known_at", "flags")
}
SPLIT_SCHEMA = {name: CORPORATE_ACTIONS.schema[name] for name in ("symbol", "event_timestamp", "known_at", "ratio", "flags")}


def _figures(asked: Iterable[tuple[str, datetime]], facts: Iterable[Row], splits: Iterable[Row] = ()) -> pl.DataFrame:
    rows = pl.DataFrame(list(asked), schema={"symbol": pl.String, "event_timestamp": UTC_MICROSECONDS}, orient="row")
    return figures(rows, pl.DataFrame(list(facts), schema=FACT_SCHEMA), pl.DataFrame(list(splits), schema=SPLIT_SCHEMA))


def _figure(name: str, at: datetime, facts: Iterable[Row], splits: Iterable[Row] = ()) -> Any:
    return _figures([("AAPL", at)], facts, splits)[name].item()


@settings(max_examples=80, deadline=None)
@given(
    several=st.fixed_dictionaries(dict.fromkeys(CURRENCIES, firms)),
    actions=splits,
    corrected=st.booleans(),
    data=st.data(),
)
def test_figures_are_what_the_dictionary_says(
    several: dict[str, tuple[str, list[Filing]]], actions: list[tuple[str, int, float | None, int]], corrected: bool, data: st.DataObject
) -> None:
    facts = [row for symbol, (calendar, firm) in several.items() for row in facts_of(symbol, calendar, firm)]
    opened = datetime(2018, 6, 1, 14, 30, tzinfo=UTC)
    known_splits = [
        split(symbol, opened + days * DAY, ratio, opened + (days + late) * DAY, flags=LATE if late > 0 else 0)
        for symbol, days, ratio, late in actions
    ]
    if corrected:
        known_splits += [row | {"ratio": 4.0, "known_at": row["known_at"] + 50 * DAY, "flags": RESTATED} for row in known_splits]
    turns = {max(row["event_timestamp"], row["known_at"]) for row in (*facts, *known_splits)}
    edges = {instant(row["period_end"] + days * DAY) for row in facts for days in (200, 201)}
    candidates = sorted(turns | {turn - TICK for turn in turns} | edges)
    asked = (
        data.draw(st.lists(st.tuples(st.sampled_from(list(CURRENCIES)), st.sampled_from(candidates)), min_size=8, max_size=20))
        if candidates
        else []
    )

    found = _figures(asked, facts, known_splits)
    shuffled = _figures(asked, data.draw(st.permutations(facts)), data.draw(st.permutations(known_splits)))

    assert shuffled.equals(found)
    for row, (symbol, at) in zip(found.iter_rows(named=True), asked, strict=True):
        expected = oracle(facts, known_splits, symbol, at)
        assert {name: row[name] for name in expected} == {
            name: pytest.approx(value, rel=1e-12, abs=1e-11) if isinstance(value, float) else value for name, value in expected.items()
        }, (symbol, at)


# A firm done by hand: fiscal years end in June, millions of dollars and shares, dollars per share.

YEARS = (
    (date(2019, 7, 1), date(2019, 9, 30), date(2019, 12, 31), date(2020, 3, 31), date(2020, 6, 30)),
    (date(2020, 7, 1), date(2020, 9, 30), date(2020, 12, 31), date(2021, 3, 31), date(2021, 6, 30)),
)
NET_INCOME = ((10.0, 11.0, 12.0, 40.0), (12.0, 14.0, 16.0, 52.0))
EPS = ((1.00, 1.10, 1.20, 4.00), (1.20, 1.40, 1.60, 5.20))
REVENUE_TO_DATE = ((100.0, 210.0, 330.0, 460.0), (120.0, 252.0, 396.0, 552.0))
EQUITY = ((170.0, 180.0, 190.0, 200.0), (210.0, 220.0, 230.0, 240.0))
ASSETS = ((450.0, 460.0, 470.0, 480.0), (500.0, 520.0, 540.0, 560.0))
FILED = instant(date(2021, 8, 10))
"""The last annual report. Net income and EPS are given by quarter and by year, revenue by year to date."""


def _hand_firm() -> list[Row]:
    facts = []
    for year, (first, *ends) in enumerate(YEARS):
        for number, end in enumerate(ends):
            start = first if number in {0, 3} else ends[number - 1] + DAY
            filed = instant(end + (41 if number == 3 else 30) * DAY)
            facts += [
                fact("net_income", start, end, NET_INCOME[year][number], filed),
                fact("eps_diluted", start, end, EPS[year][number], filed),
                fact("revenue", first, end, REVENUE_TO_DATE[year][number], filed),
                fact("equity", end, end, EQUITY[year][number], filed),
                fact("total_assets", end, end, ASSETS[year][number], filed),
            ]
            if number == 2:
                facts += [
                    fact("net_income", first, end, sum(NET_INCOME[year][:3]), filed),
                    fact("eps_diluted", first, end, sum(EPS[year][:3]), filed),
                ]
    debts = {"short_term_debt": 20.0, "current_portion_of_long_term_debt": 10.0, "long_term_debt": 90.0}
    balance = YEARS[1][-1]
    facts += [fact(concept, balance, balance, owed, FILED) for concept, owed in debts.items()]
    return [*facts, fact("shares_outstanding", date(2021, 8, 2), date(2021, 8, 2), 10.0, FILED)]


HAND_FIRM = _hand_firm()
AFTER = FILED + 20 * DAY


def test_a_firm_done_by_hand() -> None:
    found = _figures([("AAPL", AFTER)], HAND_FIRM).with_columns(raw_close=pl.lit(104.0), daily_volume=pl.lit(0.05))
    expected = {
        fundamentals.market_cap: 1040.0,
        fundamentals.pe_ratio: 104 / 5.2,
        fundamentals.pb_ratio: 1040 / 240,
        fundamentals.roe: 52 / 220,
        fundamentals.roa: 0.1,
        fundamentals.debt_to_equity: 0.5,
        fundamentals.debt_to_assets: 120 / 560,
        fundamentals.revenue_growth_yoy: 0.2,
        fundamentals.eps_growth_yoy: 0.3,
        fundamentals.net_income_growth_yoy: 0.3,
        fundamentals.turnover_ratio: 0.005,
    }
    values = found.select(indicator.feature().expression() for indicator in expected).row(0, named=True)
    assert values == {indicator.name: pytest.approx(value, rel=1e-12) for indicator, value in expected.items()}
    assert found["flags:facts"].item() == 0
    assert found["known:facts"].item() == FILED


def test_the_annual_report_counts_from_its_acceptance_on() -> None:
    found = _figures([("AAPL", FILED - TICK), ("AAPL", FILED)], HAND_FIRM)
    assert found["net_income_ttm"].to_list() == [7.0 + 12 + 14 + 16, 52.0]
    assert found["equity"].to_list() == [230.0, 240.0]


def test_flags_are_those_of_the_facts_behind_the_figures() -> None:
    """Of a quarter and of a split since the filing, but not of a version that was replaced, an old quarter or an old split."""
    simulated, imputed, fallback = QualityFlag.SIMULATED.value, QualityFlag.IMPUTED.value, QualityFlag.FALLBACK_SOURCE.value
    first = [row for row in HAND_FIRM if row["concept"] == "revenue" and row["period_end"] == YEARS[1][1]]
    assert len(first) == 1
    others = [row for row in HAND_FIRM if row not in first]

    def flags(*facts: Row, splits: Iterable[Row] = ()) -> int:
        return int(_figure("flags:facts", AFTER, [*others, *facts], splits))

    clipped = QualityFlag.CLIPPED.value
    assert flags(first[0] | {"flags": simulated | clipped}) == simulated
    assert flags(first[0] | {"flags": simulated}, first[0] | {"flags": RESTATED, "known_at": FILED}) == RESTATED
    too_old = first[0] | {"period_start": date(2015, 1, 1), "period_end": date(2015, 3, 31), "flags": imputed}
    assert flags(*first, too_old) == 0
    assert flags(*first, splits=[split("AAPL", FILED + 5 * DAY, 2.0, flags=fallback)]) == fallback
    assert flags(*first, splits=[split("AAPL", instant(date(2019, 1, 2)), 2.0, flags=fallback)]) == 0, "all was filed after it"


def test_a_split_after_the_filing_changes_no_ratio() -> None:
    action, dividend = split("AAPL", FILED + 10 * DAY, 4.0), split("AAPL", FILED + 5 * DAY, None)
    before, after = _figures([("AAPL", FILED + 10 * DAY - TICK), ("AAPL", FILED + 10 * DAY)], HAND_FIRM, [action, dividend]).rows(
        named=True
    )
    assert (before["eps_ttm"], before["shares_outstanding"]) == (pytest.approx(5.2), 10.0)
    assert (after["eps_ttm"], after["shares_outstanding"]) == (pytest.approx(1.3), 40.0)
    assert after["eps_ttm_year_ago"] == pytest.approx(1.0)
    assert after["known:facts"] == action["known_at"]
    assert {name: after[name] for name in FIGURES if "eps" not in name and "shares" not in name} == {
        name: before[name] for name in FIGURES if "eps" not in name and "shares" not in name
    }


def test_a_split_between_two_quarters_is_in_the_later_filing_already() -> None:
    action = split("AAPL", instant(date(2021, 3, 1), 14), 4.0)
    quartered = [
        row | {"value": row["value"] / 4} if row["concept"] == "eps_diluted" and row["event_timestamp"] > action["known_at"] else row
        for row in HAND_FIRM
    ]
    assert _figure("eps_ttm", AFTER, quartered, [action]) == pytest.approx(1.3)
    assert _figure("shares_outstanding", AFTER, quartered, [action]) == 10.0


def test_an_amended_annual_report_is_read_before_and_after() -> None:
    first, last = YEARS[1][0], YEARS[1][-1]
    amended = AFTER + 10 * DAY
    correction = fact("net_income", first, last, 50.0, amended, form="10-K/A", known_at=amended + 5 * DAY)
    asked = [("AAPL", at) for at in (amended, amended + 5 * DAY - TICK, amended + 5 * DAY)]
    found = _figures(asked, [*HAND_FIRM, correction])
    assert found["net_income_ttm"].to_list() == [52.0, 52.0, 50.0]
    assert found["known:facts"].to_list() == [FILED, FILED, amended + 5 * DAY]


def test_an_amended_nine_months_report_moves_the_fourth_quarter() -> None:
    amended = AFTER + 10 * DAY
    correction = fact("net_income", YEARS[1][0], YEARS[1][3], 43.0, amended, form="10-Q/A")
    found = _figures([("AAPL", AFTER), ("AAPL", amended)], [*HAND_FIRM, correction])
    assert found["net_income_ttm"].to_list() == [52.0, 51.0]
    assert found["known:facts"].to_list() == [FILED, amended]


def test_a_version_that_arrives_out_of_order_does_not_hide_one_known_later() -> None:
    end = YEARS[1][-1]
    early = fact("equity", end, end, 7.0, AFTER + 5 * DAY, known_at=AFTER + DAY)
    late = fact("equity", end, end, 8.0, AFTER, known_at=AFTER + 3 * DAY)
    found = _figures([("AAPL", AFTER + days * DAY) for days in (1, 3, 5)], [*HAND_FIRM, early, late])
    assert found["equity"].to_list() == [240.0, 8.0, 8.0]


def test_a_filing_at_the_instant_of_the_split_is_in_new_shares() -> None:
    assert _figure("shares_outstanding", AFTER, HAND_FIRM, [split("AAPL", FILED, 4.0)]) == 10.0
    assert _figure("shares_outstanding", AFTER, HAND_FIRM, [split("AAPL", FILED + TICK, 4.0)]) == 40.0


def test_a_fourth_quarter_of_four_months_is_no_quarter() -> None:
    first, last = date(2019, 9, 25), date(2020, 9, 30)
    periods = [(first, last - 111 * DAY), (first, last)]
    periods += [(last + DAY, date(2020, 12, 31)), (date(2021, 1, 1), date(2021, 3, 31)), (date(2021, 4, 1), date(2021, 6, 30))]
    facts = [fact("net_income", start, end, 9.0, FILED) for start, end in periods]
    assert _figure("net_income_ttm", AFTER, facts) is None
    nine_months = fact("net_income", first, date(2020, 6, 30), 5.0, FILED)
    assert _figure("net_income_ttm", AFTER, [*facts[1:], nine_months]) == 31.0


def test_two_hundred_days_are_fresh_and_one_more_is_stale() -> None:
    end = YEARS[1][-1]
    last = end + 200 * DAY
    counted = fact("shares_outstanding", last - DAY, last - DAY, 11.0, instant(last))
    found = _figures([("AAPL", instant(last)), ("AAPL", instant(last + DAY))], [*HAND_FIRM, counted])
    assert found["flags:facts"].to_list() == [0, STALE]
    assert found["equity"].to_list() == [240.0, None]
    assert found["net_income_ttm"].to_list() == [52.0, None]
    assert found["revenue_ttm_year_ago"].to_list() == [460.0, None]
    assert found["shares_outstanding"].to_list() == [11.0, 11.0]


def test_what_was_never_filed_is_not_stale_but_silence_is() -> None:
    shares = [row for row in HAND_FIRM if row["concept"] == "shares_outstanding"]
    found = _figures([("AAPL", FILED - TICK), ("AAPL", FILED), ("IBM", FILED)], shares)
    assert found["flags:facts"].to_list() == [STALE, 0, STALE]
    assert found["shares_outstanding"].to_list() == [None, 10.0, None]
    assert found["known:facts"].to_list() == [None, FILED, None]


def test_a_concept_given_up_years_ago_is_stale() -> None:
    first, *ends = YEARS[0]
    old = [fact("revenue", first.replace(year=2012), ends[0].replace(year=2012), 9.0, instant(date(2012, 11, 1)))]
    found = _figures([("AAPL", AFTER)], [*old, *(row for row in HAND_FIRM if row["concept"] != "revenue")])
    assert (found["flags:facts"].item(), found["revenue_ttm"].item(), found["net_income_ttm"].item()) == (STALE, None, 52.0)


@pytest.mark.parametrize(
    ("concept", "end", "lost"),
    [
        ("net_income", date(2020, 12, 31), {"net_income_ttm"}),
        ("revenue", date(2020, 3, 31), {"revenue_ttm_year_ago"}),
        ("equity", date(2021, 6, 30), {"equity"}),
        ("total_assets", date(2020, 6, 30), {"total_assets_year_ago"}),
        ("short_term_debt", date(2021, 6, 30), {"debt"}),
    ],
)
def test_another_currency_is_not_mixed(concept: str, end: date, lost: set[str]) -> None:
    mixed = [row | {"unit": "EUR"} if (row["concept"], row["period_end"]) == (concept, end) else row for row in HAND_FIRM]
    found, whole = (_figures([("AAPL", AFTER)], facts).row(0, named=True) for facts in (mixed, HAND_FIRM))
    assert {name for name in FIGURES if found[name] != whole[name]} == lost
    assert all(found[name] is None for name in lost)


def test_a_missing_quarter_has_no_sum() -> None:
    gone = [row for row in HAND_FIRM if (row["concept"], row["period_end"]) != ("eps_diluted", date(2020, 12, 31))]
    assert _figure("eps_ttm", AFTER, gone) is None
    assert _figure("net_income_ttm", AFTER, gone) == 52.0


def test_only_the_debts_of_the_last_balance_sheet_count() -> None:
    repaid = [row for row in HAND_FIRM if row["concept"] not in {"short_term_debt", "long_term_debt"}]
    before = YEARS[1][-2]
    old = fact("long_term_debt", before, before, 500.0, instant(before + 30 * DAY))
    assert _figure("debt", AFTER, [*repaid, old]) == 10.0
    assert _figure("debt", AFTER, [row for row in HAND_FIRM if "debt" not in row["concept"]]) is None


def test_rows_keep_their_order_and_columns() -> None:
    rows = pl.DataFrame(
        {"symbol": ["IBM", "AAPL", "AAPL"], "event_timestamp": [AFTER, AFTER, FILED - DAY], "raw_close": [3.0, 1.0, 2.0]},
        schema_overrides={"event_timestamp": UTC_MICROSECONDS},
    )
    found = figures(rows, pl.DataFrame(HAND_FIRM, schema=FACT_SCHEMA), pl.DataFrame(schema=SPLIT_SCHEMA))
    assert found.select(rows.columns).equals(rows)
    assert found["net_income_ttm"].to_list() == [None, 52.0, 49.0]
    assert figures(rows.clear(), pl.DataFrame(schema=FACT_SCHEMA), pl.DataFrame(schema=SPLIT_SCHEMA)).schema == found.schema
