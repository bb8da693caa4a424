"""Drift: what moved is found, what wanders by nature or has too few values is not judged, NULLs are."""

import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore_dagster.features.equity_views import MOMENTUM_FEATURES
from featurestore_dagster.indicators.averages import sma
from featurestore_dagster.indicators.momentum import rsi
from featurestore_dagster.model.drift import BINS, MINIMUM_VALUES, PSI_THRESHOLD
from featurestore_dagster.pipeline.drift import feature_drift, population_stability_index, reference_statistics

VIEW = replace(MOMENTUM_FEATURES, features=(rsi.feature("rsi_14", n=14), sma.feature("sma_20", n=20)))
NAMES = VIEW.feature_names


def rows(oscillator: object, level: object | None = None) -> pl.DataFrame:
    return pl.DataFrame(
        {"rsi_14": oscillator, "sma_20": oscillator if level is None else level}, schema=dict.fromkeys(NAMES, pl.Float64), strict=False
    )


def normal(size: int, mean: float = 50.0, seed: int = 1) -> list[float]:
    return np.random.default_rng(seed).normal(mean, 10, size).tolist()


def drifted(before: pl.DataFrame, now: pl.DataFrame) -> dict[str, tuple[str, ...]]:
    return {found.feature: found.reasons for found in feature_drift(VIEW, reference_statistics(before, NAMES), now) if found.reasons}


def test_the_same_distribution_does_not_drift_and_a_shift_of_a_deviation_does() -> None:
    before = rows(normal(5_000))
    assert drifted(before, rows(normal(1_000, seed=2))) == {}
    (reasons,) = drifted(before, rows(normal(1_000, mean=60, seed=2))).values()
    (psi,) = (found.psi for found in feature_drift(VIEW, reference_statistics(before, NAMES), rows(normal(1_000, mean=60))) if found.psi)
    assert psi == pytest.approx(1.0, abs=0.15), "equal to the squared shift in deviations, but for the bins"
    assert reasons[0].startswith("PSI ")
    assert reasons[0].endswith(f"above {PSI_THRESHOLD:g}")


def test_a_level_is_judged_by_its_nulls_only() -> None:
    before, now = rows(normal(5_000)), rows(normal(1_000, seed=2), [value * 3 for value in normal(1_000)])
    assert drifted(before, now) == {}
    holed = rows(normal(1_000, seed=2), [None if number % 5 == 0 else 1.0 for number in range(1_000)])
    assert drifted(before, holed) == {"sma_20": ("20% NULL, 0% before",)}


def test_too_few_values_are_not_judged_and_nothing_at_all_is_no_drift() -> None:
    before = rows(normal(5_000))
    assert drifted(before, rows(normal(MINIMUM_VALUES - 1, mean=90))) == {}
    assert drifted(before, rows(normal(MINIMUM_VALUES, mean=90))).keys() == {"rsi_14"}
    few = feature_drift(VIEW, reference_statistics(before, NAMES), rows(normal(MINIMUM_VALUES - 1)))
    assert [found.unjudged for found in few] == ["199 values are too few to judge; 200 are needed", "a level: only its NULLs are judged"]
    assert drifted(before, before.clear()) == {}
    assert drifted(before.clear(), before) == {}
    assert drifted(before, rows([None] * 10)) == dict.fromkeys(NAMES, ("100% NULL, 0% before",))


def test_values_that_repeat_have_fewer_bins() -> None:
    codes = [float(number % 3) for number in range(900)]
    known = reference_statistics(rows(codes), NAMES)["rsi_14"]
    assert known.edges == (0.0, 1.0, 2.0)
    assert known.shares == pytest.approx((1 / 3, 1 / 3, 1 / 3, 0))
    assert drifted(rows(codes), rows([2.0 - code for code in codes])) == {}
    assert drifted(rows(codes), rows([0.0] * 900)).keys() == {"rsi_14"}
    constant = reference_statistics(rows([7.0] * 300), NAMES)["rsi_14"]
    assert (constant.edges, constant.shares) == ((7.0,), (1.0, 0.0))


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=300))
def test_shares_of_the_reference_are_a_distribution_over_its_deciles(values: list[float]) -> None:
    known = reference_statistics(rows(values), NAMES)["rsi_14"]
    assert list(known.edges) == sorted(set(known.edges))
    assert len(known.edges) <= BINS - 1
    assert math.fsum(known.shares) == pytest.approx(1)
    for edge, cumulative in zip(known.edges, np.cumsum(known.shares), strict=False):
        assert cumulative == pytest.approx(sum(value <= edge for value in values) / len(values))


@given(st.lists(st.integers(0, 50), min_size=2, max_size=10), st.lists(st.integers(0, 50), min_size=10, max_size=10))
def test_the_index_is_symmetric_and_zero_only_when_nothing_moved(left: list[int], right: list[int]) -> None:
    was = [(count + 1) / sum(count + 1 for count in left) for count in left]
    now = [(count + 1) / sum(count + 1 for count in right[: len(left)]) for count in right[: len(left)]]
    index = population_stability_index(was, now)
    assert index >= 0
    assert index == pytest.approx(population_stability_index(now, was))
    assert population_stability_index(was, was) == 0
