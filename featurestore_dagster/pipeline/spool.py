"""Frames that wait on disk for the next step. What they mean does not belong here."""

import tempfile
from collections.abc import Iterator
from typing import IO, Self

import polars as pl


class Spool:
    """Frames in files without a name: their disk space is free again on leaving, also after a kill."""

    def __init__(self) -> None:
        """Empty; to be used in a `with`."""
        self._files: list[IO[bytes]] = []

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Forget the frames."""
        for file in self._files:
            file.close()

    def append(self, frame: pl.DataFrame) -> None:
        """Put a frame away."""
        file = tempfile.TemporaryFile()  # noqa: SIM115 - closed on leaving
        frame.write_ipc(file, compression="uncompressed")
        self._files.append(file)

    def __iter__(self) -> Iterator[pl.DataFrame]:
        """The frames, in order, one at a time."""
        for file in self._files:
            file.seek(0)
            yield pl.read_ipc(file)
