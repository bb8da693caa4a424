"""What the online store is offered: by publication order, newest visible version per entity, and nothing forgotten."""

from datetime import datetime, timedelta
from typing import Any

import polars as pl
import pytest

from featurestore_dagster.features.equity_views import DAILY_OHLCV_STATS as VIEW
from featurestore_dagster.projections.postgres_table import feature_schema
from featurestore_dagster.projections.relation import stream_relation
from featurestore_dagster.stores.postgres import OnlineChanges, PostgresStore
from featurestore_dagster.stores.postgres.connection import connect
from tests.integration.postgres.conftest import MovingClock
from tests.unit.pipeline.frames import MONDAY, close_of

RELATION = stream_relation(VIEW, VIEW.streams[0])
TUESDAY = "2018-12-04"
HOUR = timedelta(hours=1)


def _publish(store: PostgresStore, day: str, **closes: float | tuple[float, datetime]) -> int:
    """Rows of one session, symbol=close or symbol=(close, known at); returns the publication's id."""
    schema = feature_schema(VIEW)
    rows: list[dict[str, Any]] = []
    for symbol, value in closes.items():
        close, known = value if isinstance(value, tuple) else (value, close_of(day))
        rows.append(
            dict.fromkeys(schema, close)
            | {"symbol": symbol, "event_timestamp": close_of(day), "created_timestamp": known, "flags": 0, "feature_set_version": 1}
            | {"stream": VIEW.streams[0].name}
        )
    (publication,) = store.publish(RELATION, pl.DataFrame(rows, schema=schema), [day])
    assert publication.publication_id is not None
    return publication.publication_id


def _closes(changes: OnlineChanges) -> dict[str, float]:
    return dict(changes.rows.sort("symbol").select("symbol", "close").iter_rows())


@pytest.fixture
def now(clock: MovingClock) -> datetime:
    return clock.instant


def test_an_empty_view_offers_nothing(store: PostgresStore, now: datetime) -> None:
    changes = store.online_changes(VIEW, None, now)
    assert (changes.last_publication_id, changes.rows.height, changes.retracted.height) == (0, 0, 0)
    assert dict(changes.rows.schema) == feature_schema(VIEW)


def test_only_what_changed_since_is_offered_with_its_newest_row(store: PostgresStore, now: datetime) -> None:
    first = _publish(store, MONDAY, AAA=1.0, BBB=2.0)
    second = _publish(store, TUESDAY, BBB=3.0)
    everything = store.online_changes(VIEW, None, now)
    assert (everything.last_publication_id, _closes(everything)) == (second, {"AAA": 1.0, "BBB": 3.0})
    assert _closes(store.online_changes(VIEW, first, now)) == {"BBB": 3.0}
    assert store.online_changes(VIEW, second, now).rows.is_empty()


def test_a_late_old_row_is_offered_as_the_newest_of_its_entity(store: PostgresStore, now: datetime) -> None:
    """Order of publication drives it, not event time; the row offered is the newest one all the same."""
    after = _publish(store, TUESDAY, AAA=1.0)
    last = _publish(store, MONDAY, AAA=9.0, BBB=2.0)
    changes = store.online_changes(VIEW, after, now)
    assert (changes.last_publication_id, _closes(changes)) == (last, {"AAA": 1.0, "BBB": 2.0})


def test_a_correction_of_the_same_event_time_is_offered(store: PostgresStore, clock: MovingClock) -> None:
    first = _publish(store, MONDAY, AAA=1.0)
    clock.advance(hours=1)
    _publish(store, MONDAY, AAA=1.5)
    assert _closes(store.online_changes(VIEW, first, clock.instant)) == {"AAA": 1.5}


def test_a_row_that_is_not_known_yet_is_offered_when_it_is(store: PostgresStore, now: datetime) -> None:
    first = _publish(store, MONDAY, AAA=1.0)
    held = _publish(store, TUESDAY, AAA=(2.0, now + HOUR))
    _publish(store, TUESDAY, BBB=3.0)
    early = store.online_changes(VIEW, first, now)
    assert _closes(early) == {"AAA": 1.0, "BBB": 3.0}
    assert early.last_publication_id == held - 1
    later = store.online_changes(VIEW, early.last_publication_id, now + HOUR)
    assert _closes(later) == {"AAA": 2.0, "BBB": 3.0}
    assert later.last_publication_id == held + 1
    assert store.online_changes(VIEW, later.last_publication_id, now + HOUR).rows.is_empty()


def test_an_entity_without_a_visible_row_is_retracted(store: PostgresStore, now: datetime) -> None:
    _publish(store, MONDAY, AAA=(1.0, now + HOUR), BBB=2.0)
    changes = store.online_changes(VIEW, None, now)
    assert changes.retracted["symbol"].to_list() == ["AAA"]
    assert _closes(changes) == {"BBB": 2.0}


def test_a_redis_that_remembers_another_database_starts_over(store: PostgresStore, now: datetime) -> None:
    last = _publish(store, MONDAY, AAA=1.0)
    changes = store.online_changes(VIEW, last + 1000, now)
    assert (changes.last_publication_id, _closes(changes)) == (last, {"AAA": 1.0})


def test_other_views_and_versions_are_not_offered(store: PostgresStore, now: datetime) -> None:
    last = _publish(store, MONDAY, AAA=1.0)
    with connect(store.settings) as connection:
        connection.execute(
            "insert into ops.publications (batch_id, relation, partition_key, rows_published, rows_quarantined, rows_total, content_hash,"
            " changed, inputs, code_version, run_id, published_at)"
            " values (999, 'features.daily_ohlcv_stats_of_another_view.x', %s, 1, 0, 1, '', '{}', '{}', '', '', now())",
            [MONDAY],
        )
        connection.execute(
            "insert into features.daily_ohlcv_stats select symbol, event_timestamp + interval '1 hour', created_timestamp, open, high, low,"
            " 7.0, volume, adjusted_close, flags, 2, stream, batch_id from features.daily_ohlcv_stats"
        )
    changes = store.online_changes(VIEW, None, now)
    assert (changes.last_publication_id, _closes(changes)) == (last, {"AAA": 1.0})
