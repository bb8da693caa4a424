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
    ("series_id", "since", "due"),
    [
        ("VIXCLS", "2018-12-24T13:15", "2018-12-26T13:15"),  # Friday's value is there; Monday's comes after Christmas
        ("DEXMXUS", "2018-08-27T20:15", "2018-09-04T20:15"),  # once a week, after Labor Day
        ("BAA", "2019-01-02T13:15", "2019-02-01T13:15"),
        ("CPILFESL", "2018-08-20T00:00", "2018-09-15T12:30"),
        ("FNG", "2018-12-21T01:00", "2018-12-22T01:00"),
    ],
)
def test_the_next_value_is_due_when_it_is_released_and_its_embargo_over(series_id: str, since: str, due: str) -> None:
    series = RELEASED_SERIES[series_id]
    days = EVERY_DAY if series.release.calendar == "24/7" else BUSINESS_DAYS
    instants = series.due_instants(days)
    assert instants.is_sorted()
    assert instants.is_unique().all()
    assert instants.filter(instants > _utc(since))[0] == _utc(due)
    held = replace(series, embargo=timedelta(hours=36)).due_instants(days)
    assert (held - instants == timedelta(hours=36)).all()


def test_beyond_the_business_days_nothing_is_due() -> None:
    short = BUSINESS_DAYS.filter(BUSINESS_DAYS.is_between(BUSINESS_DAYS[0], date(2018, 12, 31)))
    newest = {name: RELEASED_SERIES[name].due_instants(short)[-1] for name in ("VIXCLS", "BAA")}
    assert newest == {"VIXCLS": _utc("2018-12-31T13:15"), "BAA": _utc("2018-12-03T13:15")}


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
