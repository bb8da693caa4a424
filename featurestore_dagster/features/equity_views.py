"""Views over bars alone: prices, momentum, technical indicators. Formulas do not belong here (see `indicators`)."""

from dataclasses import replace
from datetime import timedelta

from featurestore_dagster.features.entities import TICKER, TIMEFRAME
from featurestore_dagster.features.raw_tables import CRYPTO_CANDLES
from featurestore_dagster.features.streams import COP_5M, DAILY_BAR, FX_1H, US_EQUITY_1D, US_EQUITY_5M, crypto, paced
from featurestore_dagster.indicators import averages, bars, intraday, momentum, trend, volatility, volume
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.model.slo import SLO
from featurestore_dagster.model.time import Timeframe

CRYPTO_1D = crypto(Timeframe.ONE_DAY)

DAILY_OHLCV_STATS = FeatureView(
    "daily_ohlcv_stats",
    "The day's bar as traded, and the close adjusted forward for the corporate actions known that day",
    entities=(TICKER,),
    features=(
        *(bars.raw_price.feature(name, column=f"raw_{name}") for name in ("open", "high", "low", "close")),
        bars.raw_volume.feature("volume"),
        bars.adjusted_close.feature(),
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
        momentum.rsi.feature("rsi_14", n=14),
        momentum.macd.feature(),
        momentum.macd_signal.feature(),
        momentum.macd_hist.feature(),
        trend.trend_strength.feature(),
        momentum.ret.feature("momentum_1m", k=21),
        momentum.ret.feature("momentum_3m", k=63),
        momentum.ret.feature("momentum_6m", k=126),
        momentum.ret.feature("momentum_12m", k=252),
        momentum.high_52w_position.feature(),
        momentum.low_52w_position.feature(),
        momentum.range_52w_position.feature(),
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
        momentum.rsi.feature("rsi_14", n=14),
        momentum.macd.feature(),
        averages.ema.feature("ema_20", n=20),
        volatility.bollinger_bands_position.feature(),
        volatility.atr.feature("atr", n=14),
        volume.volume_sma_ratio.feature(),
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
        momentum.log_ret.feature("log_ret_5m", k=1),
        momentum.log_ret.feature("log_ret_1h", k=12),
        momentum.log_ret.feature("log_ret_4h", k=48),
        momentum.rsi.feature("rsi_9", n=9),
        volatility.atr_pct.feature(),
        trend.adx.feature("adx_14", n=14),
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
        bars.raw_price.feature("close_price", column="raw_close"),
        intraday.vwap.feature(),
        intraday.session_volume.feature("volume"),
        intraday.session_return.feature("returns_1d", k=1),
        intraday.session_return.feature("returns_5d", k=5),
        intraday.session_return.feature("returns_20d", k=20),
        volatility.volatility_20d.feature(),
        intraday.volume_ratio.feature(),
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
        *(averages.sma.feature(f"sma_{n}", n=n) for n in (5, 10, 20, 50, 100, 200)),
        *(averages.ema.feature(f"ema_{n}", n=n) for n in (5, 10, 12, 26, 50, 100, 200)),
        *(momentum.rsi.feature(f"rsi_{n}", n=n) for n in (5, 9, 21)),
        *(volatility.atr.feature(f"atr_{n}", n=n) for n in (7, 21)),
        *(trend.adx.feature(f"adx_{n}", n=n) for n in (7, 14, 28)),
        trend.plus_di.feature("plus_di_14", n=14),
        trend.minus_di.feature("minus_di_14", n=14),
        *(momentum.log_ret.feature(f"log_ret_{k}", k=k) for k in (1, 5, 21)),
        *(volatility.vol.feature(f"vol_{n}", n=n) for n in (10, 20, 60, 252)),
        *(momentum.ret.feature(f"ret_{k}", k=k) for k in (10, 60)),
        volume.rolling_vwap.feature("vwap_20", n=20),
    ),
    streams=(US_EQUITY_1D, CRYPTO_1D),
    slo=SLO(timedelta(hours=2)),
    ttl=timedelta(days=3),
    group="indicators",
)

EQUITY_VIEWS = (DAILY_OHLCV_STATS, MOMENTUM_FEATURES, TECHNICAL_INDICATORS_VIEW, TECHNICAL_FEATURES, PRICE_VOLUME_FEATURES, TA_GRID_1D)
