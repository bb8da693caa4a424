"""The page `/status` and the terminal's screen, of made-up overviews: all is said, in words, and nothing of the data is markup."""

import re
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from featurestore_dagster.cli.status_screen import bars, screen
from featurestore_dagster.serving.http.status_page import sparkline, status_page
from featurestore_dagster.serving.overview import Overview, duration_text
from tests.unit.serving.overviews import CALM, TROUBLED

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Outline(HTMLParser):
    """Tags that are not closed in order, and all text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:  # noqa: ARG002
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def outline(found: Overview) -> Outline:
    parsed = Outline()
    parsed.feed(status_page(found))
    parsed.close()
    assert parsed.open == []
    return parsed


def test_trouble_is_told_in_words() -> None:
    text = " ".join(outline(TROUBLED).text.split())
    assert "2 streams are behind their SLO, 1 partition is blocked" in text
    figures = ("overdue for 3 h", "in 20 h", "5 h of 2 h", "unknown of 2 h")
    for expected in ("NEVER", "LATE", "FRESH", *figures, "empty_partition (0 rows): no <row> came"):
        assert expected in text, expected
    assert "1,234 refused rows are open" in text
    assert "replay clock: 2018-12-31T22:00:00+00:00" in text


def test_a_calm_page_says_so() -> None:
    text = " ".join(outline(CALM).text.split())
    assert "Every stream is within its SLO; no partition is blocked" in text
    assert "Furthest behind" not in text


def test_what_is_data_stays_data() -> None:
    page = status_page(TROUBLED)
    assert "<script" not in page
    assert "script" not in outline(TROUBLED).tags
    assert '<script>alert("x")</script>' in outline(TROUBLED).text


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=60))
def test_a_sparkline_stays_in_its_picture_and_names_its_figures(seconds: list[float]) -> None:
    picture = ET.fromstring(sparkline(seconds, "a view").split("<span")[0])
    line = picture.find("polyline")
    assert line is not None
    points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
    assert len(points) == len(seconds)
    assert all(0 <= x <= 140 and 0 <= y <= 30 for x, y in points)
    assert picture.attrib["role"] == "img"
    assert picture.attrib["aria-label"].endswith(f"newest {duration_text(seconds[-1])}, longest {duration_text(max(seconds))}")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (3_600, "1 h"),
        (12_000, "3 h 20 min"),
        (-7_200, "2 h"),
        (187_200, "2 d 4 h"),
        (172_800, "2 d"),
    ],
)
def test_durations_are_told_in_their_two_greatest_units(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


@pytest.mark.parametrize("width", [80, 200])
def test_the_terminal_says_the_same(width: int) -> None:
    console = Console(width=width)
    with console.capture() as found:
        console.print(screen(TROUBLED, width))
    assert "…" not in found.get()
    text = re.sub(r"\s+", " ", found.get())
    for expected in (
        "2 of 3 streams overdue",
        "NEVER",
        "empty_view",
        "overdue for 3 h",
        "5 h of 2 h",
        "empty_partition",
        "1,234 refused rows",
    ):
        assert expected in text, expected


def test_bars_rise_with_the_delay() -> None:
    assert bars((1.0, 10.0, 100.0, 1_000.0)) == "▁▃▅█ 16 min"
    assert bars(()) == "-"
    assert len(bars((5.0,) * 60).split()[0]) == 16
