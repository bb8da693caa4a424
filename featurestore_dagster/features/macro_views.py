"""Views over macro series: what the whole book sees, and what a symbol's model sees of them. Series ids belong to `macro_series`."""

from datetime import timedelta

from featurestore_dagster.features.entities import PORTFOLIO, TICKER
from featurestore_dagster.features.raw_tables import US_EQUITY_CANDLES_1D, US_EQUITY_CORPORATE_ACTIONS, US_MACRO
from featurestore_dagster.features.streams import snapshots
from featurestore_dagster.indicators.macro import (
    change,
    index_level,
    market_regime,
    rate_spread,
    spread,
    spread_level,
    spy_return,
    spy_volatility_20d,
    yield_level,
    zscore,
)
from featurestore_dagster.model.feature_view import FeatureView, Stream
from featurestore_dagster.model.slo import SLO
from featurestore_dagster.model.time import Timeframe

PORTFOLIO_MACRO_FEATURES = FeatureView(
    "portfolio_macro_features",
    "Benchmark returns, volatility, rates and regime as known at each hourly snapshot of the session",
    entities=(PORTFOLIO,),
    features=(
        spy_return.feature("spy_return_1d", k=1),
        spy_return.feature("spy_return_5d", k=5),
        spy_return.feature("spy_return_20d", k=20),
        spy_volatility_20d.feature(),
        index_level.feature("vix", column="vix"),
        spread.feature("term_spread", minuend="treasury_10y", subtrahend="treasury_2y"),
        spread_level.feature("credit_spread", column="credit_spread"),
        yield_level.feature("treasury_2y", column="treasury_2y"),
        yield_level.feature("treasury_10y", column="treasury_10y"),
        market_regime.feature(),
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
        zscore.feature("dxy_z", n=YEAR_OBSERVATIONS, column="dxy"),
        change.feature("dxy_change_1d", column="dxy"),
        zscore.feature("vix_z", n=YEAR_OBSERVATIONS, column="vix"),
        zscore.feature("embi_z", n=YEAR_OBSERVATIONS, column="embi"),
        change.feature("brent_change_1d", column="brent"),
        rate_spread.feature(),
        change.feature("usdmxn_change_1d", column="usdmxn"),
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
        snapshots("crypto", "crypto", Timeframe.ONE_HOUR, US_MACRO),
    ),
    slo=SLO(timedelta(hours=1)),
    ttl=timedelta(hours=24),
    group="macro",
    mart="macro_series",
)

MACRO_VIEWS = (PORTFOLIO_MACRO_FEATURES, MACRO_FEATURES)
