"""Feature services: what models and strategies ask for by one name."""

from featurestore_dagster.features.equity_views import MOMENTUM_FEATURES, TECHNICAL_INDICATORS_VIEW
from featurestore_dagster.features.macro_views import PORTFOLIO_MACRO_FEATURES
from featurestore_dagster.model.feature_service import FeatureService

TECHNICAL_INDICATORS_SERVICE = FeatureService(
    "technical_indicators_service", "All of technical_indicators_view", views=(TECHNICAL_INDICATORS_VIEW,)
)
DAILY_EQUITY_SERVICE = FeatureService(
    "daily_equity_service",
    "Momentum, technical indicators and macro state of one equity at the daily bar",
    views=(MOMENTUM_FEATURES, TECHNICAL_INDICATORS_VIEW, PORTFOLIO_MACRO_FEATURES),
)

SERVICES = (TECHNICAL_INDICATORS_SERVICE, DAILY_EQUITY_SERVICE)
