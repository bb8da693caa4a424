"""`mapping.yaml`: how the files of one dataset's drop folder become its rows. Reading the files does not belong here (see `parsing`)."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo

import polars as pl
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from featurestore_dagster.errors import ConfigurationError
from featurestore_dagster.model.raw_table import Dataset
from featurestore_dagster.model.time import Timeframe

MAPPING_NAME = "mapping.yaml"

Text = Annotated[str, Field(strict=True)]


class FileMapping(BaseModel):
    """A drop folder's mapping. Every value is required unless a default is shown; an unknown key is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    columns: dict[Text, Text] = Field(description="file column: field of the dataset, event_timestamp or known_at")
    constants: dict[Text, Text | float] = Field({}, description="field: value that the files do not carry, for example symbol: EURUSD")
    ignore: frozenset[Text] = Field(frozenset(), description="file columns that are not wanted")
    timestamp_unit: Literal["iso", "s", "ms", "us", "ns"] = Field(description="iso text, or a whole number since 1970-01-01 UTC")
    timezone: Text | None = Field(None, description="zone of timestamps that carry none; without it they are refused")
    label: Literal["bar_start", "bar_end", "session"] | None = Field(
        None, description="what the timestamp of a bar means; session: the exchange's day (open for a corporate action, close for a bar)"
    )
    delimiter: Literal[",", ";", "\t", "|"] | None = Field(None, description="of CSV; found in the header when absent: ; or ,")
    decimal_comma: bool = Field(False, description="numbers of a CSV are written 1,05")
    null_tokens: frozenset[Text] = Field(frozenset({""}), description="texts of a CSV that mean no value")
    known_at: Literal["assumed", "observed"] | None = Field(
        None, description="assumed: event plus lag; observed: on arrival; default: assumed if the event is more than a day old on arrival"
    )
    known_at_lag_seconds: float | None = Field(None, ge=0, description="lag of an assumed known_at; default: the dataset's latency")

    @field_validator("constants", mode="before")
    @classmethod
    def _refuse_yaml_booleans(cls, constants: object) -> object:
        if isinstance(constants, dict):
            for field, value in constants.items():
                if isinstance(value, bool):
                    raise ValueError(f"{field}: YAML reads a bare ON, NO, yes or true as a boolean; put the text in quotes")  # noqa: TRY004 - pydantic collects ValueError only
        return constants

    @field_validator("timezone")
    @classmethod
    def _find_zone(cls, timezone: str | None) -> str | None:
        if timezone is not None:
            try:
                ZoneInfo(timezone)
            except (KeyError, ValueError, OSError):
                raise ValueError(f"{timezone!r} is no IANA time zone; write for example UTC or America/New_York") from None
        return timezone

    @model_validator(mode="after")
    def _check_agreement(self) -> Self:
        given = [*self.columns.values(), *self.constants]
        twice = sorted({field for field in given if given.count(field) > 1})
        if twice:
            raise ValueError(f"filled twice: {', '.join(twice)}; each field has one column or one constant")
        both = sorted(self.ignore & self.columns.keys())
        if both:
            raise ValueError(f"both mapped and ignored: {', '.join(both)}")
        if self.timezone and self.timestamp_unit != "iso" and self.label != "session":
            raise ValueError(f"timestamp_unit {self.timestamp_unit} counts from 1970-01-01 UTC by definition; remove timezone")
        if self.label == "session" and not self.timezone:
            raise ValueError("label session needs the timezone in which the timestamp's day is the session")
        if "known_at" in self.columns.values() and (self.known_at or self.known_at_lag_seconds is not None):
            raise ValueError("known_at is read from a column; remove the rule known_at and known_at_lag_seconds")
        if self.known_at == "observed" and self.known_at_lag_seconds is not None:
            raise ValueError("known_at observed is the arrival; remove known_at_lag_seconds")
        return self

    def lag(self, dataset: Dataset) -> timedelta:
        """Assumed time from the event to its first availability."""
        return dataset.latency if self.known_at_lag_seconds is None else timedelta(seconds=self.known_at_lag_seconds)


def load_mapping(folder: Path, dataset: Dataset) -> FileMapping:
    """The mapping in a dataset's drop folder, checked against the dataset.

    Raises:
        ConfigurationError: It is absent, not YAML, or contradicts itself or the dataset; the message lists what is allowed.
    """
    path = folder / MAPPING_NAME
    try:
        mapping = FileMapping.model_validate(yaml.safe_load(path.read_text(encoding="utf-8-sig")))
    except FileNotFoundError:
        raise ConfigurationError(f"{path} is missing; write one as docs/how-to/drop-files.md shows for {dataset.name}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{path} is not YAML in UTF-8: {error}") from None
    except ValidationError as error:
        complaints = "; ".join(f"{'.'.join(map(str, detail['loc'])) or 'mapping'}: {detail['msg']}" for detail in error.errors())
        raise ConfigurationError(f"{path}: {complaints}; allowed: {', '.join(FileMapping.model_fields)}") from None
    complaint = _contradiction(mapping, dataset)
    if complaint:
        raise ConfigurationError(f"{path}: {complaint}")
    return mapping


def _contradiction(mapping: FileMapping, dataset: Dataset) -> str | None:
    """Why the mapping cannot fill this dataset, or None."""
    columns = {column.name: column for column in dataset.table.columns}
    given = {*mapping.columns.values(), *mapping.constants}
    fields = [*columns, "event_timestamp", "known_at"]
    unknown = sorted(given - set(fields))
    if unknown:
        return f"{dataset.name} has no field {', '.join(unknown)}; allowed: {', '.join(fields)}"
    optional = {name for name, column in columns.items() if column.nullable} | {"timeframe"}
    missing = [name for name in (*columns, "event_timestamp") if name not in given | optional]
    if missing:
        return f"nothing fills {', '.join(missing)}; name a file column under columns, or a value under constants"
    if constant_times := sorted({"event_timestamp", "known_at"} & mapping.constants.keys()):
        return f"{', '.join(constant_times)} cannot be a constant"
    for field, value in mapping.constants.items():
        if isinstance(value, str) != (columns[field].dtype == pl.String()):
            return f"constant {field}: {value!r} is no {columns[field].dtype}; a text is written in quotes, a number without"
    if mapping.constants.get("timeframe", dataset.timeframe) != dataset.timeframe:
        return f"constant timeframe: {dataset.name} holds {dataset.timeframe} bars, not {mapping.constants['timeframe']}"
    return _wrong_label(mapping, dataset)


def _wrong_label(mapping: FileMapping, dataset: Dataset) -> str | None:
    daily = dataset.timeframe == Timeframe.ONE_DAY
    allowed: tuple[str | None, ...]
    if not dataset.bars:
        allowed = (None, "session")
    elif daily:
        allowed = ("bar_end", "session")
    else:
        allowed = ("bar_start", "bar_end")
    if mapping.label in allowed:
        return None
    return f"label {mapping.label} does not suit {dataset.name}; allowed: {' or '.join(str(label or 'no label') for label in allowed)}"
