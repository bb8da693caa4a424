"""Sources: fetch the rows of a dataset from everything that declares it. Auditing and publishing rows do not belong here.

A source module knows one provider and imports no other source. The declarations are in `features.sources`.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Protocol, TypeVar

import polars as pl

from featurestore_dagster.features.sources import (
    ALPACA_IEX,
    ALPACA_SIP,
    BINANCE,
    EODHD,
    FEAR_GREED,
    FILES,
    FRED,
    NEWS,
    POSITIONS,
    SAMPLES,
    SEC,
    SOURCES,
)
from featurestore_dagster.model.raw_table import Dataset
from featurestore_dagster.model.source import Source
from featurestore_dagster.model.time import Clock
from featurestore_dagster.settings import Settings
from featurestore_dagster.sources import alpaca, binance, eodhd, fear_greed, files, fred, news, positions, samples, sec
from featurestore_dagster.sources.http import HttpClient
from featurestore_dagster.sources.provider_settings import (
    AlpacaSettings,
    BinanceSettings,
    EodhdSettings,
    FearGreedSettings,
    FredSettings,
    NewsSettings,
    PositionsSettings,
    ProviderSettings,
    SecSettings,
)

PAYLOADS = "payloads"
"""Folder of the providers' raw answers, inside the data folder."""

Own_contra = TypeVar("Own_contra", bound=ProviderSettings, contravariant=True)
Fetch = Callable[[Dataset, datetime, datetime, Settings, Clock], pl.DataFrame]


class ProviderFetch(Protocol[Own_contra]):
    """The function `fetch` of a provider's module."""

    def __call__(self, dataset: Dataset, start: datetime, end: datetime, *, settings: Own_contra, client: HttpClient) -> pl.DataFrame:
        """Rows with start < event_timestamp <= end: canonical columns but `ingested_at`."""


def _over_http(source: Source, own_settings: Callable[[], Own_contra], provider_fetch: ProviderFetch[Own_contra]) -> Fetch:
    def run(dataset: Dataset, start: datetime, end: datetime, settings: Settings, clock: Clock) -> pl.DataFrame:
        own = own_settings()
        with HttpClient(source, own.base_url, settings.data_folder / PAYLOADS, clock) as client:
            return provider_fetch(dataset, start, end, settings=own, client=client)

    return run


_FETCHERS: dict[str, Fetch] = {
    SAMPLES.name: lambda dataset, start, end, _, clock: samples.fetch(dataset, start, end, clock=clock),
    FILES.name: lambda dataset, start, end, settings, _: files.fetch(dataset, start, end, drop_folder=settings.drop),
    BINANCE.name: _over_http(BINANCE, BinanceSettings, binance.fetch),
    EODHD.name: _over_http(EODHD, EodhdSettings, eodhd.fetch),
    ALPACA_IEX.name: _over_http(ALPACA_IEX, AlpacaSettings, alpaca.fetch),
    ALPACA_SIP.name: _over_http(ALPACA_SIP, AlpacaSettings, alpaca.fetch),
    FRED.name: _over_http(FRED, FredSettings, fred.fetch),
    SEC.name: _over_http(SEC, SecSettings, sec.fetch),
    NEWS.name: _over_http(NEWS, NewsSettings, news.fetch),
    FEAR_GREED.name: _over_http(FEAR_GREED, FearGreedSettings, fear_greed.fetch),
    POSITIONS.name: lambda dataset, start, end, _, clock: positions.fetch(dataset, start, end, settings=PositionsSettings(), clock=clock),
}


def fetch(dataset: Dataset, start: datetime, end: datetime, *, settings: Settings, clock: Clock) -> pl.DataFrame:
    """Rows with start < event_timestamp <= end, of all sources that are switched on and declare the dataset; none: no rows.

    Reads only: `files.take` moves files.

    Args:
        dataset: What to fetch.
        start: Exclusive, UTC.
        end: Inclusive, UTC.
        settings: Which sources are switched on, and the folders of dropped files and of payloads.
        clock: A replayed source delivers nothing from after this clock's now.

    Returns:
        The canonical columns of `dataset.table` but `ingested_at`, sorted by the table's identity. Values are as delivered: NULL, NaN and
        infinities are left for the audit. A duplicated key within one file stays duplicated, also for the audit.

    Raises:
        ConfigurationError: The packages of the samples are not installed, or a provider lacks its credential.
        SourceUnavailableError: A provider did not answer; a later run may succeed.
        SourceRefusedError: A provider will not answer.
        MalformedDataError: A provider's answer has not the documented form.
    """
    active = (source for source in SOURCES if source.name in settings.source_names and dataset in source.datasets)
    frames = [_FETCHERS[source.name](dataset, start, end, settings, clock) for source in active]
    schema = {name: dtype for name, dtype in dataset.table.schema.items() if name != "ingested_at"}
    return pl.concat([pl.DataFrame(schema=schema), *frames]).sort(dataset.table.identity, maintain_order=True)
