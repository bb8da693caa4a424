"""The fallback schedules over a real store in which every view of the observation is late."""

from datetime import datetime

import dagster as dg
import pytest

from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.orchestration.jobs import MarketPath, paths
from featurestore_dagster.orchestration.platform import Platform
from featurestore_dagster.orchestration.schedules import build_fallback_schedule, fallback_views
from featurestore_dagster.settings import Settings

FALLBACK_PATHS = pytest.mark.parametrize("path", [pytest.param(path, id=path.name) for path in paths(CATALOGUE) if fallback_views(path)])


def tick(settings: Settings, path: MarketPath, at: str) -> object:
    context = dg.build_schedule_context(scheduled_execution_time=datetime.fromisoformat(at))
    return build_fallback_schedule(CATALOGUE, path)(context, platform=Platform(settings.model_copy(update={"clock": at}), CATALOGUE))


@FALLBACK_PATHS
def test_a_late_view_is_asked_for_once_more_in_an_open_session(fresh_database: Settings, path: MarketPath) -> None:
    request = tick(fresh_database, path, "2026-03-10T18:00:00Z")
    assert isinstance(request, dg.RunRequest)
    assert request.partition_key == "2026-03-10"


@FALLBACK_PATHS
@pytest.mark.parametrize(
    ("at", "last"),
    [
        pytest.param("2018-12-25T14:00:00Z", "2018-12-24", id="Christmas"),
        pytest.param("2018-11-05T14:00:00Z", "2018-11-02", id="a Monday that is a holiday in Colombia"),
    ],
)
def test_a_holiday_asks_for_nothing_however_late_a_view_is(fresh_database: Settings, path: MarketPath, at: str, last: str) -> None:
    answer = tick(fresh_database, path, at)
    assert isinstance(answer, dg.SkipReason)
    assert str(answer.skip_message).startswith(f"calendar COP: no bar since session {last}")
