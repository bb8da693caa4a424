"""The observation of USDCOP from providers' answers to the served vector: HTTP, raw tables, dbt, views, Redis, client, command line."""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from featurestore_dagster.calendars import calendar
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.features.macro_series import RELEASED_SERIES
from featurestore_dagster.features.raw_tables import COP_CANDLES_1D, COP_CANDLES_5M, COP_POSITIONS, US_MACRO
from featurestore_dagster.model.raw_table import Dataset
from featurestore_dagster.orchestration.assets.dbt import DbtRunner, build_dbt_assets
from featurestore_dagster.orchestration.platform import Platform
from featurestore_dagster.serving.answer import Status
from featurestore_dagster.serving.client import FeatureStoreClient
from featurestore_dagster.serving.online_sync import sync_view
from featurestore_dagster.serving.policy import ReadPolicy
from featurestore_dagster.settings import Settings
from tests.local_provider import Answer, Asked, LocalProvider, local_provider

REPOSITORY = Path(__file__).parents[2]
NOW = datetime(2024, 5, 3, 22, tzinfo=UTC)
"""Friday evening in Bogota, after the session and EODHD's delay."""

PUSH_READ_AT = "2024-05-03T17:45:30Z"
"""Pushes are read each minute of the session: what is read later was known later."""

MONTHLY = {name for name, series in RELEASED_SERIES.items() if series.frequency == "monthly"}


def _level(series_id: str) -> float:
    declared = RELEASED_SERIES[series_id]
    return declared.lowest + 0.3 * (declared.highest - declared.lowest)


def _vintages(series_id: str) -> list[tuple[date, date, float]]:
    """Day observed, day released, value: invented, moving, inside the declared range."""
    step = 30 if series_id in MONTHLY else 1
    last = NOW.date() - timedelta(days=33 if series_id in MONTHLY else 2)
    days = [last - timedelta(days=back) for back in range(0, 400, step)]
    observed = [day for day in reversed(days) if series_id in MONTHLY or day.weekday() < 5]
    if series_id in MONTHLY:
        observed = [day.replace(day=1) for day in observed]
    values = {day: _level(series_id) * (1 + 0.01 * math.sin(number)) for number, day in enumerate(observed)}
    return [(day, day + timedelta(days=31 if series_id in MONTHLY else 1), value) for day, value in values.items()]


def _fred(asked: Asked) -> object:
    series_id = asked.query["series_id"]
    found = _vintages(series_id)
    if asked.path == "/fred/series":
        declared = RELEASED_SERIES[series_id]
        return {"seriess": [{"id": series_id, "frequency_short": declared.frequency[0].upper(), "units": declared.unit}]}
    first, last = (date.fromisoformat(asked.query[name]) for name in ("realtime_start", "realtime_end"))
    page = {"offset": 0, "limit": int(asked.query["limit"])}
    if asked.path == "/fred/series/vintagedates":
        dates = sorted({released.isoformat() for _, released, _ in found if first <= released <= last})
        return {**page, "count": len(dates), "vintage_dates": dates}
    rows = [
        {
            "realtime_start": max(released, first).isoformat(),
            "realtime_end": last.isoformat(),
            "date": day.isoformat(),
            "value": f"{value:.4f}",
        }
        for day, released, value in found
        if released <= last
    ]
    return {**page, "count": len(rows), "observations": rows}


def _intraday(asked: Asked) -> object:
    first, last = (datetime.fromtimestamp(int(asked.query[name]), UTC) for name in ("from", "to"))
    ends = calendar("COP").bar_ends(COP_CANDLES_5M.timeframe, first, last)
    bars = []
    for end in ends:
        start = end - timedelta(minutes=5)
        price = 3900 + 40 * math.sin(start.timestamp() / 7000) + 5 * math.sin(start.timestamp() / 900)
        stamp = {"timestamp": int(start.timestamp()), "gmtoffset": 0, "datetime": f"{start:%Y-%m-%d %H:%M:%S}"}
        bars.append({**stamp, "open": price, "high": price + 2, "low": price - 2, "close": price + 1, "volume": None})
    return bars


def _respond(asked: Asked) -> Answer:
    body = _fred(asked) if asked.path.startswith("/fred/") else _intraday(asked)
    return Answer(200, json.dumps(body).encode(), {"Content-Type": "application/json"})


@pytest.fixture
def provider() -> Iterator[LocalProvider]:
    with local_provider() as running:
        running.respond = _respond
        yield running


def _ingest(platform: Platform, dataset: Dataset, sessions: list[str]) -> None:
    outcomes = list(platform.pipeline.ingest(dataset, sessions))
    assert [(outcome.partition_key, outcome.audit) for outcome in outcomes if outcome.blocked] == []


def _sessions(name: str, days: int) -> list[str]:
    first = NOW.date() - timedelta(days=days)
    return [label.isoformat() for label in calendar(name).sessions(first, NOW.date())["session"]]


def test_fifteen_values_in_order_from_what_the_providers_send(
    fresh_database: Settings, provider: LocalProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushes = tmp_path / "positions.jsonl"
    pushes.write_text(json.dumps({"symbol": "USDCOP", "position": -0.4, "pushed_at": "2024-05-03T17:45:00Z"}) + "\n")
    providers = {
        "EODHD_BASE_URL": provider.url,
        "EODHD_API_TOKEN": "secret",
        "FRED_BASE_URL": provider.url,
        "FRED_API_KEY": "s" * 32,
        "POSITIONS_FILE": str(pushes),
    }
    for name, value in providers.items():
        monkeypatch.setenv(name, value)
    settings = fresh_database.model_copy(
        update={"clock": NOW.isoformat(), "sources": "eodhd,fred,positions", "services": "external", "data_folder": tmp_path / "data"}
    )
    platform = Platform(settings, CATALOGUE.with_sources(settings.source_names))

    _ingest(platform, US_MACRO, _sessions("XNYS", 420))
    for dataset in (COP_CANDLES_5M, COP_CANDLES_1D):
        _ingest(platform, dataset, _sessions("COP", 12))
    _ingest(replace(platform, configured=settings.model_copy(update={"clock": PUSH_READ_AT})), COP_POSITIONS, [NOW.date().isoformat()])
    project = shutil.copytree(REPOSITORY / "dbt_project", tmp_path / "dbt", ignore=shutil.ignore_patterns("target", "logs"))
    runner = DbtRunner(settings, project)
    built = dg.materialize([build_dbt_assets(runner)], resources={"dbt": runner}, raise_on_error=False)
    assert built.success
    service = CATALOGUE.service("observation_15d")
    for view in service.views:
        stream = next(stream for stream in view.streams if stream.market == "cop")
        outcomes = list(platform.pipeline.materialise(view, stream, _sessions("COP", 2)))
        assert [outcome.audit for outcome in outcomes if outcome.blocked] == []
        sync_view(view, platform.store, platform.online, NOW)

    row = {"symbol": "USDCOP"}
    (answer,) = FeatureStoreClient(settings).get_online_features("observation_15d", [row], policy=ReadPolicy(deadline_seconds=20)).rows
    assert [value.reference.partition(":")[2] for value in answer.values] == [feature.name for _, feature in service.references]
    assert len(answer.values) == 15
    assert {value.reference: value.status for value in answer.values if value.status is not Status.PRESENT} == {}
    values = {value.reference.partition(":")[2]: value.value for value in answer.values}
    assert values["position"] == -0.4
    assert values["time_normalized"] == 1.0
    vix = pl.Series([value for _, released, value in _vintages("VIXCLS") if released < NOW.date()]).round(4).tail(252)
    assert values["vix_z"] == pytest.approx((vix[-1] - vix.mean()) / vix.std(), rel=1e-6)  # type: ignore[operator]

    command = [Path(sys.executable).parent / "featurestore", "get", "observation_15d", "--symbol", "USDCOP", "--json"]
    done = subprocess.run(command, env=settings.child_environment() | providers, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (printed,) = json.loads(done.stdout)["rows"]
    assert [found["value"] for found in printed["features"].values()] == [value.value for value in answer.values]
    assert "secret" not in done.stdout + done.stderr
