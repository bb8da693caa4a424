"""The data dictionary says everything that is declared, as Markdown and as a page that needs nothing but itself."""

import re
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path

import featurestore_dagster.pipeline
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.model.checks import CHECK_MEANINGS
from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.model.time import duration
from featurestore_dagster.projections import pandera_schema
from featurestore_dagster.projections.data_dictionary import data_dictionary, references
from featurestore_dagster.projections.data_dictionary_page import data_dictionary_page

TEXT, PAGE = data_dictionary(CATALOGUE), data_dictionary_page(CATALOGUE)
VOID = {"meta", "input", "wbr"}


class Outline(HTMLParser):
    """Ids, links and loaded resources of a page; refuses tags that are closed in another order than opened."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.labelled: set[str] = set()
        self.unlabelled_tables = 0
        self._open: list[str] = []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag not in VOID:
            self._open.append(tag)
        if found := given.get("id"):
            self.ids.append(found)
        if tag == "a":
            self.links.append(given["href"] or "")
        if tag == "label":
            self.labelled.add(given["for"] or "")
        if tag == "table" and not given.get("aria-label"):
            self.unlabelled_tables += 1
        if tag in {"script", "link", "img", "iframe"} and ("src" in given or "href" in given):
            self.loaded.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag


def section(name: str) -> str:
    """A view's or service's part of the Markdown."""
    found = re.search(rf"^### {re.escape(name)}\n(.*?)(?=^##|\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, name
    return found[1]


def test_markdown_has_every_view_feature_service_dataset_flag_and_check() -> None:
    for view in CATALOGUE.views:
        part = section(view.label)
        assert all(key in part for key in view.join_keys)
        assert f"served {duration(view.slo.max_lag)} after due" in part
        assert f"{duration(view.ttl)} of open-market time" in part
        for stream in view.streams:
            assert re.search(
                rf"^\| {stream.name} \| {stream.market} \| {stream.timeframe} \|.*{re.escape(stream.schedule)}", part, re.MULTILINE
            )
        rows = re.findall(r"^\| (\w+) \| [^|]+ \| [^|]+ \| (\w+) \| (\d+) \| (\d+) \|", part, re.MULTILINE)
        assert rows == [(f.name, f.indicator.grain.value, str(f.warm_up_bars), str(f.look_back_bars)) for f in view.features], view.label
    for service in CATALOGUE.services:
        assert re.findall(r"^\d+\. `(.+)`$", section(service.name), re.MULTILINE) == references(service)
    for name in (*(dataset.name for dataset in CATALOGUE.datasets), *(check.name for check in CHECK_MEANINGS)):
        assert f"\n| {name} | " in TEXT
    assert [int(bit) for bit in re.findall(r"^\| (\d+) \| [A-Z_]+ \|", TEXT, re.MULTILINE)] == list(range(len(QualityFlag)))


def test_every_table_of_the_markdown_is_well_formed() -> None:
    for block in re.findall(r"(?:^\|.*\n)+", TEXT, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1, block[:200]


def test_the_checks_of_the_dictionary_are_those_of_the_code() -> None:
    folder = Path(featurestore_dagster.pipeline.__file__).parent
    judges = "\n".join((folder / f"{name}.py").read_text() for name in ("audit", "batch_checks", "market_checks", "verdict"))
    known = {check.name for check in CHECK_MEANINGS}
    assert [name for name in known if not re.search(rf'"{name}(?![a-z])', judges + Path(pandera_schema.__file__).read_text())] == []
    assert set(re.findall(r'"([a-z]+(?:_[a-z]+)*): [a-z]', judges)) <= known, (
        "add it to CHECK_MEANINGS in featurestore_dagster/model/checks.py"
    )


def test_the_page_is_whole_needs_nothing_else_and_its_links_lead_somewhere() -> None:
    outline = Outline(PAGE)
    assert len(outline.ids) == len(set(outline.ids))
    assert outline.loaded == []
    assert not re.search(r"https?://|url\(|@import", PAGE)
    assert all(link.startswith("#") for link in outline.links)
    assert {link[1:] for link in outline.links} <= set(outline.ids)
    assert {f"{view.label}:{name}" for view in CATALOGUE.views for name in view.feature_names} <= set(outline.ids)
    assert outline.labelled == {"search"}
    assert outline.unlabelled_tables == 0


def test_durations_are_in_their_natural_units() -> None:
    assert [duration(timedelta(minutes=m)) for m in (1, 90, 1440, 43200, 1500)] == ["1 min", "1 h 30 min", "1 d", "30 d", "1 d 1 h"]
