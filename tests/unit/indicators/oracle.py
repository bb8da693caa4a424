"""What a reference implementation of a feature is; the references are in `oracles` and the modules that it collects."""

from collections.abc import Callable
from dataclasses import dataclass

from featurestore_dagster.model.indicator import Feature
from tests.unit.indicators.series import RealSeries, Values

BARS = ("AAPL", "MSFT", "IBM", "GOOG", "SP500", "NASDAQ", "EURUSD")


@dataclass(frozen=True)
class Oracle:
    """A feature, its reference on the named real series, and the largest difference allowed: atol + rtol * abs(reference)."""

    feature: Feature
    reference: Callable[[RealSeries], Values]
    rtol: float = 0.0
    atol: float = 0.0
    series: tuple[str, ...] = BARS
