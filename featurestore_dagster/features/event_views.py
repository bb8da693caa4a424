"""Views over events, filings and pushes: news and sentiment, fundamentals, the state of the book. Formulas belong to `indicators`."""

from dataclasses import replace
from datetime import timedelta

from featurestore_dagster.features.entities import TICKER, TIMEFRAME
from featurestore_dagster.features.raw_tables import (
    COP_POSITIONS,
    CRYPTO_FEAR_GREED,
    MARKET_EVENTS,
    US_COMPANY_FACTS,
    US_EQUITY_CANDLES_1D,
    US_EQUITY_CORPORATE_ACTIONS,
)
from featurestore_dagster.features.streams import DAILY_BAR, US_EQUITY_1D, crypto, snapshots, with_inputs
from featurestore_dagster.features.universe import CRYPTO
from featurestore_dagster.indicators import bars, fundamentals, momentum, sentiment, sentiment_index, state, volatility
from featurestore_dagster.model.feature_view import FeatureView, Stream
from featurestore_dagster.model.slo import SLO
from featurestore_dagster.model.time import Timeframe

HOUR, DAY, WEEK, HALF_YEAR = 3600, 86_400, 7 * 86_400, 180 * 86_400
"""Lengths of event windows, seconds."""

EVENTS_OF_THE_HOUR = (
    sentiment.event_count.feature("event_count_1h", window_seconds=HOUR),
    sentiment.sentiment_mean.feature("sentiment_mean_1h", window_seconds=HOUR),
    sentiment.sentiment_conf_mean.feature("sentiment_conf_mean_1h", window_seconds=HOUR),
    sentiment.sentiment_weighted.feature("sentiment_weighted_1h", window_seconds=HOUR),
    sentiment.sentiment_std.feature("sentiment_std_1h", window_seconds=HOUR),
)

EVENT_FEATURES_1H = FeatureView(
    "event_features_1h",
    "Number and sentiment of the events of the last hour, each minute",
    entities=(TICKER,),
    features=EVENTS_OF_THE_HOUR,
    streams=(
        snapshots(CRYPTO, Timeframe.ONE_MINUTE, MARKET_EVENTS),
        snapshots("us_equity", Timeframe.ONE_MINUTE, MARKET_EVENTS),
    ),
    slo=SLO(timedelta(minutes=2)),
    ttl=timedelta(hours=1),
    group="events",
)

_SENTIMENT_INPUTS = (MARKET_EVENTS, US_EQUITY_CANDLES_1D, US_EQUITY_CORPORATE_ACTIONS)

SENTIMENT_FEATURES_VIEW = FeatureView(
    "sentiment_features_view",
    "Sentiment of news, posts and analysts, and the market's fear and greed",
    entities=(TICKER,),
    features=(
        sentiment.news_sentiment.feature("news_sentiment", window_seconds=DAY),
        sentiment.social_sentiment.feature(window_seconds=DAY),
        sentiment_index.fear_greed_index.feature(),
        sentiment.news_sentiment.feature("news_sentiment_1d", window_seconds=DAY),
        sentiment.news_sentiment.feature("news_sentiment_7d", window_seconds=WEEK),
        sentiment.analyst_rating.feature(window_seconds=HALF_YEAR),
        sentiment.analyst_rating_count.feature(window_seconds=HALF_YEAR),
    ),
    streams=(
        replace(
            snapshots(CRYPTO, Timeframe.FIFTEEN_MINUTES, *_SENTIMENT_INPUTS, CRYPTO_FEAR_GREED),
            slo=SLO(timedelta(minutes=30)),
            ttl=timedelta(minutes=30),
        ),
        snapshots("us_equity", Timeframe.FIFTEEN_MINUTES, *_SENTIMENT_INPUTS),
    ),
    slo=SLO(timedelta(hours=4)),
    ttl=timedelta(hours=4),
    group="events",
    mart="macro_series",
    aliases=("sentiment_features",),
)

FEATURE_VECTORS = FeatureView(
    "feature_vectors",
    "Contract fs_v1: returns, volatility and events of the last hour at each bar, with the row's quality flags",
    entities=(TICKER, TIMEFRAME),
    features=(
        momentum.ret.feature("ret_1", k=1),
        momentum.ret.feature("ret_5", k=5),
        volatility.vol.feature("vol_20", n=20),
        *EVENTS_OF_THE_HOUR,
        bars.quality_flags.feature(),
    ),
    streams=(replace(with_inputs(US_EQUITY_1D, MARKET_EVENTS), slo=DAILY_BAR), crypto(Timeframe.ONE_MINUTE, MARKET_EVENTS)),
    slo=SLO(timedelta(minutes=2)),
    ttl=timedelta(days=1),
    group="events",
    aliases=("fs_v1",),
)

FUNDAMENTAL_FEATURES = FeatureView(
    "fundamental_features",
    "Valuation, profitability, debt and growth by the filings known at the close",
    entities=(TICKER,),
    features=(
        fundamentals.market_cap.feature(),
        fundamentals.pe_ratio.feature(),
        fundamentals.pb_ratio.feature(),
        fundamentals.roe.feature(),
        fundamentals.roa.feature(),
        fundamentals.debt_to_equity.feature(),
        fundamentals.debt_to_assets.feature(),
        fundamentals.revenue_growth_yoy.feature(),
        fundamentals.eps_growth_yoy.feature(),
        fundamentals.net_income_growth_yoy.feature(),
    ),
    streams=(with_inputs(US_EQUITY_1D, US_COMPANY_FACTS),),
    slo=SLO(timedelta(days=1)),
    ttl=timedelta(days=7),
    group="indicators",
)

STATE_FEATURES = FeatureView(
    "state_features",
    "Position in the symbol and time of the session, each minute of it",
    entities=(TICKER,),
    features=(state.position.feature(), state.time_normalized.feature()),
    streams=(Stream("cop_1m", "cop", "COP", Timeframe.ONE_MINUTE, (COP_POSITIONS,), "* 13-18 * * 1-5"),),
    slo=SLO(timedelta(minutes=1)),
    ttl=timedelta(hours=1),
    group="events",
)

EVENT_VIEWS = (EVENT_FEATURES_1H, SENTIMENT_FEATURES_VIEW, FEATURE_VECTORS, FUNDAMENTAL_FEATURES, STATE_FEATURES)
