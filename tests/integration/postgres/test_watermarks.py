"""Watermarks are kept with the rows: they only ever advance, by real bars, and the rows are asked when nothing else is right."""

from datetime import datetime, timedelta

import polars as pl
import pytest

from featurestore_dagster.features.equity_views import DAILY_OHLCV_STATS, MOMENTUM_FEATURES
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.model.flags import QualityFlag
from featurestore_dagster.projections.relation import stream_relation
from featurestore_dagster.stores.postgres import PostgresStore
from featurestore_dagster.stores.postgres.connection import connect
from tests.integration.postgres.conftest import MovingClock
from tests.unit.pipeline.frames import close_of

VIEW = DAILY_OHLCV_STATS
MONDAY, TUESDAY, THURSDAY = "2018-12-03", "2018-12-04", "2018-12-06"


def publish(store: PostgresStore, session: str, *symbols: str, flags: int = 0, view: FeatureView = VIEW) -> None:
    relation = stream_relation(view, view.streams[0])
    rows = pl.DataFrame(
        [
            dict.fromkeys(relation.frame_schema)
            | {"symbol": symbol, "event_timestamp": close_of(session), "created_timestamp": close_of(session), "flags": flags}
            | {"feature_set_version": view.version, "stream": view.streams[0].name}
            for symbol in symbols
        ],
        schema=relation.frame_schema,
    )
    store.publish(relation, rows, [session])


def watermarks(store: PostgresStore, view: FeatureView = VIEW) -> dict[str, datetime]:
    return dict(store.watermarks(stream_relation(view, view.streams[0])).select("symbol", "watermark").iter_rows())


def kept(store: PostgresStore) -> int:
    with connect(store.settings) as connection:
        (row,) = connection.execute("select count(*) from ops.watermarks").fetchall()
    return int(row[0])


def test_each_entity_has_its_newest_bar(store: PostgresStore) -> None:
    assert watermarks(store) == {}
    publish(store, TUESDAY, "AAA", "BBB")
    publish(store, MONDAY, "AAA", "BBB", "CCC")
    publish(store, THURSDAY, "AAA")
    publish(store, THURSDAY, "BBB", flags=QualityFlag.MISSING_OHLCV.value)
    publish(store, THURSDAY, "AAA", view=MOMENTUM_FEATURES)
    expected = {"AAA": close_of(THURSDAY), "BBB": close_of(TUESDAY), "CCC": close_of(MONDAY)}
    assert watermarks(store) == expected
    assert kept(store) == 4
    with connect(store.settings) as connection:
        connection.execute("truncate ops.watermarks")
    assert watermarks(store) == expected, "the rows say the same"


def test_a_clock_that_is_set_back_sees_what_was_there_then(store: PostgresStore, clock: MovingClock) -> None:
    publish(store, MONDAY, "AAA")
    publish(store, THURSDAY, "AAA")
    clock.instant = close_of(TUESDAY)
    assert watermarks(store) == {"AAA": close_of(MONDAY)}
    clock.instant = close_of(THURSDAY) + timedelta(hours=1)
    assert watermarks(store) == {"AAA": close_of(THURSDAY)}


def test_what_is_not_committed_moves_nothing(store: PostgresStore) -> None:
    publish(store, MONDAY, "AAA")
    with connect(store.settings) as connection:
        connection.execute("alter table ops.quality_log add constraint full_disk check (partition_key <> '2018-12-04')")
    with pytest.raises(Exception, match="full_disk"):
        publish(store, TUESDAY, "AAA")
    assert watermarks(store) == {"AAA": close_of(MONDAY)}
