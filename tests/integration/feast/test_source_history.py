"""History of any Feast source against brute force: composite keys that concatenate alike, late and tied versions, TTL edges."""

from datetime import UTC, date, datetime, timedelta

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurestore_dagster.errors import MalformedDataError
from featurestore_dagster.feast_stores.history import Source, features_at
from featurestore_dagster.settings import Settings

START = datetime(2024, 1, 1, tzinfo=UTC)
UNIT = timedelta(microseconds=1)
KEYS = st.sampled_from([("A", "BX"), ("AB", "X"), ("A'", 'B"')])
MOMENTS = st.integers(0, 12)
VERSIONS = st.lists(st.tuples(KEYS, st.integers(1, 2), MOMENTS, st.one_of(st.none(), MOMENTS)), max_size=25)
ASKED = st.lists(st.tuples(KEYS, st.integers(1, 3), MOMENTS), max_size=15)


@given(versions=VERSIONS, asked=ASKED, time_to_live=st.one_of(st.none(), st.integers(1, 6)), now=MOMENTS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_join_equals_brute_force(
    session_settings: Settings, versions: list[tuple], asked: list[tuple], time_to_live: int | None, now: int
) -> None:
    unique = {
        (key, number, event, event if known is None else known): (key, number, event, known) for key, number, event, known in versions
    }
    rows = [(*version, float(place)) for place, version in enumerate(unique.values())]
    source = Source(subquery(rows), ("a", "b", "n"), ("x",), "e", "c", None if time_to_live is None else time_to_live * UNIT)
    instants = pl.DataFrame(
        {
            "a": [key[0] for key, _, _ in asked],
            "b": [key[1] for key, _, _ in asked],
            "n": [number for _, number, _ in asked],
            "_at": [START + at * UNIT for *_, at in asked],
        },
        schema={"a": pl.String, "b": pl.String, "n": pl.Int64, "_at": pl.Datetime("us", "UTC")},
    )
    found = features_at(session_settings.postgres.adbc_uri, source, instants, START + now * UNIT)
    assert found["x"].to_pylist() == [expected(rows, *question, time_to_live, now) for question in asked]


UUID = "6f1ed002-ab59-4d1c-9a0e-0123456789ab"
VALUES_OF_KEYS = (
    pytest.param("char(4)", "AB", ["AB", "AB ", "A"], [1.0, 1.0, None], id="padded text"),
    pytest.param("text", "AB ", ["AB", "AB "], [None, 1.0], id="text with a blank"),
    pytest.param("uuid", UUID, [UUID, UUID.upper(), f"{{{UUID}}}", UUID[:-1] + "0"], [1.0, 1.0, 1.0, None], id="UUID"),
    pytest.param("smallint", "1", [70_000, 1, None], [None, 1.0, None], id="beyond smallint"),
    pytest.param("int", "1", [2**40, 1], [None, 1.0], id="beyond int"),
    pytest.param("int", "1", [2**40], [None], id="nothing but beyond int"),
    pytest.param("int", "7", ["007", "8"], [1.0, None], id="number as text"),
    pytest.param("int", "7", [7.0, 2.0**40], [1.0, None], id="number as float"),
    pytest.param("text", "7", [7, 2**40], [1.0, None], id="text as number"),
    pytest.param("numeric", "7", [7, 8], [1.0, None], id="numeric"),
    pytest.param("date", "2024-01-01", [date(2024, 1, 1), date(2024, 1, 2)], [1.0, None], id="date"),
)


@pytest.mark.parametrize(("kind", "held", "asked", "expected"), VALUES_OF_KEYS)
def test_keys_of_any_type_are_found(session_settings: Settings, kind: str, held: str, asked: list, expected: list[float | None]) -> None:
    assert read_by_key(session_settings, kind, held, asked) == expected


@pytest.mark.parametrize(("kind", "held", "wrong"), [("uuid", UUID, "A"), ("int4", "1", "one")])
def test_a_key_of_another_type_is_refused(session_settings: Settings, kind: str, held: str, wrong: str) -> None:
    with pytest.raises(MalformedDataError, match=f"2 entity rows have a k that is no {kind}, its type at the source, such as '{wrong}'"):
        read_by_key(session_settings, kind, held, [held, wrong, wrong])


def read_by_key(settings: Settings, kind: str, held: str, asked: list) -> list[float | None]:
    query = f"(select '{held}'::{kind} as k, timestamptz '2024-01-01Z' as e, 1.0::float8 as x)"
    instants = pl.DataFrame({"k": asked}).with_columns(pl.lit(START).cast(pl.Datetime("us", "UTC")).alias("_at"))
    return features_at(settings.postgres.adbc_uri, Source(query, ("k",), ("x",), "e", None, None), instants, START)["x"].to_pylist()


def expected(rows: list[tuple], key: tuple[str, str], number: int, at: int, time_to_live: int | None, now: int) -> float | None:
    visible = [
        (event, event if known is None else known, value)
        for found, found_number, event, known, value in rows
        if (found, found_number) == (key, number) and event <= min(at, now) and (event if known is None else known) <= min(at, now)
    ]
    if not visible:
        return None
    event, _, value = max(visible)
    return None if time_to_live is not None and at - event >= time_to_live else value


def subquery(rows: list[tuple]) -> str:
    def moment(at: int | None) -> str:
        return "null::timestamptz" if at is None else f"'{(START + at * UNIT).isoformat()}'::timestamptz"

    def text(value: str) -> str:
        return "'" + value.replace("'", "''") + "'"

    lines = [
        f"({text(key[0])}, {text(key[1])}, {number}::bigint, {moment(event)}, {moment(known)}, {value}::float8)"
        for key, number, event, known, value in rows
    ]
    nothing = "(null::text, null::text, null::bigint, null::timestamptz, null::timestamptz, null::float8)"
    return f"(select * from (values {', '.join([nothing, *lines])}) as v (a, b, n, e, c, x))"
