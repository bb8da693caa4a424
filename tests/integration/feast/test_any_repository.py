"""Keep your Feast repository, change two lines: every row of the traps that a store can mend, beside what stock Feast still does.

One process runs both configurations (`any_repository_side.py`); a stock answer that changes here says that a work-around may go.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from psycopg import sql

from featurestore_dagster.settings import Settings
from tests.integration.feast.conftest import PLUG_INS

SIDE = Path(__file__).with_name("any_repository_side.py")
DATABASE = "any_feast_repository"
STOCK_REDIS, OUR_REDIS = 5, 6


def configuration(settings: Settings, kind: str, place: str, schema: str, project: str, registry: Path, *, sslmode: bool) -> str:
    """A `feature_store.yaml`; the two lines that differ are the types."""
    types = {name: name if kind == "stock" else plug_in for name, plug_in in PLUG_INS.items()}
    postgres = settings.postgres
    return f"""
project: {project}
provider: local
entity_key_serialization_version: 3
registry: {registry}
online_store:
  type: {types["redis"]}
  connection_string: {place}
offline_store:
  type: {types["postgres"]}
  host: {postgres.host}
  port: {postgres.port}
  database: {DATABASE}
  db_schema: {schema}
  user: {postgres.user}
  password: "{postgres.password.get_secret_value()}"
{"  sslmode: disable" if sslmode else ""}
"""


@pytest.fixture(scope="module")
def silent_port() -> Iterator[int]:
    """Something that accepts connections, reads what it gets, and never answers: a frozen Redis."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture(scope="module")
def seen(session_settings: Settings, silent_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What both configurations did."""
    settings, folder = session_settings, tmp_path_factory.mktemp("repositories")
    stock, ours = (settings.redis.model_copy(update={"db": db}).feast_connection_string for db in (STOCK_REDIS, OUR_REDIS))
    silent = f"127.0.0.1:{silent_port}"
    repositories: dict[str, tuple[str, str, str, str, str]] = {  # kind, place, schema, project, registry
        "stock": ("stock", stock, "stock", "ours", "stock"),
        "ours": ("ours", ours, "ours", "ours", "ours"),
        "reader": ("stock", ours, "ours", "ours", "ours"),
        "yours": ("ours", ours, "ours", "yours", "yours"),
        "unexpanded": ("ours", "${UNSET_REDIS:-localhost:6379}", "ours", "ours", "unexpanded"),
        "silent_stock": ("stock", silent, "stock", "ours", "silent_stock"),
        "silent_ours": ("ours", silent, "ours", "ours", "silent_ours"),
        "no_tls_stock": ("stock", stock, "stock", "ours", "no_tls_stock"),
        "no_tls_ours": ("ours", ours, "ours", "ours", "no_tls_ours"),
    }
    for name, (kind, place, schema, project, registry) in repositories.items():
        text = configuration(settings, kind, place, schema, project, folder / f"{registry}.db", sslmode=not name.startswith("no_tls"))
        (folder / name).mkdir()
        (folder / name / "feature_store.yaml").write_text(text)
    with psycopg.connect(settings.postgres.conninfo, autocommit=True) as connection:
        connection.execute(sql.SQL("create database {}").format(sql.Identifier(DATABASE)))
    for db in (STOCK_REDIS, OUR_REDIS):
        with redis.Redis.from_url(settings.redis.model_copy(update={"db": db}).url) as client:
            client.flushdb()
    request = {"folder": str(folder), "conninfo": settings.postgres.conninfo_for(DATABASE)}
    environment = {name: value for name, value in os.environ.items() if name not in Settings.variables()}
    done = subprocess.run(
        [sys.executable, str(SIDE)], input=json.dumps(request), env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with redis.Redis.from_url(settings.redis.model_copy(update={"db": OUR_REDIS}).url) as client:
        left = client.dbsize()
    yield json.loads(done.stdout) | {"keys left": left}
    with psycopg.connect(settings.postgres.conninfo, autocommit=True) as connection:
        connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(DATABASE)))


def values(rows: list[dict[str, Any]], name: str = "value") -> list[Any]:
    return [row[name] for row in rows]


def test_t1_composite_keys_are_compared_column_by_column_and_rows_keep_their_order(seen: dict[str, Any]) -> None:
    assert values(seen["ours"]["T1"]) == [2.0, 1.0, 2.0, None]
    assert [row["left_code"] for row in seen["ours"]["T1"]] == ["AB", "A", "AB", "?"]
    stock = {(row["left_code"], row["value"]) for row in seen["stock"]["T1"]}
    assert {("AB", 1.0), ("A", 2.0)} < stock


def test_t2_t18_duplicate_versions_give_one_row(seen: dict[str, Any]) -> None:
    assert len(seen["ours"]["T2"]) == 1
    assert len(seen["stock"]["T2"]) == 2


def test_t3_a_restatement_is_not_known_before_it_came(seen: dict[str, Any]) -> None:
    assert values(seen["ours"]["T3"]) == [2.0, 1.0]
    assert values(seen["stock"]["T3"]) == [2.0, 2.0]


def test_t2_t3_t18_a_range_holds_what_was_known_at_its_end_once(seen: dict[str, Any]) -> None:
    assert sorted(values(seen["ours"]["range"])) == [1.0, 2.0, 2.0]
    assert sorted(values(seen["stock"]["range"])) == [1.0, 1.0, 2.0, 2.0, 5.0]
    assert sorted(values(seen["ours"]["range before a correction"])) == [1.0, 1.0, 2.0]
    assert sorted(values(seen["stock"]["range before a correction"])) == [1.0, 1.0, 2.0, 2.0]
    assert len(seen["ours"]["range of duplicates"]) == 1
    assert len(seen["stock"]["range of duplicates"]) == 2


def test_a_range_of_two_views_has_the_rows_of_both(seen: dict[str, Any]) -> None:
    for side in ("ours", "stock"):
        rows = {row["driver_id"]: (row["value"], row["trips"]) for row in seen[side]["range of two views"]}
        assert rows == {1: (1.0, None), 2: (1.0, None), 7: (None, 3), 2**40: (None, None)}


def test_t4_the_ttl_ends_to_the_microsecond_offline(seen: dict[str, Any]) -> None:
    assert values(seen["ours"]["edge"]) == [None, 1.0]


def test_t4_the_ttl_applies_online(seen: dict[str, Any]) -> None:
    assert seen["ours"]["T4 T12"]["value"][0] == [None, "OUTSIDE_MAX_AGE"]
    assert seen["stock"]["T4 T12"]["value"][0] == [1.0, "PRESENT"]


def test_t4_the_ttl_applies_to_precomputed_vectors(seen: dict[str, Any]) -> None:
    assert seen["ours"]["T4 precomputed"]["value"] == [[None, "OUTSIDE_MAX_AGE"], [1.0, "PRESENT"]]
    assert seen["stock"]["T4 precomputed"]["value"] == [[1.0, "PRESENT"], [1.0, "PRESENT"]]


def test_t5_a_late_row_arrives_with_the_next_incremental_materialization(seen: dict[str, Any]) -> None:
    assert seen["ours"]["T5"]["value"] == [[3.0, "PRESENT"]]
    assert seen["stock"]["T5"]["value"] == [[None, "PRESENT"]]


def test_t6_a_correction_of_the_same_instant_replaces(seen: dict[str, Any]) -> None:
    assert seen["ours"]["T6"]["value"] == [[2.0, "PRESENT"]]
    assert seen["stock"]["T6"]["value"] == [[1.0, "PRESENT"]]


def test_t7_a_row_deleted_at_the_source_stays_until_its_ttl_under_either(seen: dict[str, Any]) -> None:
    """Feast tells a store of no deletion: this is what a plug-in cannot mend for a repository whose source keeps no record of it."""
    assert seen["ours"]["T7"]["value"] == [[2.0, "PRESENT"]]
    assert seen["stock"]["T7"]["value"] == [[1.0, "PRESENT"]]


def test_t8_a_silent_redis_costs_the_deadline(seen: dict[str, Any]) -> None:
    assert seen["T8"]["ours"].startswith("StoreUnavailableError")
    assert "within 1 s" in seen["T8"]["ours"]
    assert 0.9 < seen["T8"]["seconds"] < 5
    assert seen["T8"]["stock_still_waits"]


def test_t11_a_future_row_poisons_nothing(seen: dict[str, Any]) -> None:
    assert seen["ours"]["T11 written"]["value"] == [[5.0, "PRESENT"]]
    assert seen["ours"]["T11 materialized"]["value"] == [[6.0, "PRESENT"]]
    assert seen["stock"]["T11 written"]["value"] == [[99.0, "PRESENT"]]
    assert seen["stock"]["T11 materialized"]["value"] == [[99.0, "PRESENT"]]


def test_a_row_may_have_no_known_at_and_must_have_an_event_time(seen: dict[str, Any]) -> None:
    for side in ("ours", "stock"):
        assert seen[side]["no known-at materialized"] == "answered None"
        assert seen[side]["no known-at"]["value"] == [[9.0, "PRESENT"], [10.0, "PRESENT"]]
    assert seen["ours"]["no event time"].startswith(
        "MalformedDataError: quick: 1 of 2 rows have no event time, the first of {'driver_id': 9}"
    )
    assert seen["stock"]["no event time"].startswith("ValueError")
    assert seen["ours"]["no event time written"]["value"] == [[None, "NOT_FOUND"]]


def test_t12_unknown_entities_and_nulls_are_named(seen: dict[str, Any]) -> None:
    assert seen["ours"]["T4 T12"] == {
        "value": [[None, "OUTSIDE_MAX_AGE"], [1.0, "PRESENT"], [None, "NOT_FOUND"]],
        "other": [[None, "OUTSIDE_MAX_AGE"], [None, "NULL_VALUE"], [None, "NOT_FOUND"]],
    }
    assert [status for column in seen["stock"]["T4 T12"].values() for _, status in column] == ["PRESENT"] * 6


def test_t14_a_file_registry_refuses_reads_while_a_view_is_materialized_under_either(seen: dict[str, Any]) -> None:
    """The registry is none of the plug-ins: our own repository has one in SQL, which serves (see `test_our_repository`)."""
    for side in ("ours", "stock"):
        assert seen[side]["T14"].startswith("ValueError: Feature view 'plain' is in state 'MATERIALIZING'")


def test_t19_tls_is_no_condition_and_an_unexpanded_variable_is_named(seen: dict[str, Any]) -> None:
    assert seen["T19 ours"] == "answered 1"
    assert "SSL" in seen["T19 stock"]
    assert seen["T19 variable"].startswith("ConfigurationError")
    assert "${UNSET_REDIS:-localhost:6379}" in seen["T19 variable"]


def test_t20_a_missing_join_key_is_refused(seen: dict[str, Any]) -> None:
    assert seen["ours"]["T20"].startswith("MissingJoinKeyError: the request names no right_code, which view pairs needs")
    assert seen["stock"]["T20"] == "answered {'value': [[None, 'PRESENT']]}"


def test_entity_rows_without_a_join_key_are_refused(seen: dict[str, Any]) -> None:
    assert seen["ours"]["no join key in history"].startswith("FeastEntityDFMissingColumnsError")
    assert "but {'driver_id'} were missing" in seen["ours"]["no join key in history"]
    assert seen["stock"]["no join key in history"].startswith("UndefinedColumn")


def test_values_of_every_type_and_wide_integer_keys_pass_both_stores(seen: dict[str, Any]) -> None:
    wide, unknown = seen["ours"]["types"]
    nothing = {"trips": None, "label": None, "active": None, "price": None, "history": None}
    assert (wide["driver_id"], wide["note"]) == (2**40, "kept")
    assert {name: wide[name] for name in nothing} == nothing | {"label": "wide"}
    assert {name: unknown[name] for name in nothing} == nothing
    online = {name: column[0][0] for name, column in seen["ours"]["typed_online"].items()}
    assert online == {"trips": 3, "label": online["label"], "active": True, "price": 1.25, "history": [1.5, 2.5]}
    assert seen["ours"]["typed_online"]["label"][1] == ["wide", "PRESENT"]
    assert seen["ours"]["typed_online"]["trips"][1] == [None, "NULL_VALUE"]


def test_a_view_may_be_asked_for_twice_with_different_keys(seen: dict[str, Any]) -> None:
    assert seen["ours"]["aliases"]["online"] == {"self__value": [[5.0, "PRESENT"]], "partner__value": [[6.0, "PRESENT"]]}
    (row,) = seen["ours"]["aliases"]["history"]
    assert (row["self__value"], row["partner__value"]) == (None, 6.0)


def test_a_view_without_entity_may_be_asked_for_alone(seen: dict[str, Any]) -> None:
    assert values(seen["ours"]["no entity"]) == [7.0, None]
    assert set(values(seen["stock"]["no entity"])) == {7.0, None}


def test_entity_rows_may_be_sql_that_ends_as_in_an_editor(seen: dict[str, Any]) -> None:
    assert seen["ours"]["from_sql"] == ["answered 1.0"] * 3
    assert [answer == "answered 1.0" for answer in seen["stock"]["from_sql"]] == [True, False, False]


def test_pushes_follow_the_rule_of_writing(seen: dict[str, Any]) -> None:
    assert seen["ours"]["push"]["value"] == [[2.0, "PRESENT"], [None, "NOT_FOUND"]]
    assert seen["stock"]["push"]["value"] == [[1.0, "PRESENT"], [None, "PRESENT"]]


def test_stock_feast_reads_what_our_plug_in_wrote(seen: dict[str, Any]) -> None:
    stock = {name: [value for value, _ in column] for name, column in seen["reader"]["typed"].items()}
    assert stock == {name: [value for value, _ in column] for name, column in seen["ours"]["typed_online"].items()}
    assert seen["reader"]["quick"]["value"] == [[5.0, "PRESENT"]]


def test_teardown_deletes_what_is_of_the_project_and_nothing_else(seen: dict[str, Any]) -> None:
    assert seen["view deleted"]["value"] == [[2.0, "PRESENT"]]
    assert seen["other project"]["value"] == [[1.0, "PRESENT"]]
    assert seen["keys left"] == 0


def test_history_is_no_query(seen: dict[str, Any]) -> None:
    assert seen["ours"]["to_sql"].startswith("NotImplementedError")
