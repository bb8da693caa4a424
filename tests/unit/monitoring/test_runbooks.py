"""Each kind of alert has its runbook, and the index lists it."""

import re
from pathlib import Path

import pytest

from featurestore_dagster.model.alert import RUNBOOKS, AlertKind

PROJECT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("kind", AlertKind)
def test_a_kind_has_a_runbook_that_says_what_it_means_and_what_to_do(kind: AlertKind) -> None:
    page = (PROJECT / kind.runbook).read_text()
    assert page.startswith(f"# {kind.value.replace('-', ' ').capitalize()}\n")
    assert re.findall(r"^\*\*(Means|Look at|Do)\b", page, re.MULTILINE) == ["Means", "Look at", "Do"]
    assert f"]({kind.value}.md)" in (PROJECT / RUNBOOKS / "README.md").read_text()
