"""Calendars are built before the tests: their first use costs a second, which would count against hypothesis' deadline."""

import pytest

from featurestore_dagster.calendars import calendar


@pytest.fixture(scope="session", autouse=True)
def _built_calendars() -> None:
    for name in ("XNYS", "FX", "24/7", "XTKS"):
        calendar(name)
