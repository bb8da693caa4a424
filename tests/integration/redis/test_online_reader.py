"""Served values: status, age in open-market time, visibility and order, on a real Redis; and what the traps T4 to T12 say of ours."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
import redis

from featurestore_dagster.errors import PointInTimeViolation
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.serving.answer import OnlineFeatures, OnlineValue, Status, ViewState
from featurestore_dagster.serving.online import judged, refuse_future
from featurestore_dagster.serving.plan import plan
from featurestore_dagster.stores.redis import RedisStore, StoredRow, layout

MakeRows = Callable[..., pl.DataFrame]

FRIDAY_CLOSE = datetime(2018, 12, 28, 21, tzinfo=UTC)
SATURDAY = datetime(2018, 12, 29, 12, tzinfo=UTC)
MONDAY_OPEN = datetime(2018, 12, 31, 14, 30, tzinfo=UTC)
VIEW = CATALOGUE.view("momentum_features")
FIRST, SECOND, *_ = VIEW.feature_names
REFERENCE = f"{VIEW.name}:{FIRST}"
INTRADAY = CATALOGUE.view("technical_indicators_view")
SERVICE = CATALOGUE.service("daily_equity_service")
SESSION = timedelta(hours=6, minutes=30)
SYMBOLS = ("AAPL", "IBM", "?")


@pytest.fixture
def filled(store: RedisStore, make_rows: MakeRows) -> RedisStore:
    row = {"symbol": "AAPL", "event_timestamp": FRIDAY_CLOSE, FIRST: 1.5, "flags": int(QualityFlag.LATE | QualityFlag.RESTATED)}
    store.write(VIEW, make_rows(VIEW, row), 1, now=SATURDAY)
    return store


def answered(
    store: RedisStore,
    features: str | Sequence[str],
    entities: Sequence[dict[str, str]],
    now: datetime = SATURDAY,
    max_age: timedelta | None = None,
) -> OnlineFeatures:
    asked = plan(CATALOGUE, features)
    return judged(asked, entities, store.read(asked.views, entities).rows, now, ["redis"] * len(asked.views), max_age)


def value_of(store: RedisStore, symbol: str = "AAPL", now: datetime = SATURDAY) -> OnlineValue:
    return answered(store, [REFERENCE], [{"symbol": symbol}], now).rows[0][REFERENCE]


def test_a_value_comes_with_unit_times_age_flags_and_tier(filled: RedisStore) -> None:
    references = [f"{VIEW.name}:{SECOND}", REFERENCE]
    known, unknown = answered(filled, references, [{"symbol": "AAPL"}, {"symbol": "?"}]).rows
    assert [value.reference for value in known] == references
    value = known[REFERENCE]
    assert (value.value, value.unit, value.status, value.tier) == (1.5, VIEW.feature(FIRST).indicator.unit, Status.PRESENT, "redis")
    assert (value.event_timestamp, value.known_at, value.age_seconds) == (FRIDAY_CLOSE, FRIDAY_CLOSE, 0.0)
    assert value.flags == ("RESTATED", "LATE")
    assert known.state(VIEW.name).flags == value.flags
    null = known[f"{VIEW.name}:{SECOND}"]
    assert (null.value, null.status, null.event_timestamp) == (None, Status.NULL_VALUE, FRIDAY_CLOSE)
    assert {(v.value, v.status, v.event_timestamp, v.age_seconds, v.flags) for v in unknown} == {(None, Status.NOT_FOUND, None, None, ())}
    assert (known.coverage, unknown.coverage) == (0.5, 0.0)
    with pytest.raises(KeyError):
        known[f"{VIEW.name}:?"]


def test_t4_the_age_stands_still_while_the_market_is_closed_and_the_value_expires_exactly_at_the_ttl(filled: RedisStore) -> None:
    def at(now: datetime) -> tuple[float | int | None, Status, float | None]:
        value = value_of(filled, now=now)
        return value.value, value.status, value.age_seconds

    assert at(MONDAY_OPEN) == (1.5, Status.PRESENT, 0.0)
    assert at(MONDAY_OPEN + timedelta(hours=1)) == (1.5, Status.PRESENT, 3600.0)
    sessions, rest = divmod(VIEW.ttl, SESSION)
    expiry = _opens(sessions) + rest
    assert at(expiry - timedelta(microseconds=1))[:2] == (1.5, Status.PRESENT)
    assert at(expiry) == (None, Status.OUTSIDE_MAX_AGE, VIEW.ttl.total_seconds())


def test_a_callers_own_bound_of_the_age_withholds_a_value_sooner(filled: RedisStore) -> None:
    bound, now = timedelta(hours=1), MONDAY_OPEN + timedelta(hours=1)
    statuses = [
        answered(filled, [REFERENCE], [{"symbol": "AAPL"}], instant, bound).rows[0].statuses[0]
        for instant in (now - timedelta(microseconds=1), now)
    ]
    assert statuses == [Status.PRESENT, Status.OUTSIDE_MAX_AGE]


def _opens(sessions: int) -> datetime:
    """Open of the session after `sessions` full ones that follow the Friday; New Year's Day and Martin Luther King Day are closed."""
    day = MONDAY_OPEN
    closed = {(2019, 1, 1), (2019, 1, 21), (2019, 2, 18)}
    while sessions:
        day += timedelta(days=1)
        if day.weekday() < 5 and (day.year, day.month, day.day) not in closed:
            sessions -= 1
    return day


def test_t5_a_late_row_that_is_older_than_the_last_sync_of_other_entities_arrives(filled: RedisStore, make_rows: MakeRows) -> None:
    late = {"symbol": "IBM", "event_timestamp": FRIDAY_CLOSE - timedelta(days=1), FIRST: 2.0}
    filled.write(VIEW, make_rows(VIEW, late), 2, now=SATURDAY)
    assert (value_of(filled, "IBM").value, value_of(filled, "IBM").status) == (2.0, Status.PRESENT)


def test_t6_a_correction_with_the_same_event_time_replaces_and_the_first_print_does_not_come_back(
    filled: RedisStore, make_rows: MakeRows
) -> None:
    corrected = {"symbol": "AAPL", "event_timestamp": FRIDAY_CLOSE, "created_timestamp": FRIDAY_CLOSE + timedelta(hours=1), FIRST: 1.25}
    filled.write(VIEW, make_rows(VIEW, corrected), 2, now=SATURDAY)
    assert (value_of(filled).value, value_of(filled).known_at) == (1.25, FRIDAY_CLOSE + timedelta(hours=1))
    first_print = {"symbol": "AAPL", "event_timestamp": FRIDAY_CLOSE, FIRST: 1.5}
    assert filled.write(VIEW, make_rows(VIEW, first_print), 3, now=SATURDAY).entities_skipped == 1
    assert value_of(filled).value == 1.25


def test_t7_a_retracted_entity_is_not_found_at_the_next_sync(filled: RedisStore, client: redis.Redis, make_rows: MakeRows) -> None:
    filled.write(VIEW, make_rows(VIEW), 2, retracted=pl.DataFrame({"symbol": ["AAPL"]}), now=SATURDAY)
    assert value_of(filled).status is Status.NOT_FOUND
    assert client.keys("*AAPL*") == []


def test_t11_a_row_dated_ahead_is_refused_and_does_not_keep_later_true_rows_out(filled: RedisStore, make_rows: MakeRows) -> None:
    ahead = {"symbol": "AAPL", "event_timestamp": FRIDAY_CLOSE + timedelta(days=300), FIRST: 9.0}
    assert filled.write(VIEW, make_rows(VIEW, ahead), 2, now=SATURDAY).entities_refused_future == 1
    true = {"symbol": "AAPL", "event_timestamp": MONDAY_OPEN, FIRST: 3.0}
    filled.write(VIEW, make_rows(VIEW, true), 3, now=MONDAY_OPEN)
    assert value_of(filled, now=MONDAY_OPEN).value == 3.0


def test_t12_an_unknown_entity_is_not_found_and_a_null_is_a_null_value(filled: RedisStore) -> None:
    rows = answered(filled, [REFERENCE, f"{VIEW.name}:{SECOND}"], [{"symbol": symbol} for symbol in ("AAPL", "?")]).rows
    assert [list(row.statuses) for row in rows] == [[Status.PRESENT, Status.NULL_VALUE], [Status.NOT_FOUND, Status.NOT_FOUND]]


def test_a_row_from_after_now_is_not_seen(filled: RedisStore, make_rows: MakeRows) -> None:
    corrected = {"symbol": "IBM", "event_timestamp": FRIDAY_CLOSE, "created_timestamp": FRIDAY_CLOSE + timedelta(hours=1), FIRST: 2.0}
    filled.write(VIEW, make_rows(VIEW, corrected), 2, now=SATURDAY)
    assert value_of(filled, "AAPL", FRIDAY_CLOSE - timedelta(microseconds=1)).status is Status.NOT_FOUND
    assert value_of(filled, "AAPL", FRIDAY_CLOSE).status is Status.PRESENT
    before = value_of(filled, "IBM", FRIDAY_CLOSE + timedelta(minutes=59))
    assert (before.status, before.value, before.event_timestamp) == (Status.NOT_FOUND, None, None)
    assert value_of(filled, "IBM", FRIDAY_CLOSE + timedelta(hours=1)).status is Status.PRESENT


@pytest.mark.parametrize("state", [ViewState("raw", 2_000_001, 0, 0), ViewState("raw", 0, 2_000_001, 0)], ids=["event time", "known-at"])
def test_an_answer_from_the_future_is_a_violation(state: ViewState) -> None:
    as_of = datetime(1970, 1, 1, 0, 0, 2, tzinfo=UTC)
    refuse_future([ViewState("redis"), ViewState("redis", 2_000_000, 2_000_000, 0)], as_of)
    with pytest.raises(PointInTimeViolation, match=r"raw gave a row whose .* is 1e-06 s after 1970-01-01T00:00:02"):
        refuse_future([state], as_of)


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
    answer = answered(store, [f"{INTRADAY.name}:{feature}"], entities, now)
    assert [row.values[0].age_seconds for row in answer.rows] == [3600.0, 36000.0]


def test_a_service_answers_in_its_canonical_order_as_json_and_as_a_frame(filled: RedisStore) -> None:
    entity = {"symbol": "AAPL", "timeframe": "1d", "portfolio": "GLOBAL", "comment": "ignored"}
    answer = answered(filled, SERVICE.name, [entity])
    references = [f"{view.name}:{feature.name}" for view, feature in SERVICE.references]
    text = json.loads(json.dumps(answer.to_dict()))
    (row,) = text["rows"]
    assert list(row["features"]) == references
    assert row["entity"] == entity
    assert row["features"][REFERENCE] == {
        "value": 1.5,
        "unit": VIEW.feature(FIRST).indicator.unit.value,
        "status": "PRESENT",
        "event_timestamp": "2018-12-28T21:00:00+00:00",
        "known_at": "2018-12-28T21:00:00+00:00",
        "age_seconds": 0.0,
        "flags": ["RESTATED", "LATE"],
        "tier": "redis",
    }
    assert text["as_of"] == SATURDAY.isoformat()
    frame = answer.to_polars()
    assert frame.columns == [*answer.plan.join_keys, "event_timestamp", *(reference.replace(":", "__") for reference in references)]
    (values,) = frame.rows(named=True)
    assert (values["symbol"], values["event_timestamp"], values[REFERENCE.replace(":", "__")]) == ("AAPL", SATURDAY, 1.5)
    assert set(frame.dtypes) <= {pl.String(), pl.Datetime("us", "UTC"), pl.Float64(), pl.Int64()}


def test_a_mixed_order_and_a_row_that_holds_all_give_each_value_its_own_place(store: RedisStore, make_rows: MakeRows) -> None:
    for view in (VIEW, INTRADAY):
        values = {name: float(number) for number, name in enumerate(view.feature_names)}
        rows = ({"symbol": symbol, "event_timestamp": FRIDAY_CLOSE} | values for symbol in SYMBOLS[:2])
        store.write(view, make_rows(view, *rows), 1, now=SATURDAY)
    positions = [(INTRADAY, 3), (VIEW, 2), (INTRADAY, 0), (VIEW, 0), (VIEW, 2)]
    references = [f"{view.name}:{view.feature_names[position]}" for view, position in positions]
    for _ in range(2):  # the second time, headers are known
        rows = answered(store, references, [{"symbol": symbol, "timeframe": "1d"} for symbol in SYMBOLS]).rows
        assert [list(row.numbers) for row in rows] == [[float(position) for _, position in positions]] * 2 + [[None] * 5]
        assert [set(row.statuses) for row in rows] == [{Status.PRESENT}, {Status.PRESENT}, {Status.NOT_FOUND}]


def test_bars_are_coherent_when_all_views_of_a_stream_have_the_bar_of_its_epoch_or_an_older_one(
    store: RedisStore, make_rows: MakeRows
) -> None:
    other = CATALOGUE.view("daily_ohlcv_stats")
    requests, entities = plan(CATALOGUE, [REFERENCE, f"{other.name}:{other.feature_names[0]}"]).views, [{"symbol": "AAPL"}]
    stream = VIEW.streams[0].name

    def write(view: object, event: datetime) -> None:
        store.write(view, make_rows(view, {"symbol": "AAPL", "event_timestamp": event}), 1, now=MONDAY_OPEN)  # type: ignore[arg-type]

    def incoherent() -> set[int]:
        return store.read(requests, entities, coherent=True).incoherent()

    assert incoherent() == set()
    for view in (VIEW, other):
        write(view, FRIDAY_CLOSE)
    assert incoherent() == {0, 1}
    store.advance_epoch(stream, FRIDAY_CLOSE)
    assert incoherent() == set()
    write(VIEW, MONDAY_OPEN)
    assert incoherent() == {0, 1}
    store.advance_epoch(stream, MONDAY_OPEN)
    assert incoherent() == {0, 1}
    write(other, MONDAY_OPEN)
    assert incoherent() == set()
    store.advance_epoch(stream, FRIDAY_CLOSE)
    assert incoherent() == set()


def test_rows_packed_under_another_declaration_are_read_from_feasts_fields(
    store: RedisStore, client: redis.Redis, make_rows: MakeRows
) -> None:
    older = replace(VIEW, features=VIEW.features[1:])
    for view in (VIEW, older):
        values = {name: float(number) for number, name in enumerate(VIEW.feature_names)}
        row = {"symbol": "AAPL", "event_timestamp": FRIDAY_CLOSE, "created_timestamp": SATURDAY, "flags": 2}
        schema = make_rows(VIEW, row | values).select(pl.exclude(FIRST) if view is older else pl.all())
        store.write(view, schema, 1, now=SATURDAY)
    (key,) = layout.entity_keys("featurestore", {"symbol": ["AAPL"]})
    client.hdel(key, layout.feature_field(VIEW.name, FIRST))
    (row,) = answered(store, [REFERENCE, f"{VIEW.name}:{SECOND}"], [{"symbol": "AAPL"}]).rows
    assert list(row.statuses) == [Status.NOT_FOUND, Status.PRESENT]
    assert (row.numbers[1], row.states[0].known_at, row.states[0].flag_bits) == (1.0, SATURDAY, 2)


def test_no_entity_rows_no_answer(filled: RedisStore) -> None:
    assert answered(filled, [REFERENCE], []).rows == ()


def test_a_row_of_an_undeclared_stream_ages_as_the_views_first() -> None:
    asked = plan(CATALOGUE, [REFERENCE])
    event = int(FRIDAY_CLOSE.timestamp()) * 1_000_000
    rows = [[StoredRow(event, event, 0, None, (1.0,))]]
    (row,) = judged(asked, [{"symbol": "AAPL"}], rows, MONDAY_OPEN + timedelta(hours=1), ["postgres"]).rows
    assert (row.numbers, row.states[0].age_seconds, row.states[0].tier) == ([1.0], 3600.0, "postgres")
