"""Wilder's directional movement: how strong a trend is and which way it points; returns are in `momentum`."""

from collections.abc import Callable

import polars as pl

from featurestore_dagster.indicators.averages import WILDER_CONVERGENCE, recursive_mean, wilder_mean
from featurestore_dagster.indicators.binding import bind
from featurestore_dagster.indicators.volatility import true_range
from featurestore_dagster.model.indicator import indicator
from featurestore_dagster.model.units import Unit

TIE_TOLERANCE = 1e-9
"""Moves that differ by less than this fraction of the close are ties: rounding of decimal prices must not decide."""

SMOOTHING = "Wilder means over n; moves that differ by less than 1e-9 of the close are ties; 0 when W(true range) = 0"

TREND_STRENGTH_BARS = 14
ADX_CONVERGENCE = 28
"""Bars per n after which a fresh ADX equals the one over full history within 1e-9."""


def _movement(*, rising: bool) -> pl.Expr:
    """Move of the high up or of the low down where it is the greater one of the two, else 0."""
    up, down = pl.col("high").diff(), -pl.col("low").diff()
    gain, loss = (up, down) if rising else (down, up)

    def moved(gain: pl.Expr, excess: pl.Expr, tolerance: pl.Expr) -> pl.Expr:
        # Two conditions, so that NULL stays NULL.
        return pl.when(excess > tolerance).then(gain.clip(lower_bound=0)).when(excess <= tolerance).then(0.0)

    return bind(moved, gain=gain, excess=gain - loss, tolerance=TIE_TOLERANCE * pl.col("close"))


def _smoothed(values: pl.Expr, n: int) -> pl.Expr:
    """Wilder mean seeded at bar n-1 with (sum over bars 1..n-1) / n, as TA-Lib does."""
    return recursive_mean(values, 1 / n, lambda values: values.rolling_sum(n - 1) / n)


def _index(movement: pl.Expr, spread: pl.Expr) -> pl.Expr:
    """+DI or -DI from the means of the movement and of the true range, from the bar after their first on."""
    quotient = pl.when(spread == 0).then(0.0).otherwise(100 * movement / spread)
    complete = (movement + spread).is_not_null() & (movement + spread).shift(1).is_not_null()
    # Movement never exceeds the true range, but rounding may by an ulp.
    return pl.when(complete).then(quotient.clip(0, 100))


def _directional_index(n: int, *, rising: bool) -> pl.Expr:
    """+DI or -DI."""
    return bind(_index, movement=_smoothed(_movement(rising=rising), n), spread=_smoothed(true_range(), n))


def _with_both_indices(n: int, body: Callable[[pl.Expr, pl.Expr], pl.Expr]) -> pl.Expr:
    """`body(+DI, -DI)`, the true range smoothed once for both."""
    return bind(
        lambda rise, fall, spread: bind(body, plus=_index(rise, spread), minus=_index(fall, spread)),
        rise=_smoothed(_movement(rising=True), n),
        fall=_smoothed(_movement(rising=False), n),
        spread=_smoothed(true_range(), n),
    )


def _directional_average(plus: pl.Expr, minus: pl.Expr, n: int) -> pl.Expr:
    """ADX from the two directional indices."""
    strength = bind(
        lambda apart, total: pl.when(total == 0).then(0.0).otherwise(100 * (apart / total)),
        apart=(plus - minus).abs(),
        total=plus + minus,
    )
    return wilder_mean(strength, n).clip(0, 100)


@indicator(
    unit=Unit.OSCILLATOR,
    formula=f"100 * W(upward movement) / W(true range); {SMOOTHING}",
    inputs=("high", "low", "close"),
    oracle="TA-Lib PLUS_DI on integer ticks",
    first=lambda n: n,
    convergence=lambda n: WILDER_CONVERGENCE * n,
    minimum=0,
    maximum=100,
)
def plus_di(n: int) -> pl.Expr:
    """Positive directional index."""
    return _directional_index(n, rising=True)


@indicator(
    unit=Unit.OSCILLATOR,
    formula=f"100 * W(downward movement) / W(true range); {SMOOTHING}",
    inputs=("high", "low", "close"),
    oracle="TA-Lib MINUS_DI on integer ticks",
    first=lambda n: n,
    convergence=lambda n: WILDER_CONVERGENCE * n,
    minimum=0,
    maximum=100,
)
def minus_di(n: int) -> pl.Expr:
    """Negative directional index."""
    return _directional_index(n, rising=False)


@indicator(
    unit=Unit.OSCILLATOR,
    formula="Wilder mean over n of 100 * abs(+DI - -DI) / (+DI + -DI) (0 when both are 0), seeded at bar 2n-1",
    inputs=("high", "low", "close"),
    oracle="TA-Lib ADX on integer ticks",
    first=lambda n: 2 * n - 1,
    convergence=lambda n: ADX_CONVERGENCE * n,
    minimum=0,
    maximum=100,
)
def adx(n: int) -> pl.Expr:
    """Average directional index."""
    return _with_both_indices(n, lambda plus, minus: _directional_average(plus, minus, n))


@indicator(
    unit=Unit.RATIO,
    formula="sign(+DI(14) - -DI(14)) * adx(14) / 100",
    inputs=("high", "low", "close"),
    oracle="TA-Lib PLUS_DI, MINUS_DI, ADX on integer ticks",
    first=2 * TREND_STRENGTH_BARS - 1,
    convergence=ADX_CONVERGENCE * TREND_STRENGTH_BARS,
    minimum=-1,
    maximum=1,
)
def trend_strength() -> pl.Expr:
    """Signed strength of the trend."""
    return _with_both_indices(
        TREND_STRENGTH_BARS,
        lambda plus, minus: (plus - minus).sign() * _directional_average(plus, minus, TREND_STRENGTH_BARS) / 100,
    )
