"""Feast's definitions, derived from our declarations; nothing is declared here.

Feast collects the attributes of this module, so each object becomes one.
"""

from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.projections.feast_objects import feast_objects

globals().update(feast_objects(CATALOGUE))
