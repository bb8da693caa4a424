"""An unmodified Feast on our registry and stores: its command line, and its SDK reading what was published."""

import json
import subprocess
import sys

import pytest

from featurestore_dagster.cli.operate import refill
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.embedded import EmbeddedServices
from tests.e2e.conftest import REPOSITORY

SDK = """
import json, sys, warnings
warnings.simplefilter("ignore")
import pandas
from feast import FeatureStore
store = FeatureStore(sys.argv[1])
online = store.get_online_features(
    features=["momentum_features:rsi_14", "momentum_features:macd"], entity_rows=[{"symbol": "SPX"}, {"symbol": "IXIC"}]
).to_dict()
entities = pandas.DataFrame({"symbol": ["SPX", "IXIC"], "event_timestamp": pandas.to_datetime(["2018-12-28T22:00:00Z"] * 2)})
history = store.get_historical_features(entities, ["momentum_features:rsi_14", "momentum_features:macd"]).to_df()
print("ANSWER" + json.dumps({"online": online, "history": history.drop(columns="event_timestamp").to_dict("list")}))
"""


def test_an_unmodified_feast_reads_what_was_published(installation):
    for arguments, says in (
        (["apply"], "momentum_features"),
        (["plan"], ""),
        (["entities", "list"], "ticker"),
        (["feature-views", "list"], "technical_indicators_view"),
        (["feature-services", "list"], "daily_equity_service"),
    ):
        done = installation.run("feast", *arguments)
        assert (done.returncode, says in done.stdout) == (0, True), done.stdout + done.stderr

    published = installation.json("get", "momentum_features:rsi_14", "momentum_features:macd", "--symbol", "SPX")
    earlier = installation.json(
        "get", "momentum_features:rsi_14", "momentum_features:macd", "--symbol", "IXIC", "--as-of", "2018-12-28T22:00:00Z"
    )
    with EmbeddedServices(Settings(data_folder=installation.folder)) as settings:
        replay = settings.model_copy(update={"clock": installation.variables["FEATURESTORE_CLOCK"]})
        refill(replay)
        command = [sys.executable, "-c", SDK, str(REPOSITORY / "feature_repo")]
        done = subprocess.run(command, env=replay.child_environment(), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.partition("ANSWER")[2])
    ours = {name.partition(":")[2]: value["value"] for name, value in published["rows"][0]["features"].items()}
    assert {name: answer["online"][name][answer["online"]["symbol"].index("SPX")] for name in ours} == pytest.approx(ours, rel=1e-15)
    then = {name.partition(":")[2]: value["value"] for name, value in earlier["rows"][0]["features"].items()}
    assert {name: answer["history"][name][answer["history"]["symbol"].index("IXIC")] for name in then} == pytest.approx(then, rel=1e-15)
