"""What may be asked and in which form, what is refused, and what comes out."""

import hashlib
import json
import struct
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from polars.testing import assert_frame_equal

from featurestore_dagster.errors import FeatureStoreError, MalformedDataError, PointInTimeViolation, RefusedError, UnknownNameError
from featurestore_dagster.serving.point_in_time import Label, history, output
from featurestore_dagster.settings import Settings
from tests.integration.point_in_time.history_cases import (
    DETAILS,
    FIRST,
    NAMES,
    NOW,
    REFERENCES,
    VIEW,
    expected,
    oracle,
    put,
    random_case,
    reader_of,
)

CASE = random_case(seed=11, version_count=300, asked_count=200)


@pytest.fixture
def database(fresh_database: Settings) -> Settings:
    put(fresh_database, CASE.versions)
    return fresh_database


def test_any_kind_of_frame_gives_the_same_rows_in_the_same_order(database: Settings) -> None:
    reader, asked = reader_of(database), CASE.asked.with_row_index("order").sample(fraction=1.0, shuffle=True, seed=1)
    right = pl.concat([asked, expected([oracle(CASE.versions, CASE.asked)[row] for row in asked["order"]], NAMES)], how="horizontal")
    table: pa.Table = asked.to_arrow()
    frames = {
        "polars": asked,
        "lazy": asked.lazy(),
        "arrow": table,
        "pandas": asked.to_pandas(),
        "reader": pa.RecordBatchReader.from_batches(table.schema, table.to_batches()),
    }
    frames["categorical"] = asked.with_columns(pl.col("symbol").cast(pl.Categorical))
    offsets = pa.timestamp("us", "+05:30")
    at_offsets = asked.to_arrow().cast(
        pa.schema([pa.field(f.name, offsets if pa.types.is_timestamp(f.type) else f.type) for f in table.schema])
    )
    frames |= {"arrow at an offset": at_offsets, "pandas at an offset": at_offsets.to_pandas()}
    frames["indexed"] = asked.to_pandas().set_index(pd.Index(range(5, 5 + asked.height, 1)).astype("float64"))
    for name, frame in frames.items():
        found = reader.get_historical_features(frame, REFERENCES)
        assert_frame_equal(found.with_columns(pl.col("symbol").cast(pl.String)), right, check_exact=True, check_dtypes=name == "polars")


def test_a_select_is_entities_and_cannot_write(database: Settings) -> None:
    keys = f"select symbol, timeframe, event_timestamp + interval '1 hour' as event_timestamp from features.\"{VIEW.name}\""
    found = reader_of(database).get_historical_features(
        f"{keys} order by event_timestamp, symbol, timeframe, created_timestamp", REFERENCES
    )
    assert found.height == CASE.versions.height
    assert_frame_equal(found[:, 3:], expected(oracle(CASE.versions, found), NAMES), check_exact=True)
    for text in (f"{keys} where false", f"{keys} where false ;\n", f"{keys} where false -- nobody;"):
        assert reader_of(database).get_historical_features(text, REFERENCES).shape == (0, 6)
    for text, message in {
        f'delete from features."{VIEW.name}" returning symbol': "read-only transaction",
        "select 1; select 2": "multiple commands",
        "select nothing from nowhere": "nowhere",
        "": "give one SELECT",
        f"select *, interval '1 day' as gap from ({keys}) as kept": r"intervals in \['gap'\]; give numbers",
        f"select *, 1 as kept, 2 as kept from ({keys}) as kept": "kept",
    }.items():
        with pytest.raises(FeatureStoreError, match=message):
            reader_of(database).get_historical_features(text, REFERENCES)
    assert reader_of(database).get_historical_features(keys, REFERENCES).height == CASE.versions.height


def test_numeric_columns_of_a_select_are_numbers(database: Settings) -> None:
    text = "select 'A' as symbol, 'BX' as timeframe, timestamptz '2018-12-03 00:00Z' as event_timestamp, 2.5 as y, null::numeric as z"
    found = reader_of(database).get_historical_features(text, REFERENCES[:1])
    assert found.select("y", "z").rows() == [(2.5, None)]
    assert found.select("y", "z").dtypes == [pl.Float64, pl.Float64]


def test_labels_lie_in_the_future_and_are_null_where_it_has_not_come(database: Settings) -> None:
    now, horizon = FIRST + timedelta(days=9), timedelta(days=2)
    labels = {"target": Label(REFERENCES[0], horizon), "target_later": Label(REFERENCES[1], 2 * horizon)}
    found = reader_of(database, now=now).get_historical_features(CASE.asked, REFERENCES[:2], labels=labels, as_of="as_of")
    for name, label in labels.items():
        answers = oracle(CASE.versions, CASE.asked, horizon=label.horizon, now=now)
        right = expected(answers)[label.reference.replace(":", "__")]
        assert found[name].to_list() == right.to_list()
        assert 0 < right.count() < CASE.asked.height
        assert found.filter(pl.col("event_timestamp") + label.horizon > now)[name].null_count() > 0
    assert found.columns == [*CASE.asked.columns, *(f"{VIEW.name}__{name}" for name in NAMES[:2]), *labels]


@pytest.mark.parametrize(
    ("labels", "error"),
    [
        ({"target": Label(REFERENCES[0], timedelta(0))}, PointInTimeViolation),
        ({"target": Label(REFERENCES[0], -timedelta(days=1))}, PointInTimeViolation),
        ({"target": Label(REFERENCES[0], timedelta.max)}, MalformedDataError),
        ({f"{VIEW.name}__rsi_14": Label(REFERENCES[0], timedelta(days=1))}, MalformedDataError),
        ({REFERENCES[0]: Label(REFERENCES[0], timedelta(days=1))}, MalformedDataError),
        ({"symbol": Label(REFERENCES[0], timedelta(days=1))}, MalformedDataError),
        ({"target": Label(f"{VIEW.name}:nothing", timedelta(days=1))}, UnknownNameError),
    ],
)
def test_a_label_that_would_leak_is_refused(database: Settings, labels: dict[str, Label], error: type[Exception]) -> None:
    with pytest.raises(error):
        reader_of(database).get_historical_features(CASE.asked, REFERENCES, labels=labels)


ROW = {"symbol": ["A"], "timeframe": ["BX"], "event_timestamp": [datetime(2018, 12, 3, tzinfo=UTC)]}


@pytest.mark.parametrize(
    ("entities", "message"),
    [
        (pl.DataFrame(ROW).drop("symbol"), r"lacks \['symbol'\]"),
        (pl.DataFrame(ROW).drop("event_timestamp"), r"lacks \['event_timestamp'\]"),
        (pl.DataFrame({**ROW, "event_timestamp": [datetime(2018, 12, 3)]}), "timezone-aware"),  # noqa: DTZ001
        (pl.DataFrame({**ROW, "event_timestamp": ["2018-12-03T00:00:00Z"]}), "timezone-aware"),
        (pl.concat([pl.DataFrame(ROW), pl.DataFrame(ROW).with_columns(event_timestamp=None)], how="vertical_relaxed"), "NULL in 1 of 2"),
        (pl.DataFrame({**ROW, "event_timestamp": [datetime(1010, 12, 3, tzinfo=UTC)]}), "is the unit"),
        (pl.DataFrame({**ROW, "symbol": [1.5]}), "symbol is Float64"),
        (pd.DataFrame({**ROW, "symbol": [float("nan")]}), "symbol is Float64"),
        (pl.DataFrame({**ROW, f"{VIEW.name}__rsi_14": [1.0]}), "already has"),
        (pl.DataFrame({**ROW, "kept": [2**100]}), r"\['kept'\] hold integers of 128 bits"),
        (pd.DataFrame([["A", "B"]], columns=["symbol", "symbol"]), "cannot be read.*symbol"),
        (pa.table([["A"], ["B"]], names=["symbol", "symbol"]), "cannot be read.*symbol"),
        (pd.DataFrame({**ROW, "kept": [1]}).loc[[0, 0]].assign(kept=[1, "x"]), "cannot be read.*kept"),
        ([ROW], "entities are a list"),
        (None, "entities are a NoneType"),
    ],
)
def test_a_bad_frame_is_refused_whole(database: Settings, entities: Any, message: str) -> None:
    with pytest.raises(MalformedDataError, match=message):
        reader_of(database).get_historical_features(entities, REFERENCES)


def test_bad_requests_are_refused(database: Settings) -> None:
    reader, asked = reader_of(database), CASE.asked
    with pytest.raises(UnknownNameError, match="rsi_41"):
        reader.get_historical_features(asked, [f"{VIEW.name}:rsi_41"])
    with pytest.raises(RefusedError, match="10000 features"):
        reader.get_historical_features(asked, REFERENCES[:1] * 10_000)
    with pytest.raises(MalformedDataError, match="unknown details"):
        reader.get_historical_features(asked, REFERENCES, details=["age"])  # type: ignore[list-item]
    with pytest.raises(MalformedDataError, match="the name of a column is needed"):
        reader.get_historical_features(asked, REFERENCES, as_of=NOW)  # type: ignore[arg-type]
    with pytest.raises(MalformedDataError, match="as_of names"):
        reader.get_historical_features(asked, REFERENCES, as_of={"another_view": "as_of"})
    with pytest.raises(MalformedDataError, match="lacks"):
        reader.get_historical_features(asked, REFERENCES, as_of="known_when")


def test_as_of_is_told_by_view(database: Settings) -> None:
    reader, other = reader_of(database), "momentum_features:rsi_14"
    found = reader.get_historical_features(CASE.asked, [REFERENCES[0], other], as_of={VIEW.name: "as_of"})
    both = reader.get_historical_features(CASE.asked, [REFERENCES[0]], as_of="as_of")
    assert_frame_equal(found.drop("momentum_features__rsi_14"), both)
    assert found["momentum_features__rsi_14"].null_count() == CASE.asked.height


def test_a_nanosecond_is_cut_to_the_microsecond_it_lies_in(database: Settings) -> None:
    version = CASE.versions.filter(pl.col("created_timestamp") <= pl.col("event_timestamp")).head(1)
    at = version["event_timestamp"].dt.cast_time_unit("ns")
    rows = pl.DataFrame({"symbol": version["symbol"], "timeframe": version["timeframe"], "event_timestamp": at})
    found = [
        reader_of(database).get_historical_features(
            rows.with_columns(pl.col("event_timestamp") + pl.duration(nanoseconds=shift)), REFERENCES, details=["event_timestamp"]
        )
        for shift in (0, 999)
    ]
    assert found[0][:, 3:].equals(found[1][:, 3:])


def content_sha256(frame: pl.DataFrame) -> str:
    digests = []
    for column in frame:
        digests.append(hashlib.sha256(bytes(value is None for value in column)))
        if column.dtype == pl.String:
            digests.append(hashlib.sha256("".join(value or "" for value in column).encode()))
            digests.append(hashlib.sha256(struct.pack(f"<{len(column)}q", *(len((value or "").encode()) for value in column))))
        else:
            kind = "d" if column.dtype == pl.Float64 else "q"
            digests.append(hashlib.sha256(struct.pack(f"<{len(column)}{kind}", *(value or 0 for value in column.to_physical()))))
    return hashlib.sha256("".join(digest.hexdigest() for digest in digests).encode()).hexdigest()


@pytest.mark.parametrize("streamed", [False, True])
def test_a_parquet_file_holds_the_frame_and_says_how_it_was_made(
    database: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, streamed: bool
) -> None:
    monkeypatch.setattr(history, "SPAN_BYTES", 4_000)
    monkeypatch.setattr(output, "ROWS_PER_GROUP", 37)
    reader, path = reader_of(database), tmp_path / "training.parquet"
    labels = {"target": Label(REFERENCES[0], timedelta(hours=30))}
    retrieved = reader.retrieve(CASE.asked, REFERENCES, labels=labels, details=DETAILS, streamed=not streamed)
    manifest = reader.write_historical_features(path, CASE.asked, REFERENCES, labels=labels, details=DETAILS, streamed=streamed)
    assert_frame_equal(pl.read_parquet(path), retrieved.frame, check_exact=True)
    assert manifest == retrieved.manifest
    said = json.loads((tmp_path / "training.parquet.manifest.json").read_text())
    assert said["references"] == REFERENCES
    assert said["row_count"] == CASE.asked.height
    assert said["now"] == NOW.isoformat()
    assert said["labels"] == {"target": {"reference": REFERENCES[0], "horizon_seconds": 108_000.0}}
    [[first, last]] = said["publications"][VIEW.name]
    assert last - first == 3
    assert said["content_sha256"] == content_sha256(retrieved.frame.drop("as_of"))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["training.parquet", "training.parquet.manifest.json"]
    assert_frame_equal(
        pl.DataFrame(retrieved.frame.to_pandas())[[f"{VIEW.name}__rsi_14"]],
        retrieved.frame.select(f"{VIEW.name}__rsi_14"),
    )


def test_no_rows_are_no_rows(database: Settings, tmp_path: Path) -> None:
    nothing = CASE.asked.clear()
    found = reader_of(database).get_historical_features(nothing, REFERENCES, details=DETAILS)
    assert found.shape == (0, nothing.width + 7)
    manifest = reader_of(database).write_historical_features(str(tmp_path / "empty.parquet"), nothing, REFERENCES)
    assert manifest.row_count == 0
    assert pl.read_parquet(tmp_path / "empty.parquet").schema == reader_of(database).get_historical_features(nothing, REFERENCES).schema
