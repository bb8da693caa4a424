"""Payloads for RESTORE: their checksum, and which rows have none. What Redis makes of them is seen in the integration tests."""

import numpy as np
import polars as pl
import pytest

from featurestore_dagster.stores.redis import dumps
from featurestore_dagster.stores.redis.dumps import FEWEST_ROWS, dumped, texts


def test_the_checksum_is_that_of_the_published_example_whatever_zeros_stand_before() -> None:
    rows = [b"\0" * 7 + b"123456789", b"\0" * 16]
    found = dumps._checksums(np.frombuffer(b"".join(rows), np.uint8).reshape(2, -1))
    assert found.tolist() == [0xE9C6D914C4B8D9CA, 0]


def test_a_hash_by_hand() -> None:
    payload, *others = dumped([texts(b"f", [b"value"] * FEWEST_ROWS)])
    assert others == [payload] * (FEWEST_ROWS - 1)
    assert payload is not None
    entries = b"\x00\x01f\x03\x05value\xff"
    head, checksummed = payload[:5], payload[5:-2]
    assert (head, payload[-2:]) == (b"$%d\r\n" % len(checksummed), b"\r\n")
    assert checksummed[:-8] == b"\x0d\x40\x15" + b"\x15\0\0\0" + b"\x0d\0\0\0" + b"\x02\0" + entries + b"\x09\0"


def test_rows_whose_lengths_few_others_have_get_none() -> None:
    values = [b"a"] * FEWEST_ROWS + [b"bb"] * (FEWEST_ROWS - 1) + [None] * FEWEST_ROWS
    found = dumped([texts(b"f", values), texts(b"g", [b""] * len(values))])
    assert [payload is None for payload in found] == [len(value or b"") == 2 for value in values]
    assert len(set(found)) == 3


@pytest.mark.parametrize(("fields", "fits"), [(240, True), (250, False)])
def test_a_hash_that_is_too_long_gets_none(fields: int, fits: bool) -> None:
    columns = [texts(b"%04d" % number, [b"x" * 58] * FEWEST_ROWS) for number in range(fields)]
    assert [payload is not None for payload in dumped(columns)] == [fits] * FEWEST_ROWS


def test_doubles_are_those_of_the_layout_and_absent_where_there_is_no_row() -> None:
    column = dumps.doubles(b"f", pl.Series([1.5, None, 2.5]), [True, True, False])
    assert column.lengths.tolist() == [9, 0, dumps.NO_FIELD]
    assert column.texts[0].tobytes() == b"\x29" + np.float64(1.5).tobytes()
