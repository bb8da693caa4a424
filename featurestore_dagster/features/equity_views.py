"""Views over bars alone: prices, momentum, technical indicators. Formulas do not belong here (see `indicators`)."""

from dataclasses import replace
from datetime import timedelta

from featurestore_dagster.features.entities import TICKER, TIMEFRAME
from featurestore_dagster.features.raw_tables import CRYPTO_CANDLES
from featurestore_dagster.features.streams import COP_5M, DAILY_BAR, FX_1H, US_EQUITY_1D, US_EQUITY_5M, crypto, paced
from featurestore_dagster.indicators.averages import ema, sma
from featurestore_dagster.indicators.bars import adjusted_close, raw_price, raw_volume
from featurestore_dagster.indicators.intraday import session_return, session_volume, volume_ratio, vwap
from featurestore_dagster.indicators.momentum import (
    high_52w_position,
    log_ret,
    low_52w_position,
    macd,
    macd_hist,
    macd_signal,
    range_52w_position,
    ret,
    rsi,
)
from featurestore_dagster.indicators.trend import adx, minus_di, plus_di, trend_strength
from featurestore_dagster.indicators.volatility import atr, atr_pct, bollinger_bands_position, vol, volatility_20d
from featurestore_dagster.indicators.volume import rolling_vwap, volume_sma_ratio
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.model.slo import SLO
from featurestore_dagster.model.time import Timeframe

CRYPTO_1D = crypto(Timeframe.ONE_DAY)

DAILY_OHLCV_STATS = FeatureView(
    "daily_ohlcv_stats",
    "The day's bar as traded, and the close adjusted forward for the corporate actions known that day",
    entities=(TICKER,),
    features=(
        *(raw_price.feature(name, column=f"raw_{name}") for name in ("open", "high", "low", "close")),
        raw_volume.feature("volume"),
        adjusted_close.feature(),
    ),
    streams=(US_EQUITY_1D, CRYPTO_1D),
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
    streams=(US_EQUITY_1D, CRYPTO_1D),
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
    streams=tuple(map(paced, (US_EQUITY_1D, FX_1H, *map(crypto, Timeframe)))),
    slo=SLO(timedelta(hours=1)),
    ttl=timedelta(hours=1),
    group="indicators",
)

TECHNICAL_FEATURES = FeatureView(
    "technical_features",
    "Returns, momentum, range and trend of the last five-minute bars",
    entities=(TICKER,),
    features=(
        log_ret.feature("log_ret_5m", k=1),
        log_ret.feature("log_ret_1h", k=12),
        log_ret.feature("log_ret_4h", k=48),
        rsi.feature("rsi_9", n=9),
        atr_pct.feature(),
        adx.feature("adx_14", n=14),
    ),
    streams=(COP_5M, US_EQUITY_5M, crypto(Timeframe.FIVE_MINUTES)),
    slo=SLO(timedelta(minutes=5)),
    ttl=timedelta(hours=24),
    group="indicators",
)

PRICE_VOLUME_FEATURES = FeatureView(
    "price_volume_features",
    "Price, volume and returns of the running session against earlier ones",
    entities=(TICKER,),
    features=(
        raw_price.feature("close_price", column="raw_close"),
        vwap.feature(),
        session_volume.feature("volume"),
        session_return.feature("returns_1d", k=1),
        session_return.feature("returns_5d", k=5),
        session_return.feature("returns_20d", k=20),
        volatility_20d.feature(),
        volume_ratio.feature(),
    ),
    streams=(replace(US_EQUITY_1D, slo=DAILY_BAR), COP_5M, crypto(Timeframe.FIVE_MINUTES, CRYPTO_CANDLES[Timeframe.ONE_DAY])),
    slo=SLO(timedelta(minutes=5)),
    ttl=timedelta(hours=24),
    group="indicators",
)

TA_GRID_1D = FeatureView(
    "ta_grid_1d",
    "A grid of averages, oscillators and returns over daily bars, for training",
    entities=(TICKER,),
    features=(
        *(sma.feature(f"sma_{n}", n=n) for n in (5, 10, 20, 50, 100, 200)),
        *(ema.feature(f"ema_{n}", n=n) for n in (5, 10, 12, 26, 50, 100, 200)),
        *(rsi.feature(f"rsi_{n}", n=n) for n in (5, 9, 21)),
        *(atr.feature(f"atr_{n}", n=n) for n in (7, 21)),
        *(adx.feature(f"adx_{n}", n=n) for n in (7, 14, 28)),
        plus_di.feature("plus_di_14", n=14),
        minus_di.feature("minus_di_14", n=14),
        *(log_ret.feature(f"log_ret_{k}", k=k) for k in (1, 5, 21)),
        *(vol.feature(f"vol_{n}", n=n) for n in (10, 20, 60, 252)),
        *(ret.feature(f"ret_{k}", k=k) for k in (10, 60)),
        rolling_vwap.feature("vwap_20", n=20),
    ),
    streams=(US_EQUITY_1D, CRYPTO_1D),
    slo=SLO(timedelta(hours=2)),
    ttl=timedelta(days=3),
    group="indicators",
)

EQUITY_VIEWS = (DAILY_OHLCV_STATS, MOMENTUM_FEATURES, TECHNICAL_INDICATORS_VIEW, TECHNICAL_FEATURES, PRICE_VOLUME_FEATURES, TA_GRID_1D)
