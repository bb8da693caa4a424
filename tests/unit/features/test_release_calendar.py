"""When releases fall due: over weekends, holidays and clock changes, and with an embargo."""

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import polars as pl
import pytest

from featurestore_dagster.calendars import calendar
from featurestore_dagster.errors import DeclarationError
from featurestore_dagster.features.macro_series import RELEASED_SERIES, series_inputs, series_of
from featurestore_dagster.features.macro_views import MACRO_FEATURES, PORTFOLIO_MACRO_FEATURES

BUSINESS_DAYS = calendar("XNYS").table["session"]
EVERY_DAY = calendar("24/7").table["session"]


def _utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("series_id", "observed", "released"),
    [
        ("VIXCLS", "2018-12-24", "2018-12-26T13:15"),  # Christmas
        ("DGS10", "2018-07-06", "2018-07-09T20:15"),  # Friday; summer in New York
        ("DGS10", "2018-11-02", "2018-11-05T21:15"),  # the clocks change between the two
        ("DTWEXBGS", "2018-08-27", "2018-09-04T20:15"),  # a Monday's value, after the next one, which is Labor Day
        ("DEXMXUS", "2018-08-24", "2018-08-27T20:15"),
        ("BAA", "2018-08-01", "2018-09-04T13:15"),
        ("COLIRLTLT01STM", "2018-08-01", "2018-09-17T19:00"),  # the 15th is a Saturday
        ("CPILFESL", "2018-08-01", "2018-09-15T12:30"),  # which CPI does not mind
        ("FNG", "2018-12-22", "2018-12-22T01:00"),
    ],
)
def test_a_value_is_released_by_its_rule(series_id: str, observed: str, released: str) -> None:
    day = pl.Series([date.fromisoformat(observed)])
    rule = RELEASED_SERIES[series_id].release
    assert rule.release_instants(day, EVERY_DAY if rule.calendar == "24/7" else BUSINESS_DAYS).to_list() == [_utc(released)]


@pytest.mark.parametrize(
    ("series_id", "newest", "due"),
    [
        ("VIXCLS", "2018-12-21", "2018-12-26T13:15"),  # Monday's value, on Wednesday
        ("DEXMXUS", "2018-08-24", "2018-09-04T20:15"),  # Monday's value, with its week
        ("BAA", "2018-12-01", "2019-02-01T13:15"),
        ("FNG", "2018-12-21", "2018-12-22T01:00"),
    ],
)
def test_the_next_value_is_due_when_it_is_released_and_its_embargo_over(series_id: str, newest: str, due: str) -> None:
    series = RELEASED_SERIES[series_id]
    days = EVERY_DAY if series.release.calendar == "24/7" else BUSINESS_DAYS
    assert series.due_at(date.fromisoformat(newest), days) == _utc(due)
    held = replace(series, embargo=timedelta(hours=36))
    assert held.due_at(date.fromisoformat(newest), days) == _utc(due) + timedelta(hours=36)


def test_beyond_the_business_days_nothing_is_due() -> None:
    short = BUSINESS_DAYS.filter(BUSINESS_DAYS.is_between(BUSINESS_DAYS[0], date(2018, 12, 31)))
    assert RELEASED_SERIES["VIXCLS"].due_at(date(2018, 12, 31), short) is None
    assert RELEASED_SERIES["VIXCLS"].due_at(date(2018, 12, 28), short) is None
    assert RELEASED_SERIES["BAA"].due_at(date(2018, 11, 1), short) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embargo": timedelta(seconds=-1)}, "series BAA: embargo .* is negative"),
        ({"lowest": 30}, "series BAA: lowest 30 is not below highest 30"),
        ({"frequency": "daily"}, "series BAA: daily values are not released by the month"),
    ],
)
def test_a_series_that_contradicts_itself_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        replace(RELEASED_SERIES["BAA"], **change)  # type: ignore[arg-type]


def test_a_view_names_the_series_behind_its_columns() -> None:
    found = series_inputs(MACRO_FEATURES).select("column", "symbol", "series_id", "maximum_age_days").rows()
    assert found == [
        ("brent", None, "DCOILBRENTEU", 7),
        ("dxy", None, "DTWEXBGS", 14),
        ("embi", None, "BAMLEMCBPIOAS", 7),
        ("local_yield", "USDCOP", "COLIRLTLT01STM", 75),
        ("treasury_10y", None, "DGS10", 7),
        ("usdmxn", None, "DEXMXUS", 14),
        ("vix", None, "VIXCLS", 7),
    ]
    assert [series.series_id for series in series_of(PORTFOLIO_MACRO_FEATURES)] == ["BAA10Y", "DGS10", "DGS2", "VIXCLS"]
