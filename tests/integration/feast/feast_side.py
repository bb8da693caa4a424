"""Runs inside a process of its own, with stock Feast and nothing of ours: reads a request as JSON from stdin, answers as JSON on stdout.

Feast's import warns and takes seconds, so the test process stays without it.
"""

import contextlib
import io
import json
import sys
import warnings
from datetime import datetime
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")

import pandas as pd  # noqa: E402
from feast import FeatureStore  # noqa: E402
from feast.cli.cli import cli  # noqa: E402
from feast.infra.online_stores.helpers import _mmh3, _redis_key  # noqa: E402
from feast.infra.online_stores.redis import RedisOnlineStore  # noqa: E402
from feast.protos.feast.types.EntityKey_pb2 import EntityKey  # noqa: E402
from feast.protos.feast.types.Value_pb2 import Value  # noqa: E402
from feast.repo_config import load_repo_config  # noqa: E402
from google.protobuf.timestamp_pb2 import Timestamp  # noqa: E402
from sqlalchemy import make_url  # noqa: E402


def layout(samples: dict[str, Any]) -> dict[str, Any]:
    """Feast's own bytes of keys, field names, values and timestamps, as hexadecimal text."""
    keys = [
        EntityKey(join_keys=list(entity), entity_values=[Value(string_val=text) for text in entity.values()])
        for entity in samples["entities"]
    ]
    doubles = [Value() if value is None else Value(double_val=value) for value in samples["doubles"]]
    integers = [Value() if value is None else Value(int64_val=value) for value in samples["integers"]]
    stamps = []
    for text in samples["instants"]:
        stamp = Timestamp()
        stamp.FromDatetime(datetime.fromisoformat(text))
        stamps.append(stamp)
    return {
        "keys": [_redis_key(samples["project"], key, entity_key_serialization_version=3).hex() for key in keys],
        "fields": [_mmh3(name).hex() for name in samples["fields"]],
        "doubles": [value.SerializeToString().hex() for value in doubles],
        "integers": [value.SerializeToString().hex() for value in integers],
        "instants": [stamp.SerializeToString().hex() for stamp in stamps],
    }


def online(store: FeatureStore, request: dict[str, Any]) -> dict[str, Any]:
    """What `get_online_features` serves, by column."""
    features = store.get_feature_service(request["service"]) if "service" in request else request["features"]
    return dict(store.get_online_features(features=features, entity_rows=request["entity_rows"]).to_dict())


def historical(store: FeatureStore, request: dict[str, Any]) -> list[dict[str, Any]]:
    """What `get_historical_features` returns, sorted by entity columns and time; NaN as None."""
    entities = pd.DataFrame(request["entity_rows"])
    entities["event_timestamp"] = pd.to_datetime(entities["event_timestamp"], utc=True)
    job = store.get_historical_features(
        entity_df=entities, features=request["features"], filter_by_created_timestamp=request.get("known_only", False)
    )
    frame = job.to_df().sort_values(list(entities.columns)).drop(columns="event_timestamp")
    return [{name: None if pd.isna(value) else value for name, value in row.items()} for row in frame.to_dict("records")]


def command(repository: str, arguments: list[str]) -> str:
    """What the `feast` command prints for these arguments."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        cli.main(["-c", repository, *arguments], standalone_mode=False)
    return printed.getvalue()


def credentials(repository: Path) -> dict[str, str]:
    """What Feast makes of the credentials in the environment."""
    config = load_repo_config(repository, repository / "feature_store.yaml")
    _, redis = RedisOnlineStore._parse_connection_string(config.online_store.connection_string)
    return {
        "offline": config.offline_store.password,
        "registry": str(make_url(config.registry.path).password),
        "online": redis["password"],
        "online_user": redis["username"],
    }


def main() -> None:
    """Answer every part that the request has."""
    request = json.load(sys.stdin)
    answer: dict[str, Any] = {}
    with contextlib.redirect_stdout(sys.stderr):
        if "layout" in request:
            answer["layout"] = layout(request["layout"])
        if "repository" in request:
            answer["commands"] = [command(request["repository"], arguments) for arguments in request["commands"]]
            store = FeatureStore(request["repository"])
            answer["online"] = [online(store, part) for part in request["online"]]
            answer["historical"] = [historical(store, part) for part in request["historical"]]
        if "configuration" in request:
            answer["configuration"] = credentials(Path(request["configuration"]))
    json.dump(answer, sys.stdout)


main()
