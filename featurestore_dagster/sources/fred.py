"""FRED and its archive ALFRED: every vintage of the released series. What a series may look like is declared in `features.macro_series`.

FRED clips the real-time period of what it returns to the period that was asked for: a value's first day in an answer may be the answer's
first day only. So the vintage before the wanted ones is read too, and a value that repeats the vintage before it is no vintage.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, datetime
from typing import Self

import polars as pl
from pydantic import Field, model_validator

from featurestore_dagster.errors import MalformedDataError
from featurestore_dagster.features.macro_series import RELEASED_SERIES, ReleasedSeries
from featurestore_dagster.features.sources import FRED
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS, Dataset
from featurestore_dagster.sources.http import HttpClient, Payload
from featurestore_dagster.sources.payloads import Document, canonical, read
from featurestore_dagster.sources.provider_settings import FredSettings

FIRST_DAY, LAST_DAY = "1776-07-04", "9999-12-31"
"""FRED's names for the whole of its archive."""

VINTAGES_PER_REQUEST = 2_000
OBSERVATIONS_PER_PAGE = 100_000
VINTAGE_DATES_PER_PAGE = 10_000
MISSING = "."
VINTAGES = pl.Schema({"observation_date": pl.Date, "realtime_start": pl.Date, "value": pl.Float64})

Get = Callable[[str, Mapping[str, str | int]], Payload]


class _Page(Document):
    count: int
    offset: int
    limit: int = Field(gt=0)

    def of(self, items: Sequence[object]) -> None:
        """Refuse a page that holds fewer or more items than its counters say."""
        due = min(self.limit, max(self.count - self.offset, 0))
        if len(items) != due:
            raise ValueError(f"{len(items)} items, its counters say {due}")


class _VintageDates(_Page):
    vintage_dates: list[date]

    @model_validator(mode="after")
    def _whole(self) -> Self:
        self.of(self.vintage_dates)
        return self


class _Observation(Document):
    realtime_start: date
    observation_date: date = Field(alias="date")
    value: str


class _Observations(_Page):
    observations: list[_Observation]

    @model_validator(mode="after")
    def _whole(self) -> Self:
        self.of(self.observations)
        return self


class _Metadata(Document):
    id: str
    frequency_short: str
    units: str


class _Series(Document):
    seriess: list[_Metadata]


def fetch(dataset: Dataset, start: datetime, end: datetime, *, settings: FredSettings, client: HttpClient) -> pl.DataFrame:
    """All vintages released in start < event_timestamp <= min(end, now), of every listed series.

    Returns:
        The canonical columns but `ingested_at`, sorted by identity; each vintage is a row, its event and known-at the release. A value that
        FRED reports as missing has no row.

    Raises:
        ConfigurationError: FRED_API_KEY is not set.
        MalformedDataError: An answer is not of the declared form, a page is short, or a series changed its unit or frequency.
        SourceRefusedError, SourceUnavailableError: As `HttpClient.get`.
    """
    api_key = settings.required("api_key")

    def get(path: str, parameters: Mapping[str, str | int]) -> Payload:
        return client.get(path, {**parameters, "api_key": api_key, "file_type": "json"})

    latest = min(end, client.clock.now())
    rows = [_released(RELEASED_SERIES[listing.symbol], start, latest, get) for listing in FRED.listings[dataset.name]]
    return canonical(pl.concat(rows), dataset, FRED)


def parse(body: bytes, series: ReleasedSeries) -> pl.DataFrame:
    """One page of observations.

    Returns:
        observation_date (Date), realtime_start (Date: first day of the vintage, or of the period that was asked for), value (Float64), in
        the page's order, without missing values.

    Raises:
        MalformedDataError: The page or a value is not of the declared form.
    """
    found = [one for one in read(_Observations, body, f"fred {series.series_id}").observations if one.value != MISSING]
    try:
        values = [float(one.value) for one in found]
    except ValueError as error:
        raise MalformedDataError(f"fred {series.series_id}: {error}; nothing of the series was taken") from None
    days = {name: [getattr(one, name) for one in found] for name in ("observation_date", "realtime_start")}
    return pl.DataFrame({**days, "value": values}, schema=VINTAGES)


def merge(pages: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Pages of adjacent real-time periods to vintages: where a value goes on across a seam, its earliest day stays.

    Returns:
        The columns of `parse`, sorted by observation_date and realtime_start; a value differs from the vintage before it.
    """
    rows = pl.concat(pages).unique().sort("observation_date", "realtime_start")
    repeats = (pl.col("value") == pl.col("value").shift(1).over("observation_date")).fill_null(value=False)
    return rows.filter(~repeats)


def check_metadata(body: bytes, series: ReleasedSeries) -> None:
    """Refuse a series that FRED describes otherwise than we declare it.

    Raises:
        MalformedDataError: Another frequency or unit, or not one description of this series.
    """
    described = read(_Series, body, f"fred {series.series_id}").seriess
    if [one.id for one in described] != [series.series_id]:
        raise MalformedDataError(f"fred {series.series_id}: described are {[one.id for one in described]}; nothing of the series was taken")
    found, declared = described[0], series.frequency[0].upper()
    if found.frequency_short != declared or series.unit not in found.units.casefold():
        raise MalformedDataError(
            f"fred {series.series_id}: it has frequency {found.frequency_short!r} and unit {found.units!r}, declared are {declared!r} and "
            f"{series.unit!r}; nothing of the series was taken. Declare the changed series under a name of its own in RELEASED_SERIES"
        )


def _released(series: ReleasedSeries, start: datetime, latest: datetime, get: Get) -> pl.DataFrame:
    known = _vintage_dates(series, get)
    wanted = [place for place, day in enumerate(known) if start < series.released_at(day) <= latest]
    pages = [pl.DataFrame(schema=VINTAGES)]
    if wanted:
        check_metadata(get("/fred/series", {"series_id": series.series_id}).body, series)
        days = known[max(wanted[0] - 1, 0) : wanted[-1] + 1]
        for first in range(0, len(days), VINTAGES_PER_REQUEST):
            period = days[first : first + VINTAGES_PER_REQUEST]
            pages += _observations(series, period[0], period[-1], get)
    vintages = merge(pages)
    if complaint := series.complaint(vintages["observation_date"], vintages["value"]):
        raise MalformedDataError(f"fred {series.series_id}: {complaint}; nothing of the series was taken")
    release = pl.col("realtime_start").dt.combine(series.release_time).dt.replace_time_zone(series.release_zone)
    released = vintages.with_columns(event_timestamp=release.dt.convert_time_zone("UTC").cast(UTC_MICROSECONDS))
    return released.filter(pl.col("event_timestamp") > start, pl.col("event_timestamp") <= latest).with_columns(
        series_id=pl.lit(series.series_id), known_at="event_timestamp", known_at_basis=pl.lit("assumed")
    )


def _vintage_dates(series: ReleasedSeries, get: Get) -> list[date]:
    """Days on which anything of the series changed, ascending."""
    archive = {"series_id": series.series_id, "realtime_start": FIRST_DAY, "realtime_end": LAST_DAY}
    pages = _pages("/fred/series/vintagedates", archive, VINTAGE_DATES_PER_PAGE, get)
    return sorted(day for body in pages for day in read(_VintageDates, body, f"fred {series.series_id}").vintage_dates)


def _observations(series: ReleasedSeries, first: date, last: date, get: Get) -> list[pl.DataFrame]:
    period = {"series_id": series.series_id, "realtime_start": first.isoformat(), "realtime_end": last.isoformat()}
    return [parse(body, series) for body in _pages("/fred/series/observations", period, OBSERVATIONS_PER_PAGE, get)]


def _pages(path: str, parameters: dict[str, str], limit: int, get: Get) -> Iterator[bytes]:
    offset, count = 0, 1
    while offset < count:
        body = get(path, {**parameters, "limit": limit, "offset": offset}).body
        page = read(_Page, body, f"fred {parameters['series_id']}")
        if page.offset != offset:
            raise MalformedDataError(f"fred {parameters['series_id']}: offset {page.offset} came for {offset}; nothing was taken")
        yield body
        offset, count = offset + page.limit, page.count
