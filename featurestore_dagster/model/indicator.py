"""Indicators: a Polars expression with everything the rest of the house must know of it. No indicator is defined here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import polars as pl

from featurestore_dagster.errors import DeclarationError
from featurestore_dagster.model.units import Unit

Parameter = int | float | str
"""A parameter of an indicator: a period in bars, a factor, or the name of an input column."""


@dataclass(frozen=True)
class Feature:
    """One column of a feature view: an indicator with its parameters, under the name it is served by."""

    name: str
    indicator: "Indicator"
    parameters: Mapping[str, Parameter] = field(default_factory=dict)

    @property
    def look_back_bars(self) -> int:
        """Bars before the current one that the value can depend on: window, or convergence when recursive."""
        return max(self.warm_up_bars, self.indicator.convergence(**self.parameters))

    @property
    def warm_up_bars(self) -> int:
        """Index of the first non-NULL value on gapless history."""
        return self.indicator.first(**self.parameters)

    @property
    def input_columns(self) -> tuple[str, ...]:
        """Columns that the expression reads: an input that names a parameter stands for the column given there."""
        return tuple(str(self.parameters.get(name, name)) for name in self.indicator.inputs)

    @property
    def formula(self) -> str:
        """The indicator's formula, and the parameters."""
        given = ", ".join(f"{name}={value}" for name, value in self.parameters.items())
        return f"{self.indicator.formula} ({given})" if given else self.indicator.formula

    def expression(self) -> pl.Expr:
        """Float64 expression over one entity's bars sorted by time, named like the feature."""
        return self.indicator.expression(**self.parameters).alias(self.name)


@dataclass(frozen=True)
class Indicator:
    """A pure function of bars, declared with its meaning.

    `expression(**parameters)` returns a Polars expression to be evaluated over ONE entity's rows sorted by event time (the caller adds
    `.over(keys)`); it yields NULL, never NaN or an infinity, until warm-up is complete, when an input in the window is NULL, or when a
    denominator is zero. Input columns: `open high low close` (prices times the cumulative adjustment factor F), `volume` (divided by the
    split factor), `raw_open .. raw_close raw_volume` (as traded), or series columns for macro indicators.

    `price_exponent` p and `volume_exponent` q: multiplying all prices (volumes) by k multiplies the value by k**p (k**q). They decide
    how the anchored adjustment is undone (value / F(t)**p) and are proven by the metamorphic tests. `price_exponent` refers to adjusted
    prices only: an indicator of raw columns has `adjusted=False` and is not rescaled.
    """

    name: str
    expression: Callable[..., pl.Expr]
    unit: Unit
    formula: str
    inputs: tuple[str, ...]
    first: Callable[..., int]
    convergence: Callable[..., int]
    oracle: str
    minimum: float | None
    maximum: float | None
    price_exponent: int
    volume_exponent: int
    adjusted: bool

    def feature(self, name: str | None = None, **parameters: Parameter) -> Feature:
        """This indicator with its parameters, served as `name` (default: the indicator's own name)."""
        return Feature(name or self.name, self, parameters)


def indicator(
    *,
    unit: Unit,
    formula: str,
    inputs: tuple[str, ...],
    oracle: str,
    first: int | Callable[..., int],
    convergence: int | Callable[..., int] = 0,
    minimum: float | None = None,
    maximum: float | None = None,
    price_exponent: int = 0,
    volume_exponent: int = 0,
    adjusted: bool = True,
) -> Callable[[Callable[..., pl.Expr]], Indicator]:
    """Declare the decorated expression builder as an indicator named like the function.

    `first` and `convergence` are bar counts, or functions of the indicator's parameters (given by name).

    Raises:
        DeclarationError: The range is empty, the unit unknown, or formula, oracle or inputs are missing.
    """

    def declare(expression: Callable[..., pl.Expr]) -> Indicator:
        name = expression.__name__
        if not formula or not oracle or not inputs:
            raise DeclarationError(f"indicator {name} in {expression.__module__} needs a formula, an oracle and its input columns")
        if not isinstance(unit, Unit):
            raise DeclarationError(f"indicator {name} in {expression.__module__}: unknown unit {unit!r}; allowed: {', '.join(Unit)}")
        if minimum is not None and maximum is not None and minimum >= maximum:
            raise DeclarationError(f"indicator {name} in {expression.__module__}: minimum {minimum} is not below maximum {maximum}")
        return Indicator(
            name=name,
            expression=expression,
            unit=unit,
            formula=formula,
            inputs=inputs,
            first=first if callable(first) else lambda **_: first,
            convergence=convergence if callable(convergence) else lambda **_: convergence,
            oracle=oracle,
            minimum=minimum,
            maximum=maximum,
            price_exponent=price_exponent,
            volume_exponent=volume_exponent,
            adjusted=adjusted,
        )

    return declare
