"""The data dictionary's page in a browser: it fits, it searches, its anchors lead to the feature, in light and dark."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.projections.data_dictionary import feature_row
from featurestore_dagster.projections.data_dictionary_page import data_dictionary_page

CONTENTS = ["".join([view.label, *feature_row(feature)]).lower() for view in CATALOGUE.views for feature in view.features]
FEATURES = len(CONTENTS)
SHOWN = "tr[data-feature]:visible"


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(params=[("light", 1400), ("light", 400), ("dark", 1400), ("dark", 400)], ids=lambda case: f"{case[0]}-{case[1]}")
def page(request: pytest.FixtureRequest, browser: Browser, tmp_path: Path) -> Iterator[Page]:
    """The page, at a width and in a colour scheme; an error in its script, or a request, fails the test."""
    scheme, width = request.param
    path = tmp_path / "data_dictionary.html"
    path.write_text(data_dictionary_page(CATALOGUE))
    problems: list[str] = []
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text))
    page.on("request", lambda asked: None if asked.url.startswith(path.as_uri()) else problems.append(asked.url))
    page.goto(path.as_uri())
    yield page
    page.close()
    assert problems == []


def luminance(colour: str) -> float:
    """Relative luminance of `rgb(r, g, b)`, as WCAG defines it."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_it_fits_its_width_and_can_be_read(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    expect(page.locator(SHOWN)).to_have_count(FEATURES)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    is_dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert (luminance(background) < 0.1) == is_dark
    for selector in ("body", "main a", "dt", "header label"):
        colour = page.evaluate("name => getComputedStyle(document.querySelector(name)).color", selector)
        bright, dark = sorted((luminance(colour), luminance(background)), reverse=True)
        assert (bright + 0.05) / (dark + 0.05) >= 4.5, selector


def test_the_search_box_finds_features_and_tells_how_many(page: Page) -> None:
    box = page.get_by_label("Search features")
    for text in ("rsi_14", "momentum_features:macd_hist", "Wilder", "per cent close"):
        words = re.split(r"[\s:]+", text.lower())
        expected = sum(all(word in content for word in words) for content in CONTENTS)
        assert 0 < expected < FEATURES
        box.fill(text)
        expect(page.get_by_role("status")).to_have_text(f"{expected} feature{'' if expected == 1 else 's'}")
        expect(page.locator(SHOWN)).to_have_count(expected)
    box.fill("nothing is called so")
    expect(page.locator(SHOWN)).to_have_count(0)
    box.fill("")
    expect(page.locator(SHOWN)).to_have_count(FEATURES)


def test_an_anchor_leads_to_its_feature_whatever_is_searched(page: Page) -> None:
    page.get_by_label("Search features").fill("adjusted_close")
    page.evaluate("location.hash = 'momentum_features:macd_hist'")
    row = page.locator('[id="momentum_features:macd_hist"]')
    expect(row).to_be_in_viewport()
    expect(row.get_by_role("rowheader")).to_have_text("macd_hist")
    expect(page.locator(SHOWN)).to_have_count(FEATURES)


def test_the_keyboard_reaches_content_and_search_first(page: Page) -> None:
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_label("Search features")).to_be_focused()
