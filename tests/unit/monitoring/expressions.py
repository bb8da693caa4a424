"""Which series a PromQL expression asks for."""

import re

SERIES = re.compile(r"\b(?:feature_store_\w+|up)\b(?!\s*\()")
STRINGS = re.compile(r'"[^"]*"')


def series_of(expression: str) -> set[str]:
    """Names of the series; ours begin alike, and `up` is Prometheus' own."""
    return set(SERIES.findall(STRINGS.sub('""', expression)))
