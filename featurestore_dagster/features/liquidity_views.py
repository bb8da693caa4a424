"""Views over quotes and what daily bars say of liquidity. Formulas do not belong here (see `indicators`)."""

from datetime import timedelta

from featurestore_dagster.features.entities import TICKER, TIMEFRAME
from featurestore_dagster.features.raw_tables import CRYPTO_QUOTES, US_COMPANY_FACTS
from featurestore_dagster.features.streams import CRYPTO_QUOTES_15M, US_EQUITY_1D, crypto, with_inputs
from featurestore_dagster.indicators import fundamentals, liquidity, quotes
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.model.slo import SLO
from featurestore_dagster.model.time import Timeframe

MARKET_FEATURES_VIEW = FeatureView(
    "market_features_view",
    "The top of the book at the end of each bar, and the size of its trades",
    entities=(TICKER, TIMEFRAME),
    features=(quotes.bid_ask_spread.feature(), quotes.order_book_imbalance.feature(), quotes.trade_size_avg.feature()),
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
        quotes.bid_ask_spread_bps.feature(),
        quotes.market_depth.feature(),
        fundamentals.turnover_ratio.feature(),
        liquidity.amihud_illiquidity.feature(),
        quotes.price_impact_1pct.feature(),
        liquidity.liquidity_regime.feature(),
        liquidity.spread_cs_20_est_bps.feature(),
        liquidity.spread_roll_20_est_bps.feature(),
        liquidity.price_impact_1pct_est_bps.feature(),
    ),
    streams=(with_inputs(US_EQUITY_1D, US_COMPANY_FACTS), CRYPTO_QUOTES_15M),
    slo=SLO(timedelta(minutes=15)),
    ttl=timedelta(days=1),
    group="indicators",
    version=2,
)

LIQUIDITY_VIEWS = (MARKET_FEATURES_VIEW, LIQUIDITY_FEATURES)
