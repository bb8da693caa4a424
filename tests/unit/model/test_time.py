"""Clocks, anchors and schedules."""

from datetime import UTC, datetime, timedelta

import pytest

from featurestore_dagster.model.entity import parse_entity_id
from featurestore_dagster.model.time import FrozenClock, SystemClock, Timeframe, cron_complaint, parse_clock

WEDNESDAY = datetime(2018, 12, 5, 17, 42, 3, 7, tzinfo=UTC)


@pytest.mark.parametrize("text", ["* * * * *", "15 16 * * 1-5", "*/15 13-18 * * 1-5", "0,30 9-16/2 1 1,7 0", "2 * * * 7", "5/10 * * * *"])
def test_a_cron_expression_that_can_be_scheduled(text: str) -> None:
    assert cron_complaint(text) is None


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "not a five-field"),
        ("* * * *", "not a five-field"),
        ("* * * * * *", "not a five-field"),
        ("60 * * * *", "minute '60' is not within 0-59"),
        ("* 24 * * *", "hour '24'"),
        ("* * 0 * *", "day of month '0'"),
        ("* * * 13 *", "month '13'"),
        ("* * * * 8", "day of week '8'"),
        ("* * * * 5-1", "day of week '5-1'"),
        ("*/0 * * * *", "minute '[*]/0'"),
        ("1,, * * * *", "minute ''"),
        ("a day at four pm", "minute 'a'"),
        ("* * * * MON", "day of week 'MON'"),
        ("-1 * * * *", "minute '-1'"),
    ],
)
def test_a_cron_expression_that_cannot(text: str, complaint: str) -> None:
    found = cron_complaint(text)
    assert found is not None
    assert complaint.replace("[*]", "*") in found
    assert repr(text) in found


@pytest.mark.parametrize(
    ("timeframe", "anchor"),
    [
        (Timeframe.ONE_DAY, datetime(2018, 1, 1, tzinfo=UTC)),
        (Timeframe.FOUR_HOURS, datetime(2018, 12, 1, tzinfo=UTC)),
        (Timeframe.ONE_HOUR, datetime(2018, 12, 1, tzinfo=UTC)),
        (Timeframe.FIFTEEN_MINUTES, datetime(2018, 12, 3, tzinfo=UTC)),
        (Timeframe.FIVE_MINUTES, datetime(2018, 12, 3, tzinfo=UTC)),
        (Timeframe.ONE_MINUTE, datetime(2018, 12, 5, tzinfo=UTC)),
    ],
)
def test_a_chunk_starts_where_its_calendar_unit_does(timeframe: Timeframe, anchor: datetime) -> None:
    assert timeframe.anchor(WEDNESDAY) == anchor
    assert timeframe.anchor(anchor) == anchor
    assert timeframe.anchor(anchor - timedelta(microseconds=1)) < anchor


def test_clocks() -> None:
    assert parse_clock(None) == SystemClock()
    assert parse_clock("").replayed is None
    assert parse_clock("2018-12-31T22:00:00Z") == FrozenClock(datetime(2018, 12, 31, 22, tzinfo=UTC))
    assert parse_clock("2018-12-31T17:00:00-05:00").now() == datetime(2018, 12, 31, 22, tzinfo=UTC)
    assert parse_clock("-P1000DT2H30M") == SystemClock(-timedelta(days=1000, hours=2, minutes=30))
    shifted = parse_clock("-P1000D")
    assert timedelta(days=999) < SystemClock().now() - shifted.now() < timedelta(days=1001)
    assert "1000 days" in (shifted.replayed or "")


@pytest.mark.parametrize("text", ["yesterday", "2018-12-31T22:00:00", "2018-12-31", "P", "-PT", "1000"])
def test_a_clock_that_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="allowed: an instant with zone"):
        parse_clock(text)


def test_entity_ids_are_split_at_their_last_underscore() -> None:
    assert parse_entity_id("BTCUSDT_1h") == ("BTCUSDT", "1h")
    assert parse_entity_id("BRK_B_1d") == ("BRK_B", "1d")
    for text in ("BTCUSDT", "_1h", "BTCUSDT_", "BTCUSDT_2h", ""):
        assert parse_entity_id(text) == (text, None)
