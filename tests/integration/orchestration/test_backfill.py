"""Backfills: what the preview promises, and the same backfill given twice at a time."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from featurestore_dagster.features.equity_views import DAILY_OHLCV_STATS
from featurestore_dagster.model.raw_table import Dataset
from featurestore_dagster.pipeline.backfill import plan_backfill
from featurestore_dagster.projections.relation import stream_relation
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.postgres import Ledger
from featurestore_dagster.stores.postgres.connection import connect
from featurestore_dagster.stores.postgres.measurements import Measurements
from tests.integration.orchestration.conftest import VIEWS, WEEKS, Daemon, bars
from tests.unit.pipeline.frames import EQUITIES, keys_between

ROOT = Path(__file__).parents[3]
OLD = keys_between("2018-10-29", "2018-11-02")
RANGE = ("backfill", "daily_ohlcv_stats", "2018-12-03", "2018-12-31", "--json")


def test_views_that_follow_a_backfill_are_those_that_its_preview_names(daemon: Daemon) -> None:
    view, measured = VIEWS[0], Measurements(daemon.deployment.settings.postgres)
    daemon.deployment.deliver(bars([*OLD, *WEEKS]))

    def followers(fetchable: Sequence[Dataset]) -> tuple[str, ...]:
        return plan_backfill(daemon.deployment.pipeline, measured, view, view.streams[0], OLD, fetchable).dependents

    assert followers([]) == (), "nothing reads this view"
    promised = followers([EQUITIES])
    daemon.deployment.ingest(*OLD)
    daemon.deployment.materialise(view, *OLD)
    relations = {name for request in daemon.tick() for name in daemon.restatements.request(int(request.tags["restatement"])).relations}
    assert promised == ("daily_ohlcv_stats", "momentum_features"), "the week after reads the fetched bars"
    assert {other.label for other in VIEWS if stream_relation(other, other.streams[0]).name in relations} == set(promised)


def test_the_same_backfill_twice_at_a_time_publishes_once(fresh_database: Settings, tmp_path: Path) -> None:
    settings = fresh_database.model_copy(update={"services": "external", "clock": "2018-12-31T22:00:00Z", "data_folder": tmp_path})
    command = [sys.executable, "-m", "featurestore_dagster.cli", *RANGE]
    both = [subprocess.Popen(command, env=settings.child_environment(), stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)]
    said = [json.loads(process.communicate(timeout=300)[0]) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(len(runs) for runs in said) == [0, 1], "the second one waited, and found nothing to do"
    with connect(settings.postgres) as connection:
        rows = connection.execute(
            "select relation, count(*), count(distinct partition_key), count(distinct run_id) from ops.publications"
            " where rows_published > 0 group by relation"
        ).fetchall()
    published = {relation: counts for relation, *counts in rows}
    relation = stream_relation(DAILY_OHLCV_STATS, DAILY_OHLCV_STATS.streams[0]).name
    assert published[relation] == [19, 19, 1], "every session once, by one run"
    assert published["raw.us_equity_candles_1d"] == [19, 19, 1]
    assert not Ledger(settings.postgres).blocked(relation)
