"""Invented events of many windows and invented instants of sessions, for the oracles of both; no assertion belongs here."""

from functools import cache

import numpy as np
import polars as pl

WINDOWS = 600
INSTANTS = 4000


@cache
def event_frames() -> dict[str, pl.DataFrame]:
    """events: windows of 1 to 12 events, an eighth of the figures absent; instants: positions of any age, in and out of sessions."""
    draw = np.random.Generator(np.random.PCG64(13))
    window = np.repeat(np.arange(WINDOWS), draw.integers(1, 13, WINDOWS))
    rows = window.size

    def known(values: np.ndarray) -> pl.Series:  # type: ignore[type-arg]
        return pl.Series(values).set(pl.Series(draw.random(values.size) < 1 / 8), None)

    events = pl.DataFrame(
        {
            "row": window,
            "event_id": [f"e{number}" for number in draw.permutation(rows)],
            "source_type": draw.choice(["news", "social", "social", "analyst"], rows),
            "score": known(draw.uniform(-1, 1, rows)),
            "confidence": known(np.where(draw.random(rows) < 1 / 8, 0.0, draw.random(rows))),
            "firm": known(draw.choice(["Ash", "Birch", "Cedar"], rows)),
            "rating": known(draw.integers(1, 6, rows).astype(np.float64)),
            "published_at": pl.Series(draw.integers(0, 5, rows) * 60_000_000).cast(pl.Datetime("us", "UTC")),
        }
    )
    instants = pl.DataFrame(
        {
            "position": known(draw.integers(-100, 101, INSTANTS) / 100),
            "position_age_seconds": known(draw.choice([0.0, 1800.0, 3600.0, 3600.000001, 7200.0], INSTANTS)),
            "seconds_since_open": known(draw.choice([0.0, 9000.0, 12345.678901, 18000.0, 18000.000001, 90000.0], INSTANTS)),
            "session_seconds": draw.choice([18000.0, 23400.0, 86400.0], INSTANTS),
        }
    )
    return {"events": events, "instants": instants}
