"""Which process a record means."""

import os
import re
import subprocess
from pathlib import Path

import psutil
import pytest

from featurestore_dagster.supervisor.record import Record


def test_a_step_of_the_clock_leaves_everyone_who_he_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is set moves the boot time that Linux tells, and with it every creation time."""
    record = Record()
    record.add("test", os.getpid())
    (tmp_path / str(os.getpid())).symlink_to(f"/proc/{os.getpid()}")
    stepped = re.sub(r"(?<=btime )\d+", lambda found: str(int(found[0]) + 3600), Path("/proc/stat").read_text())
    (tmp_path / "stat").write_text(stepped)
    created = psutil.Process().create_time()
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    assert psutil.Process().create_time() - created == 3600
    found = record.process("test")
    assert found is not None
    assert found.pid == os.getpid()


def test_a_number_that_was_given_to_another_process_is_nobody() -> None:
    record = Record()
    with subprocess.Popen(["sleep", "60"]) as first:
        record.add("sleeper", first.pid)
        assert record.process("sleeper")
        first.kill()
    assert record.process("sleeper") is None
    record.entries["sleeper"]["process_id"] = 1
    assert record.process("sleeper") is None
