"""Served vectors against published rows and a recomputation: equal, and a single wrong bit is found."""

import json

import pytest
from typer.testing import CliRunner

from featurestore_dagster.cli import audit
from featurestore_dagster.cli.app import app
from featurestore_dagster.serving.client_base import PROJECT
from featurestore_dagster.serving.parity import Parity, parity
from featurestore_dagster.serving.redis_tier import RedisTier
from featurestore_dagster.stores.redis import RedisStore
from tests.integration.serving.conftest import DAYS, NOW, VIEWS, Served
from tests.unit.pipeline.frames import close_of

CHANGE = "update features.daily_ohlcv_stats set close = close + %(by)s where symbol = 'BBB' and event_timestamp = %(newest)s"
NEWEST = {"newest": close_of(DAYS[-1])}


def compared(served: Served) -> Parity:
    online = RedisStore(served.settings.redis, PROJECT)
    found = parity(served.catalogue, served.settings.postgres, RedisTier(online), NOW, views=VIEWS, sample=10, seed=1)
    online.close()
    return found


def test_what_is_served_is_what_is_published_and_what_is_recomputed(served: Served) -> None:
    found = compared(served)
    assert (found.mismatches, found.unproven, found.vectors) == ((), (), 10)
    assert found.values == 5 * sum(len(view.features) for view in VIEWS)
    assert found.is_equal


def test_a_wrong_published_bit_is_found_by_the_recomputation_and_a_wrong_served_one_by_both(served: Served) -> None:
    view = VIEWS[0]
    with served.store_connection() as connection:
        connection.execute(CHANGE, {"by": 0.125, **NEWEST})
    try:
        with served.redis() as plain:
            plain.flushall()
        served.sync()
        by_recomputation = compared(served).mismatches
        assert [(found.view, found.entity, found.field, found.against) for found in by_recomputation] == [
            (view.name, "BBB", "close", "recomputed")
        ]
    finally:
        with served.store_connection() as connection:
            connection.execute(CHANGE, {"by": -0.125, **NEWEST})
    by_both = compared(served).mismatches
    assert {(found.entity, found.field, found.against) for found in by_both} == {
        ("BBB", "close", "published"),
        ("BBB", "close", "recomputed"),
    }


def test_a_row_that_redis_lost_is_a_difference(served: Served) -> None:
    with served.redis() as plain:
        lost = [key for key in plain.scan_iter("*") if b"BBB" in key]
        assert plain.delete(*lost) == len(lost) > 0
    try:
        found = compared(served)
        differing = [(one.view, one.entity, one.field, one.served, one.expected, one.against) for one in found.mismatches]
        assert differing == [(view.name, "BBB", "row", "none", "a row", "published") for view in VIEWS]
        assert found.vectors == 10
    finally:
        with served.redis() as plain:
            plain.flushall()
        served.sync()


def test_a_redis_that_does_not_answer_proves_nothing(served: Served) -> None:
    served.kill("redis")
    found = compared(served)
    assert not found.is_equal
    assert len(found.unproven) == len(VIEWS)


def test_the_command_prints_json_and_fails_on_a_difference(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "CATALOGUE", served.catalogue)
    for name, value in (served.settings.exports() | {"FEATURESTORE_SOURCES": "files"}).items():
        monkeypatch.setenv(name, value)
    done = CliRunner().invoke(app, ["audit", "parity", "--view", VIEWS[0].name, "--sample", "2", "--json"])
    assert done.exit_code == 0, (done.output, done.exception)
    found = json.loads(done.stdout)
    assert (found["is_equal"], found["vectors"]) == (True, 2)
    with served.redis() as plain:
        for key in plain.scan_iter("featurestore:publication:*"):
            plain.delete(key)
    done = CliRunner().invoke(app, ["audit", "parity", "--view", VIEWS[0].name])
    assert done.exit_code == 1
    assert "not compared" in done.output
