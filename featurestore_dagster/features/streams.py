"""Streams: the markets and timeframes that views are computed for. Which view has which stream does not belong here."""

from dataclasses import replace
from datetime import timedelta

from featurestore_dagster.features.raw_tables import (
    COP_CANDLES_1D,
    COP_CANDLES_5M,
    CRYPTO_CANDLES,
    CRYPTO_QUOTES,
    CRYPTO_SUPPLY,
    FX_CANDLES_1H,
    US_EQUITY_CANDLES_1D,
    US_EQUITY_CANDLES_5M,
    US_EQUITY_CORPORATE_ACTIONS,
)
from featurestore_dagster.features.universe import CRYPTO
from featurestore_dagster.model.feature_view import Stream
from featurestore_dagster.model.raw_table import Dataset
from featurestore_dagster.model.slo import SLO
from featurestore_dagster.model.time import Timeframe

AFTER_US_CLOSE = "5 13,16 * * 1-5"
"""Five minutes after the close of a half day and after the regular one; on a holiday nothing is due, so nothing starts."""

AFTER_PESO_CLOSE = "15 18 * * 1-5"
IN_PESO_SESSION = "*/5 13-18 * * 1-5"

CADENCE = {
    Timeframe.ONE_MINUTE: "* * * * *",
    Timeframe.FIVE_MINUTES: "*/5 * * * *",
    Timeframe.FIFTEEN_MINUTES: "*/15 * * * *",
    Timeframe.ONE_HOUR: "2 * * * *",
    Timeframe.FOUR_HOURS: "2 */4 * * *",
    Timeframe.ONE_DAY: "5 0 * * *",
}
"""Schedule of a market that never closes."""

US_EQUITY_1D = Stream(
    "us_equity_1d", "us_equity", "XNYS", Timeframe.ONE_DAY, (US_EQUITY_CANDLES_1D, US_EQUITY_CORPORATE_ACTIONS), AFTER_US_CLOSE
)
US_EQUITY_5M = Stream(
    "us_equity_5m",
    "us_equity",
    "XNYS",
    Timeframe.FIVE_MINUTES,
    (US_EQUITY_CANDLES_5M, US_EQUITY_CANDLES_1D, US_EQUITY_CORPORATE_ACTIONS),
    "*/5 9-16 * * 1-5",
)
FX_1H = Stream("fx_1h", "fx", "FX", Timeframe.ONE_HOUR, (FX_CANDLES_1H,), CADENCE[Timeframe.ONE_HOUR])
COP_5M = Stream("cop_5m", "cop", "COP", Timeframe.FIVE_MINUTES, (COP_CANDLES_5M, COP_CANDLES_1D), IN_PESO_SESSION)
COP_1D = Stream("cop_1d", "cop", "COP", Timeframe.ONE_DAY, (COP_CANDLES_1D,), AFTER_PESO_CLOSE)


def crypto(timeframe: Timeframe, *beside: Dataset) -> Stream:
    """Bars of crypto pairs, and datasets read beside them."""
    return Stream(f"{CRYPTO}_{timeframe}", CRYPTO, "24/7", timeframe, (CRYPTO_CANDLES[timeframe], *beside), CADENCE[timeframe])


def snapshots(market: str, timeframe: Timeframe, *inputs: Dataset) -> Stream:
    """Rows around the clock for each instrument of a market, whether it has bars or not."""
    return Stream(f"{market}_{timeframe}", market, "24/7", timeframe, inputs, CADENCE[timeframe])


def with_inputs(stream: Stream, *beside: Dataset) -> Stream:
    """The stream with more inputs."""
    return replace(stream, inputs=(*stream.inputs, *beside))


DAILY_BAR = SLO(timedelta(hours=1))
"""Of a daily bar in a view whose other streams are faster: the bar itself is asked for after the close."""


def paced(stream: Stream) -> Stream:
    """The stream with an SLO of one bar, at least a minute, and a TTL of two bars, at least an hour."""
    duration = stream.timeframe.duration
    return replace(stream, slo=SLO(max(duration, timedelta(minutes=1))), ttl=max(2 * duration, timedelta(hours=1)))


CRYPTO_QUOTES_15M = Stream(
    f"{CRYPTO}_15m",
    CRYPTO,
    "24/7",
    Timeframe.FIFTEEN_MINUTES,
    (CRYPTO_QUOTES, CRYPTO_CANDLES[Timeframe.ONE_DAY], CRYPTO_SUPPLY),
    CADENCE[Timeframe.FIFTEEN_MINUTES],
)
