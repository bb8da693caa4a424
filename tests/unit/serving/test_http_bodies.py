"""What the HTTP server takes, refuses and answers, without a server."""

import asyncio
import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import orjson
import polars as pl
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from featurestore_dagster.errors import (
    ConfigurationError,
    MalformedDataError,
    PointInTimeViolation,
    RefusedError,
    StoreUnavailableError,
    UnknownNameError,
)
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS
from featurestore_dagster.serving.answer import OnlineFeatures, OnlineRow, Status, ViewState
from featurestore_dagster.serving.http import feast_protocol, history, online, uploads
from featurestore_dagster.serving.http.answers import HttpError, failure
from featurestore_dagster.serving.http.bodies import read_body
from featurestore_dagster.serving.http.supervisor import refuse_open_door
from featurestore_dagster.serving.plan import plan
from featurestore_dagster.settings import Settings

SETTINGS = Settings(services="external", serve_maximum_entities=5, serve_maximum_features=4, serve_maximum_history_rows=5)
FRIDAY, MONDAY = (datetime(2018, 12, day, 21, 0, 0, microseconds, tzinfo=UTC) for day, microseconds in ((28, 0), (31, 500_001)))
REFERENCES = ["momentum_features:rsi_14", "daily_ohlcv_stats:close", "momentum_features:macd"]
NOTHING = ViewState("redis")


def state(moment: datetime) -> ViewState:
    microseconds = round(moment.timestamp() * 1_000_000)
    return ViewState("redis", microseconds, microseconds, 3_500_000, 1)


def answer(rows: Sequence[tuple[Sequence[float | int | None], Sequence[Status], Sequence[ViewState]]]) -> OnlineFeatures:
    resolved = plan(CATALOGUE, REFERENCES)
    return OnlineFeatures(MONDAY, resolved, tuple(OnlineRow(resolved, {"symbol": f"S{i}"}, *row) for i, row in enumerate(rows)))


MIXED = answer(
    [
        ((50.5, 100, None), (Status.PRESENT, Status.PRESENT, Status.NULL_VALUE), (state(MONDAY), state(FRIDAY))),
        ((None, 3e-7, None), (Status.NOT_FOUND, Status.PRESENT, Status.NOT_FOUND), (NOTHING, state(FRIDAY))),
    ]
)
ALL_THERE = (Status.PRESENT,) * 3
COMPLETE = answer([((1.5, 2, 3.0), ALL_THERE, (state(FRIDAY), state(FRIDAY)))] * 2)


@pytest.mark.parametrize("found", [MIXED, COMPLETE])
def test_feasts_answer_is_columnar_with_the_join_keys_first(found: OnlineFeatures) -> None:
    body = {"features": REFERENCES, "entities": {"symbol": ["S0", "S1"]}, "full_feature_names": True, "of a newer client": 1}
    parsed = json.loads(feast_protocol.render(feast_protocol.parse(orjson.dumps(body), SETTINGS), found))
    names = ["symbol", "momentum_features__rsi_14", "daily_ohlcv_stats__close", "momentum_features__macd"]
    assert parsed["metadata"] == {"feature_names": names}
    epoch = feast_protocol.NEVER
    assert parsed["results"][0] == {"values": ["S0", "S1"], "statuses": ["PRESENT"] * 2, "event_timestamps": [epoch] * 2}
    for position, column in enumerate(parsed["results"][1:]):
        assert column["values"] == [row.numbers[position] for row in found.rows]
        assert column["statuses"] == [row.statuses[position] for row in found.rows]
        moments = [row[REFERENCES[position]].event_timestamp for row in found.rows]
        assert column["event_timestamps"] == [epoch if at is None else at.isoformat().replace("+00:00", "Z") for at in moments]


def test_our_answer_has_each_views_state_once() -> None:
    parsed = json.loads(online.render(MIXED))
    assert parsed["features"] == REFERENCES
    assert [parsed["views"][position] for position in parsed["view_of_feature"]] == [name.split(":")[0] for name in REFERENCES]
    first, second = parsed["rows"]
    assert (first["entity"], first["values"], first["statuses"]) == (
        {"symbol": "S0"},
        [50.5, 100, None],
        ["PRESENT", "PRESENT", "NULL_VALUE"],
    )
    assert first["views"][0]["flags"] == list(MIXED.rows[0].states[0].flags) != []
    assert (first["views"][0]["age_seconds"], datetime.fromisoformat(first["views"][0]["event_timestamp"])) == (3.5, MONDAY)
    assert second["views"][0] == {"tier": "redis", "event_timestamp": None, "known_at": None, "age_seconds": None, "flags": []}


def test_two_features_of_one_name_need_full_names() -> None:
    resolved = plan(CATALOGUE, ["momentum_features:rsi_14", "technical_indicators_view:rsi_14"])
    two = OnlineFeatures(MONDAY, resolved, (OnlineRow(resolved, {}, (1.0, 2.0), ALL_THERE[:2], (NOTHING, NOTHING)),))
    request = feast_protocol.FeastRequest([], {"symbol": ["A"]}, [], full_feature_names=False)
    with pytest.raises(feast_protocol.NameCollisionError, match="rsi_14") as error:
        feast_protocol.render(request, two)
    refused = feast_protocol.refusal(error.value)
    assert (refused.status, json.loads(json.loads(refused.body))["class"]) == (422, "FeatureNameCollisionError")


AAPL: dict[str, Any] = {"symbol": ["AAPL"]}
NO_OBJECT: list[bytes] = [b"", b"{", b"[]", b"1", b"null", b'{"a":NaN}', b'{"a":"\xff"}', b"[" * 100_000, b'{"a":' * 5_000]
MALFORMED: list[Any] = [
    {},
    {"features": REFERENCES},
    {"entities": AAPL},
    {"features": [], "entities": AAPL},
    {"features": "momentum_features:rsi_14", "entities": AAPL},
    {"features": [1], "entities": AAPL},
    {"features": REFERENCES, "feature_service": "a", "service": "a", "entities": AAPL},
    {"features": REFERENCES, "entities": None},
    {"features": REFERENCES, "entities": {}},
    {"features": REFERENCES, "entities": "AAPL"},
    {"features": REFERENCES, "entities": {"symbol": "AAPL"}},
    {"features": REFERENCES, "entities": {"symbol": []}},
    {"features": REFERENCES, "entities": {"symbol": ["A", "B"], "timeframe": ["1d"]}},
]


@pytest.mark.parametrize("parse", [feast_protocol.parse, online.parse, online.parse_coverage])
@pytest.mark.parametrize("body", [*NO_OBJECT, *(orjson.dumps(body) for body in MALFORMED)], ids=lambda body: body[:60].decode("latin-1"))
def test_a_malformed_request_is_refused_whole(parse: Any, body: bytes) -> None:
    with pytest.raises(MalformedDataError):
        parse(body, SETTINGS)


@pytest.mark.parametrize("parse", [feast_protocol.parse, online.parse])
def test_limits_are_those_of_the_settings(parse: Any) -> None:
    parse(orjson.dumps({"features": REFERENCES, "entities": {"symbol": ["A"] * 5}}), SETTINGS)
    for too_much in ({"features": REFERENCES * 2, "entities": AAPL}, {"features": REFERENCES, "entities": {"symbol": ["A"] * 6}}):
        with pytest.raises(RefusedError, match=r"at most [45]"):
            parse(orjson.dumps(too_much), SETTINGS)


@pytest.mark.parametrize(
    "wrong",
    [
        {"as_of": "2018-12-31T21:00:00"},
        {"as_of": "yesterday"},
        {"as_of": 1},
        {"as_of": "0001-01-01T00:00:00+14:00"},
        {"policy": []},
        {"policy": {"deadline": 1}},
        {"policy": {"fail_closed": 1}},
        {"policy": {"min_coverage": True}},
        {"policy": {"min_coverage": 2}},
        {"policy": {"max_age_seconds": 0}},
        {"policy": {"max_age_seconds": 1e300}},
        {"policy": {"deadline_seconds": 1e300}},
        {"policy": {"deadline_seconds": -1}},
        {"entity_ids": ["AAPL"]},
        {"entity": ["AAPL"]},
        {"entity_ids": "AAPL", "entities": None},
    ],
    ids=str,
)
def test_our_request_is_refused_for_each_wrong_field(wrong: dict[str, Any]) -> None:
    good: dict[str, Any] = {"features": REFERENCES, "entities": [{"symbol": "AAPL"}]}
    online.parse(orjson.dumps(good), SETTINGS)
    with pytest.raises((MalformedDataError, RefusedError)):
        online.parse(orjson.dumps(good | wrong), SETTINGS)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELD_NAMES = st.sampled_from([*online.FIELDS, *history.FIELDS, "feature_service", "full_feature_names", "tier", "other"])


@given(st.dictionaries(FIELD_NAMES, JSON_VALUES | st.just(REFERENCES) | st.just(AAPL), max_size=6))
def test_whatever_the_fields_hold_a_refusal_is_ours(body: dict[str, Any]) -> None:
    text = json.dumps(body).encode()
    for parse in (feast_protocol.parse, online.parse, online.parse_coverage):
        with contextlib.suppress(MalformedDataError, RefusedError):
            parse(text, SETTINGS)
    with contextlib.suppress(MalformedDataError, RefusedError, UnknownNameError):
        history.parse(text, "application/json", {}, SETTINGS)


FRAME = pl.DataFrame(
    {"symbol": ["A", "B"], "event_timestamp": [FRIDAY, MONDAY], "size": [1, None]}, schema_overrides={"event_timestamp": UTC_MICROSECONDS}
)


ROW = {"symbol": "A", "event_timestamp": "2018-12-28T21:00:00Z"}


def written(frame: pl.DataFrame, kind: str) -> bytes:
    buffer = io.BytesIO()
    frame.write_ipc_stream(buffer) if kind == uploads.ARROW else frame.write_parquet(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", [uploads.ARROW, uploads.PARQUET])
def test_entity_rows_are_read_from_each_format_and_the_answer_is_streamed_back(kind: str) -> None:
    query = {"features": REFERENCES, "details": ["flags"]}
    asked = history.parse(written(FRAME, kind), kind, query, SETTINGS)
    assert (asked.features, asked.details, asked.as_of) == (REFERENCES, ("flags",), None)
    assert asked.entities.equals(FRAME)
    long = pl.concat([FRAME] * (history.ROWS_PER_CHUNK + 1))
    chunks = list(history.stream(long, kind))
    assert len(chunks) >= 3
    whole = b"".join(chunks)
    table = pa.ipc.open_stream(whole).read_all() if kind == uploads.ARROW else pyarrow.parquet.read_table(io.BytesIO(whole))
    assert pl.DataFrame(pl.from_arrow(table)).equals(long)
    assert len(b"".join(history.stream(FRAME.clear(), kind))) > 0


def test_entity_rows_as_json_have_the_same_types() -> None:
    rows = [ROW | {"size": 1}, {"symbol": "B", "event_timestamp": "2018-12-31T16:00:00.500001-05:00", "size": None}]
    asked = history.parse(orjson.dumps({"features": REFERENCES, "entities": rows}), "application/json; charset=utf-8", {}, SETTINGS)
    assert asked.entities.equals(FRAME)
    for numbers in ([0, 0.5, None], [0.5, 0, None]):
        rows = [ROW | {"size": number} for number in numbers]
        asked = history.parse(orjson.dumps({"features": REFERENCES, "entities": rows}), "application/json", {}, SETTINGS)
        assert asked.entities["size"].to_list() == numbers


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"entities": []}, MalformedDataError),
        ({"entities": AAPL}, MalformedDataError),
        ({"entities": [{"symbol": "A"}]}, MalformedDataError),
        ({"entities": [ROW, {"symbol": "B"}]}, MalformedDataError),
        ({"entities": [ROW | {"event_timestamp": "2018-12-28T21:00:00"}]}, MalformedDataError),
        ({"entities": [ROW | {"event_timestamp": 1}]}, MalformedDataError),
        ({"entities": [ROW | {"size": 1}, ROW | {"size": "x"}]}, MalformedDataError),
        ({"entities": [ROW | {"size": [1]}]}, MalformedDataError),
        ({"entities": [ROW], "as_of": "asked"}, MalformedDataError),
        ({"entities": [ROW], "details": ["colour"]}, UnknownNameError),
        ({"entities": [ROW], "details": [["flags"]]}, UnknownNameError),
        ({"entities": [ROW] * 6}, RefusedError),
        ({"entities": [ROW], "join": 1}, MalformedDataError),
    ],
    ids=str,
)
def test_malformed_entity_rows_are_refused(body: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        history.parse(orjson.dumps({"features": REFERENCES} | body), "application/json", {}, SETTINGS)


def test_a_request_as_json_says_all_in_its_body() -> None:
    with pytest.raises(MalformedDataError, match="details"):
        history.parse(orjson.dumps({"features": REFERENCES, "entities": [ROW]}), "application/json", {"details": ["flags"]}, SETTINGS)


def test_other_formats_and_broken_files_are_refused() -> None:
    with pytest.raises(HttpError) as refused:
        history.parse(b"a,b", "text/csv", {}, SETTINGS)
    assert refused.value.status == 415
    with pytest.raises(HttpError) as refused:
        history.answer_type("text/csv")
    assert refused.value.status == 406
    assert history.answer_type("text/csv, application/vnd.apache.parquet;q=0.5") == uploads.PARQUET
    query = {"features": REFERENCES}
    for kind in (uploads.ARROW, uploads.PARQUET):
        for body in (b"", b"PAR1", written(FRAME, kind)[:-100], b"\0" * 100):
            with pytest.raises(MalformedDataError):
                history.parse(body, kind, query, SETTINGS)
        with pytest.raises(MalformedDataError, match="colour"):
            history.parse(written(FRAME, kind), kind, query | {"colour": ["red"]}, SETTINGS)
        with pytest.raises(RefusedError, match="at most 5"):
            history.parse(written(pl.concat([FRAME] * 3), kind), kind, query, SETTINGS)


def test_arrow_rows_are_counted_before_the_next_batch_is_unpacked() -> None:
    buffer = io.BytesIO()
    table = FRAME.to_arrow()
    with pa.ipc.new_stream(buffer, table.schema) as writer:
        for _ in range(3):
            writer.write_table(table)
        writer.write_table(table)
    broken = buffer.getvalue()[:-200]  # what follows the third batch is never looked at
    with pytest.raises(RefusedError, match="6 entity rows; at most 5"):
        history.parse(broken, uploads.ARROW, {"features": REFERENCES}, SETTINGS)


def test_rows_times_features_are_bounded() -> None:
    asked = history.parse(written(FRAME, uploads.ARROW), uploads.ARROW, {"features": REFERENCES}, SETTINGS)
    values = FRAME.height * len(REFERENCES)
    history.refuse_too_many_values(asked, CATALOGUE, values)
    with pytest.raises(RefusedError, match=f"are {values} values; at most {values - 1}"):
        history.refuse_too_many_values(asked, CATALOGUE, values - 1)
    service = CATALOGUE.services[0]
    with pytest.raises(RefusedError, match=f"of {len(service.references)} features"):
        history.refuse_too_many_values(replace(asked, features=service.name), CATALOGUE, 1)


def test_a_body_is_read_no_further_than_its_bound() -> None:
    sent = 0

    async def receive() -> dict[str, Any]:
        nonlocal sent
        sent += 1
        return {"type": "http.request", "body": b"x" * 100, "more_body": sent < 50}

    with pytest.raises(HttpError) as refused:
        asyncio.run(read_body([], receive, 250))
    assert (refused.value.status, sent) == (413, 3)
    sent = 0
    with pytest.raises(HttpError) as refused:
        asyncio.run(read_body([(b"content-length", b"5000")], receive, 250))
    assert (refused.value.status, sent) == (413, 0)
    assert len(asyncio.run(read_body([(b"content-length", b"5000")], receive, 5000))) == 5000


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UnknownNameError("feature view", "x", []), 404),
        (MalformedDataError("x"), 422),
        (StoreUnavailableError("x"), 503),
        (PointInTimeViolation("x"), 500),
        (ZeroDivisionError("secret"), 500),
    ],
)
def test_each_error_has_its_status_and_a_json_body(error: Exception, status: int) -> None:
    given_back = failure(error)
    body = json.loads(given_back.body)
    assert (given_back.status, set(body)) == (status, {"error", "message"})
    assert ("retry-after" in given_back.headers) == (status == 503)
    assert "secret" not in body["message"]


@pytest.mark.parametrize(
    ("host", "key", "is_open"),
    [
        ("0.0.0.0", "", True),
        ("::", "", True),
        ("10.0.0.1", "", True),
        ("db.example", "", True),
        ("127.0.0.9", "", False),
        ("::1", "", False),
        ("localhost", "", False),
        ("0.0.0.0", "k", False),
        ("0.0.0.0", " ", True),
        ("localhost", "k ", True),
    ],
)
def test_nobody_else_gets_in_without_a_key(host: str, key: str, is_open: bool) -> None:
    settings = Settings(services="external", serve_host=host, serve_api_key=SecretStr(key))
    if is_open:
        with pytest.raises(ConfigurationError, match="FEATURESTORE_SERVE_API_KEY"):
            refuse_open_door(settings)
    else:
        refuse_open_door(settings)
