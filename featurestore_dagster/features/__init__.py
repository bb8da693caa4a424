"""THE declarations. A new view is a file here plus its name in `VIEWS`; everything else follows from `CATALOGUE`."""

from featurestore_dagster.features.entities import ENTITIES
from featurestore_dagster.features.equity_views import EQUITY_VIEWS
from featurestore_dagster.features.event_views import EVENT_VIEWS
from featurestore_dagster.features.liquidity_views import LIQUIDITY_VIEWS
from featurestore_dagster.features.macro_views import MACRO_VIEWS
from featurestore_dagster.features.raw_tables import DATASETS, RAW_TABLES
from featurestore_dagster.features.services import SERVICES
from featurestore_dagster.features.sources import SOURCES
from featurestore_dagster.features.training_views import TRAINING_VIEWS
from featurestore_dagster.model.catalogue import Catalogue

VIEWS = (*EQUITY_VIEWS, *LIQUIDITY_VIEWS, *EVENT_VIEWS, *MACRO_VIEWS, *TRAINING_VIEWS)

CATALOGUE = Catalogue(entities=ENTITIES, raw_tables=RAW_TABLES, datasets=DATASETS, sources=SOURCES, views=VIEWS, services=SERVICES)
