"""Runs in a process of its own: stock Feast with `online_store: {type: remote}`; a request as JSON on stdin, the answer on stdout.

Feast's import warns and takes seconds, so the test process stays without it.
"""

import contextlib
import json
import sys
import warnings
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")

from feast import FeatureStore, RepoConfig  # noqa: E402
from feast.infra.online_stores.remote import RemoteOnlineStore  # noqa: E402
from feast.protos.feast.types.EntityKey_pb2 import EntityKey  # noqa: E402
from feast.protos.feast.types.Value_pb2 import Value  # noqa: E402

from featurestore_dagster.features import CATALOGUE  # noqa: E402
from featurestore_dagster.projections.feast_objects import feast_objects  # noqa: E402


def main() -> None:
    """Answer every part."""
    request = json.load(sys.stdin)
    answer: dict[str, Any] = {}
    with contextlib.redirect_stdout(sys.stderr):
        config = RepoConfig(
            project="featurestore",
            provider="local",
            registry=str(Path(request["folder"]) / "registry.db"),
            online_store={"type": "remote", "path": request["url"]},
            offline_store={"type": "dask"},
            entity_key_serialization_version=3,
        )
        store = FeatureStore(config=config)
        store.apply(list(feast_objects(CATALOGUE).values()))
        rows = [{"symbol": symbol} for symbol in request["symbols"]]
        response = store.get_online_features(features=request["features"], entity_rows=rows, full_feature_names=True)
        answer["online"] = response.to_dict()
        names = response.proto.metadata.feature_names.val
        statuses = {name: [int(status) for status in column.statuses] for name, column in zip(names, response.proto.results, strict=True)}
        labels = {0: "INVALID", 1: "PRESENT", 2: "NULL_VALUE", 3: "NOT_FOUND", 4: "OUTSIDE_MAX_AGE"}
        wanted = [reference.replace(":", "__") for reference in request["features"]]
        answer["statuses"] = [[labels[statuses[name][number]] for name in wanted] for number in range(len(rows))]
        legacy = request["legacy"]
        view = store.get_feature_view(legacy["view"])
        keys = [EntityKey(join_keys=["symbol"], entity_values=[Value(string_val=symbol)]) for symbol in legacy["symbols"]]
        read = RemoteOnlineStore().online_read(config, view, keys, legacy["features"])
        answer["legacy"] = [
            {"at": at and at.replace(tzinfo=None).isoformat(), **{name: value.double_val for name, value in (values or {}).items()}}
            for at, values in read
        ]
        try:
            RemoteOnlineStore().get_online_features(config, request["missing"], rows, store.registry, "featurestore")
        except Exception as error:  # noqa: BLE001 - whatever Feast makes of it is what is tested
            answer["missing"] = [type(error).__name__, str(error)]
        everything = [row | {"timeframe": "1d", "portfolio": "GLOBAL"} for row in rows]
        service = store.get_online_features(
            features=store.get_feature_service(request["service"]), entity_rows=everything, full_feature_names=True
        )
        answer["service_names"] = [name.partition("__")[2] for name in service.proto.metadata.feature_names.val if "__" in name]
    json.dump(answer, sys.stdout)


main()
