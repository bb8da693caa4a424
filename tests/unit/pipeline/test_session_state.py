"""Position and session clock at a row's instant, by hand and against a brute-force reading of the rule."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore_dagster.indicators.state import position, time_normalized
from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS
from featurestore_dagster.pipeline.blocks.state import session_state

NOON = datetime(2024, 3, 5, 12, tzinfo=UTC)
TICK, HOUR = timedelta(microseconds=1), timedelta(hours=1)
STALE, SIMULATED = QualityFlag.STALE_INPUT.value, QualityFlag.SIMULATED.value
SCHEMA = {
    "symbol": pl.String,
    "position": pl.Float64,
    "event_timestamp": UTC_MICROSECONDS,
    "known_at": UTC_MICROSECONDS,
    "flags": pl.Int64,
}
Push = tuple[str, float, datetime, datetime, int]


def computed(asked: Sequence[tuple[str, datetime]], pushes: Sequence[Push], calendar_name: str = "24/7") -> pl.DataFrame:
    """The block's answer, with the values of both features."""
    rows = pl.DataFrame(list(asked), schema={"symbol": pl.String, "event_timestamp": UTC_MICROSECONDS}, orient="row")
    found = session_state(rows.with_row_index("known_at"), pl.DataFrame(list(pushes), schema=SCHEMA, orient="row"), calendar_name)
    return found.with_columns(feature.feature().expression().alias(f"value:{feature.name}") for feature in (position, time_normalized))


instants = st.builds(lambda hours, ticks: NOON + hours * HOUR + ticks * TICK, st.sampled_from([-1, 0, 0, 1]), st.integers(-1, 1))
pushes_drawn = st.lists(
    st.tuples(
        st.sampled_from(["AAA", "BBB"]), st.sampled_from([-1.0, 0.0, 0.5]), instants, instants, st.sampled_from([0, SIMULATED, 1 << 23])
    ),
    max_size=10,
    unique_by=lambda push: (push[0], push[2], push[3]),
)


@settings(max_examples=100, deadline=None)
@given(pushes=pushes_drawn, asked=st.lists(st.tuples(st.sampled_from(["AAA", "BBB", "CCC"]), instants), max_size=6))
def test_the_newest_visible_push_counts_for_an_hour(pushes: list[Push], asked: list[tuple[str, datetime]]) -> None:
    found = computed(asked, pushes)
    assert found.select("known_at", "symbol", "event_timestamp").rows() == [(number, *row) for number, row in enumerate(asked)]
    for (symbol, instant), row in zip(asked, found.iter_rows(named=True), strict=True):
        visible = [push for push in pushes if push[0] == symbol and max(push[2], push[3]) <= instant]
        newest = max(visible, key=lambda push: push[2:4], default=None)
        used = newest if newest and instant - newest[2] <= HOUR else None
        answer = (row["value:position"], row["flags:state"], row["known:state"])
        assert answer == ((used[1], used[4] & SIMULATED, used[3]) if used else (None, STALE, None))


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99))
def test_two_pushes_at_one_instant_give_the_same_in_any_order(seed: int) -> None:
    told = pl.DataFrame([("AAA", value / 10, NOON, NOON, 0) for value in range(5)], schema=SCHEMA, orient="row")
    rows = pl.DataFrame({"symbol": ["AAA"], "event_timestamp": [NOON]}, schema_overrides={"event_timestamp": UTC_MICROSECONDS})
    assert session_state(rows, told.sample(fraction=1, shuffle=True, seed=seed), "24/7")["position"].item() == 0.4


@pytest.mark.parametrize(
    ("calendar_name", "instant", "expected"),
    [
        ("COP", datetime(2024, 3, 5, 13, tzinfo=UTC), 0.0),
        ("COP", datetime(2024, 3, 5, 14, 15, tzinfo=UTC), 0.25),
        ("COP", datetime(2024, 3, 5, 18, tzinfo=UTC), 1.0),
        ("COP", datetime(2024, 3, 5, 18, tzinfo=UTC) + TICK, None),
        ("COP", datetime(2024, 3, 5, 13, tzinfo=UTC) - TICK, None),
        ("COP", datetime(2024, 3, 9, 15, tzinfo=UTC), None),
        ("COP", datetime(2024, 3, 25, 15, tzinfo=UTC), None),
        ("XNYS", datetime(2018, 12, 24, 18, tzinfo=UTC), 1.0),
        ("XNYS", datetime(2018, 12, 24, 16, 15, tzinfo=UTC), 0.5),
        ("24/7", datetime(2024, 3, 9, tzinfo=UTC), 0.0),
        ("24/7", datetime(2024, 3, 9, 6, tzinfo=UTC), 0.25),
        ("FX", datetime(2024, 3, 5, 10, tzinfo=UTC), 0.5),
        ("FX", datetime(2024, 3, 9, 10, tzinfo=UTC), None),
    ],
)
def test_session_clock(calendar_name: str, instant: datetime, expected: Any) -> None:
    assert computed([("AAA", instant)], [], calendar_name)["value:time_normalized"].to_list() == [expected]


def test_no_rows() -> None:
    assert computed([], [("AAA", 0.5, NOON, NOON, 0)]).height == 0
