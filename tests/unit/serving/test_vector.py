"""A served vector: order, normalisation by frozen statistics, clipping, NULLs, and what is refused."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from featurestore_dagster.errors import ConfigurationError, MalformedDataError, NullFeaturesError
from featurestore_dagster.features import CATALOGUE as DECLARED
from featurestore_dagster.features.equity_views import TECHNICAL_INDICATORS_VIEW as VIEW
from featurestore_dagster.model.feature_service import FeatureService
from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.serving.answer import OnlineRow, Status, ViewState
from featurestore_dagster.serving.plan import plan
from featurestore_dagster.serving.vector import Statistics, VectorMode, feature_vector, fit_statistics, load_statistics

NOW = datetime(2018, 12, 31, 22, tzinfo=UTC)
NAMES = ("atr", "rsi_14", "macd", "ema_20")
REFERENCES = tuple(f"{VIEW.name}:{name}" for name in NAMES)
SERVICE = FeatureService(
    "toy",
    "A toy",
    views=(VIEW,),
    selection=tuple((VIEW.name, name) for name in NAMES),
    version=2,
    standardised=("atr", "macd"),
    bounds={"rsi_14": 1.0},
)
FRAME = pl.DataFrame(
    {
        "symbol": ["AAA", "BBB", "AAA", "BBB"],
        **{f"{VIEW.name}__{name}": [1.0, 2.0, 3.0, None] for name in NAMES},
    }
).with_columns(pl.col(f"{VIEW.name}__macd") * 1e-3)


CATALOGUE = replace(DECLARED, services=(SERVICE,))


def row(*values: float | None, flags: int = 0, references: Sequence[str] = REFERENCES) -> OnlineRow:
    """What a read answers for the service."""
    return OnlineRow(
        plan(CATALOGUE, references),
        {"symbol": "AAA", "timeframe": "1d"},
        values,
        [Status.NULL_VALUE if value is None else Status.PRESENT for value in values],
        [ViewState("redis", 0, 0, 0, flags)],
    )


@pytest.fixture
def statistics_file(tmp_path: Path) -> Path:
    path = tmp_path / "toy.json"
    path.write_text(fit_statistics(SERVICE, FRAME, NOW.replace(year=2017), NOW))
    return path


@pytest.fixture
def statistics(statistics_file: Path) -> Statistics:
    return load_statistics(SERVICE, statistics_file)


def test_raw_values_come_as_float32_in_the_services_order() -> None:
    vector = feature_vector(SERVICE, row(0.1, -3.0, 7.0, 1e-3, flags=QualityFlag.LATE), NOW)
    assert vector.features == tuple(f"{VIEW.name}:{name}" for name in NAMES)
    assert vector.values.dtype == pl.Float32
    assert vector.values.equals(pl.Series([0.1, -3.0, 7.0, 1e-3], dtype=pl.Float32))
    assert (vector.mode, vector.flags, vector.clipped, vector.statistics_sha256) == (VectorMode.RAW, ("LATE",), (), None)
    assert (vector.service, vector.service_version, vector.as_of) == ("toy", 2, NOW)


def test_statistics_are_sample_moments_of_the_values_that_are_there(statistics: Statistics, statistics_file: Path) -> None:
    assert [(f.name, f.mean, f.standard_deviation, f.count) for f in statistics.features] == [
        ("atr", 2.0, 1.0, 3),
        ("macd", pytest.approx(2e-3), pytest.approx(1e-3), 3),
    ]
    assert statistics.symbols == ("AAA", "BBB")
    assert statistics.sha256 == hashlib.sha256(statistics_file.read_bytes()).hexdigest()


def test_normalised_values_are_standardised_bounded_and_clipped(statistics: Statistics) -> None:
    vector = feature_vector(SERVICE, row(2.5, -3.0, 2e-3 + 7e-3, 40.0), NOW, statistics=statistics)
    assert vector.values.to_list() == [0.5, -1.0, 5.0, 40.0]
    assert vector.clipped == (f"{VIEW.name}:rsi_14", f"{VIEW.name}:macd")
    assert vector.flags == ("CLIPPED",)
    assert (vector.mode, vector.statistics_sha256) == (VectorMode.NORMALISED, statistics.sha256)
    inside = feature_vector(
        SERVICE, row(2 - 5.0, 1.0, 2e-3, 40.0, flags=QualityFlag.STALE_INPUT | QualityFlag.LATE), NOW, statistics=statistics
    )
    assert inside.values.to_list() == [-5.0, 1.0, 0.0, 40.0]
    assert (inside.clipped, inside.flags) == ((), ("STALE_INPUT", "LATE"))


def test_a_null_is_an_error_that_names_it_unless_it_is_allowed(statistics: Statistics) -> None:
    with pytest.raises(NullFeaturesError, match=r"toy: 2 features are NULL: .*:atr \(NULL_VALUE\), .*:ema_20 .*allow_null=True") as raised:
        feature_vector(SERVICE, row(None, 0.5, 1.0, None), NOW)
    assert raised.value.features == (f"{VIEW.name}:atr", f"{VIEW.name}:ema_20")
    for given in (None, statistics):
        vector = feature_vector(SERVICE, row(None, 0.5, 2e-3, None), NOW, statistics=given, allow_null=True)
        assert vector.values.is_null().to_list() == [True, False, False, True]
        assert vector.to_dict()["values"][0] is None


def test_another_count_or_order_of_values_is_refused() -> None:
    for references in (REFERENCES[:3], (*REFERENCES, REFERENCES[0]), REFERENCES[::-1]):
        with pytest.raises(MalformedDataError, match="toy has 4 features"):
            feature_vector(SERVICE, row(*[1.0] * len(references), references=references), NOW)


@pytest.mark.parametrize(
    "other",
    [
        replace(SERVICE, version=3),
        replace(SERVICE, name="other"),
        replace(SERVICE, standardised=("atr",)),
        replace(SERVICE, selection=SERVICE.selection[::-1]),
    ],
    ids=["version", "service", "count", "order"],
)
def test_statistics_of_another_contract_are_refused(statistics: Statistics, statistics_file: Path, other: FeatureService) -> None:
    with pytest.raises(MalformedDataError, match="do not fit"):
        load_statistics(other, statistics_file)
    asked = row(1.0, 1.0, 1.0, 1.0, references=[f"{view.label}:{feature.name}" for view, feature in other.references])
    with pytest.raises(MalformedDataError, match="do not fit"):
        feature_vector(other, asked, NOW, statistics=statistics)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no statistics file"),
        ("[]", "no statistics file"),
        ('{"service": "toy"}', "no statistics file"),
        (None, "means must be finite and standard deviations positive"),
    ],
)
def test_a_file_that_is_no_statistics_is_refused(statistics_file: Path, text: str | None, message: str) -> None:
    content = json.loads(statistics_file.read_text())
    content["features"][0]["standard_deviation"] = 0.0
    statistics_file.write_text(json.dumps(content) if text is None else text)
    with pytest.raises(MalformedDataError, match=message):
        load_statistics(SERVICE, statistics_file)


def test_what_cannot_be_normalised_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="fit them with `featurestore fit-normalisation toy`"):
        load_statistics(SERVICE, tmp_path / "nothing.json")
    with pytest.raises(ConfigurationError, match="declares no standardised features"):
        load_statistics(replace(SERVICE, standardised=()), tmp_path / "nothing.json")
    constant = FRAME.with_columns(pl.lit(1.0).alias(f"{VIEW.name}__atr"))
    with pytest.raises(MalformedDataError, match=r":atr has 4 values and standard deviation 0.0 in .*; give a range"):
        fit_statistics(SERVICE, constant, NOW, NOW)
    with pytest.raises(MalformedDataError, match=r":atr has 0 values"):
        fit_statistics(SERVICE, FRAME.clear(), NOW, NOW)
