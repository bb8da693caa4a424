"""Both engines and the cached path against the rule written as loops, on real Postgres; named tests for the traps of stock Feast."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from featurestore_dagster.model.raw_table import UTC_MICROSECONDS
from featurestore_dagster.projections.postgres_table import feature_schema
from featurestore_dagster.serving.point_in_time import history
from featurestore_dagster.serving.point_in_time.winners import NEVER
from featurestore_dagster.settings import Settings
from featurestore_dagster.stores.columnar_cache import ColumnarCache
from tests.integration.point_in_time.history_cases import (
    DETAILS,
    KEYS,
    MICROSECOND,
    REFERENCES,
    VIEW,
    clear,
    expected,
    oracle,
    put,
    random_case,
    reader_of,
)

NIGHTLY = settings.default is not None and settings.default.max_examples >= 500
MOST_VERSIONS, MOST_ASKED = (2_500, 2_500) if NIGHTLY else (150, 60)
EVENT = datetime(2018, 11, 29, 21, tzinfo=UTC)
engines = pytest.mark.parametrize("streamed", [False, True], ids=["looked up", "streamed"])


def version(
    event: datetime, known_at: datetime, value: float, key: tuple[str, str] = ("A", "BX"), stream: str = "crypto_1d"
) -> dict[str, Any]:
    values = {"rsi_14": value, "flags": 0, "feature_set_version": VIEW.version, "stream": stream}
    return {"symbol": key[0], "timeframe": key[1], "event_timestamp": event, "created_timestamp": known_at, **values}


def versions(*rows: dict[str, Any]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=feature_schema(VIEW))


def asked(*instants: datetime, key: tuple[str, str] = ("A", "BX")) -> pl.DataFrame:
    return pl.DataFrame(
        {"symbol": [key[0]] * len(instants), "timeframe": [key[1]] * len(instants), "event_timestamp": instants},
        schema={"symbol": pl.String, "timeframe": pl.String, "event_timestamp": UTC_MICROSECONDS},
    )


def values(database: Settings, entities: pl.DataFrame, *, streamed: bool, **options: Any) -> list[float | None]:
    found = reader_of(database).get_historical_features(entities, [REFERENCES[0]], streamed=streamed, **options)
    assert found.height == entities.height
    return found[f"{VIEW.name}__rsi_14"].to_list()


@pytest.mark.parametrize(("span_bytes", "worth"), [(4_000, NEVER), (60_000, NEVER), (2**28, NEVER), (2**28, 0)])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=250 if NIGHTLY else 12)
@given(seed=st.integers(0, 2**32 - 1), version_count=st.integers(0, MOST_VERSIONS), asked_count=st.integers(0, MOST_ASKED))
def test_every_engine_is_the_rule(
    fresh_database: Settings, tmp_path: Path, span_bytes: int, worth: int, seed: int, version_count: int, asked_count: int
) -> None:
    case = random_case(seed, version_count, asked_count)
    clear(fresh_database)
    put(fresh_database, case.versions)
    cache = ColumnarCache(tmp_path / "cache", 2**30)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(history, "SPAN_BYTES", span_bytes)
        patch.setattr(history, "VERSIONS_WORTH_A_CONNECTION", worth)
        for as_of in (None, "as_of"):
            right = expected(oracle(case.versions, case.asked, as_of=as_of))
            for streamed, kept in ((False, None), (True, None), (True, cache), (True, cache)):
                found = reader_of(fresh_database, kept).get_historical_features(
                    case.asked, REFERENCES, as_of=as_of, details=DETAILS, streamed=streamed
                )
                assert_frame_equal(found.select(case.asked.columns), case.asked)
                assert_frame_equal(found.drop(case.asked.columns), right, check_exact=True)


@engines
def test_t1_composite_keys_are_not_concatenated(fresh_database: Settings, *, streamed: bool) -> None:
    put(fresh_database, versions(*(version(EVENT, EVENT, float(number), key) for number, key in enumerate(KEYS))))
    rows = pl.concat([asked(EVENT, key=key) for key in [*KEYS, ("AB", "BX"), ("A", "X"), ("ABX", "")]])
    assert values(fresh_database, rows, streamed=streamed) == [*map(float, range(len(KEYS))), None, None, None]


@engines
def test_t2_t18_a_restated_row_is_one_row_and_the_last_known_wins(fresh_database: Settings, *, streamed: bool) -> None:
    times = [EVENT, EVENT + MICROSECOND, EVENT + timedelta(hours=1)]
    put(fresh_database, versions(*(version(EVENT, known_at, float(number)) for number, known_at in enumerate(times))))
    rows = asked(EVENT + timedelta(hours=2), EVENT, EVENT + MICROSECOND, EVENT + timedelta(hours=2), EVENT - MICROSECOND)
    assert values(fresh_database, rows, streamed=streamed) == [2.0, 0.0, 1.0, 2.0, None]


@engines
def test_t3_a_bar_restated_three_days_later_was_not_known_before(fresh_database: Settings, *, streamed: bool) -> None:
    restated = EVENT + timedelta(days=3)
    put(fresh_database, versions(version(EVENT, EVENT, 1.0), version(EVENT, restated, 2.0), version(restated, restated, 3.0)))
    rows = asked(EVENT + timedelta(hours=1), restated - MICROSECOND, restated, EVENT + timedelta(hours=1))
    assert values(fresh_database, rows, streamed=streamed) == [1.0, None, 3.0, 1.0]
    later = rows.with_columns(pl.lit(restated, UTC_MICROSECONDS).alias("audited_at"))
    assert values(fresh_database, later, streamed=streamed, as_of="audited_at") == [2.0, None, 3.0, 2.0]


@engines
def test_t9_a_dense_history_within_the_ttl_gives_one_row_each(fresh_database: Settings, *, streamed: bool) -> None:
    minutes = [EVENT + timedelta(minutes=number) for number in range(1_440)]
    put(fresh_database, versions(*(version(at, at + timedelta(seconds=5), float(number)) for number, at in enumerate(minutes))))
    rows = asked(*(at + timedelta(seconds=seconds) for at in minutes for seconds in (4, 5)))
    assert values(fresh_database, rows, streamed=streamed) == [None, *(float(number // 2) for number in range(2 * 1_440 - 1))]


@engines
def test_a_ttl_ends_to_the_microsecond_in_open_market_time(fresh_database: Settings, *, streamed: bool) -> None:
    friday, monday = datetime(2018, 11, 30, 21, tzinfo=UTC), datetime(2018, 12, 3, 21, tzinfo=UTC)
    put(fresh_database, versions(version(friday, friday, 1.0, stream="us_equity_1d")))
    instants = [friday, monday - MICROSECOND, monday, monday + timedelta(days=400)]
    assert values(fresh_database, asked(*instants), streamed=streamed) == [1.0, 1.0, None, None]
    alone = [values(fresh_database, asked(instant), streamed=streamed) for instant in instants]
    assert alone == [[1.0], [1.0], [None], [None]]


@engines
def test_an_instant_in_the_future_sees_what_is_known_now(fresh_database: Settings, *, streamed: bool) -> None:
    event = datetime(2018, 12, 31, 21, tzinfo=UTC)
    put(fresh_database, versions(version(event, event, 1.0), version(event, event + timedelta(hours=2), 2.0)))
    rows = asked(event + timedelta(hours=20), datetime(2240, 1, 1, tzinfo=UTC), datetime(1700, 1, 1, tzinfo=UTC))
    assert values(fresh_database, rows, streamed=streamed) == [1.0, None, None]


def test_a_stretch_without_a_version_of_the_keys_fits_the_others(fresh_database: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "SPAN_BYTES", 1)
    other = EVENT - timedelta(days=3)
    for row in (version(EVENT, EVENT, 1.0), version(other, other, 2.0, KEYS[1])):
        put(fresh_database, versions(row))
    rows = asked(other, EVENT)
    found = reader_of(fresh_database).get_historical_features(rows, REFERENCES[:1], details=DETAILS, streamed=True)
    assert found[f"{VIEW.name}__age_seconds"].to_list() == [None, 0.0]
    assert found.columns[len(rows.columns) :] == [f"{VIEW.name}__{name}" for name in ("rsi_14", *DETAILS)]
