"""Windows over vintages against a brute-force replay: at each row, of each date, the newest version known; then the formula by hand."""

import statistics
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from featurestore_dagster.features.macro_series import series_inputs
from featurestore_dagster.features.macro_views import MACRO_FEATURES
from featurestore_dagster.indicators.macro import change, index_level, spread, zscore
from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS
from featurestore_dagster.pipeline.blocks.observations import OBSERVATION_SCHEMA, benchmark_observations, observation_windows
from tests.unit.indicators.series import macro_series

FIRST_DAY = date(2018, 1, 1)
NOON = datetime(2018, 1, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
MAXIMUM_AGE_DAYS = 4
WINDOW = 3

FEATURES = [
    zscore.feature("x_z", n=WINDOW, column="x"),
    change.feature("x_change", column="x"),
    index_level.feature("x_level", column="x"),
    spread.feature("x_less_y", minuend="x", subtrahend="y"),
    index_level.feature("local_level", column="local"),
]
ASSIGNED: dict[str, dict[str | None, str]] = {"x": {None: "X"}, "y": {None: "Y"}, "local": {"AAA": "X", "BBB": "Y"}}
WARM_UP = {"x_z": WINDOW - 1, "x_change": 1, "x_level": 0, "x_less_y": 0, "local_level": 0}

Vintage = tuple[str, int, int, int, float]
"""Series, day of the observation, days until its release, further half-days until it is known, value."""


def _observations(vintages: Sequence[Vintage], *, is_revised: bool = True) -> pl.DataFrame:
    rows: list[dict[str, Any]] = []
    for column, by_symbol in ASSIGNED.items():
        for symbol, series_id in by_symbol.items():
            fixed = {"column": column, "symbol": symbol, "series_id": series_id, "maximum_age_days": MAXIMUM_AGE_DAYS}
            fixed["is_revised"] = is_revised
            versions = [vintage for vintage in vintages if vintage[0] == series_id]
            rows += [fixed] * (not versions)
            for _, day, lag, delay, value in versions:
                released = NOON + (day + lag) * DAY
                known = {"observation_date": FIRST_DAY + day * DAY, "event_timestamp": released, "known_at": released + delay * DAY / 2}
                rows.append({**fixed, **known, "value": value, "flags": 0})
    return pl.DataFrame(rows, schema=OBSERVATION_SCHEMA)


def _rows(asked: Sequence[tuple[str, int]]) -> pl.DataFrame:
    return pl.DataFrame(
        [{"symbol": symbol, "event_timestamp": NOON + half * DAY / 2, "label": n} for n, (symbol, half) in enumerate(asked)],
        schema={"symbol": pl.String, "event_timestamp": UTC_MICROSECONDS, "label": pl.Int64},
    )


def _sequence(observations: pl.DataFrame, column: str, symbol: str, at: datetime) -> dict[date, list[dict[str, Any]]] | None:
    """Versions known at an instant by date, oldest first; None when no series fills the column for the symbol."""
    mine = observations.filter((pl.col("column") == column) & (pl.col("symbol").is_null() | (pl.col("symbol") == symbol)))
    if mine.is_empty():
        return None
    known: dict[date, list[dict[str, Any]]] = {}
    for version in mine.drop_nulls("observation_date").sort("known_at").rows(named=True):
        if version["event_timestamp"] <= at and version["known_at"] <= at:
            known.setdefault(version["observation_date"], []).append(version)
    return dict(sorted(known.items()))


def _by_hand(name: str, values: list[list[float]]) -> float | None:
    if len(values) <= WARM_UP[name]:
        return None
    newest = values[-1]
    match name:
        case "x_z":
            window = [one for (one,) in values[-WINDOW:]]
            return (newest[0] - statistics.fmean(window)) / statistics.stdev(window) if len(set(window)) > 1 else None
        case "x_change":
            return newest[0] / values[-2][0] - 1 if newest[0] > 0 and values[-2][0] > 0 else None
        case "x_less_y":
            return newest[0] - newest[1]
        case _:
            return newest[0]


def _oracle(rows: pl.DataFrame, observations: pl.DataFrame) -> list[dict[str, Any]]:
    answers = []
    for row in rows.rows(named=True):
        at, flags, known_at = row["event_timestamp"], 0, []
        answer: dict[str, Any] = dict(row)
        asked = [(f"value:{feature.name}", feature.name, feature.input_columns, WARM_UP[feature.name]) for feature in FEATURES]
        for output, name, inputs, warm_up in [*asked, *((column, "level", (column,), 0) for column in ASSIGNED)]:
            sequences = [_sequence(observations, column, row["symbol"], at) for column in inputs]
            answer[output] = None
            if any(sequence is None for sequence in sequences):
                continue
            dates = sorted(set.intersection(*(set(sequence or ()) for sequence in sequences)))
            if not dates or (at.date() - dates[-1]).days > MAXIMUM_AGE_DAYS:
                flags |= QualityFlag.STALE_INPUT.value
                continue
            versions = [[(sequence or {})[day] for sequence in sequences] for day in dates]
            values = [[found[-1]["value"] for found in of_day] for of_day in versions]
            answer[output] = values[-1][0] if name == "level" else _by_hand(name, values)
            flags |= QualityFlag.INSUFFICIENT_OHLCV.value if len(dates) <= warm_up else 0
            for found in (found for of_day in versions[-warm_up - 1 :] for found in of_day):
                known_at.append(found[-1]["known_at"])
                flags |= QualityFlag.RESTATED.value if len({version["value"] for version in found}) > 1 else 0
                flags |= QualityFlag.PROVISIONAL.value if len(found) == 1 else 0
        answers.append({**answer, "flags:observations": flags, "known:observations": max(known_at, default=None)})
    return answers


def _unique(vintages: list[Vintage]) -> list[Vintage]:
    """One vintage per observation and instant of knowledge."""
    return list({(series, day, 2 * lag + delay): (series, day, lag, delay, value) for series, day, lag, delay, value in vintages}.values())


vintage = st.tuples(
    st.sampled_from(["X", "Y"]),
    st.sampled_from([0, 1, 2, 3, 4, 7, 8, 9, 10, 15]),  # weekends and a long gap
    st.integers(0, 3),
    st.integers(0, 9),
    st.sampled_from([-1.0, 0.0, 1.0, 1.5, 2.0, 8.0]),
)


@settings(max_examples=120, deadline=None)
@given(
    vintages=st.lists(vintage, max_size=40).map(_unique),
    asked=st.lists(st.tuples(st.sampled_from(["AAA", "BBB", "CCC"]), st.integers(-2, 50)), max_size=25),
    seed=st.integers(0, 9),
)
@example(
    vintages=[("X", day, 1, 0, float(day + 1)) for day in range(6)] + [("X", 1, 1, 5, 9.0)], asked=[("AAA", n) for n in range(14)], seed=0
)
def test_each_row_sees_the_vintage_of_its_instant(vintages: list[Vintage], asked: list[tuple[str, int]], seed: int) -> None:
    observations, rows = _observations(vintages), _rows(asked)
    shuffled = observations.sample(fraction=1, shuffle=True, seed=seed)
    found = observation_windows(FEATURES, rows, shuffled)
    expected = pl.DataFrame(_oracle(rows, observations), schema=found.schema)
    assert found.select(rows.columns).equals(rows)
    assert_frame_equal(found, expected, rel_tol=1e-9, abs_tol=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    vintages=st.lists(vintage, min_size=1, max_size=40).map(_unique),
    asked=st.lists(st.tuples(st.sampled_from(["AAA", "BBB"]), st.integers(-2, 50)), min_size=1, max_size=20),
    cut=st.integers(0, 50),
)
def test_no_bit_comes_from_later_vintages_or_other_rows(vintages: list[Vintage], asked: list[tuple[str, int]], cut: int) -> None:
    rows, end = _rows([(symbol, half) for symbol, half in asked if half <= cut]), NOON + cut * DAY / 2
    whole = observation_windows(FEATURES, _rows(asked), _observations(vintages))
    until_then = [one for one in vintages if NOON + (one[1] + one[2] + one[3] / 2) * DAY <= end]
    alone = observation_windows(FEATURES, rows, _observations(until_then))
    assert alone.drop("label").equals(whole.filter(pl.col("event_timestamp") <= end).drop("label"))


def test_an_earlier_row_sees_the_first_print_and_a_later_one_the_revision() -> None:
    vintages = [("X", day, 1, 0, 10.0 + day % 3) for day in range(6)] + [("X", 4, 1, 3, 20.0)]
    found = observation_windows(FEATURES[:2], _rows([("AAA", 12), ("AAA", 13)]), _observations(vintages))
    assert found["value:x_change"].to_list() == [12.0 / 11.0 - 1, 12.0 / 20.0 - 1]
    before, after = found["flags:observations"].to_list()
    assert QualityFlag.RESTATED not in QualityFlag(before)
    assert QualityFlag.RESTATED in QualityFlag(after)
    assert found["known:observations"].to_list() == [NOON + 6 * DAY, NOON + 6.5 * DAY]


def test_term_spread_waits_for_the_day_that_both_yields_have() -> None:
    found = observation_windows(
        [spread.feature("x_less_y", minuend="x", subtrahend="y")],
        _rows([("AAA", 4), ("AAA", 6)]),
        _observations([("X", 0, 1, 0, 3.0), ("Y", 0, 1, 0, 2.0), ("X", 1, 1, 0, 5.0), ("Y", 1, 1, 2, 2.5)]),
    )
    assert found["x"].to_list() == [5.0, 5.0]
    assert found["value:x_less_y"].to_list() == [1.0, 2.5]


def test_an_observations_own_flags_reach_the_rows_whose_window_holds_it() -> None:
    observations = _observations([("X", day, 1, 0, float(day + 1)) for day in range(6)], is_revised=False)
    simulated = pl.when(pl.col("observation_date") == FIRST_DAY + DAY).then(QualityFlag.SIMULATED.value | QualityFlag.CLIPPED.value)
    flagged = observations.filter(pl.col("column") == "x").with_columns(simulated.otherwise(0).cast(pl.Int64).alias("flags"))
    found = observation_windows(FEATURES[:1], _rows([("AAA", 2 * n) for n in range(7)]), flagged)
    sets = [set(QualityFlag.names_of(flags)) for flags in found["flags:observations"]]
    short, simulated_only = {"INSUFFICIENT_OHLCV"}, {"SIMULATED"}
    assert sets == [{"STALE_INPUT"}, short, short | simulated_only, simulated_only, simulated_only, set(), set()]


def test_an_input_that_nobody_delivers_is_stale_and_one_that_no_series_fills_is_null() -> None:
    observations = pl.concat(
        [series_inputs(MACRO_FEATURES), pl.DataFrame(schema=dict(list(OBSERVATION_SCHEMA.items())[5:]))], how="diagonal"
    ).select(pl.col(name).cast(dtype) for name, dtype in OBSERVATION_SCHEMA.items())
    features = [feature for feature in MACRO_FEATURES.features if feature.name != "rate_spread"]
    found = observation_windows(features, _rows([("USDCOP", 0), ("EURUSD", 0)]), observations)
    assert found.height == 2
    assert all(found[f"value:{feature.name}"].null_count() == 2 for feature in features)
    assert found["flags:observations"].to_list() == [QualityFlag.STALE_INPUT.value] * 2
    unassigned = observation_windows([], _rows([("EURUSD", 0)]), observations.filter(pl.col("column") == "local_yield"))
    assert unassigned.select("local_yield", "flags:observations", "known:observations").row(0) == (None, 0, None)


def test_closes_join_a_series_on_the_days_that_both_have() -> None:
    bars = pl.DataFrame(
        {
            "symbol": ["SPX"] * 3,
            "event_timestamp": [NOON + n * DAY for n in range(3)],
            "known_at": [NOON + n * DAY for n in range(3)],
            "close": [100.0, 110.0, 120.0],
            "flags": [0, 0, 0],
        },
        schema_overrides={"event_timestamp": UTC_MICROSECONDS, "known_at": UTC_MICROSECONDS},
    )
    series = _observations([("X", 0, 1, 0, 1.0), ("X", 1, 1, 0, 2.0)]).filter(pl.col("column") == "x")
    both = pl.concat([series, benchmark_observations(bars, "spy_close")])
    feature = spread.feature("both", minuend="spy_close", subtrahend="x")
    found = observation_windows([feature], _rows([("AAA", 4)]), both)
    assert found.select("spy_close", "x", "value:both").row(0) == (120.0, 2.0, 108.0)


def test_a_vintage_known_before_its_release_counts_from_the_release() -> None:
    found = observation_windows([], _rows([("AAA", 1), ("AAA", 2)]), _observations([("X", 0, 1, -2, 5.0)]).filter(pl.col("column") == "x"))
    assert found["x"].to_list() == [None, 5.0]


def test_the_golden_vix_z_is_what_a_row_after_the_release_gets() -> None:
    vix = macro_series()["vix"].frame.select(observation_date=pl.col("time").dt.date(), value="vix")
    released = pl.col("observation_date").cast(pl.Datetime("us")).dt.offset_by("1d13h15m").dt.replace_time_zone("UTC")
    observations = vix.select(
        pl.lit("vix").alias("column"), pl.lit(None, pl.String).alias("symbol"), pl.lit("VIXCLS").alias("series_id"),
        pl.lit(7, pl.Int64).alias("maximum_age_days"), pl.lit(value=False).alias("is_revised"), "observation_date",
        released.alias("event_timestamp"), released.alias("known_at"), "value", pl.lit(0, pl.Int64).alias("flags"),
    )  # fmt: skip
    instants = [datetime(2018, 2, 6, 13, 14, tzinfo=UTC), datetime(2018, 2, 6, 13, 15, tzinfo=UTC)]
    rows = pl.DataFrame({"event_timestamp": instants}, schema={"event_timestamp": UTC_MICROSECONDS})
    found = observation_windows([zscore.feature("vix_z", n=252, column="vix")], rows, observations)
    assert found["value:vix_z"][0] != pytest.approx(11.82780552, rel=1e-3)
    assert found["value:vix_z"][1] == pytest.approx(11.82780552, rel=1e-9)
