"""The drop folder on a real file system: complete files only, whole or not at all, nothing lost, whatever is killed."""

import os
import re
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from featurestore_dagster.errors import ConfigurationError
from featurestore_dagster.features.raw_tables import FX_CANDLES_1H, US_EQUITY_CANDLES_1D, US_MACRO
from featurestore_dagster.features.sources import FILES
from featurestore_dagster.model.time import FrozenClock
from featurestore_dagster.settings import Settings
from featurestore_dagster.sources import fetch
from featurestore_dagster.sources.files import LandedFile, RefusedFile, landed, pending, take

NOW = datetime(2018, 12, 31, 22, tzinfo=UTC)
CLOCK = FrozenClock(NOW)
LATER = FrozenClock(NOW + timedelta(hours=1))
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)

MAPPING = """
columns: {time: event_timestamp, o: open, h: high, l: low, c: close}
constants: {symbol: EURUSD}
timestamp_unit: iso
timezone: UTC
label: bar_end
"""
HEADER = "time,o,h,l,c\n"
BAR = "2018-01-02 10:00,1.2,1.3,1.1,1.25\n"


@pytest.fixture
def drop(tmp_path: Path) -> Path:
    """A drop folder, with a space in its path, whose FX dataset has its mapping."""
    drop = tmp_path / "drop folder"
    (drop / "fx_candles_1h").mkdir(parents=True)
    (drop / "fx_candles_1h" / "mapping.yaml").write_text(MAPPING)
    return drop


def put(drop: Path, name: str, content: str, *, done: bool = True) -> Path:
    path = drop / "fx_candles_1h" / name
    path.write_text(content)
    if done:
        path.with_name(f"{name}.done").touch()
    return path


def all_rows(drop: Path) -> pl.DataFrame:
    return fetch(FX_CANDLES_1H, LONG_AGO, NOW, settings=Settings(drop_folder=drop), clock=CLOCK)


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_symlink() or path.is_file())


def test_a_file_is_landed_whole_with_a_receipt(drop: Path) -> None:
    put(drop, "bars.CSV", HEADER + BAR + BAR.replace("10:00", "11:00"))
    assert pending(drop) == {"fx_candles_1h": ["bars.CSV"]}
    (receipt,) = take(FX_CANDLES_1H, drop, CLOCK)
    assert isinstance(receipt, LandedFile)
    first = datetime(2018, 1, 2, 10, tzinfo=UTC)
    assert (receipt.name, receipt.sequence, receipt.rows, receipt.first_event, receipt.last_event, receipt.received_at) == (
        "bars.CSV",
        1,
        2,
        first,
        first + timedelta(hours=1),
        NOW,
    )
    assert pending(drop) == {}
    assert landed(FX_CANDLES_1H, drop) == [receipt]
    assert landed(FX_CANDLES_1H, drop, after_sequence=1) == []
    assert files_below(drop) == sorted(
        [
            "fx_candles_1h/mapping.yaml",
            *(
                f"landed/fx_candles_1h/{name}"
                for name in (
                    ".lock",
                    f"{receipt.sha256}.csv",
                    f"{receipt.sha256}.json",
                    f"{receipt.sha256}.canonical.parquet",
                )
            ),
        ]
    )
    rows = all_rows(drop)
    assert rows.select("symbol", "close", "source", "known_at_basis").row(0) == ("EURUSD", 1.25, "files", "assumed")
    assert take(FX_CANDLES_1H, drop, CLOCK) == []


def test_the_window_of_a_fetch_excludes_its_start_and_includes_its_end(drop: Path) -> None:
    put(drop, "bars.csv", HEADER + "".join(BAR.replace("10:00", f"{hour}:00") for hour in (10, 11, 12)))
    take(FX_CANDLES_1H, drop, CLOCK)
    start = datetime(2018, 1, 2, 10, tzinfo=UTC)
    rows = fetch(FX_CANDLES_1H, start, start + timedelta(hours=1), settings=Settings(drop_folder=drop), clock=CLOCK)
    assert rows["event_timestamp"].to_list() == [start + timedelta(hours=1)]
    assert fetch(FX_CANDLES_1H, start - timedelta(hours=1), start, settings=Settings(drop_folder=drop), clock=CLOCK).height == 1


def test_a_parquet_file_is_landed_beside_its_rows(drop: Path) -> None:
    frame = pl.DataFrame({"time": [datetime(2018, 1, 2, 10, tzinfo=UTC)], "o": [1.0], "h": [1.0], "l": [1.0], "c": [1.0]})
    frame.write_parquet(drop / "fx_candles_1h" / "bars.parquet")
    (drop / "fx_candles_1h" / "bars.parquet.done").touch()
    (receipt,) = take(FX_CANDLES_1H, drop, CLOCK)
    assert isinstance(receipt, LandedFile)
    assert pl.read_parquet(drop / "landed" / "fx_candles_1h" / f"{receipt.sha256}.parquet").equals(frame)
    assert all_rows(drop).height == 1


def test_without_done_a_file_is_taken_only_when_it_stands_still(drop: Path) -> None:
    path = put(drop, "growing.csv", HEADER + BAR, done=False)
    put(drop, "still.csv", HEADER + BAR.replace("10:00", "11:00"), done=False)
    writer = subprocess.Popen(
        [
            sys.executable,
            "-uc",
            f"import time\nwith open({str(path)!r}, 'a') as f:\n while True: f.write('\\n'); f.flush(); print(); time.sleep(.01)",
        ],
        stdout=subprocess.PIPE,
    )
    try:
        assert writer.stdout is not None
        writer.stdout.readline()
        assert [entry.name for entry in take(FX_CANDLES_1H, drop, CLOCK, settle_seconds=0.3)] == ["still.csv"]
    finally:
        writer.kill()
        writer.communicate()
    assert [entry.name for entry in take(FX_CANDLES_1H, drop, CLOCK, settle_seconds=0.01)] == ["growing.csv"]


def test_uploads_in_progress_and_hidden_files_are_left_alone(drop: Path) -> None:
    for name in ("bars.csv.part", "bars.tmp", ".bars.csv", "lonely.csv.done"):
        put(drop, name, HEADER, done=False)
    (drop / "fx_candles_1h" / "folder.csv").mkdir()
    assert pending(drop) == {}
    assert take(FX_CANDLES_1H, drop, CLOCK, settle_seconds=0) == []


def test_a_bad_file_is_kept_whole_with_its_reason_and_hides_no_good_one(drop: Path) -> None:
    bad = HEADER + BAR + "2018-01-02 11:00,1.2"
    for _ in range(2):
        put(drop, "a bad.csv", bad)
        put(drop, "good.csv", HEADER + BAR)
        refused, good = take(FX_CANDLES_1H, drop, CLOCK)
        assert isinstance(refused, RefusedFile)
        assert isinstance(good, LandedFile)
        assert refused.path.read_text() == bad
        reason = (refused.path.parent / f"{refused.path.name}.reason.txt").read_text()
        assert reason == f"2018-12-31T22:00:00+00:00 {refused.error}\n"
        assert "a bad.csv: line 3 has 2 fields and the header 5, column 'h' is the first without a value" in reason
    names = {path.name for path in (drop / "landed" / "fx_candles_1h" / "refused").iterdir()}
    assert names == {"a bad.csv", "a bad.csv.reason.txt", "2-a bad.csv", "2-a bad.csv.reason.txt"}
    assert all_rows(drop).height == 1


def test_what_is_no_plain_readable_file_is_refused_unread(drop: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text(HEADER + BAR)
    folder = drop / "fx_candles_1h"
    (folder / "link.csv").symlink_to(secret)
    (folder / "dangling.csv").symlink_to(tmp_path / "nowhere")
    os.mkfifo(folder / "pipe.csv")
    put(drop, "empty.csv", "", done=False)
    put(drop, "bars.xlsx", "x", done=False)
    with (folder / "huge.csv").open("wb") as file:
        file.truncate(2 * 1024**3)
    started = time.monotonic()
    refused = take(FX_CANDLES_1H, drop, CLOCK, settle_seconds=0)
    assert time.monotonic() - started < 5
    assert {entry.name: str(entry.error) for entry in refused if isinstance(entry, RefusedFile)} == {
        "link.csv": "link.csv: it is a symbolic link or a device; put the file itself here; nothing of the file was taken",
        "dangling.csv": "dangling.csv: it is a symbolic link or a device; put the file itself here; nothing of the file was taken",
        "pipe.csv": "pipe.csv: it is a symbolic link or a device; put the file itself here; nothing of the file was taken",
        "empty.csv": "empty.csv: it has 0 bytes; export it again; nothing of the file was taken",
        "bars.xlsx": "bars.xlsx: its suffix is .xlsx; allowed: .csv, .parquet; nothing of the file was taken",
        "huge.csv": "huge.csv: it has 2147483648 bytes; allowed are 134217728: split it; nothing of the file was taken",
    }
    assert secret.read_text() == HEADER + BAR
    assert pending(drop) == {}


@pytest.mark.parametrize("name", ["x" * 246 + ".csv", "line\nbreak.csv", "'; DROP TABLE x; --.csv", os.fsdecode(b"\xff\xfe.csv")])
def test_strange_names_are_handled(drop: Path, name: str) -> None:
    put(drop, name, HEADER + BAR)
    assert isinstance(take(FX_CANDLES_1H, drop, CLOCK)[0], LandedFile)
    put(drop, name, "nonsense")
    assert isinstance(take(FX_CANDLES_1H, drop, CLOCK)[0], RefusedFile)
    assert pending(drop) == {}
    assert len(list((drop / "landed" / "fx_candles_1h" / "refused").iterdir())) == 2


def test_the_file_that_landed_last_wins_and_a_key_twice_in_it_stays(drop: Path) -> None:
    put(drop, "z.csv", HEADER + BAR + BAR.replace("10:00", "11:00"))
    take(FX_CANDLES_1H, drop, CLOCK)
    put(drop, "a.csv", HEADER + BAR.replace("1.25", "1.26") + BAR.replace("1.25", "1.27"))
    take(FX_CANDLES_1H, drop, CLOCK)
    assert all_rows(drop)["close"].to_list() == [1.26, 1.27, 1.25]
    put(drop, "z.csv", HEADER + BAR + BAR.replace("10:00", "11:00"))
    (again,) = take(FX_CANDLES_1H, drop, LATER)
    assert isinstance(again, LandedFile)
    assert (again.sequence, again.first_received_at, again.received_at) == (3, NOW, LATER.instant)
    assert all_rows(drop)["close"].to_list() == [1.25, 1.25]


def test_a_file_waits_for_its_mapping(drop: Path) -> None:
    mapping = drop / "fx_candles_1h" / "mapping.yaml"
    mapping.write_text(MAPPING.replace("bar_end", "bar_middle"))
    put(drop, "bars.csv", HEADER + BAR)
    with pytest.raises(ConfigurationError, match="label: Input should be 'bar_start', 'bar_end' or 'session'"):
        take(FX_CANDLES_1H, drop, CLOCK)
    assert pending(drop) == {"fx_candles_1h": ["bars.csv"]}
    mapping.write_text(MAPPING)
    assert isinstance(take(FX_CANDLES_1H, drop, CLOCK)[0], LandedFile)


def test_an_unwritable_drop_folder_is_named(drop: Path) -> None:
    put(drop, "bars.csv", HEADER + BAR)
    (drop / "landed").write_text("a file where a folder must be: as root, no permission bit would stop us")
    with pytest.raises(ConfigurationError, match=re.escape(f"{drop / 'landed' / 'fx_candles_1h'} cannot be written (Not a directory)")):
        take(FX_CANDLES_1H, drop, CLOCK)
    assert pending(drop) == {"fx_candles_1h": ["bars.csv"]}


def test_no_drop_folder_means_no_files(tmp_path: Path) -> None:
    assert pending(tmp_path / "absent") == {}
    assert take(US_MACRO, tmp_path / "absent", CLOCK) == []
    assert landed(US_MACRO, tmp_path / "absent") == []


TAKE = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from featurestore_dagster.features.raw_tables import FX_CANDLES_1H
from featurestore_dagster.features.sources import FILES
from featurestore_dagster.model.time import FrozenClock
from featurestore_dagster.sources.files import take
print("ready", flush=True)
sys.stdin.readline()
for entry in take(FX_CANDLES_1H, Path(sys.argv[1]), FrozenClock(datetime(2018, 12, 31, 22, tzinfo=UTC))):
    print(entry.name, flush=True)
"""


def start_taking(drop: Path) -> "subprocess.Popen[str]":
    child = subprocess.Popen([sys.executable, "-c", TAKE, str(drop)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def test_two_processes_take_each_file_once(drop: Path) -> None:
    names = [f"{number:02}.csv" for number in range(30)]
    for number, name in enumerate(names):
        put(drop, name, HEADER + BAR.replace("10:00", f"10:{number:02}"))
    children = [start_taking(drop) for _ in range(2)]
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    outputs = [child.communicate()[0].split() for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert sorted(outputs[0] + outputs[1]) == names
    assert [receipt.sequence for receipt in landed(FX_CANDLES_1H, drop)] == list(range(1, 31))
    assert all_rows(drop).height == 30


KILL_AT_RENAME = """
import os, signal, sys
left = int(sys.argv[2])
def hook(event, arguments):
    global left
    if event == "os.rename":
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
"""


@pytest.mark.parametrize("renames", range(1, 8))
def test_killed_before_any_step_the_next_take_finishes(drop: Path, renames: int) -> None:
    """Every step that others can see is a rename: claim, reason, refused file; claim, rows, receipt, landed file."""
    bad, good = HEADER + "2018-01-02 10:00,1\n", HEADER + BAR
    put(drop, "1 bad.csv", bad)
    put(drop, "2 good.csv", good)
    child = subprocess.run([sys.executable, "-c", KILL_AT_RENAME + TAKE, str(drop), str(renames)], input="\n", text=True, check=False)
    assert child.returncode == -signal.SIGKILL
    take(FX_CANDLES_1H, drop, LATER, settle_seconds=0)
    (receipt,) = landed(FX_CANDLES_1H, drop)
    assert receipt.name == "2 good.csv"
    assert all_rows(drop)["close"].to_list() == [1.25]
    assert files_below(drop) == sorted(
        [
            "fx_candles_1h/mapping.yaml",
            *(
                f"landed/fx_candles_1h/{name}"
                for name in (
                    ".lock",
                    "refused/1 bad.csv",
                    "refused/1 bad.csv.reason.txt",
                    f"{receipt.sha256}.csv",
                    f"{receipt.sha256}.json",
                    f"{receipt.sha256}.canonical.parquet",
                )
            ),
        ]
    )
    assert (drop / "landed/fx_candles_1h/refused/1 bad.csv").read_text() == bad
    assert (drop / "landed/fx_candles_1h" / f"{receipt.sha256}.csv").read_text() == good


def test_the_files_source_delivers_beside_the_samples(drop: Path) -> None:
    folder = drop / "us_equity_candles_1d"
    folder.mkdir()
    (folder / "mapping.yaml").write_text(MAPPING.replace("symbol: EURUSD", "symbol: SPX").replace("bar_end", "session"))
    (folder / "bars.csv").write_text(HEADER + "2018-12-24,1,2,1,2\n")
    (folder / "bars.csv.done").touch()
    take(US_EQUITY_CANDLES_1D, drop, CLOCK)
    close = datetime(2018, 12, 24, 18, tzinfo=UTC)
    rows = fetch(US_EQUITY_CANDLES_1D, close - timedelta(hours=1), close, settings=Settings(drop_folder=drop), clock=CLOCK)
    assert rows.select("symbol", "source", "event_timestamp").rows() == [
        ("IXIC", "samples", close),
        ("SPX", "files", close),
        ("SPX", "samples", close),
    ]


def test_the_examples_of_the_guide_land(tmp_path: Path) -> None:
    guide = (Path(__file__).parents[3] / "docs" / "how-to" / "drop-files.md").read_text()
    examples = re.findall(r"```yaml\n(# (\w+)/mapping.yaml\n.*?)```\n\n```csv\n(.*?)```", guide, flags=re.DOTALL)
    datasets = {dataset.name: dataset for dataset in FILES.datasets}
    assert {name for _, name, _ in examples} == datasets.keys()
    for mapping, name, content in examples:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "mapping.yaml").write_text(mapping)
        (folder / "example.csv").write_text(content)
        (entry,) = take(datasets[name], tmp_path, CLOCK, settle_seconds=0)
        assert isinstance(entry, LandedFile), entry
        assert entry.rows == content.count("\n") - 1
