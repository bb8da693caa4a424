"""Views over quotes and what daily bars say of liquidity. Formulas do not belong here (see `indicators`)."""

from datetime import timedelta

from featurestore_dagster.features.entities import TICKER, TIMEFRAME
from featurestore_dagster.features.raw_tables import CRYPTO_QUOTES, US_COMPANY_FACTS
from featurestore_dagster.features.streams import CRYPTO_QUOTES_15M, US_EQUITY_1D, crypto, with_inputs
from featurestore_dagster.indicators.fundamentals import turnover_ratio
from featurestore_dagster.indicators.liquidity import (
    amihud_illiquidity,
    liquidity_regime,
    price_impact_1pct_est_bps,
    spread_cs_20_est_bps,
    spread_roll_20_est_bps,
)
from featurestore_dagster.indicators.quotes import (
    bid_ask_spread,
    bid_ask_spread_bps,
    market_depth,
    order_book_imbalance,
    price_impact_1pct,
    trade_size_avg,
)
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.model.slo import SLO
from featurestore_dagster.model.time import Timeframe

MARKET_FEATURES_VIEW = FeatureView(
    "market_features_view",
    "The top of the book at the end of each bar, and the size of its trades",
    entities=(TICKER, TIMEFRAME),
    features=(bid_ask_spread.feature(), order_book_imbalance.feature(), trade_size_avg.feature()),
    streams=tuple(
        crypto(timeframe, CRYPTO_QUOTES) for timeframe in (Timeframe.ONE_MINUTE, Timeframe.FIVE_MINUTES, Timeframe.FIFTEEN_MINUTES)
    ),
    slo=SLO(timedelta(minutes=1)),
    ttl=timedelta(minutes=30),
    group="indicators",
)
"""The dictionary's TTL of 5 minutes is less than two bars of 15 minutes, the least that a TTL may be."""

LIQUIDITY_FEATURES = FeatureView(
    "liquidity_features",
    "What trading costs: quoted where there are quotes, estimated from daily bars (names with est) everywhere",
    entities=(TICKER,),
    features=(
        bid_ask_spread_bps.feature(),
        market_depth.feature(),
        turnover_ratio.feature(),
        amihud_illiquidity.feature(),
        price_impact_1pct.feature(),
        liquidity_regime.feature(),
        spread_cs_20_est_bps.feature(),
        spread_roll_20_est_bps.feature(),
        price_impact_1pct_est_bps.feature(),
    ),
    streams=(with_inputs(US_EQUITY_1D, US_COMPANY_FACTS), CRYPTO_QUOTES_15M),
    slo=SLO(timedelta(minutes=15)),
    ttl=timedelta(days=1),
    group="indicators",
)

LIQUIDITY_VIEWS = (MARKET_FEATURES_VIEW, LIQUIDITY_FEATURES)
