"""Indicators: a Polars expression with everything the rest of the house must know of it. No indicator is defined here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

import polars as pl

from featurestore_dagster.errors import DeclarationError
from featurestore_dagster.model.units import Unit

Parameter = int | float | str
"""A parameter of an indicator: a period in bars, a factor, or the name of an input column."""


class Grain(StrEnum):
    """What one evaluation of an indicator's expression sees; the computation brings it and takes the value to the feature row."""

    BARS = "bars"
    """All bars of one symbol in the row's own timeframe, sorted; the value is that of the row's bar."""
    COMPLETED_DAYS = "completed_days"
    """All daily bars of one symbol, sorted; the value is that of the last bar that had ended at the row's time."""
    DAILY = "daily"
    """All daily bars of one symbol, sorted; the value is that of the last session before the row's own."""
    BENCHMARK = "benchmark"
    """All daily bars of the market benchmark, and series as of the row."""
    OBSERVATIONS = "observations"
    """All observations of a released series in the vintage that the row could know, sorted by their date; the value of the newest."""
    EVENTS = "events"
    """The symbol's events inside the window before the row: an aggregate, one value."""
    QUOTES = "quotes"
    """The symbol's quotes inside the row's bar, sorted: an aggregate, one value."""
    PUBLISHED = "published"
    """The newest published value of another view's feature that was known shortly after the row's time."""
    ROW = "row"
    """The row alone: columns of its bar, newest released values, figures of the last filings, position, session clock, `components`."""


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
    def components(self) -> "tuple[Feature, ...]":
        """Features of other grains that the expression reads as columns, computed first and not served."""
        return self.indicator.components(**self.parameters)

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

    `grain` says what the expression is evaluated over; `components(**parameters)` are features of another grain whose values it reads as
    columns of their names.
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
    grain: Grain = Grain.BARS
    components: Callable[..., tuple[Feature, ...]] = lambda **_: ()

    def feature(self, name: str | None = None, **parameters: Parameter) -> Feature:
        """This indicator with its parameters, served as `name` (default: the indicator's own name)."""
        return Feature(name or self.name, self, parameters)


def published(view: str, feature: Feature) -> Feature:
    """`view:feature` as a column of another view: the published value, not a second computation. It is called `view__feature`."""
    name = f"{view}__{feature.name}"
    copied = replace(
        feature.indicator,
        expression=lambda **_: pl.col(name),
        inputs=(name,),
        grain=Grain.PUBLISHED,
        components=lambda **_: (),
        first=lambda **_: 0,
        convergence=lambda **_: 0,
    )
    return Feature(name, copied, feature.parameters)


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
    grain: Grain = Grain.BARS,
    components: Callable[..., tuple[Feature, ...]] = lambda **_: (),
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
            grain=grain,
            components=components,
        )

    return declare
