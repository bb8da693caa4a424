"""`featurestore status --watch` on a terminal: shows the streams, survives a store that is gone, and ends with Ctrl-C."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

from tests.integration.http.conftest import environment
from tests.integration.serving.conftest import Served

PATIENCE_SECONDS = 60


def shown(terminal: int, pattern: str) -> bool:
    """Whether the terminal shows this before patience ends."""
    deadline, text = time.monotonic() + PATIENCE_SECONDS, ""
    while time.monotonic() < deadline and not re.search(pattern, text):
        if select.select([terminal], [], [], 1)[0]:
            text += os.read(terminal, 65_536).decode("utf-8", "replace")
    return re.search(pattern, text) is not None


def test_it_is_renewed_until_ctrl_c(served: Served) -> None:
    terminal, side = pty.openpty()
    command = [sys.executable, "-m", "featurestore_dagster.cli", "status", "--watch"]
    variables = environment(served.settings, COLUMNS="200", TERM="xterm")
    with subprocess.Popen(command, stdin=side, stdout=side, stderr=side, env=variables) as process:
        try:
            os.close(side)
            assert shown(terminal, r"daily_ohlcv_stats[\s\S]*us_equity_1d")
            served.kill("postgres")
            assert shown(terminal, "StoreUnavailableError")
            served.services.start()
            assert shown(terminal, r"daily_ohlcv_stats[\s\S]*us_equity_1d")
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
        finally:
            process.kill()
            os.close(terminal)


def test_watching_and_json_exclude_each_other(served: Served) -> None:
    command = [sys.executable, "-m", "featurestore_dagster.cli", "status", "--watch", "--json"]
    done = subprocess.run(command, env=environment(served.settings), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--watch is for people, --json for programs" in re.sub(r"[│\s]+", " ", done.stderr)
