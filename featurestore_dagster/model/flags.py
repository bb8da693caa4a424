"""Quality flags: one bit each in the `flags` column of raw and feature tables. How a flag is computed does not belong here."""

from enum import IntFlag

import polars as pl


class QualityFlag(IntFlag):
    """Bit b is `1 << b`; the numbers are stored and must never be reused."""

    MISSING_OHLCV = 1 << 0
    INSUFFICIENT_OHLCV = 1 << 1
    NO_EVENTS = 1 << 2
    LOW_EVENT_COUNT = 1 << 3
    LOW_SENTIMENT_CONFIDENCE = 1 << 4
    TIMESTAMP_MISMATCH = 1 << 5
    COMPUTATION_ERROR = 1 << 6
    RESTATED = 1 << 7
    STALE_INPUT = 1 << 8
    GAP_BEFORE = 1 << 9
    OUTLIER = 1 << 10
    IMPUTED = 1 << 11
    LATE = 1 << 12
    CORP_ACTION = 1 << 13
    ZERO_VOLUME = 1 << 14
    STUCK_FEED = 1 << 15
    CLIPPED = 1 << 16
    PARTIAL_BOOK = 1 << 17
    CROSSED_BOOK = 1 << 18
    SIMULATED = 1 << 19
    FALLBACK_SOURCE = 1 << 20
    PROVISIONAL = 1 << 21
    WARMUP_CONVERGING = 1 << 22
    OUT_OF_SESSION = 1 << 23

    @classmethod
    def names_of(cls, bitmask: int) -> list[str]:
        """Names of the set bits, lowest bit first."""
        return [flag.name for flag in cls if flag.name and bitmask & flag.value]

    @classmethod
    def counts(cls, flags: pl.Series) -> dict[str, int]:
        """Rows by flag that is set on any of them; `flags` Int64, no NULLs."""
        if not (flags != 0).any():
            return {}
        return {flag.name: count for flag in cls if flag.name and (count := int((flags & flag.value != 0).sum()))}


QUARANTINED = QualityFlag.TIMESTAMP_MISMATCH | QualityFlag.COMPUTATION_ERROR | QualityFlag.STUCK_FEED | QualityFlag.OUT_OF_SESSION
"""A row with one of these never reaches a feature table or the online store."""

PROPAGATED = (
    QualityFlag.RESTATED
    | QualityFlag.STALE_INPUT
    | QualityFlag.GAP_BEFORE
    | QualityFlag.OUTLIER
    | QualityFlag.IMPUTED
    | QualityFlag.LATE
    | QualityFlag.CORP_ACTION
    | QualityFlag.ZERO_VOLUME
    | QualityFlag.STUCK_FEED
    | QualityFlag.SIMULATED
    | QualityFlag.FALLBACK_SOURCE
    | QualityFlag.PROVISIONAL
)
"""A feature row carries the OR of these over the input rows of its window."""

FLAG_MEANINGS: dict[QualityFlag, str] = {
    QualityFlag.MISSING_OHLCV: "the expected bar was absent at bar end plus grace",
    QualityFlag.INSUFFICIENT_OHLCV: "history is shorter than the warm-up of at least one feature of the row",
    QualityFlag.NO_EVENTS: "no event in the window although the feed is alive",
    QualityFlag.LOW_EVENT_COUNT: "one or two events in the window",
    QualityFlag.LOW_SENTIMENT_CONFIDENCE: "mean confidence of the window's events is below 0.5",
    QualityFlag.TIMESTAMP_MISMATCH: "off the timeframe's grid, or known before it happened",
    QualityFlag.COMPUTATION_ERROR: "the computation raised, or gave NaN or an infinity; the value is NULL",
    QualityFlag.RESTATED: "an earlier version of this key had another value",
    QualityFlag.STALE_INPUT: "the newest input is older than its maximum age, or absent; the feature is NULL",
    QualityFlag.GAP_BEFORE: "at least one expected bar is missing inside the row's longest window",
    QualityFlag.OUTLIER: "the return is more than ten robust deviations from its median",
    QualityFlag.IMPUTED: "the vendor marks the value as filled",
    QualityFlag.LATE: "known later than bar end plus the view's SLO",
    QualityFlag.CORP_ACTION: "a split or dividend falls inside the row's window",
    QualityFlag.ZERO_VOLUME: "nothing traded on the bar",
    QualityFlag.STUCK_FEED: "the feed repeats itself",
    QualityFlag.CLIPPED: "a service clipped the value",
    QualityFlag.PARTIAL_BOOK: "the order book does not reach the required band; the value is NULL",
    QualityFlag.CROSSED_BOOK: "bid at or above ask; the value is NULL",
    QualityFlag.SIMULATED: "an input comes from the simulator",
    QualityFlag.FALLBACK_SOURCE: "a secondary source or a direct recomputation was used",
    QualityFlag.PROVISIONAL: "first vintage of a series that is revised",
    QualityFlag.WARMUP_CONVERGING: "a recursive feature has less history than its convergence needs",
    QualityFlag.OUT_OF_SESSION: "the bar lies outside the calendar's session",
}
