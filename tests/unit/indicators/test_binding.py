"""Values that expressions bind, once inside one expression and once among several."""

import polars as pl

from featurestore_dagster.indicators.binding import bind, staged

FRAME = pl.DataFrame({"x": [1.0, 2.0, 4.0], "y": [3.0, 5.0, 9.0]})


def _gap() -> pl.Expr:
    return bind(lambda gap: gap * gap, gap=pl.col("y") - pl.col("x"))


def _nested() -> pl.Expr:
    return bind(lambda square, x: square + x, square=_gap() + 1, x=pl.col("x"))


def test_stages_give_the_values_of_the_expressions() -> None:
    *before, results = staged([lambda: _gap().alias("a"), lambda: _nested().alias("b")])
    frame = FRAME
    for stage in before:
        frame = frame.with_columns(stage)
    assert frame.select(results).equals(FRAME.select(_gap().alias("a"), _nested().alias("b")))


def test_a_value_that_two_expressions_bind_is_one_column_before_those_that_read_it() -> None:
    *before, results = staged([_gap, _nested])
    assert [len(stage) for stage in before] == [1, 1]
    assert results[0].meta.root_names() == before[0][0].meta.output_name().split() * 2
    assert set(before[1][0].meta.root_names()) == {before[0][0].meta.output_name()}


def test_outside_of_stages_no_other_column_is_read() -> None:
    staged([_gap])
    assert set(_gap().meta.root_names()) == {"x", "y"}
