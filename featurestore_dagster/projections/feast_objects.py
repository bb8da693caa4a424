"""Declarations -> Feast objects, for stock Feast clients and the `feast` command on our stores.

Serving does not belong here: importing Feast takes seconds, so it happens inside the one function, and no read path calls it.
"""

from typing import Any

import polars as pl

from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.feature_service import FeatureService
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.projections.postgres_table import feature_schema


def feast_objects(catalogue: Catalogue) -> dict[str, Any]:
    """Feast's Entity, PostgreSQLSource, FeatureView and FeatureService for each declaration, under names for `globals().update(...)`.

    Feast finds only module attributes, never objects inside a list. Join keys carry a Field and a value type, else Feast asks the database
    for them. The TTL is the view's plus the longest closure, since Feast counts clock time.
    """
    import feast
    from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import PostgreSQLSource
    from feast.types import Float64, Int64, String

    declared = [view for view in catalogue.views if not view.is_superseded]
    feast_types = {pl.String(): String, pl.Float64(): Float64, pl.Int64(): Int64}
    entities = {
        entity.name: feast.Entity(
            name=entity.name, join_keys=[entity.join_key], value_type=feast.ValueType.STRING, description=entity.description
        )
        for entity in catalogue.entities
    }
    sources = {
        view.name: PostgreSQLSource(
            name=f"{view.name}_source",
            query=_current_rows(view),
            timestamp_field="event_timestamp",
            created_timestamp_column="created_timestamp",
            description=f"Published rows of {view.name}, all versions",
            owner=view.owner,
        )
        for view in declared
    }
    views = {
        view.name: feast.FeatureView(
            name=view.name,
            description=view.description,
            entities=[entities[entity.name] for entity in view.entities],
            schema=[
                *(feast.Field(name=entity.join_key, dtype=String, description=entity.description) for entity in view.entities),
                *(
                    feast.Field(
                        name=feature.name,
                        dtype=feast_types[feature_schema(view)[feature.name]],
                        description=feature.formula,
                        tags={"unit": feature.indicator.unit.value},
                    )
                    for feature in view.features
                ),
            ],
            source=sources[view.name],
            ttl=view.feast_ttl,
            online=view.online,
            owner=view.owner,
            tags={"group": view.group, "feature_set_version": str(view.version), "streams": ",".join(s.name for s in view.streams)},
        )
        for view in declared
    }
    services = {
        service.name: feast.FeatureService(
            name=service.name,
            description=service.description,
            features=[views[view][names] for view, names in _selection(service).items()],
        )
        for service in catalogue.services
        if not any(view.is_superseded for view in service.views)
    }
    families: dict[str, dict[str, Any]] = {"entity": entities, "source": sources, "view": views, "service": services}
    return {f"{family}_{name}": item for family, items in families.items() for name, item in items.items()}


def _current_rows(view: FeatureView) -> str:
    """Rows of the declared version: an older formula's rows share their keys and times, and would come back as duplicates."""
    columns = ", ".join(f'"{name}"' for name in feature_schema(view) if name not in ("flags", "feature_set_version", "stream"))
    return f'SELECT {columns} FROM "features"."{view.name}" WHERE "feature_set_version" = {view.version:d}'  # noqa: S608 - declared names


def _selection(service: FeatureService) -> dict[str, list[str]]:
    """Feature names by view: Feast keeps one projection of a view in a service."""
    selected: dict[str, list[str]] = {}
    for view, feature in service.references:
        selected.setdefault(view.name, []).append(feature.name)
    return selected
