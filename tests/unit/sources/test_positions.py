"""The positions file: every whole line once, and a bad line refuses the file and says which it is."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from featurestore_dagster.errors import ConfigurationError, MalformedDataError, SourceUnavailableError
from featurestore_dagster.features.raw_tables import COP_POSITIONS
from featurestore_dagster.model.time import FrozenClock
from featurestore_dagster.sources import positions
from featurestore_dagster.sources.provider_settings import PositionsSettings

PAYLOADS = Path(__file__).parents[2] / "payloads" / "positions"
NOW = datetime(2018, 12, 31, 22, tzinfo=UTC)
DAY = NOW - timedelta(days=1)
FIRST, SECOND, THIRD = (datetime(2018, 12, 31, 15, minute, tzinfo=UTC) for minute in (0, 5, 10))


def fetched(file: Path | None, start: datetime = DAY, end: datetime = NOW, now: datetime = NOW) -> pl.DataFrame:
    return positions.fetch(COP_POSITIONS, start, end, settings=PositionsSettings(file=file), clock=FrozenClock(now))


def in_file(folder: Path, case: str) -> Path:
    file = folder / "positions.jsonl"
    file.write_bytes((PAYLOADS / f"{case}.jsonl").read_bytes())
    return file


def test_each_push_is_one_row(tmp_path: Path) -> None:
    file = in_file(tmp_path, "ok")
    rows = fetched(file)
    assert rows.select("symbol", "position", "event_timestamp", "known_at", "known_at_basis").rows() == [
        ("USDCOP", 0.5, FIRST, NOW, "observed"),
        ("USDCOP", -1.0, SECOND, NOW, "observed"),
        ("USDCOP", 0.0, THIRD, NOW, "observed"),
    ]
    assert rows.schema == pl.Schema({name: dtype for name, dtype in COP_POSITIONS.table.schema.items() if name != "ingested_at"})
    assert fetched(file, FIRST, SECOND)["event_timestamp"].to_list() == [SECOND]
    later = fetched(file, now=NOW + timedelta(days=30))
    assert later.select("known_at", "known_at_basis").unique().sort("known_at").rows() == [(at, "assumed") for at in (FIRST, SECOND, THIRD)]


def test_a_line_counts_when_its_end_is_written_however_it_is_cut(tmp_path: Path) -> None:
    body, file = (PAYLOADS / "ok.jsonl").read_bytes(), tmp_path / "positions.jsonl"
    seen = []
    for length in range(len(body) + 1):
        file.write_bytes(body[:length])
        seen.append(fetched(file)["event_timestamp"].to_list())
    assert seen == sorted(seen, key=len), "a row that was there must stay"
    assert {len(rows) for rows in seen} == {0, 1, 2, 3}
    assert seen[-1] == [FIRST, SECOND, THIRD]
    assert fetched(in_file(tmp_path, "half_a_line"))["event_timestamp"].to_list() == [FIRST]


@pytest.mark.parametrize(
    ("case", "line", "reason"),
    [
        ("too_large", 2, "position: Input should be less than or equal to 1"),
        ("nan", 3, "position"),
        ("naive", 1, "pushed_at.*timezone"),
        ("wrong_unit", 2, "1970-01-18"),
        ("not_json", 2, "JSON"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_taken(case: str, line: int, reason: str, tmp_path: Path) -> None:
    with pytest.raises(MalformedDataError, match=f"positions line {line}: .*{reason}"):
        fetched(in_file(tmp_path, case))


def test_two_positions_at_one_instant_are_left_for_the_audit(tmp_path: Path) -> None:
    file = in_file(tmp_path, "ok")
    with file.open("a") as writer:
        writer.write('{"symbol": "USDCOP", "position": 0.25, "pushed_at": "2018-12-31T15:10:00Z"}\n')
    assert fetched(file, SECOND).select("position", "event_timestamp", "known_at").rows() == [(0.0, THIRD, NOW), (0.25, THIRD, NOW)]


def test_the_file_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="POSITIONS_FILE is not set"):
        fetched(None)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        fetched(tmp_path)
    with pytest.raises(SourceUnavailableError, match="does not exist"):
        fetched(tmp_path / "absent.jsonl")
