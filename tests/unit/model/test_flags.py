"""Quality flags: stored numbers that never move."""

import polars as pl

from featurestore_dagster.model.flags import FLAG_MEANINGS, PROPAGATED, QUARANTINED, QualityFlag

BITS = [
    "MISSING_OHLCV",
    "INSUFFICIENT_OHLCV",
    "NO_EVENTS",
    "LOW_EVENT_COUNT",
    "LOW_SENTIMENT_CONFIDENCE",
    "TIMESTAMP_MISMATCH",
    "COMPUTATION_ERROR",
    "RESTATED",
    "STALE_INPUT",
    "GAP_BEFORE",
    "OUTLIER",
    "IMPUTED",
    "LATE",
    "CORP_ACTION",
    "ZERO_VOLUME",
    "STUCK_FEED",
    "CLIPPED",
    "PARTIAL_BOOK",
    "CROSSED_BOOK",
    "SIMULATED",
    "FALLBACK_SOURCE",
    "PROVISIONAL",
    "WARMUP_CONVERGING",
    "OUT_OF_SESSION",
]


def test_bits_are_those_of_the_dictionary() -> None:
    assert {flag.name: flag.value for flag in QualityFlag} == {name: 1 << bit for bit, name in enumerate(BITS)}
    assert set(FLAG_MEANINGS) == set(QualityFlag)


def test_what_propagates_and_what_is_quarantined() -> None:
    assert {BITS.index(name) for name in QualityFlag.names_of(PROPAGATED)} == {*range(7, 16), 19, 20, 21}
    assert QualityFlag.names_of(QUARANTINED) == ["TIMESTAMP_MISMATCH", "COMPUTATION_ERROR", "STUCK_FEED", "OUT_OF_SESSION"]


def test_names_and_counts() -> None:
    assert QualityFlag.names_of(0) == []
    assert QualityFlag.names_of(1 << 14 | 1 << 1) == ["INSUFFICIENT_OHLCV", "ZERO_VOLUME"]
    assert QualityFlag.counts(pl.Series([0, 3, 2, 1 << 23])) == {"MISSING_OHLCV": 1, "INSUFFICIENT_OHLCV": 2, "OUT_OF_SESSION": 1}
    assert QualityFlag.counts(pl.Series([], dtype=pl.Int64)) == {}
