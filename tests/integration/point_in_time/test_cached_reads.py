"""Reads through the columnar cache equal reads from Postgres whatever happens to the files and to the ledger."""

import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import polars as pl
import psycopg
import pytest
from polars.testing import assert_frame_equal
from psycopg import sql

from featurestore_dagster.serving.point_in_time import history
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.columnar_cache import ColumnarCache
from tests.integration.point_in_time.history_cases import (
    DETAILS,
    REFERENCES,
    VIEW,
    expected,
    oracle,
    put,
    random_case,
    reader_of,
)

CASE = random_case(seed=5, version_count=400, asked_count=300)
FILES = "*/*.parquet"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ColumnarCache:
    monkeypatch.setattr(history, "SPAN_BYTES", 10_000)
    return ColumnarCache(tmp_path / "cache", 2**30)


def read(database: Settings, cache: ColumnarCache | None) -> pl.DataFrame:
    found = reader_of(database, cache).get_historical_features(CASE.asked, REFERENCES, details=DETAILS, streamed=True)
    return found.drop(CASE.asked.columns)


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize("harm", [damage, truncate, Path.unlink, lambda path: path.write_bytes(b"")], ids=["bit", "cut", "gone", "empty"])
def test_a_harmed_file_is_rebuilt(fresh_database: Settings, cache: ColumnarCache, harm: Callable[[Path], None]) -> None:
    put(fresh_database, CASE.versions)
    right = expected(oracle(CASE.versions, CASE.asked))
    assert_frame_equal(read(fresh_database, cache), right)
    files = sorted(cache.folder.glob(FILES))
    assert len(files) > 5
    assert_frame_equal(read(fresh_database, cache), right)
    for path in files[::2]:
        harm(path)
    assert_frame_equal(read(fresh_database, cache), right)
    assert sorted(cache.folder.glob(FILES)) == files
    assert_frame_equal(read(fresh_database, ColumnarCache(cache.folder, 2**30)), right)


def test_files_may_vanish_while_they_are_read(fresh_database: Settings, cache: ColumnarCache) -> None:
    put(fresh_database, CASE.versions)
    right, done = expected(oracle(CASE.versions, CASE.asked)), threading.Event()
    deleted = 0

    def delete() -> None:
        nonlocal deleted
        while not done.is_set():
            for path in cache.folder.glob("*/*"):
                path.unlink(missing_ok=True)
                deleted += 1

    thread = threading.Thread(target=delete)
    thread.start()
    try:
        for _ in range(5):
            assert_frame_equal(read(fresh_database, cache), right)
    finally:
        done.set()
        thread.join()
    assert deleted


def test_a_publication_is_seen_at_once_and_only_its_span_is_read_again(fresh_database: Settings, cache: ColumnarCache) -> None:
    half = CASE.versions.height // 2
    put(fresh_database, CASE.versions[:half])
    assert_frame_equal(read(fresh_database, cache), expected(oracle(CASE.versions[:half], CASE.asked)))
    put(fresh_database, CASE.versions[half:])
    assert_frame_equal(read(fresh_database, cache), expected(oracle(CASE.versions, CASE.asked)))
    files = set(cache.folder.glob(FILES))
    restated = (
        CASE.versions.filter(pl.col("symbol") == "A")
        .tail(1)
        .with_columns(pl.col("created_timestamp") + timedelta(hours=9), rsi_14=pl.lit(-1.0))
    )
    put(fresh_database, restated)
    everything = pl.concat([CASE.versions, restated])
    assert_frame_equal(read(fresh_database, cache), expected(oracle(everything, CASE.asked)))
    after = set(cache.folder.glob(FILES))
    assert len(after) == len(files)
    assert 0 < len(after - files) <= 3


def test_a_partition_that_was_taken_back_is_not_served_from_the_cache(fresh_database: Settings, cache: ColumnarCache) -> None:
    put(fresh_database, CASE.versions)
    read(fresh_database, cache)
    gone = "crypto_1d"
    with psycopg.connect(fresh_database.postgres.conninfo) as connection:
        connection.execute(sql.SQL("delete from {} where stream = %s").format(sql.Identifier("features", VIEW.name)), [gone])
        connection.execute(
            "insert into ops.publications (batch_id, relation, partition_key, rows_published, rows_quarantined, rows_total, content_hash,"
            " changed, inputs, code_version, run_id, published_at) select 999, relation, partition_key, 0, 0, 0, 'none', '{}', '{}', '',"
            " '', now() from ops.publications where relation like %s",
            [f"%.{gone}"],
        )
    kept = CASE.versions.filter(pl.col("stream") != gone)
    assert_frame_equal(read(fresh_database, cache), expected(oracle(kept, CASE.asked)))


def test_a_request_for_few_of_the_keys_reads_only_them_and_fills_no_cache(fresh_database: Settings, cache: ColumnarCache) -> None:
    put(fresh_database, CASE.versions)
    one = CASE.asked.filter(symbol="A", timeframe="BX")
    reader = reader_of(fresh_database, cache)
    found = reader.get_historical_features(one, REFERENCES, details=DETAILS, streamed=True)
    assert_frame_equal(found.drop(CASE.asked.columns), expected(oracle(CASE.versions, one)))
    assert not list(cache.folder.glob(FILES))
    read(fresh_database, cache)
    assert_frame_equal(reader.get_historical_features(one, REFERENCES, details=DETAILS, streamed=True), found)


def test_the_cache_stays_within_its_limit(fresh_database: Settings, cache: ColumnarCache) -> None:
    put(fresh_database, CASE.versions)
    small = ColumnarCache(cache.folder, 30_000)
    right = expected(oracle(CASE.versions, CASE.asked))
    for _ in range(2):
        assert_frame_equal(read(fresh_database, small), right)
        assert 0 < sum(path.stat().st_size for path in cache.folder.glob("*/*")) <= 30_000
    assert_frame_equal(read(fresh_database, ColumnarCache(cache.folder, 0)), right)
