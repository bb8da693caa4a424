"""Every file that is generated from the declarations: path in the repository -> text."""

import json

from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.projections.data_dictionary import data_dictionary
from featurestore_dagster.projections.dbt_contract import dbt_files
from featurestore_dagster.projections.json_schema import json_schema


def generated_files(catalogue: Catalogue) -> dict[str, str]:
    """Relative POSIX path -> whole content."""
    return {
        **dbt_files(catalogue),
        "schemas/features.v1.json": json.dumps(json_schema(catalogue), indent=2) + "\n",
        "docs/data_dictionary.md": data_dictionary(catalogue),
    }
