"""Turnover of coins on rows of a finer grid: the last completed day's volume over the supply known at the row, worked out row by row."""

from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest

from featurestore_dagster.features.liquidity_views import LIQUIDITY_FEATURES
from featurestore_dagster.features.raw_tables import CRYPTO_CANDLES, CRYPTO_SUPPLY
from featurestore_dagster.features.streams import CRYPTO_QUOTES_15M
from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS
from featurestore_dagster.model.time import Timeframe
from featurestore_dagster.pipeline.bars import adjusted_bars, flag_bars
from featurestore_dagster.pipeline.compute import Frames, compute
from tests.unit.pipeline.filings import fact
from tests.unit.pipeline.frames import NO_ACTIONS, bar, frame

DAILY = CRYPTO_CANDLES[Timeframe.ONE_DAY]
DAY = timedelta(days=1)
FIRST = datetime(2024, 3, 1, tzinfo=UTC)
VOLUMES = {FIRST + DAY * number: 1000.0 + 37 * number**2 for number in range(25)}
"""By the end of the day."""
UNADJUSTED = NO_ACTIONS.with_columns(previous_close=pl.lit(None, pl.Float64))
KNOWN_AFTER = timedelta(seconds=2)
SUPPLIES = {FIRST - 30 * DAY: 19_000.0, FIRST + 23 * DAY + timedelta(hours=6): 19_500.0}
"""By the instant at which each is told and known."""


def turnovers(*instants: datetime, supply_flags: int = 0) -> pl.DataFrame:
    """Rows of the fifteen-minute stream at these instants."""
    days = [
        bar("2018-12-03", "BTCUSDT", dataset=DAILY.name, volume=volume, event_timestamp=end, known_at=end + KNOWN_AFTER)
        for end, volume in VOLUMES.items()
    ]
    supplies: list[dict[str, Any]] = [
        {"dataset": CRYPTO_SUPPLY.name, "source": "files", "known_at_basis": "assumed"}
        | fact("shares_outstanding", at.date(), at.date(), supply, at, symbol="BTCUSDT", flags=supply_flags)
        for at, supply in SUPPLIES.items()
    ]
    frames = Frames(
        snapshots=pl.DataFrame({"symbol": "BTCUSDT", "event_timestamp": instants}, schema_overrides={"event_timestamp": UTC_MICROSECONDS}),
        daily=flag_bars(adjusted_bars(frame(days, DAILY), UNADJUSTED), DAILY),
        facts=frame(supplies, CRYPTO_SUPPLY),
        splits=NO_ACTIONS,
    )
    return compute(LIQUIDITY_FEATURES, CRYPTO_QUOTES_15M, frames, FIRST, FIRST + 100 * DAY)


def expected(instant: datetime) -> float:
    """By the definition: the newest day that was known, over the newest supply."""
    volume = next(volume for end, volume in reversed(VOLUMES.items()) if end + KNOWN_AFTER <= instant)
    return volume / next(supply for at, supply in reversed(SUPPLIES.items()) if at <= instant)


def test_turnover_of_every_quarter_of_an_hour() -> None:
    """Midnight does not know the day that ends with it yet; the supply changes at six."""
    instants = [FIRST + 22 * DAY + timedelta(minutes=15) * number for number in range(200)]
    found = turnovers(*instants)
    assert found["event_timestamp"].to_list() == instants
    assert found["turnover_ratio"].to_list() == [pytest.approx(expected(instant), rel=1e-15) for instant in instants]
    assert found["turnover_ratio"].n_unique() == 5
    assert found["amihud_illiquidity"].null_count() == 0


def test_a_flag_of_the_supply_reaches_the_row() -> None:
    (plain,) = turnovers(FIRST + 22 * DAY)["flags"]
    (flagged,) = turnovers(FIRST + 22 * DAY, supply_flags=QualityFlag.SIMULATED.value)["flags"]
    assert flagged == plain | QualityFlag.SIMULATED.value != plain
