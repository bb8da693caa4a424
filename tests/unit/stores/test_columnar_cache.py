"""Files that may vanish, be damaged or be too many."""

import os
import threading
import time
from pathlib import Path

import polars as pl
import pytest

from featurestore_dagster.stores.columnar_cache import ABANDONED_SECONDS, ColumnarCache

FRAME = pl.DataFrame({"symbol": ["A", "B"] * 500, "value": [float(n) for n in range(1_000)]})


@pytest.fixture
def cache(tmp_path: Path) -> ColumnarCache:
    return ColumnarCache(tmp_path / "cache", 2**30)


def files(cache: ColumnarCache) -> list[Path]:
    return sorted(cache.folder.glob("*/*"))


def test_what_was_written_is_read_by_column(cache: ColumnarCache) -> None:
    assert cache.read("view@1", "1to2_a", ["value"]) is None
    cache.write("view@1", "1to2_a", FRAME)
    assert cache.holds("view@1", "1to2_a")
    assert not cache.holds("view@2", "1to2_a")
    found = cache.read("view@1", "1to2_a", ["value", "symbol"])
    assert found is not None
    assert found.equals(FRAME.select("value", "symbol"))


def test_a_newer_frame_of_the_same_range_takes_the_place(cache: ColumnarCache) -> None:
    cache.write("view@1", "1to2_a", FRAME)
    cache.write("view@1", "11to2_a", FRAME)
    cache.write("view@1", "1to2_b", FRAME.head(1))
    assert [path.name.rpartition("-")[0] for path in files(cache)] == ["11to2_a", "1to2_b"]
    assert cache.read("view@1", "1to2_a", ["value"]) is None


def test_a_file_without_a_column_or_with_another_byte_is_removed(cache: ColumnarCache) -> None:
    cache.write("view@1", "1to2_a", FRAME)
    assert cache.read("view@1", "1to2_a", ["another"]) is None
    assert files(cache) == []
    cache.write("view@1", "1to2_a", FRAME)
    assert cache.read("view@1", "1to2_a", ["value"]) is not None
    content = bytearray(files(cache)[0].read_bytes())
    for position in range(0, len(content), 97):
        harmed = bytearray(content)
        harmed[position] ^= 0x10
        cache.write("view@1", "1to2_a", FRAME)
        files(cache)[0].write_bytes(harmed)
        assert cache.read("view@1", "1to2_a", ["value"]) is None
        assert files(cache) == []


def test_the_least_recently_used_makes_room(cache: ColumnarCache) -> None:
    for number in range(3):
        cache.write("view@1", f"{number}to{number + 1}_a", FRAME)
    size = files(cache)[0].stat().st_size
    for age, path in enumerate(files(cache)):
        os.utime(path, ns=(10**18 - age, path.stat().st_mtime_ns))
    assert cache.read("view@1", "2to3_a", ["value"]) is not None
    ColumnarCache(cache.folder, 3 * size + size // 2).write("view@2", "0to1_a", FRAME)
    assert [f"{path.parent.name} {path.name.partition('_')[0]}" for path in files(cache)] == ["view@1 0to1", "view@1 2to3", "view@2 0to1"]
    ColumnarCache(cache.folder, size // 2).write("view@2", "1to2_a", FRAME)
    assert files(cache) == []


def test_what_a_dead_writer_left_is_swept(cache: ColumnarCache) -> None:
    cache.write("view@1", "1to2_a", FRAME)
    left, running = (cache.folder / "view@1" / f".{name}.tmp" for name in ("left", "running"))
    for path, age in ((left, ABANDONED_SECONDS + 60), (running, 0)):
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age, time.time() - age))
    cache.write("view@1", "2to3_a", FRAME)
    assert not left.exists()
    assert running.exists()


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in the way")
    cache = ColumnarCache(tmp_path / "cache", 2**30)
    cache.write("view@1", "1to2_a", FRAME)
    assert cache.read("view@1", "1to2_a", ["value"]) is None


def test_threads_share_it(cache: ColumnarCache) -> None:
    wrong: list[object] = []

    def use(number: int) -> None:
        for turn in range(20):
            cache.write("view@1", f"{turn % 3}to9_a", FRAME)
            found = cache.read("view@1", f"{(turn + number) % 3}to9_a", ["value"])
            if found is not None and not found.equals(FRAME.select("value")):
                wrong.append(found)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
