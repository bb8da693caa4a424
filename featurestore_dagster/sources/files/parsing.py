"""The cells of a file to canonical rows. Reading cells does not belong here (see `reading`), nor does moving files (see `landing`).

Structure, types and times are judged here, and a violation refuses the whole file. Values (a negative price, NaN, an unknown symbol) are
not: they reach the audit, which quarantines single rows.
"""

from datetime import datetime, timedelta
from pathlib import Path

import polars as pl

from featurestore_dagster.calendars import calendar
from featurestore_dagster.errors import DeclarationError
from featurestore_dagster.features.sources import FILES
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS, Dataset
from featurestore_dagster.sources.files.mapping import FileMapping
from featurestore_dagster.sources.files.reading import RawFile, read, without_nulls
from featurestore_dagster.sources.files.timestamps import read_instants


def parse(path: Path, name: str, dataset: Dataset, mapping: FileMapping, *, received_at: datetime, maximum_bytes: int) -> pl.DataFrame:
    """All rows of a file, in its order.

    Args:
        path: Where the file lies.
        name: Its name as dropped.
        dataset: What its rows belong to.
        mapping: The drop folder's mapping, checked against the dataset.
        received_at: Arrival of this content, UTC.
        maximum_bytes: The most decoded bytes that a Parquet file may declare.

    Returns:
        The canonical columns but `ingested_at`. Values are NULL, NaN or infinite where the file has them so; keys and times never are.

    Raises:
        MalformedDataError: Structure, type or time is not as declared; names the first line and column, and how many there are.
    """
    raw = read(path, name, mapping, maximum_bytes)
    columns = {field: column for column, field in mapping.columns.items()}
    table = dataset.table
    values = {field.name: _values(raw, columns[field.name], field.dtype, mapping) for field in table.columns if field.name in columns}
    for field in table.key:
        if field in values:
            raw.refuse_where(values[field].is_null(), columns[field], lambda _: "a key without a value")
    if "timeframe" in values:
        other = values["timeframe"] != dataset.timeframe.value
        raw.refuse_where(other, columns["timeframe"], lambda value: f"{value!r}, but {dataset.name} holds {dataset.timeframe} bars")
    constants = {field.name: pl.lit(mapping.constants.get(field.name)) for field in table.columns if field.name not in columns}
    if "timeframe" in constants:
        constants["timeframe"] = pl.lit(dataset.timeframe.value)
    event = _event(raw, columns["event_timestamp"], dataset, mapping, received_at)
    schema = {field: dtype for field, dtype in table.schema.items() if field != "ingested_at"}
    return (
        raw.frame.select(
            **values,
            **constants,
            dataset=pl.lit(dataset.name),
            event_timestamp=event,
            source=pl.lit(FILES.name),
            flags=pl.lit(0),
        )
        .with_columns(**_known_at(raw, columns.get("known_at"), dataset, mapping, received_at))
        .select(pl.col(field).cast(dtype) for field, dtype in schema.items())
    )


def _values(raw: RawFile, column: str, dtype: pl.DataType, mapping: FileMapping) -> pl.Series:
    cells = raw.frame[column]
    if isinstance(dtype, pl.Float64):
        return _numbers(raw, column, mapping) if cells.dtype == pl.String else raw.typed(column, dtype, fits=cells.dtype.is_numeric())
    if isinstance(dtype, pl.Date):
        return _dates(raw, column, mapping) if cells.dtype == pl.String else raw.typed(column, dtype, fits=cells.dtype == pl.Date)
    if isinstance(dtype, pl.String):
        texts = raw.typed(column, dtype, fits=cells.dtype in {pl.String, pl.Categorical, pl.Enum})
        return without_nulls(texts, mapping)
    raise DeclarationError(f"files cannot fill column {column!r}: no rule for {dtype}")


def _numbers(raw: RawFile, column: str, mapping: FileMapping) -> pl.Series:
    """Floats; `nan` and `inf` are numbers, thousands separators are not, because a dot or comma would then be a guess."""
    texts = without_nulls(raw.frame[column].str.strip_chars(), mapping)
    if mapping.decimal_comma:
        texts_with_point = texts.set(texts.str.contains(".", literal=True), "with a point").str.replace(",", ".", literal=True)
        expected = "a number with a decimal comma and no thousands separator (1234,5)"
    else:
        texts_with_point = texts
        expected = "a number with a decimal point and no thousands separator (1234.5); for commas set decimal_comma: true"
    numbers = texts_with_point.cast(pl.Float64, strict=False)
    raw.refuse_where(texts.is_not_null() & numbers.is_null(), column, lambda value: f"{value!r} is not {expected}")
    return numbers


def _dates(raw: RawFile, column: str, mapping: FileMapping) -> pl.Series:
    texts = without_nulls(raw.frame[column].str.strip_chars(), mapping)
    dates = texts.str.to_date("%Y-%m-%d", strict=False)
    raw.refuse_where(texts.is_not_null() & dates.is_null(), column, lambda value: f"{value!r} is not a date such as 2018-12-31")
    return dates


def _event(raw: RawFile, column: str, dataset: Dataset, mapping: FileMapping, received_at: datetime) -> pl.Series:
    """First instant at which each row is true and public: the bar's end, or the session's open or close."""
    instants = read_instants(raw, column, dataset, mapping, received_at)
    if mapping.label not in {"bar_start", "session"}:
        return instants
    frame = pl.DataFrame({"instant": instants})
    market = calendar(dataset.calendar)
    if mapping.label == "session":
        # A day that is no session gets an instant off the calendar, by which the audit finds and quarantines the row.
        day = pl.col("instant").dt.convert_time_zone(mapping.timezone or "UTC").dt.date()
        frame = frame.with_columns(session=day).join(market.table, on="session", how="left", maintain_order="left")
        return frame.select(pl.coalesce("closes" if dataset.bars else "opens", pl.col("instant").dt.offset_by("1d"))).to_series()
    end = pl.col("instant") + dataset.timeframe.duration
    if market.grid_from_midnight:
        return frame.select(end).to_series()
    # The last bar of a session may be short: it ends at the close.
    starts = frame.with_row_index().sort("instant").join_asof(market.table, left_on="instant", right_on="opens", strategy="backward")
    in_session = pl.col("instant") < pl.col("closes")
    return starts.sort("index").select(pl.when(in_session).then(pl.min_horizontal(end, "closes")).otherwise(end)).to_series()


def _known_at(raw: RawFile, column: str | None, dataset: Dataset, mapping: FileMapping, received_at: datetime) -> dict[str, pl.Expr]:
    """known_at and known_at_basis of the first vintage; publishing gives a changed value the instant of its arrival."""
    if column is not None:
        return {
            "known_at": pl.lit(read_instants(raw, column, dataset, mapping, received_at)),
            "known_at_basis": pl.lit("observed"),
        }
    event = pl.col("event_timestamp")
    by_rule = {"assumed": pl.lit(value=True), "observed": pl.lit(value=False), None: event < received_at - timedelta(days=1)}
    assumed = by_rule[mapping.known_at]
    return {
        "known_at": pl.when(assumed).then(event + mapping.lag(dataset)).otherwise(pl.lit(received_at, UTC_MICROSECONDS)),
        "known_at_basis": pl.when(assumed).then(pl.lit("assumed")).otherwise(pl.lit("observed")),
    }
