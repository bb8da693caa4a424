"""Rows in one piece: read back bit by bit, whichever features are wanted, and left alone when they are not what they should be."""

import dataclasses
import math
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore_dagster.errors import MalformedDataError
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.projections.postgres_table import feature_schema
from featurestore_dagster.stores.redis import layout
from featurestore_dagster.stores.redis.packed import STALE_ROW, PackedView, StoredRow

VIEW = CATALOGUE.view("feature_vectors")
PACKED = PackedView(VIEW)
(CODE,) = PACKED.codes
STREAMS = [stream.name for stream in VIEW.streams]
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
INT64 = st.integers(-(2**63) + 1, 2**63 - 1)
MICROSECONDS = st.integers(-(2**50), 2**50)
VALUES = st.tuples(
    *(
        st.none() | (INT64 if name in PACKED.codes else st.floats(allow_nan=False, allow_infinity=False) | st.just(float(-(2**63))))
        for name in VIEW.feature_names
    )
)
ROWS = st.lists(st.tuples(MICROSECONDS, MICROSECONDS, st.integers(0, 2**31 - 1), st.sampled_from(STREAMS), VALUES), min_size=1, max_size=4)


def frame(rows: list[tuple[int, int, int, str, tuple[float | int | None, ...]]]) -> pl.DataFrame:
    return pl.DataFrame(
        [
            {
                **dict.fromkeys(VIEW.join_keys, "A"),
                "event_timestamp": EPOCH + timedelta(microseconds=event),
                "created_timestamp": EPOCH + timedelta(microseconds=known),
                **dict(zip(VIEW.feature_names, values, strict=True)),
                "flags": flags,
                "feature_set_version": 1,
                "stream": stream,
            }
            for event, known, flags, stream, values in rows
        ],
        schema=feature_schema(VIEW),
    )


@given(ROWS, st.lists(st.sampled_from(VIEW.feature_names), unique=True, min_size=1) | st.just(list(VIEW.feature_names)))
def test_rows_are_read_back_bit_by_bit(rows: list[tuple[int, int, int, str, tuple[float | int | None, ...]]], wanted: list[str]) -> None:
    read, packed = PACKED.reader(wanted), PACKED.pack(frame(rows))
    timestamps = [layout.encode_timestamp(row[0]) for row in rows]
    for _ in range(2):  # the second time, headers are known
        for row, stored in zip(rows, map(read, packed, timestamps), strict=True):
            by_name = dict(zip(VIEW.feature_names, row[4], strict=True))
            expected = [by_name[name] for name in wanted]
            assert stored is not None
            assert stored[:4] == row[:4]
            assert [(type(value), value) for value in stored.values] == [(type(value), value) for value in expected]
            assert [math.copysign(1, value) for value in stored.values if value] == [math.copysign(1, value) for value in expected if value]
            assert not (stored.is_whole and None in stored.values)
            assert stored.is_whole or None in row[4]


def one_row() -> tuple[bytes, bytes]:
    values = tuple(7 if name in PACKED.codes else 0.5 for name in VIEW.feature_names)
    (packed,) = PACKED.pack(frame([(10, 20, 3, STREAMS[0], values)]))
    return packed, layout.encode_timestamp(10)


def test_a_row_that_is_not_the_newest_or_not_there_is_stale_and_without_a_time_there_is_none() -> None:
    packed, timestamp = one_row()
    read = PACKED.reader([CODE])
    newer = layout.encode_timestamp(11)
    for _ in range(2):  # the second time, the header is known
        assert read(packed, timestamp) == StoredRow(10, 20, 3, STREAMS[0], (7,), is_whole=True)
        assert read(packed, newer) is STALE_ROW
        assert read(None, timestamp) is STALE_ROW
        assert read(packed, None) is None


def test_a_row_of_another_declaration_is_stale_and_of_an_unknown_stream_has_none() -> None:
    packed, timestamp = one_row()
    other = PackedView(dataclasses.replace(VIEW, features=VIEW.features[:-1]))
    assert other.reader(other.feature_names)(packed, timestamp) is STALE_ROW
    renamed = PackedView(dataclasses.replace(VIEW, streams=tuple(dataclasses.replace(s, name=f"{s.name}_") for s in VIEW.streams)))
    assert renamed.reader([CODE])(packed, timestamp) == StoredRow(10, 20, 3, None, (7,), is_whole=True)


def test_flags_that_do_not_fit_are_refused() -> None:
    values = dict.fromkeys(VIEW.feature_names)
    with pytest.raises(MalformedDataError, match="flags must be within"):
        PACKED.pack(frame([(0, 0, 2**31, STREAMS[0], tuple(values.values()))]))
