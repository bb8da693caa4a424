"""The real Dagster UI in headless Chromium, on the process tree of `featurestore up`."""

import json
import re
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.e2e.conftest import Installation, running, wait_for

WAIT_MILLISECONDS = 90_000
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
MAPPING = """columns: {date: event_timestamp, ticker: symbol, o: open, h: high, l: low, c: close, v: volume}
constants: {timeframe: 1d}
timestamp_unit: iso
timezone: America/New_York
label: session
"""
HEADER = "date,ticker,o,h,l,c,v\n"
SESSION = "2018-12-28"
BAD = HEADER + f"{SESSION},SPX,2498.77,2400.00,2472.89,2485.74,3702620000\n{SESSION},IXIC,6573.49,6639.00,-5.0,6584.52,2468950000\n"
MENDED = HEADER + f"{SESSION},SPX,2498.77,2520.27,2472.89,2485.00,3702620000\n{SESSION},IXIC,6573.49,6639.00,6527.42,6584.52,2468950000\n"


def _graphql(address: str, query: str) -> Any:
    request = urllib.request.Request(
        f"{address}/graphql", data=json.dumps({"query": query}).encode(), headers={"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)["data"]


def _runs(address: str) -> list[dict[str, Any]]:
    data = _graphql(address, "{runsOrError(limit: 20) {... on Runs {results {runId status tags {key value}}}}}")
    return [run | {"tags": {tag["key"]: tag["value"] for tag in run["tags"]}} for run in data["runsOrError"]["results"]]


@pytest.fixture(scope="module")
def ui(installation: Installation) -> Iterator[str]:
    with running(installation) as (_, address):
        yield address


@pytest.fixture
def page(ui: str, chromium: str) -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=QUIET)
        page = browser.new_page(viewport={"width": 1500, "height": 1100})
        page.set_default_timeout(WAIT_MILLISECONDS)
        expect.set_options(timeout=WAIT_MILLISECONDS)
        yield page
        browser.close()


def test_graph_has_its_groups(page: Page, ui: str) -> None:
    page.goto(f"{ui}/asset-groups")
    for group in ("raw", "indicators", "macro", "events", "training", "online"):
        expect(page.get_by_text(group, exact=True).first).to_be_visible()


def test_asset_page_explains_itself(page: Page, ui: str) -> None:
    page.goto(f"{ui}/assets/momentum_features_us_equity_1d?view=overview")
    for text in ("Where the price stands against its own past", "market-data", "Polars", "Freshness policy", "trend_strength", "xnys_path"):
        expect(page.get_by_text(text).first).to_be_visible()
    page.goto(f"{ui}/assets/momentum_features_us_equity_1d?view=partitions&partition={SESSION}")
    expect(page.get_by_text(re.compile("content_hash|nothing new")).first).to_be_visible()


def _switch_on(page: Page, ui: str, name: str) -> None:
    page.goto(f"{ui}/automation")
    expect(page.get_by_text(name).first).to_be_visible()
    row = page.locator(f"xpath=//*[text()='{name}']/ancestor::div[count(.//input[@type='checkbox'])=2][1]")
    switch = row.locator("input[type=checkbox]").last
    row.locator("label").last.click()
    expect(switch).to_be_checked()


def _drop(installation: Installation, name: str, text: str) -> None:
    folder = installation.folder / "drop" / "us_equity_candles_1d"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mapping.yaml").write_text(MAPPING)
    (folder / name).write_text(text)
    (folder / f"{name}.done").touch()


def _run_of_file(ui: str, name: str) -> dict[str, Any]:
    ended = {"SUCCESS", "FAILURE", "CANCELED"}
    return wait_for(
        lambda: next((r for r in _runs(ui) if r["tags"].get("file") == name and r["status"] in ended), None), 180, lambda: _runs(ui)
    )


def test_bad_file_blocks_its_partition_and_the_last_good_values_stay(page: Page, ui: str, installation: Installation) -> None:
    reference = "technical_indicators_view:rsi_14"
    good = installation.json("get", reference, "--symbol", "SPX", "--as-of", f"{SESSION}T22:00:00Z")
    _switch_on(page, ui, "file_drop_sensor")
    _drop(installation, "bad.csv", BAD)
    failed = _run_of_file(ui, "bad.csv")
    assert failed["status"] == "FAILURE"

    page.goto(f"{ui}/assets/raw/us_equity_candles_1d?view=partitions&partition={SESSION}")
    expect(page.get_by_text("failed, and did not materialize this asset")).to_be_visible()
    page.goto(f"{ui}/assets/raw/us_equity_candles_1d?view=checks&checkDetail=audit")
    expect(page.get_by_text("Failed", exact=True).first).to_be_visible()
    page.goto(f"{ui}/runs/{failed['runId']}")
    expect(page.get_by_text("ohlc_order: high below open or close").first).to_be_visible()
    listed = installation.json("quarantine", "list")
    assert {(row["partition"], "mostly_quarantined" in row["checks"]) for row in listed["blocked"]} == {(SESSION, True)}
    assert len(listed["rows"]) == 2
    assert installation.json("get", reference, "--symbol", "SPX", "--as-of", f"{SESSION}T22:00:00Z") == good

    _drop(installation, "mended.csv", MENDED)
    assert _run_of_file(ui, "mended.csv")["status"] == "SUCCESS"
    listed = installation.json("quarantine", "list")
    assert (listed["blocked"], listed["rows"]) == ([], [])


def test_backfill_is_launched_from_the_ui(page: Page, ui: str) -> None:
    before = {run["runId"] for run in _runs(ui)}
    page.goto(f"{ui}/assets/momentum_features_us_equity_1d?view=overview")
    page.get_by_role("button", name=re.compile("Materialize")).first.click()
    box = page.get_by_role("dialog").locator("input[type=text]").first
    box.fill("[2018-11-05...2018-11-09]")
    box.press("Enter")
    page.get_by_role("dialog").get_by_role("button", name=re.compile("Launch")).last.click()

    def launched() -> dict[str, Any] | None:
        new = (run for run in _runs(ui) if run["runId"] not in before and "dagster/backfill" in run["tags"])
        return next((run for run in new if run["status"] in {"SUCCESS", "FAILURE"}), None)

    run = wait_for(launched, 240, lambda: _runs(ui))
    assert run["status"] == "SUCCESS"
    tags = run["tags"]
    assert (tags["dagster/asset_partition_range_start"], tags["dagster/asset_partition_range_end"]) == ("2018-11-05", "2018-11-09")
