"""Units of features. Conversion between units does not belong here: a feature is stored in the unit it declares."""

from enum import StrEnum


class Unit(StrEnum):
    """The unit of a feature or raw column, printed beside its value."""

    FRACTION = "fraction"
    PER_CENT = "per cent"
    PERCENTAGE_POINTS = "percentage points"
    BASIS_POINTS = "basis points"
    PRICE = "price"
    QUANTITY = "quantity"
    QUOTE_CURRENCY = "quote currency"
    OSCILLATOR = "0..100"
    RATIO = "ratio"
    STANDARD_DEVIATIONS = "standard deviations"
    PER_MILLION_QUOTE = "per million quote currency"
    INDEX_POINTS = "index points"
    COUNT = "count"
    CODE = "code"
