"""Bytes of the online layout: against the measured examples of Feast, and back."""

import dataclasses
import math
import struct
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore_dagster.errors import DeclarationError, MalformedDataError
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.stores.redis import layout

INT64 = st.integers(-(2**63), 2**63 - 1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
VIEW = CATALOGUE.view("momentum_features")
COLLIDING = ("f43328", "f93300")
"""`view:<either>` has the same murmur3_32."""


def key_of(project: str, entity: dict[str, str]) -> bytes:
    (key,) = layout.entity_keys(project, {name: [value] for name, value in entity.items()})
    return key


SYMBOL, TIMEFRAME = "02000000 06000000 73796d626f6c", "02000000 09000000 74696d656672616d65"
AAPL, ONE_MINUTE = "02000000 04000000 4141504c", "02000000 02000000 316d"


@pytest.mark.parametrize(
    ("entity", "expected"),
    [
        ({"symbol": "AAPL"}, f"01000000 {SYMBOL} {AAPL} 70"),
        ({"timeframe": "1m", "symbol": "AAPL"}, f"02000000 {SYMBOL} {TIMEFRAME} {AAPL} {ONE_MINUTE} 70"),
    ],
)
def test_entity_key_equals_the_bytes_measured_on_feast(entity: dict[str, str], expected: str) -> None:
    assert key_of("p", entity) == bytes.fromhex(expected)


def test_field_and_value_bytes_equal_those_measured_on_feast() -> None:
    assert layout.feature_field("v1", "f000") == bytes.fromhex("9e26f3a5")
    assert layout.timestamp_field("v1") == b"_ts:v1"
    assert layout.encode_timestamp(1_700_000_000_500_000) == bytes.fromhex("0880e2cfaa061080cab5ee01")
    assert layout.encode_values(pl.Series([1.5, None, 0.0])) == [bytes.fromhex("29000000000000f83f"), b"", b"\x29" + bytes(8)]
    assert layout.encode_values(pl.Series([-1, 0, None])) == [bytes.fromhex("20ffffffffffffffffff01"), b"\x20\x00", b""]


@given(st.dictionaries(st.text(), st.text(), min_size=1, max_size=4), st.text())
def test_entity_key_is_read_back_whole(entity: dict[str, str], project: str) -> None:
    assert layout.decode_entity_key(key_of(project, entity)) == (entity, project)


@pytest.mark.parametrize("key", [b"", b"p:publication:view", b"\xff\xff\xff\xff", key_of("", {"symbol": "AAPL"})[:-1]])
def test_a_key_of_another_layout_is_refused(key: bytes) -> None:
    with pytest.raises(ValueError, match="not an entity key"):
        layout.decode_entity_key(key)


@given(st.lists(st.none() | st.floats(allow_nan=False)), st.lists(st.none() | INT64))
def test_values_are_read_back_bit_by_bit(doubles: list[float | None], integers: list[int | None]) -> None:
    encoded = [*layout.encode_values(pl.Series(doubles, dtype=pl.Float64)), *layout.encode_values(pl.Series(integers, dtype=pl.Int64))]
    decoded = layout.decode_values(encoded)
    assert decoded == [*doubles, *integers]
    signs = [math.copysign(1, value) for value in doubles if value is not None]
    assert signs == [math.copysign(1, value) for value in decoded[: len(doubles)] if value is not None]


def test_an_absent_field_among_doubles_stays_absent() -> None:
    assert layout.decode_values([None, b"\x29" + struct.pack("<d", 2.5), b""]) == [None, 2.5, None]


@pytest.mark.parametrize("encoded", [b"\x12\x01a", b"\x29\x00", b"\x35\x00\x00\x00\x00"])
def test_a_value_of_another_type_is_refused(encoded: bytes) -> None:
    with pytest.raises(MalformedDataError, match="sync the view again"):
        layout.decode_values([b"\x29" + bytes(8), encoded])


@given(st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31)).map(lambda naive: naive.replace(tzinfo=UTC)))  # noqa: DTZ001
def test_timestamps_are_read_back_to_the_microsecond(moment: datetime) -> None:
    microseconds = (moment - EPOCH) // timedelta(microseconds=1)
    assert layout.decode_timestamp(layout.encode_timestamp(microseconds)) == microseconds


def test_the_catalogue_fits_the_layout() -> None:
    layout.refuse_unfit_declarations(CATALOGUE.views)


def test_colliding_features_and_overlong_names_are_refused() -> None:
    first, second = (dataclasses.replace(VIEW.features[0], name=name) for name in COLLIDING)
    assert layout.feature_field("view", first.name) == layout.feature_field("view", second.name)
    with pytest.raises(DeclarationError, match=f"view:{second.name} and view:{first.name} have the same 4-byte hash"):
        layout.refuse_unfit_declarations([dataclasses.replace(VIEW, name="view", features=(first, second))])
    with pytest.raises(DeclarationError, match="shorten it"):
        layout.refuse_unfit_declarations([dataclasses.replace(VIEW, name="v" * 61)])
