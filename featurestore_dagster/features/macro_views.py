"""Views over macro series: what the whole book sees, and what a symbol's model sees of them. Series ids belong to `macro_series`."""

from datetime import timedelta

from featurestore_dagster.features.entities import PORTFOLIO, TICKER
from featurestore_dagster.features.raw_tables import US_EQUITY_CANDLES_1D, US_EQUITY_CORPORATE_ACTIONS, US_MACRO
from featurestore_dagster.features.streams import snapshots
from featurestore_dagster.features.universe import CRYPTO
from featurestore_dagster.indicators import macro
from featurestore_dagster.model.feature_view import FeatureView, Stream
from featurestore_dagster.model.slo import SLO
from featurestore_dagster.model.time import Timeframe

PORTFOLIO_MACRO_FEATURES = FeatureView(
    "portfolio_macro_features",
    "Benchmark returns, volatility, rates and regime as known at each hourly snapshot of the session",
    entities=(PORTFOLIO,),
    features=(
        macro.spy_return.feature("spy_return_1d", k=1),
        macro.spy_return.feature("spy_return_5d", k=5),
        macro.spy_return.feature("spy_return_20d", k=20),
        macro.spy_volatility_20d.feature(),
        macro.index_level.feature("vix", column="vix"),
        macro.spread.feature("term_spread", minuend="treasury_10y", subtrahend="treasury_2y"),
        macro.spread_level.feature("credit_spread", column="credit_spread"),
        macro.yield_level.feature("treasury_2y", column="treasury_2y"),
        macro.yield_level.feature("treasury_10y", column="treasury_10y"),
        macro.market_regime.feature(),
    ),
    streams=(
        Stream(
            "us_macro_1h",
            market="us_macro",
            calendar="XNYS",
            timeframe=Timeframe.ONE_HOUR,
            inputs=(US_EQUITY_CANDLES_1D, US_EQUITY_CORPORATE_ACTIONS),
            schedule="35 10-16 * * 1-5",
        ),
    ),
    slo=SLO(timedelta(hours=1)),
    ttl=timedelta(hours=24),
    group="macro",
    mart="macro_series",
)

YEAR_OBSERVATIONS = 252

MACRO_FEATURES = FeatureView(
    "macro_features",
    "Dollar, volatility, credit, oil and rates as known at each hourly snapshot, for the instruments of a market",
    entities=(TICKER,),
    features=(
        macro.zscore.feature("dxy_z", n=YEAR_OBSERVATIONS, column="dxy"),
        macro.change.feature("dxy_change_1d", column="dxy"),
        macro.zscore.feature("vix_z", n=YEAR_OBSERVATIONS, column="vix"),
        macro.zscore.feature("embi_z", n=YEAR_OBSERVATIONS, column="embi"),
        macro.change.feature("brent_change_1d", column="brent"),
        macro.rate_spread.feature(),
        macro.change.feature("usdmxn_change_1d", column="usdmxn"),
    ),
    streams=(
        Stream(
            "cop_1h",
            market="cop",
            calendar="COP",
            timeframe=Timeframe.ONE_HOUR,
            inputs=(US_MACRO,),
            schedule="5 14-18 * * 1-5",
        ),
        snapshots(CRYPTO, Timeframe.ONE_HOUR, US_MACRO),
    ),
    slo=SLO(timedelta(hours=1)),
    ttl=timedelta(hours=24),
    group="macro",
    mart="macro_series",
)

MACRO_VIEWS = (PORTFOLIO_MACRO_FEATURES, MACRO_FEATURES)
