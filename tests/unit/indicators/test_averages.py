"""Moving averages by hand, and their behaviour around NULL."""

import polars as pl
import pytest

from featurestore_dagster.indicators.averages import ema, exponential_mean, sma, wilder_mean, window_sum


def _evaluate(values: list[float | None], expression: pl.Expr) -> list[float | None]:
    return pl.DataFrame({"close": values}, schema={"close": pl.Float64}).select(expression).to_series().to_list()


def test_sma_by_hand() -> None:
    assert _evaluate([1, 2, 3, 7], sma.expression(n=3)) == [None, None, 2, 4]


@pytest.mark.parametrize("n", [1, 2, 3, 7, 12, 25])
def test_a_window_sum_depends_on_its_window_alone(n: int) -> None:
    window: list[float | None] = [0.1 * number for number in range(1, n + 1)]
    found = _evaluate([1e17, None, -0.3, 5e-324, *window], window_sum(pl.col("close"), n))
    assert found[-1:] == _evaluate(window, window_sum(pl.col("close"), n))[-1:] == [pytest.approx(0.1 * n * (n + 1) / 2, rel=1e-15)]
    assert [value is None for value in found] == [row < n - 1 or row - n < 1 <= row for row in range(n + 4)]


def test_ema_is_seeded_with_the_mean_of_its_first_window() -> None:
    assert _evaluate([1, 2, 3, 6, 2], ema.expression(n=3)) == [None, None, 2, 4, 3]


def test_wilder_mean_gives_the_newest_value_one_nth() -> None:
    assert _evaluate([1, 3, 6, 2], wilder_mean(pl.col("close"), 2)) == [None, 2, 4, 3]


def test_the_seed_waits_for_a_window_without_null() -> None:
    assert _evaluate([None, 1, None, 1, 3, 6], exponential_mean(pl.col("close"), 3)) == [None, None, None, None, None, 10 / 3]


def test_the_state_is_carried_over_a_missing_value() -> None:
    found = _evaluate([1, 2, 3, None, 6, 2, 5], ema.expression(n=3))
    assert found == [None, None, 2, None, None, None, 4]  # 2 -> 4 -> 3 -> 4 without the missing bar


def test_a_missing_value_right_after_the_seed_is_skipped_too() -> None:
    assert _evaluate([1, 3, None, 6, 2], wilder_mean(pl.col("close"), 2)) == [None, 2, None, None, 3]


def test_fewer_bars_than_the_window_give_no_value() -> None:
    assert _evaluate([1, 2], sma.expression(n=3)) == [None, None]
    assert _evaluate([], ema.expression(n=3)) == []


@pytest.mark.parametrize("expression", [sma.expression(n=2), ema.expression(n=2)])
def test_constant_prices_are_their_own_average(expression: pl.Expr) -> None:
    assert _evaluate([0.3] * 4, expression) == [None, 0.3, 0.3, 0.3]
