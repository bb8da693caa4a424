"""The Python of README.md and read-features.md runs as printed, on published sample data."""

import os
import re
import subprocess
import sys
from datetime import date
from pathlib import Path

import polars as pl
import pytest

from featurestore_dagster.calendars import calendar
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.model.time import FrozenClock
from featurestore_dagster.pipeline.publication import Pipeline
from featurestore_dagster.serving.client_base import PROJECT as FEAST_PROJECT
from featurestore_dagster.serving.online_sync import sync_view
from featurestore_dagster.settings import Settings
from featurestore_dagster.sources import samples
from featurestore_dagster.stores.postgres import Ledger, PostgresStore
from featurestore_dagster.stores.redis import RedisStore

PROJECT = Path(__file__).resolve().parents[2]
DATASETS = ("us_equity_corporate_actions", "us_equity_candles_1d")
VIEWS = ("momentum_features", "technical_indicators_view")


@pytest.fixture
def published(fresh_database: Settings, frozen_clock: FrozenClock) -> Settings:
    """Settings of stores that hold the daily views of the last weeks of 2018, with the bars before them."""
    store = PostgresStore(fresh_database.postgres, frozen_clock)
    pipeline = Pipeline(
        CATALOGUE.with_sources(["samples"]),
        store,
        Ledger(fresh_database.postgres),
        frozen_clock,
        lambda dataset, start, end: samples.fetch(dataset, start, end, clock=frozen_clock),
    )
    sessions = calendar("XNYS").sessions(date(2018, 9, 4), date(2018, 12, 31))["session"].cast(pl.String).to_list()
    outcomes = [outcome for name in DATASETS for outcome in pipeline.ingest(CATALOGUE.dataset(name), sessions)]
    for view in map(CATALOGUE.view, VIEWS):
        outcomes += pipeline.materialise(view, view.streams[0], sessions[-5:])
        sync_view(view, store, RedisStore(fresh_database.redis, FEAST_PROJECT), frozen_clock.now())
    assert not any(outcome.blocked for outcome in outcomes)
    return fresh_database


def run_blocks(page: str, settings: Settings, clock: FrozenClock) -> str:
    """Standard output of all Python blocks of a page, run as one program."""
    program = "\n".join(re.findall(r"^```python\n(.*?)^```$", (PROJECT / page).read_text(), re.MULTILINE | re.DOTALL))
    replay = {"FEATURESTORE_SERVICES": "external", "FEATURESTORE_CLOCK": clock.now().isoformat()}
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, env=os.environ | settings.exports() | replay, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readme_example_prints_a_vector_and_a_training_frame(published: Settings, frozen_clock: FrozenClock) -> None:
    printed = run_blocks("README.md", published, frozen_clock)
    lines = [line for line in printed.splitlines() if line.startswith("technical_indicators_view:")]
    assert len(lines) == len(CATALOGUE.service("technical_indicators_service").references)
    assert all("PRESENT" in line for line in lines)
    frame = re.findall(r"│ (SPX|IXIC) +┆ [^┆]+┆ (\d\d\.\d+) +┆ (-0\.\d+)", printed)
    assert [symbol for symbol, *_ in frame] == ["SPX", "IXIC"]


def test_the_examples_of_read_features_run(published: Settings, frozen_clock: FrozenClock) -> None:
    printed = run_blocks("docs/how-to/read-features.md", published, frozen_clock)
    assert re.match(r"41\.[67]\d+ 0\.\.100 PRESENT 2018-12-31 21:00:00\+00:00 0\.0 ", printed)
    assert re.search(r"^momentum_features us_equity_1d CLOSED 2018-12-31 21:00:00\+00:00 \(\)$", printed, re.MULTILINE)
