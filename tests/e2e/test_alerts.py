"""A stale view as an operator meets it: its check turns red, one message comes, the mend turns it green, one resolution comes."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.e2e.conftest import Installation, running, wait_for
from tests.e2e.test_ui import QUIET, WAIT_MILLISECONDS, _switch_on
from tests.receivers import webhook

NIGHT = "2018-12-31T23:30:00Z"
"""Half an hour after Monday's close was due."""

TICKS_SECONDS = 300
"""A tick comes each minute; a loaded machine has other things to do as well."""


def _expect_check(page: Page, ui: str, outcome: str) -> None:
    page.goto(f"{ui}/assets/daily_ohlcv_stats_us_equity_1d?view=checks&checkDetail=data_freshness")
    expect(page.get_by_text(outcome, exact=True).first).to_be_visible()


@pytest.mark.timeout(1200)
def test_a_stale_view_is_red_and_told_once_and_its_mend_too(chromium: str, tmp_path: Path) -> None:
    with webhook() as hook, sync_playwright() as playwright:
        installation = Installation(tmp_path / "data", {"FEATURESTORE_CLOCK": NIGHT, "FEATURESTORE_ALERT_URLS": hook.url})

        def publish(session: str) -> None:
            done = installation.run("materialize", session, session, "--calendar", "XNYS")
            assert done.returncode == 0, done.stdout + done.stderr

        def told(event: str) -> list[str]:
            return [m["message"] for m in hook.taken if m["title"] == f"[{event}] daily_ohlcv_stats is overdue"]

        publish("2018-12-28")
        with running(installation) as (_, ui):
            page = playwright.chromium.launch(executable_path=chromium, args=QUIET).new_page(viewport={"width": 1500, "height": 1100})
            page.set_default_timeout(WAIT_MILLISECONDS)
            expect.set_options(timeout=WAIT_MILLISECONDS)
            for sensor in ("data_freshness_sensor", "alert_sensor"):
                _switch_on(page, ui, sensor)
            (message,) = wait_for(lambda: told("OPENED"), TICKS_SECONDS, lambda: hook.taken)
            assert "daily_ohlcv_stats/us_equity_1d is LATE: due 2018-12-31 23:00Z" in message
            _expect_check(page, ui, "Failed")
            publish("2018-12-31")
            wait_for(lambda: told("RESOLVED"), TICKS_SECONDS, lambda: hook.taken)
            _expect_check(page, ui, "Passed")
            assert (len(told("OPENED")), len(told("RESOLVED"))) == (1, 1)
