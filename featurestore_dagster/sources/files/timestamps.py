"""Timestamps as files write them to UTC instants. What an instant means for a row does not belong here (see `parsing`)."""

from datetime import UTC, datetime, timedelta

import polars as pl

from featurestore_dagster.model.raw_table import UTC_MICROSECONDS, Dataset
from featurestore_dagster.sources.files.mapping import FileMapping
from featurestore_dagster.sources.files.reading import RawFile, refuse, without_nulls

PLAUSIBLE_SINCE = datetime(1990, 1, 1, tzinfo=UTC)
TICKS_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}

ISO_TIMESTAMP = r"^(\d{4}-\d{2}-\d{2})(?:[T ](\d{2}:\d{2})(:\d{2}(?:\.\d{1,9})?)?(Z|[+-]\d{2}:?\d{2})?)?$"


def read_instants(raw: RawFile, column: str, dataset: Dataset, mapping: FileMapping, received_at: datetime) -> pl.Series:
    """The column as UTC microseconds, without NULL.

    Plausible is 1990-01-01 to a day after the arrival (feature dictionary, check 11); ISO texts of datasets that hold no bars may be
    older, because they cannot have a wrong unit and macro series begin long before.

    Raises:
        MalformedDataError: A timestamp is absent, unreadable, implausible, or has no zone while the mapping declares none; or it does not
            exist, or exists twice, on the day when the declared zone changes its clocks.
    """
    latest = received_at + timedelta(days=1)
    cells = raw.frame[column]
    text = isinstance(cells.dtype, pl.String)
    blank = without_nulls(cells.str.strip_chars(), mapping).is_null() if text else cells.is_null()
    raw.refuse_where(blank, column, lambda _: "a row without a timestamp")
    if mapping.timestamp_unit != "iso":
        return _epochs(raw, column, mapping.timestamp_unit, latest)
    if text:
        instants = _iso_texts(raw, column, mapping.timezone)
    elif isinstance(cells.dtype, pl.Datetime) and cells.dtype.time_zone:
        instants = cells.dt.convert_time_zone("UTC").dt.cast_time_unit("us")
    elif isinstance(cells.dtype, pl.Datetime | pl.Date):
        instants = _in_zone(raw, column, cells.cast(pl.Datetime("us")), mapping.timezone)
    else:
        refuse(raw.name, f"column {column!r} has the type {cells.dtype}, but the mapping declares timestamp_unit: iso")
    earliest = PLAUSIBLE_SINCE if dataset.bars else datetime.min.replace(tzinfo=UTC)
    raw.refuse_where(~instants.is_between(earliest, latest), column, lambda value: f"{value} is outside {_plausible(latest)}")
    return instants


def _epochs(raw: RawFile, column: str, unit: str, latest: datetime) -> pl.Series:
    """Whole numbers since 1970, compared before they are converted, because a wrong unit may overflow the conversion."""
    cells = raw.frame[column]
    if isinstance(cells.dtype, pl.String):
        ticks = cells.str.strip_chars().cast(pl.Int64, strict=False)
        raw.refuse_where(ticks.is_null(), column, lambda value: f"{value!r} is not a whole number of {unit} since 1970-01-01 UTC")
    else:
        ticks = raw.typed(column, pl.Int64(), fits=cells.dtype.is_integer())
    bounds = [int(bound.timestamp()) for bound in (PLAUSIBLE_SINCE, latest)]

    def explain(cell: object) -> str:
        value = int(str(cell))
        fitting = [
            f"{other} ({datetime.fromtimestamp(value // ticks_per_second, UTC):%Y-%m-%d %H:%M:%S} UTC)"
            for other, ticks_per_second in TICKS_PER_SECOND.items()
            if bounds[0] * ticks_per_second <= value <= bounds[1] * ticks_per_second
        ]
        advice = f"plausible is timestamp_unit: {fitting[0]}" if fitting else "no other unit makes it plausible"
        return f"{value} in {unit} is outside {_plausible(latest)}; {advice}"

    scale = TICKS_PER_SECOND[unit]
    raw.refuse_where(~ticks.is_between(bounds[0] * scale, bounds[1] * scale), column, explain)
    microseconds = ticks // 1_000 if unit == "ns" else ticks * (1_000_000 // scale)
    return microseconds.cast(UTC_MICROSECONDS)


def _iso_texts(raw: RawFile, column: str, timezone: str | None) -> pl.Series:
    """Rows with an offset by their offset, the others in the declared zone."""
    groups = ("day", "minute", "second", "offset")
    text = pl.col(column).str.strip_chars()
    parts = raw.frame.select(text.str.extract(ISO_TIMESTAMP, group).alias(name) for group, name in enumerate(groups, start=1))
    written = pl.concat_str("day", pl.lit("T"), pl.col("minute").fill_null("00:00"), pl.col("second").fill_null(":00"))
    hours_minutes = pl.col("offset").str.replace(":", "", literal=True).str.slice(1)
    sign = pl.when(pl.col("offset").str.starts_with("-")).then(-1).otherwise(1)
    minutes = hours_minutes.str.slice(0, 2).cast(pl.Int64, strict=False) * 60 + hours_minutes.str.slice(2).cast(pl.Int64, strict=False)
    parsed = parts.select(
        local=written.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", time_unit="us", strict=False),
        offset=pl.duration(minutes=pl.when(pl.col("offset") == "Z").then(0).otherwise(sign * minutes)),
    )
    raw.refuse_where(parsed["local"].is_null(), column, lambda value: f"{value!r} is no timestamp such as 2018-12-31T21:00:00Z")
    naive = parsed["offset"].is_null()
    zoned = (parsed["local"] - parsed["offset"]).dt.replace_time_zone("UTC")
    if not naive.any():
        return zoned
    local = parsed["local"].set(~naive, None)
    return zoned.zip_with(~naive, _in_zone(raw, column, local, timezone))


def _in_zone(raw: RawFile, column: str, local: pl.Series, timezone: str | None) -> pl.Series:
    """Local times of the declared zone; NULL stays NULL."""
    given = local.is_not_null()
    if timezone is None:
        raw.refuse_where(given, column, lambda value: f"{value} has no time zone; declare the zone of the file as timezone in the mapping")
        return local.dt.replace_time_zone("UTC")
    existing = local.dt.replace_time_zone(timezone, ambiguous="earliest", non_existent="null")
    raw.refuse_where(
        given & existing.is_null(), column, lambda value: f"{value} does not exist in {timezone}: the clocks are put forward then"
    )
    unique = local.dt.replace_time_zone(timezone, ambiguous="null", non_existent="null")
    raw.refuse_where(
        given & unique.is_null(), column, lambda value: f"{value} exists twice in {timezone}: the clocks are put back then; export UTC"
    )
    return unique.dt.convert_time_zone("UTC")


def _plausible(latest: datetime) -> str:
    return f"{PLAUSIBLE_SINCE:%Y-%m-%d} to {latest:%Y-%m-%d %H:%M} UTC"
