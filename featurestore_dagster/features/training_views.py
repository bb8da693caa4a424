"""The view for training that joins all others point in time. Views of their own features do not belong here."""

from datetime import timedelta

from featurestore_dagster.features.entities import TICKER, TIMEFRAME
from featurestore_dagster.features.equity_views import CRYPTO_1D, EQUITY_VIEWS, TA_GRID_1D
from featurestore_dagster.features.event_views import EVENT_VIEWS
from featurestore_dagster.features.liquidity_views import LIQUIDITY_VIEWS
from featurestore_dagster.features.macro_views import MACRO_VIEWS
from featurestore_dagster.features.streams import COP_1D, US_EQUITY_1D
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.model.indicator import published
from featurestore_dagster.model.slo import SLO

_MEMBERS = tuple(view for view in (*EQUITY_VIEWS, *LIQUIDITY_VIEWS, *EVENT_VIEWS, *MACRO_VIEWS) if view is not TA_GRID_1D)

COMPREHENSIVE_FEATURES_VIEW = FeatureView(
    "comprehensive_features_view",
    "Every feature of the other views as it was known shortly after each daily bar, for training only",
    entities=(TICKER, TIMEFRAME),
    features=tuple(published(view.name, feature) for view in _MEMBERS for feature in view.features),
    streams=(US_EQUITY_1D, COP_1D, CRYPTO_1D),
    slo=SLO(timedelta(days=1)),
    ttl=timedelta(days=1),
    group="training",
    version=2,
    online=False,
    members=_MEMBERS,
)

TRAINING_VIEWS = (COMPREHENSIVE_FEATURES_VIEW,)
