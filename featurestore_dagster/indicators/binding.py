"""Evaluate-once binding, and division that answers NULL, for all indicators. No indicator is defined here."""

from collections.abc import Callable

import polars as pl


def bind(body: Callable[..., pl.Expr], **values: pl.Expr) -> pl.Expr:
    """`body(**values)` with each value computed once, however often the body uses it.

    Polars shares no common subexpressions inside `.over`, so a value used k times is computed k times, and nesting
    multiplies; a struct's fields are computed once (MACD signal, 1.44 million rows: 138 ms instead of 940 ms). The body
    may use nothing but its arguments: no column and no argument of an enclosing body.
    """
    fields = {name: pl.field(name) for name in values}
    scope = pl.struct(*(value.alias(name) for name, value in values.items()))
    return scope.struct.with_fields(body(**fields).alias("result")).struct.field("result")


def ratio(numerator: pl.Expr, denominator: pl.Expr) -> pl.Expr:
    """Quotient; NULL where the denominator is 0 or an operand is NULL."""
    return bind(
        lambda numerator, denominator: pl.when(denominator != 0).then(numerator / denominator),
        numerator=numerator,
        denominator=denominator,
    )


def log_ratio(numerator: pl.Expr, denominator: pl.Expr) -> pl.Expr:
    """Natural logarithm of the quotient; NULL unless the quotient is positive.

    Not a difference of logarithms: scaling both by a power of 2 changes no bit.
    """
    return bind(lambda quotient: pl.when(quotient > 0).then(quotient.log()), quotient=ratio(numerator, denominator))
