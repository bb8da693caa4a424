"""Each kind of alert has its runbook, and the index lists it."""

import re
from pathlib import Path

import pytest

from featurestore_dagster.model.alert import ESCALATE_AFTER, RUNBOOKS, AlertKind
from featurestore_dagster.monitoring.messages import TITLES

PROJECT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("kind", AlertKind)
def test_a_kind_has_a_runbook_that_says_what_it_means_and_what_to_do(kind: AlertKind) -> None:
    page = (PROJECT / kind.runbook).read_text()
    assert page.startswith(f"# {kind.value.replace('-', ' ').capitalize()}\n")
    assert re.findall(r"^\*\*(Means|Look at|Do)\b", page, re.MULTILINE) == ["Means", "Look at", "Do"]
    index, link = ("alerts/README.md", "") if kind in ESCALATE_AFTER else ("monitor.md", "alerts/")
    assert f"]({link}{kind.value}.md)" in (PROJECT / "docs" / "how-to" / index).read_text()


def test_every_page_is_about_a_kind() -> None:
    pages = {page.stem for page in (PROJECT / RUNBOOKS).glob("*.md")} - {"README"}
    assert pages == {kind.value for kind in AlertKind}


def test_what_the_sensor_tells_has_a_title() -> None:
    assert set(TITLES) == set(ESCALATE_AFTER)
