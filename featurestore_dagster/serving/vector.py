"""A service's values as one vector in canonical order, as stored or normalised by frozen statistics.

Reading values belongs to `online` and `point_in_time`; which features are normalised is declared in the service.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import polars as pl

from featurestore_dagster.errors import ConfigurationError, MalformedDataError, NullFeaturesError
from featurestore_dagster.model.feature_service import FeatureService
from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.serving.answer import OnlineRow

CLIP_STANDARD_DEVIATIONS = 5.0


class VectorMode(StrEnum):
    """What happens to the stored values."""

    RAW = "raw"
    """As stored."""
    NORMALISED = "normalised"
    """Standardised and bounded as the service declares."""


@dataclass(frozen=True)
class FittedFeature:
    """Moments of one feature over the training range, NULLs left out; sample standard deviation (ddof 1)."""

    name: str
    mean: float
    standard_deviation: float
    count: int


@dataclass(frozen=True)
class Statistics:
    """A frozen statistics file; `sha256` is that of its bytes, `features` are the service's standardised ones in its order."""

    service: str
    service_version: int
    start: str
    end: str
    symbols: tuple[str, ...]
    features: tuple[FittedFeature, ...]
    sha256: str


@dataclass(frozen=True)
class FeatureVector:
    """One vector in the service's order; `values` is Float32, NULL where a feature is NULL.

    `flags` are those of all rows that the values come from, with CLIPPED when a value was clipped; `clipped` names these features.
    `statistics_sha256` identifies the statistics file of a normalised vector.
    """

    service: str
    service_version: int
    mode: VectorMode
    entity: Mapping[str, str]
    as_of: datetime
    features: tuple[str, ...]
    values: pl.Series
    flags: tuple[str, ...]
    clipped: tuple[str, ...]
    statistics_sha256: str | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; the form that `schemas/features.v1.json` describes."""
        return asdict(self) | {
            "mode": self.mode.value,
            "entity": dict(self.entity),
            "as_of": self.as_of.isoformat(),
            "features": list(self.features),
            "values": self.values.to_list(),
            "flags": list(self.flags),
            "clipped": list(self.clipped),
        }


def feature_vector(
    service: FeatureService, row: OnlineRow, as_of: datetime, *, statistics: Statistics | None = None, allow_null: bool = False
) -> FeatureVector:
    """The row's values as a vector, normalised when `statistics` are given.

    A standardised value is (x - mean) / standard deviation, clipped at 5; a bounded one is clipped at its bound; both computed in Float64
    and cast last.

    Raises:
        MalformedDataError: The row or the statistics do not have the service's features in its order.
        NullFeaturesError: A feature is NULL and `allow_null` is not set.
    """
    references = tuple(f"{view.label}:{feature.name}" for view, feature in service.references)
    found = tuple(value.reference for value in row.values)
    if found != references:
        raise MalformedDataError(
            f"{service.name} has {len(references)} features {list(references)}; the row has {len(found)}: {list(found)}"
        )
    missing = {value.reference: value.status.value for value in row.values if value.value is None}
    if missing and not allow_null:
        raise NullFeaturesError(service.name, missing)
    values = [value.value for value in row.values]
    clipped: list[str] = []
    if statistics is not None:
        _refuse_foreign(service, statistics)
        moments = {fitted.name: fitted for fitted in statistics.features}
        for position, (_, feature) in enumerate(service.references):
            value, bound = values[position], service.bounds.get(feature.name)
            if value is None:
                continue
            if feature.name in moments:
                value = (value - moments[feature.name].mean) / moments[feature.name].standard_deviation
                bound = CLIP_STANDARD_DEVIATIONS
            if bound is not None and abs(value) > bound:
                clipped.append(references[position])
                value = bound if value > 0 else -bound
            values[position] = value
    flags = {flag for value in row.values for flag in value.flags} | ({QualityFlag.CLIPPED.name} if clipped else set())
    return FeatureVector(
        service=service.name,
        service_version=service.version,
        mode=VectorMode.RAW if statistics is None else VectorMode.NORMALISED,
        entity=row.entity,
        as_of=as_of,
        features=references,
        values=pl.Series(service.name, values, dtype=pl.Float64, strict=False).cast(pl.Float32),
        flags=tuple(flag.name for flag in QualityFlag if flag.name in flags),
        clipped=tuple(clipped),
        statistics_sha256=None if statistics is None else statistics.sha256,
    )


def fit_statistics(service: FeatureService, frame: pl.DataFrame, start: datetime, end: datetime) -> str:
    """Text of a statistics file.

    Args:
        service: Declares what is standardised.
        frame: Training rows: `symbol`, and columns `view__feature` as `get_historical_features` returns them.
        start: First instant (exclusive) of the range that the rows come from.
        end: Last instant of it.

    Raises:
        MalformedDataError: A feature has fewer than two values, or is constant.
    """
    fitted = []
    for view, feature in service.references:
        if feature.name not in service.standardised:
            continue
        values = frame[f"{view.label}__{feature.name}"].drop_nulls()
        deviation = values.std()
        if not isinstance(deviation, float) or not deviation > 0:
            raise MalformedDataError(
                f"{view.label}:{feature.name} has {values.len()} values and standard deviation {deviation} in {start}..{end}; give a range "
                "in which it varies"
            )
        fitted.append(FittedFeature(feature.name, float(values.mean()), deviation, values.len()))  # type: ignore[arg-type]
    content = {
        "service": service.name,
        "service_version": service.version,
        "start": start.isoformat(),
        "end": end.isoformat(),
        "symbols": sorted(frame["symbol"].unique()),
        "features": [asdict(feature) for feature in fitted],
    }
    return json.dumps(content, indent=2) + "\n"


def load_statistics(service: FeatureService, path: Path) -> Statistics:
    """A statistics file, checked against the service.

    Raises:
        ConfigurationError: The file does not exist, or the service standardises nothing.
        MalformedDataError: It is not one, or belongs to another service, version or order of features.
    """
    refuse_unnormalised(service)
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise ConfigurationError(f"no statistics at {path}; fit them with `featurestore fit-normalisation {service.name}`") from None
    try:
        content = json.loads(text)
        content["features"] = tuple(FittedFeature(**feature) for feature in content["features"])
        content["symbols"] = tuple(content["symbols"])
        statistics = Statistics(**content, sha256=hashlib.sha256(text).hexdigest())
        usable = all(abs(fitted.mean) < float("inf") and 0 < fitted.standard_deviation < float("inf") for fitted in statistics.features)
    except (ValueError, KeyError, TypeError) as error:
        raise MalformedDataError(f"{path} is no statistics file: {error}") from error
    if not usable:
        raise MalformedDataError(f"{path}: means must be finite and standard deviations positive")
    _refuse_foreign(service, statistics)
    return statistics


def refuse_unnormalised(service: FeatureService) -> None:
    """Raise ConfigurationError unless the service declares what is standardised."""
    if not service.standardised:
        raise ConfigurationError(f"service {service.name} declares no standardised features: it has mode raw only")


def _refuse_foreign(service: FeatureService, statistics: Statistics) -> None:
    expected = [feature.name for _, feature in service.references if feature.name in service.standardised]
    given = [feature.name for feature in statistics.features]
    if (statistics.service, statistics.service_version, given) != (service.name, service.version, expected):
        raise MalformedDataError(
            f"statistics of {statistics.service} version {statistics.service_version} for {len(given)} features {given} do not fit "
            f"{service.name} version {service.version} with {len(expected)}: {expected}"
        )
