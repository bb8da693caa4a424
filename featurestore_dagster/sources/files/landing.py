"""Takes files out of the drop folder: claims, parses, lands or refuses each. What the cells mean does not belong here (see `parsing`).

Below the drop folder:

    <dataset>/mapping.yaml, <dataset>/<file>            put there by others
    landed/<dataset>/<sha256>.csv                       the file as it came
    landed/<dataset>/<sha256>.canonical.parquet         its rows
    landed/<dataset>/<sha256>.json                      its receipt (LandedFile), written last: without it nothing is landed
    landed/<dataset>/refused/<file>, <file>.reason.txt  a malformed file, whole
    landed/<dataset>/incoming/<file>                    claimed; after a crash the next `take` goes on with it

Everything lies below one folder, because a rename is atomic within one file system only. One process takes files of a dataset at a time
(a lock that the system releases when the process dies).
"""

import fcntl
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import polars as pl
from pydantic import AwareDatetime, BaseModel, ConfigDict

from featurestore_dagster.errors import ConfigurationError, MalformedDataError
from featurestore_dagster.model.raw_table import Dataset
from featurestore_dagster.model.time import Clock
from featurestore_dagster.sources.files.mapping import MAPPING_NAME, FileMapping, load_mapping
from featurestore_dagster.sources.files.parsing import parse

MAXIMUM_BYTES = 128 * 1024 * 1024
"""Largest file that is read. Parsed whole in memory, bars of one digit a price take nine times their size (1.1 GB), usual ones half."""

SETTLE_SECONDS = 2.0
"""A file without a `.done` beside it is taken when its size and time stay the same for so long."""

LANDED, INCOMING, REFUSED = "landed", "incoming", "refused"
DONE_SUFFIX = ".done"
UPLOAD_SUFFIXES = (".part", ".tmp")
DATA_SUFFIXES = (".csv", ".parquet")
LONGEST_NAME_BYTES = 200
"""Leaves room for what is put before and behind a refused file's name; file systems allow 255."""


class LandedFile(BaseModel):
    """Receipt of a landed file.

    `sequence` grows by one with each landing of the dataset and is a cursor for sensors. Its rows' event timestamps lie in
    [first_event, last_event]. Content that comes again is landed again under a new sequence, but keeps `first_received_at`.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    dataset: str
    sequence: int
    sha256: str
    rows: int
    first_event: AwareDatetime
    last_event: AwareDatetime
    first_received_at: AwareDatetime
    received_at: AwareDatetime


@dataclass(frozen=True)
class RefusedFile:
    """A file that was refused whole; it lies at `path` beside its reason."""

    name: str
    dataset: str
    path: Path
    error: MalformedDataError


def pending(drop_folder: Path) -> dict[str, list[str]]:
    """Names of the files that wait in each folder of the drop folder, sorted; look the folder up with `CATALOGUE.dataset`."""
    if not drop_folder.is_dir():
        return {}
    folders = (folder for folder in drop_folder.iterdir() if folder.is_dir() and folder.name != LANDED and folder.name[0] != ".")
    waiting = {folder.name: [path.name for path in _candidates(folder)] for folder in sorted(folders)}
    return {name: files for name, files in waiting.items() if files}


def landed(dataset: Dataset, drop_folder: Path, *, after_sequence: int = 0) -> list[LandedFile]:
    """Receipts of the dataset with a greater sequence, ascending."""
    receipts = (LandedFile.model_validate_json(path.read_bytes()) for path in _landing(dataset, drop_folder).glob("*.json"))
    return sorted((receipt for receipt in receipts if receipt.sequence > after_sequence), key=lambda receipt: receipt.sequence)


def take(
    dataset: Dataset,
    drop_folder: Path,
    clock: Clock,
    *,
    maximum_bytes: int = MAXIMUM_BYTES,
    settle_seconds: float = SETTLE_SECONDS,
) -> list[LandedFile | RefusedFile]:
    """Land or refuse every file of the dataset that is complete: `<file>.done` exists, or it did not change for `settle_seconds`.

    Killed at any point, the next call finishes. Waits for another process that takes files of this dataset.

    Returns:
        One entry for each file, in the order of names. A refused one carries its MalformedDataError: a bad file hides no good one.

    Raises:
        ConfigurationError: Files wait, and the mapping is absent or wrong (they stay where they are), or a folder cannot be written.
    """
    folder, landing = drop_folder / dataset.name, _landing(dataset, drop_folder)
    if not _candidates(folder) and not _candidates(landing / INCOMING):
        return []
    batch = _Batch(dataset, load_mapping(folder, dataset), landing, clock, maximum_bytes)
    with _locked(landing):
        known = landed(dataset, drop_folder)
        # A crash may have left claimed files: they go first, so that a new file of the same name does not overwrite one.
        taken = [batch.land(path, known) for path in _candidates(landing / INCOMING)]
        claims = (_claim(path, landing / INCOMING) for path in _complete(folder, settle_seconds))
        return [*taken, *(batch.land(path, known) for path in claims if path)]


@dataclass(frozen=True)
class _Batch:
    """What all files of one `take` have in common."""

    dataset: Dataset
    mapping: FileMapping
    landing: Path
    clock: Clock
    maximum_bytes: int

    def land(self, path: Path, known: list[LandedFile]) -> LandedFile | RefusedFile:
        """Land one claimed file, or refuse it; appends to `known`, the receipts so far."""
        name = os.fsencode(path.name).decode("utf-8", "backslashreplace")
        try:
            before = self._judge(path, name)
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            earlier = [receipt for receipt in known if receipt.sha256 == sha256]
            received_at = self.clock.now()
            first_received_at = earlier[-1].first_received_at if earlier else received_at
            rows = parse(path, name, self.dataset, self.mapping, received_at=first_received_at, maximum_bytes=self.maximum_bytes)
            after = path.lstat()
            if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                raise MalformedDataError(f"{name}: it was still being written when it was taken; write it as {name}.part, then rename it")
        except PermissionError as error:
            return self._refuse(path, name, MalformedDataError(f"{name}: it cannot be read ({error.strerror}); make it readable"))
        except MalformedDataError as error:
            return self._refuse(path, name, error)
        events = rows["event_timestamp"]
        receipt = LandedFile(
            name=name,
            dataset=self.dataset.name,
            sequence=max((receipt.sequence for receipt in known), default=0) + 1,
            sha256=sha256,
            rows=rows.height,
            first_event=events.min(),
            last_event=events.max(),
            first_received_at=first_received_at,
            received_at=received_at,
        )
        _write_atomically(_rows_path(self.landing, sha256), rows.write_parquet)
        _write_atomically(self.landing / f"{sha256}.json", lambda temporary: temporary.write_text(receipt.model_dump_json(indent=2)))
        path.rename(self.landing / f"{sha256}{path.suffix.lower()}")
        known.append(receipt)
        return receipt

    def _judge(self, path: Path, name: str) -> os.stat_result:
        """What can be said of a file before it is opened."""
        status = path.lstat()
        why = None
        if not stat.S_ISREG(status.st_mode):
            why = "it is a symbolic link or a device; put the file itself here"
        elif path.suffix.lower() not in DATA_SUFFIXES:
            why = f"its suffix is {path.suffix or 'absent'}; allowed: {', '.join(DATA_SUFFIXES)}"
        elif status.st_size == 0:
            why = "it has 0 bytes; export it again"
        elif status.st_size > self.maximum_bytes:
            why = f"it has {status.st_size} bytes; allowed are {self.maximum_bytes}: split it"
        if why:
            raise MalformedDataError(f"{name}: {why}; nothing of the file was taken")
        return status

    def _refuse(self, path: Path, name: str, error: MalformedDataError) -> RefusedFile:
        """The reason first: a crash in between refuses the file again, under the same name."""
        refused = self.landing / REFUSED
        stored = path.name if len(os.fsencode(path.name)) <= LONGEST_NAME_BYTES else f"long-name{path.suffix[-20:]}"
        target, copies = refused / stored, 1
        while target.is_symlink() or target.exists():
            copies += 1
            target = refused / f"{copies}-{stored}"
        reason = f"{self.clock.now().isoformat()} {error}\n"
        _write_atomically(
            target.with_name(f"{target.name}.reason.txt"), lambda temporary: temporary.write_text(reason, "utf-8", "backslashreplace")
        )
        path.rename(target)
        return RefusedFile(name, self.dataset.name, target, error)


def fetch(dataset: Dataset, start: datetime, end: datetime, *, drop_folder: Path) -> pl.DataFrame:
    """Landed rows with start < event_timestamp <= end; where files have the same row, those of the file that landed last.

    Returns:
        The canonical columns but `ingested_at`, sorted by identity. NULL, NaN and infinite values, and a key that one file has twice, are
        left for the audit; keys and times are never NULL.
    """
    schema = {name: dtype for name, dtype in dataset.table.schema.items() if name != "ingested_at"}
    landing = _landing(dataset, drop_folder)
    frames = [
        pl.scan_parquet(_rows_path(landing, receipt.sha256), schema=schema, missing_columns="insert", extra_columns="ignore")
        .filter(pl.col("event_timestamp") > start, pl.col("event_timestamp") <= end)
        .with_columns(sequence=pl.lit(receipt.sequence))
        .collect()
        for receipt in landed(dataset, drop_folder)
        if receipt.last_event > start and receipt.first_event <= end
    ]
    newest = pl.col("sequence") == pl.col("sequence").max().over(dataset.table.identity)
    rows = pl.concat([pl.DataFrame(schema={**schema, "sequence": pl.Int32()}), *frames]).filter(newest)
    return rows.drop("sequence").sort(dataset.table.identity, maintain_order=True)


def _landing(dataset: Dataset, drop_folder: Path) -> Path:
    return drop_folder / LANDED / dataset.name


def _rows_path(landing: Path, sha256: str) -> Path:
    return landing / f"{sha256}.canonical.parquet"


def _candidates(folder: Path) -> list[Path]:
    """What may be a data file, sorted by name. Symbolic links are listed, to be refused; folders are not files."""
    if not folder.is_dir():
        return []
    ours = (DONE_SUFFIX, *UPLOAD_SUFFIXES)
    paths = (path for path in folder.iterdir() if path.name != MAPPING_NAME and path.name[0] != "." and path.suffix.lower() not in ours)
    return sorted(path for path in paths if path.is_symlink() or not path.is_dir())


def _complete(folder: Path, settle_seconds: float) -> list[Path]:
    """Files that nobody writes any more, sorted; waits once, and only when a file has no `.done`."""
    names = {path.name for path in folder.iterdir()}
    waiting = {path: _fingerprint(path) for path in _candidates(folder)}
    done = {path for path in waiting if path.name + DONE_SUFFIX in names}
    if waiting.keys() - done:
        time.sleep(settle_seconds)
    return [path for path, fingerprint in waiting.items() if path in done or (fingerprint and _fingerprint(path) == fingerprint)]


def _fingerprint(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _claim(path: Path, incoming: Path) -> Path | None:
    """Move a file out of reach of its writer, its `.done` first; None when it is gone meanwhile."""
    try:
        done = path.with_name(path.name + DONE_SUFFIX)
        if os.path.lexists(done):
            done.unlink()
        return path.rename(incoming / path.name)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be moved to {incoming} ({error.strerror}); the drop folder must be writable and one file system"
        ) from None


@contextmanager
def _locked(landing: Path) -> Iterator[None]:
    """Be the only process that takes files of this dataset."""
    try:
        for folder in (landing / INCOMING, landing / REFUSED):
            folder.mkdir(parents=True, exist_ok=True)
        lock = (landing / ".lock").open("w")
    except OSError as error:
        raise ConfigurationError(f"{landing} cannot be written ({error.strerror}); make the drop folder writable for this user") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """The whole file or none, also after a power failure."""
    temporary = path.with_name(f"{path.name}.tmp")
    write(temporary)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
