"""The alert sensor, tick by tick, over real stores, Dagster's storage and a real webhook."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import dagster as dg
import polars as pl
import pytest
from pydantic import SecretStr

from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.features.equity_views import DAILY_OHLCV_STATS
from featurestore_dagster.features.raw_tables import US_EQUITY_CANDLES_1D, US_EQUITY_CORPORATE_ACTIONS
from featurestore_dagster.orchestration.alerting import CATCH_UP_ENDS, EXTRA_RUNS, build_alert_sensor, job_histories
from featurestore_dagster.orchestration.platform import Platform
from featurestore_dagster.orchestration.propagation import CATCH_UP_TAG, RESTATEMENT_TAG
from featurestore_dagster.projections.relation import dataset_relation
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.postgres import AlertStore
from featurestore_dagster.stores.postgres.restatements import DONE, FAILED, WAITING, Restatement, Restatements
from tests.receivers import Webhook, webhook

VIEW, STREAM = DAILY_OHLCV_STATS, DAILY_OHLCV_STATS.streams[0]
WATCHED = replace(CATALOGUE.with_sources(("samples", "files")), views=(VIEW,), services=())
FRIDAY, MONDAY = "2018-12-28", "2018-12-31"
REFUSED = pl.DataFrame(schema={"partition_key": pl.String, "row": pl.String, "reasons": pl.List(pl.String)})


class Watch:
    """The sensor at instants of a replay clock."""

    def __init__(self, settings: Settings, hook: Webhook, instance: dg.DagsterInstance) -> None:
        self.settings = settings.model_copy(update={"alert_urls": SecretStr(hook.url), "dagster_url": "https://dagster.example.com"})
        self.hook, self.instance = hook, instance
        self.sensor = build_alert_sensor(WATCHED)
        self.cursor: str | None = None

    def platform(self, instant: str) -> Platform:
        return Platform(self.settings.model_copy(update={"clock": instant}), WATCHED)

    def publish(self, instant: str, session: str) -> None:
        pipeline = self.platform(instant).pipeline
        outcomes = [
            *pipeline.ingest(US_EQUITY_CORPORATE_ACTIONS, [session]),
            *pipeline.ingest(US_EQUITY_CANDLES_1D, [session]),
            *pipeline.materialise(VIEW, STREAM, [session]),
        ]
        assert not any(outcome.blocked for outcome in outcomes)

    def tick(self, instant: str) -> list[str]:
        """Titles of the messages that the tick sent."""
        before = len(self.hook.taken)
        context = dg.build_sensor_context(instance=self.instance, cursor=self.cursor)
        result = self.sensor(context, platform=self.platform(instant))
        assert isinstance(result, dg.SensorResult)
        self.cursor = result.cursor
        return [message["title"] for message in self.hook.taken[before:]]

    def run(self, job: str, *, fails: bool, **tags: str) -> None:
        @dg.op(name="raw__bars")
        def fetch() -> None:
            if fails:
                raise ConnectionError("the provider is down")

        @dg.job(name=job)
        def path() -> None:
            fetch()

        path.execute_in_process(instance=self.instance, raise_on_error=False, tags=tags)


@pytest.fixture
def watch(fresh_database: Settings) -> Iterator[Watch]:
    with webhook() as hook, dg.DagsterInstance.ephemeral() as instance:
        yield Watch(fresh_database, hook, instance)


def test_a_stale_view_is_one_alert_with_its_cause_and_one_resolution(watch: Watch) -> None:
    watch.publish("2018-12-28T22:00:00Z", FRIDAY)
    quiet = ("2018-12-28T22:00:00Z", "2018-12-29T12:00:00Z", "2018-12-31T15:00:00Z", "2018-12-31T22:30:00Z")
    assert [watch.tick(instant) for instant in quiet] == [[], [], [], []]
    assert watch.tick("2018-12-31T23:31:00Z") == ["[OPENED] daily_ohlcv_stats is overdue"]
    text = watch.hook.taken[-1]["message"]
    assert "daily_ohlcv_stats/us_equity_1d is LATE: due 2018-12-31 23:00Z, lag 2 h 31 min" in text
    assert "likely cause: the daemon is late: it evaluated nothing from 2018-12-31 22:30Z until now" in text
    assert "- SPX: LATE, newest 2018-12-28 21:00Z" in text
    assert "Dagster: https://dagster.example.com/assets/daily_ohlcv_stats_us_equity_1d" in text
    assert "runbook: docs/how-to/alerts/view-overdue.md" in text
    assert [watch.tick(f"2018-12-31T23:3{minute}:00Z") for minute in range(2, 6)] == [[], [], [], []]
    assert "no run of xnys_path since ever" in AlertStore(watch.settings.postgres).alerts()[0].problem.cause

    watch.publish("2018-12-31T23:36:00Z", MONDAY)
    assert watch.tick("2018-12-31T23:37:00Z") == ["[RESOLVED] daily_ohlcv_stats is overdue"]
    assert watch.tick("2018-12-31T23:38:00Z") == []


def test_a_clock_set_back_behind_the_watermark_neither_begins_nor_ends_an_alert(watch: Watch) -> None:
    watch.publish("2018-12-28T22:00:00Z", FRIDAY)
    assert watch.tick("2018-12-31T23:30:00Z") == ["[OPENED] daily_ohlcv_stats is overdue"]
    assert watch.tick("1880-01-01T00:00:00Z") == []
    assert watch.tick("2018-12-31T23:31:00Z") == []


def test_a_blocked_partition_alerts_and_is_the_cause_of_what_is_overdue(watch: Watch) -> None:
    watch.publish("2018-12-28T22:00:00Z", FRIDAY)
    bars = dataset_relation(US_EQUITY_CANDLES_1D)
    check = {"check": "row_count", "rows": 1, "blocking": True, "examples": ["1 row, expected 2"]}
    watch.platform("2018-12-31T21:30:00Z").store.block(bars, {MONDAY: [check]}, REFUSED, "run-1")
    assert watch.tick("2018-12-31T21:31:00Z") == [f"[OPENED] {bars.name} has blocked partitions"]
    told = watch.hook.taken[-1]["message"]
    assert "- row_count: 1 row, expected 2" in told
    assert f"https://dagster.example.com/assets/raw/us_equity_candles_1d?view=partitions&partition={MONDAY}" in told
    assert watch.tick("2018-12-31T23:30:00Z") == ["[OPENED] daily_ohlcv_stats is overdue"]
    assert f"likely cause: partition {MONDAY} of {bars.name} is blocked by row_count (1 rows)" in watch.hook.taken[-1]["message"]
    watch.publish("2018-12-31T23:35:00Z", MONDAY)
    assert watch.tick("2018-12-31T23:36:00Z") == [
        f"[RESOLVED] {bars.name} has blocked partitions",
        "[RESOLVED] daily_ohlcv_stats is overdue",
    ]


def test_failed_runs_in_a_row_are_one_alert_that_a_success_ends(watch: Watch) -> None:
    watch.publish("2018-12-28T22:00:00Z", FRIDAY)
    for _ in range(2):
        watch.run("xnys_path", fails=True)
        watch.run("other", fails=False)
        watch.tick("2018-12-31T20:00:00Z")
    assert [message["title"] for message in watch.hook.taken] == ["[OPENED] xnys_path fails"]
    told = watch.hook.taken[-1]["message"]
    assert "a run of xnys_path failed" in told
    assert "likely cause: step raw__bars: " in told
    assert "the provider is down" in told
    assert "https://dagster.example.com/runs/" in told
    assert watch.tick("2018-12-31T23:30:00Z") == ["[OPENED] daily_ohlcv_stats is overdue"]
    assert "likely cause: the source fails: run " in watch.hook.taken[-1]["message"]
    for tag in sorted(EXTRA_RUNS):
        watch.run("xnys_path", fails=False, **{tag: "7"})
    assert watch.tick("2018-12-31T23:30:00Z") == [], "what computes the past ends nothing"
    watch.run("xnys_path", fails=False)
    assert watch.tick("2018-12-31T23:30:00Z") == ["[RESOLVED] xnys_path fails"]
    watch.run("xnys_path", fails=True, **{RESTATEMENT_TAG: "7"})
    assert watch.tick("2018-12-31T23:30:00Z") == [], "a restatement has an alert of its own"


def test_missed_sessions_that_cannot_be_run_are_told_apart_from_live_runs(watch: Watch) -> None:
    watch.publish("2018-12-28T22:00:00Z", FRIDAY)
    ticks = (f"2018-12-31T15:0{minute}:00Z" for minute in range(1, 9))
    watch.run("xnys_path", fails=True, **{CATCH_UP_TAG: "xnys_path"})
    assert watch.tick(next(ticks)) == ["[OPENED] xnys_path catching up fails"]
    assert "a run of xnys_path catching up failed" in watch.hook.taken[-1]["message"]
    watch.run("xnys_path", fails=False)
    watch.run("xnys_path", fails=True, **{CATCH_UP_TAG: "xnys_path"})
    assert watch.tick(next(ticks)) == [], "a live run mends no missed session"
    watch.run("xnys_path", fails=False, **{CATCH_UP_TAG: "xnys_path"})
    assert watch.tick(next(ticks)) == ["[RESOLVED] xnys_path catching up fails"]


def test_missed_sessions_that_nobody_asks_for_any_more_are_no_alert(watch: Watch) -> None:
    watch.run("xnys_path", fails=True, **{CATCH_UP_TAG: "xnys_path"})
    ledger = watch.platform("2018-12-31T15:00:00Z").ledger
    now = datetime.now(UTC)

    def failing(at: datetime) -> set[str]:
        return {name for name, history in job_histories(watch.instance, ledger, ["xnys_path"], at).items() if history.failing_since}

    assert failing(now) == {"xnys_path catching up"}
    assert failing(now + CATCH_UP_ENDS + timedelta(minutes=1)) == set()


def test_a_restatement_that_failed_or_waits_is_told_until_it_is_done(watch: Watch) -> None:
    watch.publish("2018-12-28T22:00:00Z", FRIDAY)
    at = datetime(2018, 12, 31, 15, tzinfo=UTC)
    relations = ["features.daily_ohlcv_stats.us_equity_1d"]
    kept = Restatement(0, "xnys_path", FAILED, relations, FRIDAY, MONDAY, 2, {"raw.x": {}}, 7, 3, at, at, at, "run-7")
    store = Restatements(watch.settings.postgres)
    failed, waiting = store.add([kept, replace(kept, status=WAITING, finished_at=None, run_id=None)], "xnys_path", 7)
    ticks = (f"2018-12-31T15:0{minute}:00Z" for minute in range(1, 9))
    assert watch.tick(next(ticks)) == ["[OPENED] xnys_path has restatements that failed or wait (2)"]
    told = watch.hook.taken[-1]["message"]
    assert f"restatement {failed.restatement_id} of xnys_path failed: 2 sessions, {FRIDAY} to {MONDAY}" in told
    assert f"restatement {waiting.restatement_id} of xnys_path waits for a person" in told
    assert "https://dagster.example.com/runs/run-7" in told
    watch.run("xnys_path", fails=False)
    assert watch.tick(next(ticks)) == [], "a live success mends no restatement"

    store.finish(waiting.restatement_id, DONE, "run-8", at)
    assert watch.tick(next(ticks)) == ["[RESOLVED] xnys_path has restatements that failed or wait (2)"], "it covers the one before"
    store.add([replace(kept, relations=[*relations, "features.other.us"], last_publication_id=8)], "xnys_path", 8)
    assert watch.tick(next(ticks)) == ["[OPENED] xnys_path has restatements that failed or wait"]
    store.add([replace(kept, status=DONE, last_publication_id=9)], "xnys_path", 9)
    assert watch.tick(next(ticks)) == [], "only a part of it was computed"


def test_a_run_that_a_blocked_partition_failed_is_no_second_alert(watch: Watch) -> None:
    watch.publish("2018-12-28T22:00:00Z", FRIDAY)
    watch.run("xnys_path", fails=True)
    (run,) = watch.instance.get_runs()
    relation = dataset_relation(US_EQUITY_CANDLES_1D)
    watch.platform("2018-12-28T22:01:00Z").store.block(relation, {FRIDAY: [{"check": "row_count", "rows": 1}]}, REFUSED, run.run_id)
    assert watch.tick("2018-12-28T22:10:00Z") == [f"[OPENED] {relation.name} has blocked partitions"]


def test_messages_wait_by_the_real_clock_under_a_replay_clock(watch: Watch) -> None:
    """A replay clock stands still: a delivery that waited by it would wait forever."""
    watch.hook.statuses = [500]
    assert watch.tick("2018-12-28T22:00:00Z") == []
    (waiting,) = AlertStore(watch.settings.postgres).deliveries("pending")
    assert timedelta(0) < waiting.next_attempt_at - datetime.now(UTC) <= timedelta(minutes=1)
