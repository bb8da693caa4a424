"""Every file that is generated from the declarations alone: path in the repository -> text."""

import json

from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.projections.alert_rules import alert_rules
from featurestore_dagster.projections.dashboard import dashboard
from featurestore_dagster.projections.data_dictionary import data_dictionary
from featurestore_dagster.projections.data_dictionary_page import data_dictionary_page
from featurestore_dagster.projections.dbt_contract import dbt_files
from featurestore_dagster.projections.graph_picture import graph_picture
from featurestore_dagster.projections.json_schema import json_schema, samples


def generated_files(catalogue: Catalogue) -> dict[str, str]:
    """Relative POSIX path -> whole content."""
    return {
        **dbt_files(catalogue),
        "schemas/features.v1.json": _json(json_schema(catalogue)),
        **{f"schemas/samples/{name}.json": _json(sample) for name, sample in samples(catalogue).items()},
        "docs/data_dictionary.md": data_dictionary(catalogue),
        "docs/images/graph.svg": graph_picture(catalogue),
        "docs/data_dictionary.html": data_dictionary_page(catalogue),
        "monitoring/prometheus/rules.yml": alert_rules(catalogue),
        "monitoring/grafana/boards/feature-store-health.json": dashboard(),
    }


def _json(value: object) -> str:
    return json.dumps(value, indent=2) + "\n"
