"""Which staged rows are new versions, and the fingerprint of what is published."""

from datetime import datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.projections.relation import dataset_relation
from featurestore_dagster.stores.postgres.fingerprint import content_hashes, content_sums
from featurestore_dagster.stores.postgres.versions import new_versions
from tests.unit.pipeline.frames import EQUITIES, MONDAY, bar, close_of, frame

BARS = dataset_relation(EQUITIES)
CLOSE = close_of(MONDAY)
NOW = CLOSE + timedelta(days=1)
SECOND = timedelta(seconds=1)


def _new(staged: list[dict[str, Any]], stored: list[dict[str, Any]], now: datetime = NOW) -> list[dict[str, Any]]:
    new, late = new_versions(BARS, frame(staged), frame(stored), now)
    assert late.is_empty()
    return new.rows(named=True)


def test_the_first_version_keeps_its_own_known_at() -> None:
    (row,) = _new([bar(MONDAY)], [])
    assert (row["known_at"], row["flags"], row["known_at_basis"]) == (CLOSE, 0, "assumed")


def test_the_same_content_is_no_version() -> None:
    assert _new([bar(MONDAY)], [bar(MONDAY)]) == []
    assert _new([bar(MONDAY, known_at=NOW, known_at_basis="observed")], [bar(MONDAY)]) == []
    assert _new([bar(MONDAY, close=101.0 * (1 + 1e-10))], [bar(MONDAY)]) == []


@pytest.mark.parametrize("change", [{"close": 101.5}, {"volume": None}, {"adjusted_close": 50.0}, {"close": 101.0 * (1 + 1e-8)}], ids=str)
def test_another_value_is_a_correction_known_now(change: dict[str, Any]) -> None:
    (row,) = _new([bar(MONDAY, **change)], [bar(MONDAY)])
    assert {name: row[name] for name in change} == change
    assert (row["known_at"], row["flags"], row["known_at_basis"]) == (NOW, QualityFlag.RESTATED, "observed")


def test_a_correction_that_says_when_it_came_keeps_that_time() -> None:
    (row,) = _new([bar(MONDAY, close=101.5, known_at=CLOSE + SECOND, known_at_basis="observed")], [bar(MONDAY)])
    assert row["known_at"] == CLOSE + SECOND


def test_corrections_within_one_reading_of_the_clock_stay_apart() -> None:
    first = bar(MONDAY, known_at=NOW, known_at_basis="observed")
    (second,) = _new([bar(MONDAY, close=101.5, known_at=NOW, known_at_basis="observed")], [first])
    assert second["known_at"] == NOW + timedelta(microseconds=1)
    (third,) = _new([bar(MONDAY, close=100.5, known_at=NOW, known_at_basis="observed")], [first, second])
    assert third["known_at"] == NOW + timedelta(microseconds=2)


def test_only_another_flag_is_a_version_but_not_restated() -> None:
    (row,) = _new([bar(MONDAY, flags=QualityFlag.IMPUTED.value)], [bar(MONDAY)])
    assert row["flags"] == QualityFlag.IMPUTED
    assert _new([bar(MONDAY)], [bar(MONDAY, flags=QualityFlag.RESTATED.value)]) == []


def test_a_value_that_returns_to_what_it_was_is_a_version() -> None:
    stored = [bar(MONDAY), bar(MONDAY, close=101.5, known_at=NOW)]
    (row,) = _new([bar(MONDAY)], stored, NOW + SECOND)
    assert (row["close"], row["known_at"]) == (101.0, NOW + SECOND)


def test_vintages_of_one_batch_are_versions_of_each_other() -> None:
    vintages = [
        bar(MONDAY, close=close, known_at=CLOSE + days * SECOND, known_at_basis="observed")
        for days, close in enumerate((101.0, 101.0, 101.5))
    ]
    rows = _new(vintages, [])
    assert [(row["close"], row["known_at"], row["flags"]) for row in rows] == [
        (101.0, CLOSE, 0),
        (101.5, CLOSE + 2 * SECOND, QualityFlag.RESTATED),
    ]
    assert _new(vintages, rows) == []


def test_an_older_vintage_with_another_value_is_too_late() -> None:
    stored = [bar(MONDAY, known_at=NOW, known_at_basis="observed")]
    older = bar(MONDAY, close=99.5, known_at=CLOSE, known_at_basis="observed")
    new, late = new_versions(BARS, frame([older, bar(MONDAY, "BBB")]), frame(stored), NOW)
    assert new["symbol"].to_list() == ["BBB"]
    assert late.rows(named=True) == [older]


def test_identities_are_equal_column_by_column() -> None:
    rows = [bar(MONDAY, "A", source="BX"), bar(MONDAY, "AB", source="X")]
    assert len(_new(rows, [])) == 2
    assert [row["symbol"] for row in _new([{**row, "close": 101.5} for row in rows], rows[:1])] == ["A", "AB"]


values = st.sampled_from([99.5, 100.0, 101.0])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(values, st.integers(0, 3), st.booleans()), min_size=1, max_size=8))
def test_publishing_again_writes_nothing_and_the_newest_version_is_the_last_delivery(deliveries: list[tuple[float, int, bool]]) -> None:
    """Deliveries arrive one after another; known-at is assumed, or observed on arrival."""
    stored: list[dict[str, Any]] = []
    now = CLOSE
    for close, seconds, observed in deliveries:
        now += seconds * SECOND
        other = {"known_at": now, "known_at_basis": "observed"} if observed else {}
        staged = [bar(MONDAY, close=close, **other)]
        stored += _new(staged, stored, now)
        assert max(stored, key=lambda row: row["known_at"])["close"] == close
        assert _new(staged, stored, now) == []
    known = [row["known_at"] for row in stored]
    assert known == sorted(set(known))
    assert all(row["flags"] == (QualityFlag.RESTATED if number else 0) for number, row in enumerate(stored))


def _hashes(rows: list[dict[str, Any]]) -> dict[str, str]:
    made = frame(rows)
    return content_hashes(content_sums(BARS, made, made["event_timestamp"].dt.date().cast(pl.String)))


def test_the_fingerprint_is_of_contents_only() -> None:
    rows = [bar(MONDAY, "AAA"), bar(MONDAY, "BBB"), bar("2018-12-04", "AAA", volume=None)]
    found = _hashes(rows)
    assert set(found) == {MONDAY, "2018-12-04"}
    assert _hashes(rows[::-1]) == found
    assert _hashes([{**row, "known_at": NOW, "flags": QualityFlag.RESTATED.value} for row in rows]) == found


@pytest.mark.parametrize(
    "change", [{"close": 101.00000000000001}, {"volume": None}, {"flags": 1 << 14}, {"source": "x"}, {"symbol": "AAB"}], ids=str
)
def test_the_fingerprint_sees_every_bit(change: dict[str, Any]) -> None:
    assert _hashes([{**bar(MONDAY), **change}]) != _hashes([bar(MONDAY)])
