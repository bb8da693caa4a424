"""FRED: every vintage once, at its release, whatever FRED clips; and no series that is not the declared one."""

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest
from pydantic import SecretStr

from featurestore_dagster.features.macro_series import RELEASED_SERIES
from featurestore_dagster.features.raw_tables import US_MACRO
from featurestore_dagster.features.sources import FRED
from featurestore_dagster.model.time import FrozenClock
from featurestore_dagster.sources import fred
from featurestore_dagster.sources.http import HttpClient
from featurestore_dagster.sources.provider_settings import FredSettings
from tests.local_provider import Answer, Asked, LocalProvider, Patience, local_provider

VIX, CORE_PRICES = RELEASED_SERIES["VIXCLS"], RELEASED_SERIES["CPILFESL"]
NOW = datetime(2019, 1, 2, 12, tzinfo=UTC)
LONG_AGO = datetime(1990, 1, 2, tzinfo=UTC)
KEY = "0123456789abcdef0123456789abcdef"
FIRST_VINTAGE = date(2008, 1, 2)
DAILY_VINTAGES = 2_300


def one_day_a_release(number: int) -> str:
    return f"{20 + number % 17 / 4}"


class Archive:
    """ALFRED as it behaves: one series, a print a day and now and then a revision; clipped periods, short pages, 2000 vintages at most."""

    def __init__(self, days: int = DAILY_VINTAGES, rows_per_page: int = 1_000) -> None:
        self.rows_per_page = rows_per_page
        self.prints: dict[date, list[tuple[date, str]]] = {}
        for number in range(days):
            observed = FIRST_VINTAGE + timedelta(days=number - 1)
            self.prints.setdefault(observed, []).append((FIRST_VINTAGE + timedelta(days=number), one_day_a_release(number)))
            if number % 10 == 9:
                revised = FIRST_VINTAGE + timedelta(days=number - 6)
                last = self.prints[revised][-1]
                # Revised, and ten days later back to the first print.
                self.prints[revised] += [
                    (FIRST_VINTAGE + timedelta(days=number), f"{float(last[1]) + 1}"),
                    *([(FIRST_VINTAGE + timedelta(days=number + 10), last[1])] if number + 10 < days else []),
                ]
        self.vintages = sorted({day for versions in self.prints.values() for day, _ in versions})

    def versions(self) -> list[tuple[date, date, float]]:
        return sorted((observed, day, float(value)) for observed, found in self.prints.items() for day, value in found)

    def __call__(self, asked: Asked) -> Answer:
        query = asked.query
        if query.get("api_key") != KEY or query.get("file_type") != "json":
            return Answer(400, b"The value for variable api_key is not registered")
        if query["series_id"] != VIX.series_id:
            return self._page(query, "vintage_dates", [])
        if asked.path == "/fred/series":
            return _json({"seriess": [{"id": VIX.series_id, "frequency_short": "D", "units": "Index"}]})
        first, last = (date.fromisoformat(query[name]) for name in ("realtime_start", "realtime_end"))
        within = [day for day in self.vintages if first <= day <= last]
        if asked.path == "/fred/series/vintagedates":
            return self._page(query, "vintage_dates", [day.isoformat() for day in within])
        if len(within) > 2_000 or last > NOW.date():
            return Answer(400, b"There are too many vintage dates in the period, or it ends after today")
        rows = []
        for observed, found in sorted(self.prints.items()):
            for (day, value), (following, _) in zip(found, [*found[1:], (date.max, "")], strict=True):
                if day <= last and following > first:
                    rows.append(
                        {
                            "realtime_start": max(day, first).isoformat(),
                            "realtime_end": min(following, last).isoformat(),
                            "date": observed.isoformat(),
                            "value": value,
                        }
                    )
        return self._page(query, "observations", rows)

    def _page(self, query: dict[str, str], name: str, items: list[object]) -> Answer:
        offset, limit = int(query["offset"]), min(int(query["limit"]), self.rows_per_page)
        return _json({"count": len(items), "offset": offset, "limit": limit, name: items[offset : offset + limit]})


def _json(document: object) -> Answer:
    return Answer(200, json.dumps(document).encode())


def fetched(provider: LocalProvider, folder: Path, start: datetime, end: datetime, now: datetime = NOW) -> pl.DataFrame:
    with HttpClient(FRED, provider.url, folder, FrozenClock(now), timer=Patience()) as client:
        return fred.fetch(US_MACRO, start, end, settings=FredSettings(api_key=SecretStr(KEY)), client=client)


@pytest.fixture
def provider() -> Iterator[LocalProvider]:
    with local_provider() as running:
        yield running


def queries(provider: LocalProvider, path: str) -> list[dict[str, str]]:
    return [asked.query for asked in provider.asked if asked.path == path]


def end_of_day(day: date) -> datetime:
    """23:59:59 in Chicago, in winter."""
    return datetime(day.year, day.month, day.day, 5, 59, 59, tzinfo=UTC) + timedelta(days=1)


def test_every_vintage_of_the_archive_is_one_row_at_its_release(provider: LocalProvider, tmp_path: Path) -> None:
    archive = Archive()
    provider.respond = archive
    rows = fetched(provider, tmp_path, LONG_AGO, NOW)
    found = rows.select("observation_date", pl.col("event_timestamp").dt.convert_time_zone("America/Chicago").dt.date(), "value").rows()
    assert sorted(found) == archive.versions()
    assert rows.schema == pl.Schema({name: dtype for name, dtype in US_MACRO.table.schema.items() if name != "ingested_at"})
    assert rows["event_timestamp"].equals(rows["known_at"].rename("event_timestamp"))
    assert set(rows["event_timestamp"].dt.convert_time_zone("America/Chicago").dt.strftime("%H:%M:%S")) == {"23:59:59"}
    assert not rows.select(US_MACRO.table.identity).is_duplicated().any()
    periods = {query["realtime_start"] for query in queries(provider, "/fred/series/observations")}
    assert len(periods) == 2, "2300 vintages are two periods"
    assert len(queries(provider, "/fred/series/observations")) > 4, "pages were not exercised"


def test_days_fetched_one_by_one_are_the_whole(provider: LocalProvider, tmp_path: Path) -> None:
    archive = Archive(days=24)
    ends = [datetime(2008, 1, 1, 21, tzinfo=UTC) + timedelta(days=number) for number in range(0, 28, 3)]
    provider.respond = archive
    parts = [fetched(provider, tmp_path, start, end) for start, end in pairwise(ends)]
    whole = fetched(provider, tmp_path, ends[0], ends[-1])
    assert pl.concat(parts).sort(US_MACRO.table.identity).equals(whole)
    assert len(whole) == len(archive.versions())


def test_a_day_without_vintages_costs_one_request_a_series(provider: LocalProvider, tmp_path: Path) -> None:
    provider.respond = Archive(days=10)
    assert fetched(provider, tmp_path, NOW - timedelta(days=1), NOW).is_empty()
    assert {asked.path for asked in provider.asked} == {"/fred/series/vintagedates"}
    assert sorted(asked.query["series_id"] for asked in provider.asked) == sorted(set(RELEASED_SERIES) - {"FNG"})


def test_the_future_of_a_replay_is_neither_asked_for_nor_returned(provider: LocalProvider, tmp_path: Path) -> None:
    replayed = datetime(2008, 1, 20, 22, tzinfo=UTC)
    provider.respond = Archive(days=40)
    rows = fetched(provider, tmp_path, LONG_AGO, NOW, now=replayed)
    assert rows["event_timestamp"].max() == end_of_day(date(2008, 1, 19))
    assert {query["realtime_end"] for query in queries(provider, "/fred/series/observations")} == {"2008-01-19"}


def vintages(*rows: tuple[str, str, float]) -> pl.DataFrame:
    days = [(date.fromisoformat(observed), date.fromisoformat(realtime_start), value) for observed, realtime_start, value in rows]
    return pl.DataFrame(days, schema=fred.VINTAGES, orient="row")


def test_what_goes_on_across_a_seam_keeps_its_first_day_and_a_value_that_returns_is_a_vintage() -> None:
    first = vintages(("2018-06-01", "2018-07-12", 257.305), ("2018-06-01", "2018-08-10", 257.311), ("2018-07-01", "2018-08-10", 257.867))
    clipped = vintages(("2018-06-01", "2018-09-01", 257.311), ("2018-06-01", "2018-09-13", 257.305), ("2018-07-01", "2018-09-01", 257.867))
    expected = vintages(
        ("2018-06-01", "2018-07-12", 257.305),
        ("2018-06-01", "2018-08-10", 257.311),
        ("2018-06-01", "2018-09-13", 257.305),
        ("2018-07-01", "2018-08-10", 257.867),
    )
    assert fred.merge([first, clipped]).equals(expected)
    assert fred.merge([clipped, first]).equals(expected)


@pytest.mark.parametrize(
    ("day", "instant"),
    [
        pytest.param(date(2018, 7, 12), datetime(2018, 7, 12, 12, 30, tzinfo=UTC), id="summer"),
        pytest.param(date(2018, 12, 12), datetime(2018, 12, 12, 13, 30, tzinfo=UTC), id="winter"),
    ],
)
def test_a_declared_release_time_counts(day: date, instant: datetime) -> None:
    assert CORE_PRICES.released_at(day) == instant


def test_every_listed_series_says_what_it_must_deliver() -> None:
    assert {listing.symbol for listing in FRED.listings[US_MACRO.name]} == set(RELEASED_SERIES) - {"FNG"}
