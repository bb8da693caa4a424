"""What a person reads."""

import socket
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from featurestore_dagster.model.alert import Alert, AlertEvent, AlertKind, AlertState, Message, Problem
from featurestore_dagster.model.time import duration
from featurestore_dagster.monitoring.messages import Links, body, title
from featurestore_dagster.settings import ANY_ADDRESS, Settings

DUE = datetime(2018, 12, 31, 23, tzinfo=UTC)
NOW = DUE + timedelta(hours=26, minutes=30)
PROBLEM = Problem(
    AlertKind.VIEW_OVERDUE,
    "momentum_features",
    "momentum_features/us_equity_1d",
    DUE,
    "momentum_features/us_equity_1d is LATE: due 2018-12-31 23:00Z, lag 1 h",
    "partition 2018-12-31 of raw.us_equity_candles_1d is blocked by row_count (3 rows)",
    "/assets/momentum_features_us_equity_1d",
    {"due": "2018-12-31 23:00Z", "worst": ["SPX: LATE, newest 2018-12-28", "IXIC: LATE, newest 2018-12-28"]},
)
ALERT = Alert(17, PROBLEM, AlertState.OPEN, DUE, DUE)
LINKS = Links("https://dagster.example.com", "https://example.com/alerts", None)


def test_an_opening_names_view_due_time_symbols_cause_links_and_key() -> None:
    message = Message(AlertEvent.OPENED, (ALERT,))
    assert title(message) == "[OPENED] momentum_features is overdue"
    assert body(message, LINKS, NOW).splitlines() == [
        "momentum_features/us_equity_1d is LATE: due 2018-12-31 23:00Z, lag 1 h",
        "likely cause: partition 2018-12-31 of raw.us_equity_candles_1d is blocked by row_count (3 rows)",
        "due: 2018-12-31 23:00Z",
        "worst:",
        "- SPX: LATE, newest 2018-12-28",
        "- IXIC: LATE, newest 2018-12-28",
        "Dagster: https://dagster.example.com/assets/momentum_features_us_equity_1d",
        "",
        "runbook: https://example.com/alerts/view-overdue.md",
        "message key: 17-opened",
    ]


def test_a_resolution_says_how_long_it_was_wrong() -> None:
    text = body(Message(AlertEvent.RESOLVED, (ALERT,)), LINKS, NOW)
    assert text.splitlines()[0].startswith("momentum_features/us_equity_1d is well again at 2019-01-02 01:30Z, after 1 d 2 h 30 min;")
    assert "message key: 17-resolved" in text


def test_a_resolution_by_a_clock_that_was_set_back_says_so() -> None:
    text = body(Message(AlertEvent.RESOLVED, (ALERT,)), LINKS, DUE - timedelta(days=2))
    assert "well again at 2018-12-29 23:00Z, before it began at 2018-12-31 23:00Z: the clock was set back; it was:" in text


def test_a_flood_is_one_message_that_says_how_much_more_there_is() -> None:
    many = tuple(replace(ALERT, alert_id=number) for number in range(25))
    message = Message(AlertEvent.OPENED, many)
    assert title(message).endswith("(25)")
    text = body(message, LINKS, NOW)
    assert text.count("likely cause") == 10
    assert "and 15 more" in text


def test_without_configured_links_the_ui_and_the_repository_are_named() -> None:
    links = Links.of(Settings(webserver_port=3123, clock="2018-12-31T22:00:00Z"))
    text = body(Message(AlertEvent.OPENED, (ALERT,)), links, NOW)
    assert "Dagster: http://127.0.0.1:3123/assets/" in text
    assert "runbook: docs/how-to/alerts/view-overdue.md" in text
    assert "clock: replay clock: 2018-12-31T22:00:00+00:00" in text
    assert [Links.of(Settings(webserver_host=host)).dagster for host in ANY_ADDRESS] == [f"http://{socket.gethostname()}:3000"] * 2


def test_durations_are_told_to_the_minute() -> None:
    assert [duration(timedelta(seconds=s)) for s in (0, 59, 60, 3600, 90_060)] == [
        "under a minute",
        "under a minute",
        "1 min",
        "1 h",
        "1 d 1 h 1 min",
    ]
