"""Feature services: what models and strategies ask for by one name."""

from featurestore_dagster.features.equity_views import (
    MOMENTUM_FEATURES,
    PRICE_VOLUME_FEATURES,
    TA_GRID_1D,
    TECHNICAL_FEATURES,
    TECHNICAL_INDICATORS_VIEW,
)
from featurestore_dagster.features.event_views import (
    EVENT_FEATURES_1H,
    FUNDAMENTAL_FEATURES,
    SENTIMENT_FEATURES_VIEW,
    STATE_FEATURES,
)
from featurestore_dagster.features.liquidity_views import LIQUIDITY_FEATURES, MARKET_FEATURES_VIEW
from featurestore_dagster.features.macro_views import MACRO_FEATURES, PORTFOLIO_MACRO_FEATURES
from featurestore_dagster.features.training_views import COMPREHENSIVE_FEATURES_VIEW
from featurestore_dagster.model.feature_service import FeatureService

STANDARD_DEVIATIONS_LIMIT = 5

OBSERVATION_15D = FeatureService(
    "observation_15d",
    "The observation of a trading agent: fifteen features in fixed order, raw or normalised",
    views=(TECHNICAL_FEATURES, MACRO_FEATURES, STATE_FEATURES),
    standardised=(*TECHNICAL_FEATURES.feature_names, *MACRO_FEATURES.feature_names),
    bounds=dict.fromkeys((*TECHNICAL_FEATURES.feature_names, *MACRO_FEATURES.feature_names), STANDARD_DEVIATIONS_LIMIT) | {"position": 1},
)
TECHNICAL_INDICATORS_SERVICE = FeatureService(
    "technical_indicators_service", "All of technical_indicators_view", views=(TECHNICAL_INDICATORS_VIEW,)
)
MARKET_ANALYSIS_SERVICE = FeatureService("market_analysis_service", "All of market_features_view", views=(MARKET_FEATURES_VIEW,))
COMPREHENSIVE_TRAINING_SERVICE = FeatureService(
    "comprehensive_training_service", "All of comprehensive_features_view, for training only", views=(COMPREHENSIVE_FEATURES_VIEW,)
)
BENCHMARK_100 = FeatureService(
    "benchmark_100",
    "A hundred features of one symbol, for measuring reads",
    views=(
        PRICE_VOLUME_FEATURES,
        MOMENTUM_FEATURES,
        TECHNICAL_INDICATORS_VIEW,
        LIQUIDITY_FEATURES,
        FUNDAMENTAL_FEATURES,
        SENTIMENT_FEATURES_VIEW,
        EVENT_FEATURES_1H,
        PORTFOLIO_MACRO_FEATURES,
        TA_GRID_1D,
    ),
)
DAILY_EQUITY_SERVICE = FeatureService(
    "daily_equity_service",
    "Momentum, technical indicators and macro state of one equity at the daily bar",
    views=(MOMENTUM_FEATURES, TECHNICAL_INDICATORS_VIEW, PORTFOLIO_MACRO_FEATURES),
)

SERVICES = (
    OBSERVATION_15D,
    TECHNICAL_INDICATORS_SERVICE,
    MARKET_ANALYSIS_SERVICE,
    COMPREHENSIVE_TRAINING_SERVICE,
    BENCHMARK_100,
    DAILY_EQUITY_SERVICE,
)
