"""Served values: status, age in open-market time, visibility, order and refusals, on a real Redis."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from featurestore_dagster.errors import MalformedDataError, StoreUnavailableError, UnknownNameError
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.model.time import FrozenClock
from featurestore_dagster.model.units import Unit
from featurestore_dagster.serving.online import OnlineReader, Status
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.redis import RedisStore

MakeRows = Callable[..., pl.DataFrame]

FRIDAY_CLOSE = datetime(2018, 12, 28, 21, tzinfo=UTC)
SATURDAY = datetime(2018, 12, 29, 12, tzinfo=UTC)
MONDAY_OPEN = datetime(2018, 12, 31, 14, 30, tzinfo=UTC)
VIEW = CATALOGUE.view("momentum_features")
FIRST, SECOND, *_ = VIEW.feature_names
INTRADAY = CATALOGUE.view("technical_indicators_view")
SERVICE = CATALOGUE.service("daily_equity_service")
SESSION = timedelta(hours=6, minutes=30)


@pytest.fixture
def reader(store: RedisStore, make_rows: MakeRows) -> OnlineReader:
    row = {"symbol": "AAPL", "event_timestamp": FRIDAY_CLOSE, FIRST: 1.5, "flags": int(QualityFlag.LATE | QualityFlag.RESTATED)}
    store.write(VIEW, make_rows(VIEW, row), 1, now=SATURDAY)
    return OnlineReader(store, CATALOGUE, FrozenClock(SATURDAY))


def test_a_value_comes_with_unit_times_age_flags_and_tier(reader: OnlineReader) -> None:
    answer = reader.get_online_features([f"{VIEW.name}:{SECOND}", f"{VIEW.name}:{FIRST}"], [{"symbol": "AAPL"}, {"symbol": "?"}])
    known, unknown = answer.rows
    assert [value.reference for value in known.values] == [f"{VIEW.name}:{SECOND}", f"{VIEW.name}:{FIRST}"]
    value = known[f"{VIEW.name}:{FIRST}"]
    assert (value.value, value.unit, value.status, value.tier) == (1.5, VIEW.feature(FIRST).indicator.unit, Status.PRESENT, "redis")
    assert (value.event_timestamp, value.known_at, value.age_seconds) == (FRIDAY_CLOSE, FRIDAY_CLOSE, 0.0)
    assert value.flags == ("RESTATED", "LATE")
    null = known[f"{VIEW.name}:{SECOND}"]
    assert (null.value, null.status, null.event_timestamp) == (None, Status.NULL_VALUE, FRIDAY_CLOSE)
    assert {(v.value, v.status, v.event_timestamp, v.age_seconds, v.flags) for v in unknown.values} == {
        (None, Status.NOT_FOUND, None, None, ())
    }
    assert isinstance(value.unit, Unit)


def test_the_age_stands_still_while_the_market_is_closed_and_the_value_expires_exactly_at_the_ttl(reader: OnlineReader) -> None:
    reference = f"{VIEW.name}:{FIRST}"

    def at(now: datetime) -> tuple[float | int | None, Status, float | None]:
        value = reader.get_online_features([reference], [{"symbol": "AAPL"}], now=now).rows[0][reference]
        return value.value, value.status, value.age_seconds

    assert at(MONDAY_OPEN) == (1.5, Status.PRESENT, 0.0)
    assert at(MONDAY_OPEN + timedelta(hours=1)) == (1.5, Status.PRESENT, 3600.0)
    sessions, rest = divmod(VIEW.ttl, SESSION)
    session_opens = _opens(sessions)
    expiry = session_opens + rest
    assert at(expiry - timedelta(microseconds=1))[:2] == (1.5, Status.PRESENT)
    assert at(expiry) == (None, Status.OUTSIDE_MAX_AGE, VIEW.ttl.total_seconds())


def _opens(sessions: int) -> datetime:
    """Open of the session after `sessions` full ones that follow the Friday; New Year's Day and Martin Luther King Day are closed."""
    day = MONDAY_OPEN
    closed = {(2019, 1, 1), (2019, 1, 21), (2019, 2, 18)}
    while sessions:
        day += timedelta(days=1)
        if day.weekday() < 5 and (day.year, day.month, day.day) not in closed:
            sessions -= 1
    return day


def test_a_row_from_after_now_is_not_seen(reader: OnlineReader, store: RedisStore, make_rows: MakeRows) -> None:
    reference = f"{VIEW.name}:{FIRST}"
    corrected = {"symbol": "IBM", "event_timestamp": FRIDAY_CLOSE, "created_timestamp": FRIDAY_CLOSE + timedelta(hours=1), FIRST: 2.0}
    store.write(VIEW, make_rows(VIEW, corrected), 2, now=SATURDAY)

    def status(symbol: str, now: datetime) -> Status:
        return reader.get_online_features([reference], [{"symbol": symbol}], now=now).rows[0][reference].status

    assert status("AAPL", FRIDAY_CLOSE - timedelta(microseconds=1)) is Status.NOT_FOUND
    assert status("AAPL", FRIDAY_CLOSE) is Status.PRESENT
    assert status("IBM", FRIDAY_CLOSE + timedelta(minutes=59)) is Status.NOT_FOUND
    assert status("IBM", FRIDAY_CLOSE + timedelta(hours=1)) is Status.PRESENT


def test_the_age_is_counted_by_the_calendar_of_the_stream_that_wrote_the_row(store: RedisStore, make_rows: MakeRows) -> None:
    event = datetime(2018, 12, 27, 20, tzinfo=UTC)
    feature = INTRADAY.feature_names[0]
    rows = make_rows(
        INTRADAY,
        {"symbol": "AAPL", "timeframe": "1d", "event_timestamp": event, feature: 1.0, "stream": "us_equity_1d"},
        {"symbol": "EURUSD", "timeframe": "1h", "event_timestamp": event, feature: 1.0, "stream": "fx_1h"},
    )
    now = event + timedelta(hours=10)
    store.write(INTRADAY, rows, 1, now=now)
    entities = [{"symbol": "AAPL", "timeframe": "1d"}, {"symbol": "EURUSD", "timeframe": "1h"}]
    answer = OnlineReader(store, CATALOGUE, FrozenClock(now)).get_online_features([f"{INTRADAY.name}:{feature}"], entities)
    assert [row.values[0].age_seconds for row in answer.rows] == [3600.0, 36000.0]


def test_a_service_answers_in_its_canonical_order_as_json(reader: OnlineReader) -> None:
    entity = {"symbol": "AAPL", "timeframe": "1d", "portfolio": "GLOBAL", "comment": "ignored"}
    answer = json.loads(json.dumps(reader.get_online_features(SERVICE.name, [entity]).to_dict()))
    (row,) = answer["rows"]
    assert list(row["features"]) == [f"{view.name}:{feature.name}" for view, feature in SERVICE.references]
    assert row["entity"] == entity
    assert row["features"][f"{VIEW.name}:{FIRST}"] == {
        "value": 1.5,
        "unit": VIEW.feature(FIRST).indicator.unit.value,
        "status": "PRESENT",
        "event_timestamp": "2018-12-28T21:00:00+00:00",
        "known_at": "2018-12-28T21:00:00+00:00",
        "age_seconds": 0.0,
        "flags": ["RESTATED", "LATE"],
        "tier": "redis",
    }
    assert answer["as_of"] == SATURDAY.isoformat()


@pytest.mark.parametrize(
    ("entity", "complaint"), [({"ticker": "AAPL"}, "entity row 1 lacks join key 'symbol'"), ({"symbol": 7}, "entity row 1 has symbol=7")]
)
def test_an_incomplete_entity_row_is_refused_by_name(reader: OnlineReader, entity: dict[str, str], complaint: str) -> None:
    with pytest.raises(MalformedDataError, match=complaint):
        reader.get_online_features([f"{VIEW.name}:{FIRST}"], [{"symbol": "AAPL"}, entity])


@pytest.mark.parametrize("features", ["no_service", ["no_view:rsi"], [f"{VIEW.name}:no_feature"], [FIRST]])
def test_an_unknown_name_is_refused(reader: OnlineReader, features: str | list[str]) -> None:
    with pytest.raises(UnknownNameError):
        reader.get_online_features(features, [{"symbol": "AAPL"}])


def test_an_unreachable_redis_is_a_transient_error(settings: Settings) -> None:
    store = RedisStore(settings.redis.model_copy(update={"host": "127.0.0.1", "port": 1}), "featurestore")
    with pytest.raises(StoreUnavailableError, match="Redis at 127"):
        OnlineReader(store, CATALOGUE, FrozenClock(SATURDAY)).get_online_features([f"{VIEW.name}:{FIRST}"], [{"symbol": "AAPL"}])


def test_no_entity_rows_no_answer(reader: OnlineReader) -> None:
    assert reader.get_online_features([f"{VIEW.name}:{FIRST}"], []).rows == ()
