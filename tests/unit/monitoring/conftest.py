"""promtool for tests of rules and metrics."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.prometheus import prometheus_folder

Promtool = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def promtool() -> Promtool:
    """Runs promtool with these arguments, in a folder, on a text."""
    program = prometheus_folder() / "promtool"

    def run(*arguments: str, folder: Path | None = None, text: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run([program, *arguments], cwd=folder, input=text, capture_output=True, text=True, check=False)

    return run
