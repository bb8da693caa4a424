"""The point-in-time join against a brute-force oracle."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore_dagster.model.raw_table import UTC_MICROSECONDS
from featurestore_dagster.pipeline.bitemporal import join_visible

ORIGIN = datetime(2018, 12, 3, 14, 30, tzinfo=UTC)
KEYS = [("A", "BX"), ("AB", "X"), ("A", ""), ("", "A")]
"""Keys that a join on their concatenation would mix up."""

instants = st.integers(0, 6).map(lambda n: ORIGIN + timedelta(microseconds=n))
key = st.sampled_from(KEYS)
Version = tuple[tuple[str, str], datetime, datetime]


def _versions(rows: Sequence[Version]) -> pl.DataFrame:
    return pl.DataFrame(
        [{"symbol": k[0], "timeframe": k[1], "event": event, "known": known, "value": n} for n, (k, event, known) in enumerate(rows)],
        schema={"symbol": pl.String, "timeframe": pl.String, "event": UTC_MICROSECONDS, "known": UTC_MICROSECONDS, "value": pl.Int64},
    )


def _asked(rows: Sequence[tuple[tuple[str, str], datetime]]) -> pl.DataFrame:
    return pl.DataFrame(
        [{"symbol": k[0], "timeframe": k[1], "at": at, "label": f"row {n}"} for n, (k, at) in enumerate(rows)],
        schema={"symbol": pl.String, "timeframe": pl.String, "at": UTC_MICROSECONDS, "label": pl.String},
    )


def _oracle(asked: pl.DataFrame, versions: pl.DataFrame, keys: Sequence[str]) -> list[dict[str, Any]]:
    answers = []
    for row in asked.iter_rows(named=True):
        visible = [
            v
            for v in versions.iter_rows(named=True)
            if all(v[name] == row[name] for name in keys) and v["event"] <= row["at"] and v["known"] <= row["at"]
        ]
        won = max(visible, key=lambda v: (v["event"], v["known"]), default=dict.fromkeys(versions.columns))
        answers.append({**row, **{name: won[name] for name in versions.columns if name not in ("symbol", "timeframe")}})
    return answers


@settings(max_examples=300, deadline=None)
@given(
    versions=st.lists(st.tuples(key, instants, instants), max_size=25, unique=True),
    asked=st.lists(st.tuples(key, instants), max_size=12),
)
def test_the_join_is_the_rule(versions: list[Version], asked: list[tuple[tuple[str, str], datetime]]) -> None:
    left, right = _asked(asked), _versions(versions)
    found = join_visible(left, right, keys=["symbol", "timeframe"], at="at", event_time="event", known_at="known")
    assert found.rows(named=True) == _oracle(left, right, ["symbol", "timeframe"])


@settings(max_examples=100, deadline=None)
@given(
    versions=st.lists(st.tuples(instants, instants), max_size=15, unique=True),
    asked=st.lists(instants, max_size=8),
)
def test_without_keys(versions: list[tuple[datetime, datetime]], asked: list[datetime]) -> None:
    left = _asked([(KEYS[0], at) for at in asked]).select("at", "label")
    right = _versions([(KEYS[0], event, known) for event, known in versions]).select("event", "known", "value")
    found = join_visible(left, right, keys=[], at="at", event_time="event", known_at="known")
    assert found.rows(named=True) == _oracle(left, right, [])


def test_a_microsecond_decides() -> None:
    tick = timedelta(microseconds=1)
    right = _versions([(KEYS[0], ORIGIN, ORIGIN), (KEYS[0], ORIGIN, ORIGIN + 2 * tick), (KEYS[0], ORIGIN + tick, ORIGIN + 3 * tick)])
    left = _asked([(KEYS[0], ORIGIN + n * tick) for n in (-1, 0, 1, 2, 3)])
    found = join_visible(left, right, keys=["symbol", "timeframe"], at="at", event_time="event", known_at="known")
    assert found["value"].to_list() == [None, 0, 0, 1, 2]


def test_a_late_correction_of_an_old_bar_does_not_hide_the_newer_bar() -> None:
    day = timedelta(days=1)
    right = _versions([(KEYS[0], ORIGIN, ORIGIN), (KEYS[0], ORIGIN + day, ORIGIN + day), (KEYS[0], ORIGIN, ORIGIN + 3 * day)])
    left = _asked([(KEYS[0], ORIGIN + 4 * day)])
    found = join_visible(left, right, keys=["symbol", "timeframe"], at="at", event_time="event", known_at="known")
    assert found["value"].to_list() == [1]


def test_an_event_time_on_both_sides_gets_a_suffix() -> None:
    left = _asked([(KEYS[0], ORIGIN)]).rename({"at": "event"})
    found = join_visible(
        left, _versions([(KEYS[0], ORIGIN - timedelta(days=1), ORIGIN)]), keys=["symbol", "timeframe"], at="event", event_time="event",
        known_at="known",
    )  # fmt: skip
    assert found["event"].item() == ORIGIN
    assert found["event_right"].item() == ORIGIN - timedelta(days=1)
