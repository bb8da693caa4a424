"""`/status` of a real server in a browser: behind its key, readable in light and dark, wide and narrow, by sight and by role."""

import re
from collections.abc import Iterator
from datetime import timedelta

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.e2e.test_data_dictionary_page import luminance
from tests.integration.http.conftest import HttpServer, serving
from tests.integration.serving.conftest import NOW, Served, deployed, served

__all__ = ["deployed", "served"]

KEY = "a key with spaces and ü"
LATE = NOW + timedelta(days=2, hours=4)
"""After the close of the next session: the published views are overdue."""


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(deployed: Served) -> Iterator[HttpServer]:
    """With a key; a partition is blocked, and two views are late."""
    with deployed.store_connection() as connection:
        connection.execute(
            "insert into ops.quality_log (relation, partition_key, outcome, checks, flags, run_id, logged_at) values"
            " ('raw.fx_candles_1h', '2018-12-31', 'blocked', %s, '{}', 'r', now())",
            ['[{"check": "empty_partition", "rows": 0, "blocking": true, "examples": ["the session was open"]}]'],
        )
    settings = deployed.settings.model_copy(update={"clock": LATE.isoformat()})
    # The listings of the samples end with 2018: nothing would be owed.
    with serving(settings, FEATURESTORE_SOURCES="files", FEATURESTORE_SERVE_API_KEY=KEY, FEATURESTORE_SERVE_WORKERS="1") as running:
        yield running


@pytest.fixture(params=[("light", 1400), ("light", 400), ("dark", 1400)], ids=lambda case: f"{case[0]}-{case[1]}")
def page(request: pytest.FixtureRequest, browser: Browser, server: HttpServer) -> Iterator[Page]:
    """The page after log-in; an error, or a request for anything else, fails the test."""
    scheme, width = request.param
    problems: list[str] = []
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, http_credentials={"username": "anybody", "password": KEY}
    )
    page = context.new_page()
    page.on("console", lambda message: problems.append(message.text))
    page.on("request", lambda asked: None if asked.url == f"{server.url}/status" else problems.append(asked.url))
    answer = page.goto(f"{server.url}/status")
    assert answer is not None
    assert answer.status == 200
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    yield page
    context.close()
    assert problems == []


def test_it_fits_and_can_be_read(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    is_dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert (luminance(page.evaluate("getComputedStyle(document.body).backgroundColor")) < 0.1) == is_dark
    pairs = page.evaluate(
        """[...document.querySelectorAll('h1, .verdict, .badge, .quiet, caption, thead th, td, a')].map(found => {
             let behind = found;
             const clear = () => getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)";
             while (clear() && behind !== document.body) behind = behind.parentElement;
             return [found.className || found.tagName, getComputedStyle(found).color, getComputedStyle(behind).backgroundColor]; })"""
    )
    assert len(pairs) > 20
    for name, colour, background in pairs:
        bright, dark = sorted((luminance(colour), luminance(background)), reverse=True)
        assert (bright + 0.05) / (dark + 0.05) >= 4.5, (name, colour, background)


def test_it_tells_states_due_times_delays_blocks_and_who_is_behind(page: Page) -> None:
    expect(page.get_by_role("heading", level=1)).to_have_text("Feature store")
    expect(page.locator(".verdict")).to_contain_text("behind their SLO, 1 partition is blocked")
    views = page.get_by_role("table").filter(has=page.locator("caption", has_text="Each stream"))
    row = views.get_by_role("row").filter(has=page.get_by_role("rowheader", name=re.compile("^daily_ohlcv_stats")))
    expect(row).to_contain_text(re.compile("LATE|STALE"))
    expect(row).to_contain_text("overdue for")
    expect(row.locator("time").first).to_have_text("2018-12-31 21:00")
    expect(row.get_by_role("img", name=re.compile("daily_ohlcv_stats, us_equity_1d: from event to publication, the last"))).to_be_visible()
    expect(views.get_by_role("row").filter(has_text="NEVER").first).to_contain_text("no publication")
    expect(page.get_by_role("region", name="Furthest behind")).to_contain_text("EURUSD: NEVER, newest never")
    expect(page.get_by_role("region", name="Blocked partitions")).to_contain_text("empty_partition (0 rows): the session was open")


def test_landmarks_headings_and_keyboard(page: Page) -> None:
    for role in ("banner", "main", "contentinfo", "navigation"):
        expect(page.get_by_role(role)).to_have_count(1)  # type: ignore[arg-type]
    assert page.evaluate("[...document.querySelectorAll('table')].every(table => table.caption && table.querySelector('th[scope=col]'))")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("region", name="Views")).to_be_focused()


def test_without_the_key_the_browser_asks_for_it(server: HttpServer) -> None:
    with server.client() as client:
        refused = client.get("/status")
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"].startswith('Basic realm="featurestore"')
        assert client.get("/v1/views").headers["www-authenticate"] == "Bearer"
        for password, status in ((KEY, 200), ("wrong", 401), ("", 401)):
            assert client.get("/status", auth=("anybody", password)).status_code == status
        assert client.get("/status", headers={"authorization": "Basic %%%"}).status_code == 401
        assert client.get("/status", headers={"x-api-key": KEY.encode()}).status_code == 200
