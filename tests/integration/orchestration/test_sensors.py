"""Sensors, tick by tick, over a real drop folder and real stores."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluation

from featurestore_dagster.calendars import calendar
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.features.equity_views import DAILY_OHLCV_STATS
from featurestore_dagster.features.raw_tables import FX_CANDLES_1H, US_EQUITY_CANDLES_1D, US_EQUITY_CORPORATE_ACTIONS
from featurestore_dagster.orchestration.jobs import build_path_job, paths
from featurestore_dagster.orchestration.partitions import first_session, session_partitions
from featurestore_dagster.orchestration.platform import Platform
from featurestore_dagster.orchestration.sensors import HEARTBEAT_TICKS, build_file_sensor, build_freshness_sensor
from featurestore_dagster.settings import Settings
from featurestore_dagster.sources import fetch
from featurestore_dagster.stores.postgres.slo_ledger import SloStore

FRIDAY_EVENING, MONDAY_EVENING, MONDAY_NIGHT = "2018-12-28T22:00:00Z", "2018-12-31T22:00:00Z", "2018-12-31T23:30:00Z"
SAMPLED = CATALOGUE.with_sources(("samples", "files"))
STREAMS = [(view, stream) for view in SAMPLED.views for stream in view.streams if SAMPLED.is_fed(stream)]

MAPPING = """
columns: {time: event_timestamp, o: open, h: high, l: low, c: close}
constants: {symbol: EURUSD}
timestamp_unit: iso
timezone: UTC
label: bar_end
"""
HEADER = "time,o,h,l,c\n"


def platform_at(settings: Settings, clock: str) -> Platform:
    return Platform(settings.model_copy(update={"clock": clock}), CATALOGUE)


def evaluate(sensor: dg.SensorDefinition, platform: Platform, cursor: str | None) -> dg.SensorResult:
    result = sensor(dg.build_sensor_context(cursor=cursor), platform=platform)
    assert isinstance(result, dg.SensorResult)
    return result


class DropFolder:
    """The file sensor at Monday evening, with a drop folder whose path has a space in it."""

    def __init__(self, settings: Settings, path: Path) -> None:
        self.path = path / "drop folder"
        self.platform = platform_at(settings.model_copy(update={"drop_folder": self.path}), MONDAY_EVENING)
        self.sensor = build_file_sensor(CATALOGUE, {path.name: build_path_job(CATALOGUE, path) for path in paths(CATALOGUE)})
        self.cursor: str | None = None
        self.map(FX_CANDLES_1H.name, MAPPING)

    def map(self, dataset: str, mapping: str) -> None:
        (self.path / dataset).mkdir(parents=True, exist_ok=True)
        (self.path / dataset / "mapping.yaml").write_text(mapping)

    def put(self, name: str, *times: str, dataset: str = FX_CANDLES_1H.name, content: str | None = None) -> None:
        rows = content or HEADER + "".join(f"{time},1.2,1.3,1.1,1.25\n" for time in times)
        (self.path / dataset / name).write_text(rows)
        (self.path / dataset / f"{name}.done").touch()

    def tick(self, *, crash: bool = False) -> dg.SensorResult:
        """One tick; after a crash its cursor is not stored."""
        result = evaluate(self.sensor, self.platform, self.cursor)
        self.cursor = self.cursor if crash else result.cursor
        return result


@pytest.fixture
def drop(settings: Settings, tmp_path: Path) -> DropFolder:
    return DropFolder(settings, tmp_path)


def sessions_of(request: dg.RunRequest) -> tuple[str, str]:
    if request.partition_key:
        return request.partition_key, request.partition_key
    return request.tags["dagster/asset_partition_range_start"], request.tags["dagster/asset_partition_range_end"]


@pytest.mark.parametrize(
    ("times", "first", "last"),
    [
        pytest.param(["2018-12-27 10:00", "2018-12-27 22:00"], "2018-12-26", "2018-12-26", id="17:00 in New York ends the session"),
        pytest.param(["2018-12-27 10:00", "2018-12-27 23:00"], "2018-12-26", "2018-12-27", id="two sessions"),
        pytest.param(["2018-12-28 10:00", "2018-12-31 10:00"], "2018-12-27", "2018-12-30", id="over a weekend"),
        pytest.param(["2018-12-31 10:00", "2018-12-31 23:00"], "2018-12-30", "2018-12-30", id="the future waits for its own session"),
    ],
)
def test_a_dropped_file_asks_once_for_the_sessions_that_hold_its_rows(drop: DropFolder, times: list[str], first: str, last: str) -> None:
    drop.put("bars.csv", *times)
    (request,) = drop.tick().run_requests or []
    assert (request.job_name, request.run_key, request.tags["file"]) == ("fx_path", "fx_candles_1h:1", "bars.csv")
    assert sessions_of(request) == (first, last)
    partitions = session_partitions("FX", first_session(CATALOGUE, "FX"), drop.platform.clock)
    assert partitions.has_partition_key(first)
    assert partitions.has_partition_key(last)
    start, end = (calendar("FX").session(date.fromisoformat(label)) for label in (first, last))
    rows = fetch(FX_CANDLES_1H, start.window_start, end.window_end, settings=drop.platform.settings, clock=drop.platform.clock)
    assert rows.height == sum(time < "2018-12-31 22:30" for time in times)
    again = drop.tick()
    assert not again.run_requests
    assert f"no new file under {drop.path}" in str(again.skip_reason)


def test_a_refused_file_is_named_with_its_reason_and_hides_no_good_one(drop: DropFolder) -> None:
    drop.put("bad.csv", content=HEADER + "yesterday,1,1,1,1\n")
    refused = drop.tick()
    assert not refused.run_requests
    assert "fx_candles_1h/bad.csv was refused whole and lies at " in str(refused.skip_reason)
    assert "yesterday" in str(refused.skip_reason)
    drop.put("also bad.csv", content="time\n")
    drop.put("good.csv", "2018-12-27 10:00")
    (request,) = drop.tick().run_requests or []
    assert request.tags["file"] == "good.csv"


def test_a_landed_file_is_asked_for_again_when_the_tick_died(drop: DropFolder) -> None:
    drop.put("bars.csv", "2018-12-27 10:00")
    died, repeated = drop.tick(crash=True), drop.tick()
    assert died.run_requests
    assert died.run_requests == repeated.run_requests  # the same run key: Dagster launches it once
    assert not drop.tick().run_requests


def test_a_dataset_without_a_good_mapping_is_named_and_hides_no_other(drop: DropFolder) -> None:
    drop.map(US_EQUITY_CANDLES_1D.name, "columns: {}\n")
    drop.put("stocks.csv", dataset=US_EQUITY_CANDLES_1D.name, content="Date\n")
    drop.put("bars.csv", "2018-12-27 10:00")
    (request,) = drop.tick().run_requests or []
    assert request.tags["file"] == "bars.csv"
    waiting = drop.tick()
    assert not waiting.run_requests
    assert "us_equity_candles_1d" in str(waiting.skip_reason)
    assert (drop.path / US_EQUITY_CANDLES_1D.name / "stocks.csv").exists()


def posted(result: dg.SensorResult) -> dict[str, AssetCheckEvaluation]:
    """Evaluations by asset, as Dagster stored them."""
    with dg.DagsterInstance.ephemeral() as instance:
        for event in result.asset_events:
            assert isinstance(event, AssetCheckEvaluation)
            instance.report_runless_asset_event(event)
    return {event.asset_key.to_user_string(): event for event in result.asset_events if isinstance(event, AssetCheckEvaluation)}


def text(evaluation: AssetCheckEvaluation, name: str) -> Any:
    return evaluation.metadata[name].value


def test_freshness_is_posted_on_every_change_and_as_a_heartbeat(fresh_database: Settings) -> None:
    sensor, friday = build_freshness_sensor(SAMPLED), platform_at(fresh_database, FRIDAY_EVENING)
    empty = evaluate(sensor, friday, None)
    never = posted(empty)
    assert len(never) == len(STREAMS)
    assert {(event.passed, text(event, "state"), event.check_name) for event in never.values()} == {(False, "NEVER", "data_freshness")}
    assert posted(evaluate(sensor, friday, empty.cursor)) == {}

    session = ["2018-12-28"]
    outcomes = [
        *friday.pipeline.ingest(US_EQUITY_CORPORATE_ACTIONS, session),
        *friday.pipeline.ingest(US_EQUITY_CANDLES_1D, session),
        *friday.pipeline.materialise(DAILY_OHLCV_STATS, DAILY_OHLCV_STATS.streams[0], session),
    ]
    assert not any(outcome.blocked for outcome in outcomes)
    served = evaluate(sensor, friday, empty.cursor)
    (event,) = posted(served).values()
    assert (event.asset_key.to_user_string(), event.passed, text(event, "state")) == ("daily_ohlcv_stats_us_equity_1d", True, "CLOSED")
    assert text(event, "watermark") == "2018-12-28T21:00:00+00:00"
    assert text(event, "clock") == "replay clock: 2018-12-28T22:00:00+00:00"

    late = evaluate(sensor, platform_at(fresh_database, MONDAY_NIGHT), served.cursor)
    (event,) = posted(late).values()
    assert (event.passed, text(event, "state"), text(event, "lag_seconds")) == (False, "LATE", 9000.0)
    assert text(event, "due_at") == "2018-12-31T23:00:00+00:00"
    assert {line[:10] for line in text(event, "worst_symbols").splitlines()} == {"- IXIC: LA", "- SPX: LAT"}

    heartbeat = json.dumps({**json.loads(late.cursor or ""), "tick": HEARTBEAT_TICKS - 1})
    assert len(posted(evaluate(sensor, platform_at(fresh_database, MONDAY_NIGHT), heartbeat))) == len(STREAMS)
    days = SloStore(fresh_database.postgres).days(date(2018, 12, 1), date(2018, 12, 31))
    counted = {day.day.day: day.overdue_seconds for day in days if day.view == DAILY_OHLCV_STATS.name}
    assert counted == {28: 0, 29: 0, 30: 0, 31: 1800}, "it counts in the SLO ledger"
