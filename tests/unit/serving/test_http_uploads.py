"""Frames from a stranger: small on the wire and large in memory is refused before it is unpacked, broken is ours to say."""

import contextlib
import io
import struct
from datetime import UTC, datetime

import polars as pl
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore_dagster.errors import MalformedDataError, RefusedError
from featurestore_dagster.serving.http.uploads import ARROW, PARQUET, frame_of_bytes

FRAME = pl.DataFrame(
    {
        "symbol": pl.Series(["A", None, "CC"] * 100),
        "kind": pl.Series(["x", "y", None] * 100, dtype=pl.Categorical),
        "event_timestamp": pl.Series([datetime(2018, 12, 28, 21, tzinfo=UTC)] * 300, dtype=pl.Datetime("us", "UTC")),
        "size": pl.Series([1.5, None, 2.5] * 100),
    }
)
ROWS, BYTES = 1_000, 100_000
Compressed = pytest.mark.parametrize("compression", [None, "lz4", "zstd"])


def stream(table: pa.Table, compression: str | None = None) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table)
    return sink.getvalue()


def parquet(frame: pl.DataFrame) -> bytes:
    sink = io.BytesIO()
    frame.write_parquet(sink)
    return sink.getvalue()


@Compressed
def test_a_frame_comes_through(compression: str | None) -> None:
    found = frame_of_bytes(stream(FRAME.to_arrow(), compression), ARROW, ROWS, BYTES)
    assert found.with_columns(pl.col("kind").cast(pl.String)).equals(FRAME.with_columns(pl.col("kind").cast(pl.String)))
    assert frame_of_bytes(stream(FRAME.clear().to_arrow(), compression), ARROW, ROWS, BYTES).is_empty()
    assert frame_of_bytes(parquet(FRAME.drop("kind")), PARQUET, ROWS, BYTES).equals(FRAME.drop("kind"))


@pytest.mark.parametrize("zone", ["+05:30", "-03:30", "+02:00"])
def test_instants_at_an_offset_come_in_utc(zone: str) -> None:
    table = FRAME.drop("kind").to_arrow()
    instants = table.column("event_timestamp").cast(pa.timestamp("us", zone))
    table = table.set_column(table.schema.names.index("event_timestamp"), "event_timestamp", instants)
    sink = io.BytesIO()
    pyarrow.parquet.write_table(table, sink)
    for body, kind in ((stream(table), ARROW), (sink.getvalue(), PARQUET)):
        assert frame_of_bytes(body, kind, ROWS, BYTES).equals(FRAME.drop("kind"))


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_a_compressed_batch_is_not_unpacked_when_it_says_that_it_is_too_large(compression: str) -> None:
    text = pa.table({"symbol": ["A" * 10_000_000]})
    bomb = stream(text, compression)
    assert len(bomb) < BYTES
    with pytest.raises(RefusedError, match="bytes when they are unpacked"):
        frame_of_bytes(bomb, ARROW, ROWS, BYTES)
    # More than there is memory: it would fail in another way if it were unpacked.
    lie = bomb.replace(struct.pack("<q", 10_000_000), struct.pack("<q", 2**50))
    assert lie != bomb
    with pytest.raises(RefusedError, match="bytes when they are unpacked"):
        frame_of_bytes(lie, ARROW, ROWS, BYTES)
    # Less than it has: the decompressor is the judge.
    for less in (1, 0, -2):
        with pytest.raises(MalformedDataError):
            frame_of_bytes(bomb.replace(struct.pack("<q", 10_000_000), struct.pack("<q", less)), ARROW, ROWS, BYTES)


@pytest.mark.parametrize(
    "table",
    [
        pa.table({f"c{number}": pa.nulls(ROWS) for number in range(100)}),
        pa.table({"symbol": pa.array(["A" * 1_000]).dictionary_encode().take(pa.array([0] * ROWS))}),
    ],
    ids=["columns without buffers", "one text many times"],
)
@Compressed
def test_what_takes_no_room_in_the_file_is_counted(table: pa.Table, compression: str | None) -> None:
    body = stream(table, compression)
    assert len(body) < BYTES
    with pytest.raises(RefusedError, match="bytes when they are unpacked"):
        frame_of_bytes(body, ARROW, ROWS, BYTES)


@pytest.mark.parametrize(
    "frame",
    [
        pl.DataFrame({"symbol": ["A" * 10_000_000]}),
        pl.DataFrame({"symbol": ["A" * 1_000] * ROWS}),
        pl.DataFrame({f"c{number}": pl.repeat(1, ROWS, eager=True) for number in range(100)}),
    ],
    ids=["one long text", "one text many times", "many columns"],
)
def test_a_parquet_file_is_not_unpacked_when_it_says_that_it_is_too_large(frame: pl.DataFrame) -> None:
    body = parquet(frame)
    assert len(body) < BYTES
    with pytest.raises(RefusedError, match="bytes when they are unpacked"):
        frame_of_bytes(body, PARQUET, ROWS, BYTES)


def test_a_column_that_no_entity_row_has_is_refused_by_its_name() -> None:
    with pytest.raises(MalformedDataError, match=r"^column raw is binary; .* drop it$"):
        frame_of_bytes(stream(pa.table({"symbol": ["A"], "raw": [b"A"]}), None), ARROW, ROWS, BYTES)


def test_the_pages_of_a_parquet_file_are_believed_and_not_its_footer() -> None:
    body = parquet(pl.DataFrame({"symbol": ["A" * 10_000_000]}))
    chunk = pyarrow.parquet.read_metadata(io.BytesIO(body)).row_group(0).column(0)
    said = zigzag(chunk.total_uncompressed_size)
    footer = chunk.data_page_offset
    lie = body[:footer] + body[footer:].replace(said, b"\x80" * (len(said) - 1) + b"\x00")
    assert pyarrow.parquet.read_metadata(io.BytesIO(lie)).row_group(0).column(0).total_uncompressed_size == 0
    with pytest.raises(RefusedError, match="bytes when they are unpacked"):
        frame_of_bytes(lie, PARQUET, ROWS, BYTES)


def test_empty_batches_and_pages_are_counted() -> None:
    sink = io.BytesIO()
    empty = FRAME.clear().to_arrow()
    with pa.ipc.new_stream(sink, empty.schema) as writer:
        for _ in range(100):
            writer.write_batch(pa.RecordBatch.from_pylist([], empty.schema))
    with pytest.raises(RefusedError, match="bytes when they are unpacked"):
        frame_of_bytes(sink.getvalue(), ARROW, ROWS, BYTES)
    with pytest.raises(MalformedDataError):
        frame_of_bytes(b"PAR1" + b"\x80" * 1_000 + parquet(FRAME.drop("kind"))[1_004:], PARQUET, ROWS, BYTES)


def zigzag(number: int) -> bytes:
    """As Thrift's compact protocol writes it."""
    value, written = number << 1, bytearray()
    while value > 127:
        written.append(value & 127 | 128)
        value >>= 7
    return bytes([*written, value])


def test_a_buffer_shorter_than_its_array_is_refused() -> None:
    body = stream(pa.table({"size": [1] * 7}))
    lie = body.replace(struct.pack("<q", 7), struct.pack("<q", 999))
    assert lie != body
    with pytest.raises(MalformedDataError, match="too small"):
        frame_of_bytes(lie, ARROW, ROWS, BYTES)


def test_lists_and_structures_are_refused() -> None:
    for values in ([[1]], [{"a": 1}]):
        table = pa.table({"x": values})
        with pytest.raises(MalformedDataError, match="column x is"):
            frame_of_bytes(stream(table), ARROW, ROWS, BYTES)
        with pytest.raises(MalformedDataError, match="column x is"):
            frame_of_bytes(parquet(pl.DataFrame({"x": values})), PARQUET, ROWS, BYTES)


BODIES = {
    "plain": (stream(FRAME.to_arrow()), ARROW),
    "lz4": (stream(FRAME.to_arrow(), "lz4"), ARROW),
    "parquet": (parquet(FRAME.drop("kind")), PARQUET),
}


@pytest.mark.parametrize("name", BODIES)
@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255), cut=st.booleans())
def test_whatever_is_wrong_with_a_body_the_refusal_is_ours(name: str, place: float, value: int, cut: bool) -> None:
    body, kind = BODIES[name]
    position = int(place * len(body))
    changed = body[:position] if cut else body[:position] + bytes([value]) + body[position + 1 :]
    with contextlib.suppress(MalformedDataError, RefusedError):
        frame_of_bytes(changed, kind, ROWS, BYTES)
