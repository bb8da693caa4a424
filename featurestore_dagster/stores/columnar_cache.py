"""A local folder of Parquet files that may vanish at any time: frames by key, checked when read, least recently used ones removed.

What a file holds, and whether its key is still the right one, is the caller's matter.
"""

import contextlib
import mmap
import os
import re
import secrets
import threading
import time
from pathlib import Path

import mmh3
import polars as pl

NAME = re.compile(r"^(?P<key>[A-Za-z0-9._-]+)-(?P<digest>[0-9a-f]{32})\.parquet$")
ABANDONED_SECONDS = 3600
"""A temporary file older than this belongs to a writer that died."""


class ColumnarCache:
    """Frames in files named `<key>-<digest of the file's bytes>.parquet`, in one folder per group.

    A file is written under a temporary name and renamed, so that a reader sees a whole file or none; whatever is wrong with one, it is
    removed and counts as absent. Processes may share the folder. Safe to share between threads.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        """The folder is made by the first write. With a limit of 0 nothing is kept."""
        self.folder = folder
        self.limit_bytes = limit_bytes
        self._verified: dict[Path, tuple[int, int, int]] = {}
        self._lock = threading.Lock()

    def holds(self, group: str, key: str) -> bool:
        """Whether there is a file for the key; it may be gone, or turn out to be damaged, when it is read."""
        return self._find(group, key) is not None

    def read(self, group: str, key: str, columns: list[str]) -> pl.DataFrame | None:
        """The columns of a frame, rows in the order written; None when there is no sound file with them."""
        path = self._find(group, key)
        if path is None:
            return None
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                self._verify(path, file.fileno(), status)
                frame = pl.read_parquet(file, columns=columns, use_pyarrow=False)
                # The access time is the time of last use, whatever the mount's options; the rest of the file's state stays.
                with contextlib.suppress(OSError):
                    os.utime(path, ns=(time.time_ns(), status.st_mtime_ns))
                return frame.select(columns)
        except (OSError, ValueError, pl.exceptions.PolarsError):
            self._forget(path)
            return None

    def write(self, group: str, key: str, frame: pl.DataFrame) -> None:
        """Keep a frame, in place of any other that has its key up to the first underscore; what is used least makes room for it.

        A disk that refuses is no error: nothing is kept then.
        """
        folder = self.folder / group
        temporary = folder / f".{os.getpid()}-{secrets.token_hex(8)}.tmp"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            frame.write_parquet(temporary, compression="lz4", row_group_size=262_144)
            with temporary.open("rb") as file:
                digest = _digest(file.fileno(), os.fstat(file.fileno()).st_size)
            replaced = [path for path in folder.glob(f"{key.partition('_')[0]}_*.parquet") if NAME.match(path.name)]
            temporary.rename(folder / f"{key}-{digest}.parquet")
            for path in replaced:
                if path.name != f"{key}-{digest}.parquet":
                    self._forget(path)
            self._evict(folder / f"{key}-{digest}.parquet")
        except (OSError, pl.exceptions.PolarsError):  # a full disk is an error of Polars
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _find(self, group: str, key: str) -> Path | None:
        if not self.limit_bytes:
            return None
        found = (
            path for path in (self.folder / group).glob(f"{key}-*.parquet") if (match := NAME.match(path.name)) and match["key"] == key
        )
        return next(found, None)

    def _verify(self, path: Path, descriptor: int, status: os.stat_result) -> None:
        state = (status.st_ino, status.st_size, status.st_mtime_ns)
        if self._verified.get(path) == state:
            return
        match = NAME.match(path.name)
        if match is None or _digest(descriptor, status.st_size) != match["digest"]:
            raise ValueError(f"{path} is damaged")
        with self._lock:
            self._verified[path] = state

    def _forget(self, path: Path) -> None:
        with self._lock:
            self._verified.pop(path, None)
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)

    def _evict(self, newest: Path) -> None:
        files: list[tuple[int, int, Path]] = []
        for path in self.folder.glob("*/*"):
            with contextlib.suppress(OSError):
                status = path.stat()
                if path.suffix == ".tmp" and time.time() - status.st_mtime > ABANDONED_SECONDS:
                    path.unlink()
                elif path.suffix == ".parquet" and path != newest:
                    files.append((status.st_atime_ns, status.st_size, path))
        excess = sum(size for _, size, _ in files) + newest.stat().st_size - self.limit_bytes
        for _, size, path in sorted(files):
            if excess <= 0:
                return
            self._forget(path)
            excess -= size
        if excess > 0:
            self._forget(newest)


def _digest(descriptor: int, size: int) -> str:
    if not size:
        return ""
    with mmap.mmap(descriptor, size, access=mmap.ACCESS_READ) as content:
        return mmh3.mmh3_x64_128_digest(content).hex()
