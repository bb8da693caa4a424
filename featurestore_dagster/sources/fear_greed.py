"""alternative.me's fear and greed index of the crypto market. The index that we compute for other markets does not belong here."""

from datetime import UTC, datetime, timedelta

import polars as pl

from featurestore_dagster.errors import MalformedDataError, SourceRefusedError
from featurestore_dagster.features.macro_series import FEAR_GREED_INDEX, RELEASED_SERIES
from featurestore_dagster.features.sources import FEAR_GREED
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS, Dataset
from featurestore_dagster.sources.http import HttpClient
from featurestore_dagster.sources.payloads import Document, canonical, read, refuse_implausible
from featurestore_dagster.sources.provider_settings import FearGreedSettings

SERIES = RELEASED_SERIES[FEAR_GREED_INDEX]
RELEASED_AFTER = timedelta(hours=1)
"""From the instant that a value is stamped with to the instant when everybody can read it."""


class _Value(Document):
    value: str
    timestamp: str


class _Metadata(Document):
    error: str | None


class _Index(Document):
    data: tuple[_Value, ...] = ()
    metadata: _Metadata


def fetch(dataset: Dataset, start: datetime, end: datetime, *, settings: FearGreedSettings, client: HttpClient) -> pl.DataFrame:  # noqa: ARG001
    """Values released in start < event_timestamp <= min(end, now).

    Returns:
        The canonical columns but `ingested_at`, sorted by identity; event and known-at are an hour after the value's own time.

    Raises:
        MalformedDataError: The answer is not of the declared form, or the index changed its unit or frequency.
        SourceRefusedError: The provider reports an error, also with status 200.
        SourceUnavailableError: As `HttpClient.get`.
    """
    now = client.clock.now()
    payload = client.get("/fng/", {"limit": max((now - start).days, 0) + 2, "format": "json"})
    rows = parse(payload.body, payload.received_at)
    latest = min(end, now)
    return canonical(rows.filter(pl.col("event_timestamp") > start, pl.col("event_timestamp") <= latest), dataset, FEAR_GREED)


def parse(body: bytes, received_at: datetime) -> pl.DataFrame:
    """An answer to rows: the columns of macro observations, event_timestamp, known_at, known_at_basis; newest first, as it came.

    Args:
        body: The answer.
        received_at: When it came; a value from later than a day after that has a wrong unit of time.

    Raises:
        MalformedDataError: The answer is not of the declared form, or the index changed its unit or frequency.
        SourceRefusedError: The answer is an error.
    """
    index = read(_Index, body, "fear_greed")
    if index.metadata.error is not None:
        raise SourceRefusedError(
            f"fear_greed: answered status 200 with the error {index.metadata.error!r}", status=200, answer=index.metadata.error
        )
    try:
        values = [float(one.value) for one in index.data]
        instants = [datetime.fromtimestamp(int(one.timestamp), UTC) for one in index.data]
    except (ValueError, OverflowError, OSError) as error:
        raise MalformedDataError(f"fear_greed: {error}; values are numbers, timestamps whole seconds; nothing was taken") from None
    refuse_implausible(instants, received_at, "fear_greed")
    released = pl.col("stamped") + RELEASED_AFTER
    rows = pl.DataFrame({"stamped": instants, "value": values}, schema={"stamped": UTC_MICROSECONDS, "value": pl.Float64}).select(
        "value",
        series_id=pl.lit(SERIES.series_id),
        observation_date=pl.col("stamped").dt.date(),
        event_timestamp=released,
        known_at=released,
        known_at_basis=pl.lit("assumed"),
    )
    if complaint := SERIES.complaint(rows["observation_date"], rows["value"]):
        raise MalformedDataError(f"fear_greed: {complaint}; nothing was taken")
    return rows
