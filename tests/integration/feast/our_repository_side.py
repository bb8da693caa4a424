"""Runs inside a process of its own, as an unmodified user of Feast in our repository: reads the steps' results as JSON on stdout.

The clock of the environment stands still, and Redis is empty at the start.
"""

import contextlib
import json
import os
import sys
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")

import pandas as pd  # noqa: E402
from feast import FeatureStore  # noqa: E402
from feast.feature_view import FeatureViewState  # noqa: E402
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus  # noqa: E402

from tests.integration.feast.publications import FRIDAY, INTRADAY, MACRO, MOMENTUM, MONDAY, NOW  # noqa: E402

DAY, MINUTE = timedelta(days=1), timedelta(minutes=1)
FIRST = f"{MOMENTUM.name}:{MOMENTUM.feature_names[0]}"
LAST = f"{MOMENTUM.name}:{MOMENTUM.feature_names[-1]}"


def online(store: FeatureStore, features: list[str], *entities: dict[str, str]) -> dict[str, Any]:
    """Value and status of each feature, entity by entity."""
    answer = store.get_online_features(features, list(entities))
    read, names = answer.to_dict(), answer.proto.metadata.feature_names.val
    return {
        name: [[value, FieldStatus.Name(status)] for value, status in zip(read[name], column.statuses, strict=True)]
        for name, column in zip(names, answer.proto.results, strict=True)
        if name not in entities[0]
    }


def refused(call: Any) -> str:
    try:
        return f"answered {call()}"
    except Exception as error:  # noqa: BLE001 - whatever it is, the test judges its name
        return f"{type(error).__name__}: {error}"


def steps(repository: str) -> dict[str, Any]:
    store, seen = FeatureStore(repository), {}
    symbols = [{"symbol": name} for name in ("AAPL", "IBM", "?")]
    seen["before"] = online(store, [FIRST, LAST], *symbols)
    store.materialize(FRIDAY - DAY, NOW)
    seen["online"] = online(store, [FIRST, LAST], *symbols)
    pairs = [{"symbol": "AAPL", "timeframe": "1d"}, {"symbol": "EURUSD", "timeframe": "1h"}]
    seen["streams"] = online(store, [f"{INTRADAY.name}:{INTRADAY.feature_names[0]}"], *pairs)
    both = [{"symbol": "AAPL", "portfolio": "GLOBAL"}]
    seen["views"] = online(store, [FIRST, f"{MACRO.name}:{MACRO.feature_names[0]}"], *both)
    seen["missing key"] = refused(lambda: online(store, [f"{INTRADAY.name}:{INTRADAY.feature_names[0]}"], {"symbol": "AAPL"}))

    asked = [("AAPL", NOW), ("IBM", NOW), ("AAPL", MONDAY + MINUTE), ("AAPL", FRIDAY - DAY), ("AAPL", NOW)]
    frame = pd.DataFrame({"symbol": [name for name, _ in asked], "event_timestamp": [at for _, at in asked], "note": range(5)})
    answer = store.get_historical_features(frame, [FIRST, LAST], full_feature_names=True).to_df()
    seen["history"] = [
        [None if pd.isna(value) else value for value in row] for row in answer.drop(columns="event_timestamp").to_numpy().tolist()
    ]
    seen["columns"] = list(answer.columns)

    for name, end in (("range", None), ("range before a correction", MONDAY + MINUTE)):
        ranged = store.get_historical_features(None, [LAST], start_date=FRIDAY - DAY, end_date=end).to_df()
        seen[name] = sorted(ranged[ranged["symbol"] == "AAPL"][LAST.partition(":")[2]])

    store.set_feature_view_state(MOMENTUM.name, FeatureViewState.MATERIALIZING)  # as a materialization does, and a killed one leaves it
    seen["T14"] = online(FeatureStore(repository), [FIRST, LAST], *symbols)

    row = {"symbol": ["AAPL"], "event_timestamp": [NOW], "created_timestamp": [NOW]} | {name: [1.0] for name in MOMENTUM.feature_names}
    seen["pushed"] = refused(lambda: store.write_to_online_store(MOMENTUM.name, pd.DataFrame(row)))

    place, os.environ["FEAST_REDIS"] = os.environ["FEAST_REDIS"], "127.0.0.1:1,db=0"
    seen["redis dead"] = online(FeatureStore(repository), [FIRST, LAST], *symbols)

    os.environ |= {"FEAST_REDIS": place, "FEATURESTORE_SOURCES": "samples,files"}  # their listings of these symbols ended before
    samples = FeatureStore(repository)
    samples.materialize(FRIDAY - DAY, NOW, [MOMENTUM.name])
    seen["delisted"] = online(samples, [FIRST], *symbols[:2])
    return seen


def main() -> None:
    with contextlib.redirect_stdout(sys.stderr):
        seen = steps(str(Path("feature_repo")))
    json.dump(seen, sys.stdout)


main()
