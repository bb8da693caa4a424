"""Views over daily and hourly bars: prices, momentum, technical indicators. Formulas do not belong here (see `indicators`)."""

from datetime import timedelta

from featurestore_dagster.features.entities import TICKER, TIMEFRAME
from featurestore_dagster.features.raw_tables import FX_CANDLES_1H, US_EQUITY_CANDLES_1D, US_EQUITY_CORPORATE_ACTIONS
from featurestore_dagster.indicators.averages import ema
from featurestore_dagster.indicators.bars import adjusted_close, raw_price, raw_volume
from featurestore_dagster.indicators.momentum import (
    high_52w_position,
    low_52w_position,
    macd,
    macd_hist,
    macd_signal,
    range_52w_position,
    ret,
    rsi,
)
from featurestore_dagster.indicators.trend import trend_strength
from featurestore_dagster.indicators.volatility import atr, bollinger_bands_position
from featurestore_dagster.indicators.volume import volume_sma_ratio
from featurestore_dagster.model.feature_view import FeatureView, Stream
from featurestore_dagster.model.slo import SLO
from featurestore_dagster.model.time import Timeframe

AFTER_CLOSE = "15 16 * * 1-5"
"""Quarter of an hour after the regular close; on a holiday nothing is due, so nothing starts."""

US_EQUITY_1D = Stream(
    "us_equity_1d",
    market="us_equity",
    calendar="XNYS",
    timeframe=Timeframe.ONE_DAY,
    inputs=(US_EQUITY_CANDLES_1D, US_EQUITY_CORPORATE_ACTIONS),
    schedule=AFTER_CLOSE,
)
FX_1H = Stream(
    "fx_1h",
    market="fx",
    calendar="FX",
    timeframe=Timeframe.ONE_HOUR,
    inputs=(FX_CANDLES_1H,),
    schedule="2 * * * *",
)

DAILY_OHLCV_STATS = FeatureView(
    "daily_ohlcv_stats",
    "The day's bar as traded, and the close adjusted forward for the corporate actions known that day",
    entities=(TICKER,),
    features=(
        *(raw_price.feature(name, column=f"raw_{name}") for name in ("open", "high", "low", "close")),
        raw_volume.feature("volume"),
        adjusted_close.feature(),
    ),
    streams=(US_EQUITY_1D,),
    slo=SLO(timedelta(hours=2)),
    ttl=timedelta(days=30),
    group="indicators",
)

MOMENTUM_FEATURES = FeatureView(
    "momentum_features",
    "Where the price stands against its own past, from daily bars",
    entities=(TICKER,),
    features=(
        rsi.feature("rsi_14", n=14),
        macd.feature(),
        macd_signal.feature(),
        macd_hist.feature(),
        trend_strength.feature(),
        ret.feature("momentum_1m", k=21),
        ret.feature("momentum_3m", k=63),
        ret.feature("momentum_6m", k=126),
        ret.feature("momentum_12m", k=252),
        high_52w_position.feature(),
        low_52w_position.feature(),
        range_52w_position.feature(),
    ),
    streams=(US_EQUITY_1D,),
    slo=SLO(timedelta(hours=1)),
    ttl=timedelta(days=3),
    group="indicators",
)

TECHNICAL_INDICATORS_VIEW = FeatureView(
    "technical_indicators_view",
    "Classic technical indicators for each timeframe of a market",
    entities=(TICKER, TIMEFRAME),
    features=(
        rsi.feature("rsi_14", n=14),
        macd.feature(),
        ema.feature("ema_20", n=20),
        bollinger_bands_position.feature(),
        atr.feature("atr", n=14),
        volume_sma_ratio.feature(),
    ),
    streams=(US_EQUITY_1D, FX_1H),
    slo=SLO(timedelta(hours=1)),
    ttl=timedelta(days=2),
    group="indicators",
)

EQUITY_VIEWS = (DAILY_OHLCV_STATS, MOMENTUM_FEATURES, TECHNICAL_INDICATORS_VIEW)
