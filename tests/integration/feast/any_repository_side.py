"""Runs inside a process of its own: one Feast repository that is not ours, under stock Feast's stores and under our plug-ins.

Both configurations get the same rows and the same calls; what each did is printed as JSON, and judged by the tests. Reads `folder` and
`conninfo` as JSON from stdin; each folder in `folder` is a repository with a `feature_store.yaml`.
"""

import asyncio
import contextlib
import json
import sys
import threading
import time
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")

import pandas as pd  # noqa: E402
import psycopg  # noqa: E402
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, PushSource, ValueType  # noqa: E402
from feast.feature_view import FeatureViewState  # noqa: E402
from feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source import PostgreSQLSource  # noqa: E402
from feast.protos.feast.core.PrecomputedFeatureVector_pb2 import PrecomputedFeatureVector  # noqa: E402
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus  # noqa: E402
from feast.protos.feast.types.EntityKey_pb2 import EntityKey  # noqa: E402
from feast.protos.feast.types.Value_pb2 import Value  # noqa: E402
from feast.types import Array, Bool, Float64, Int64, String  # noqa: E402

HOUR, MINUTE, DAY = timedelta(hours=1), timedelta(minutes=1), timedelta(days=1)
NOW = datetime.now(UTC).replace(microsecond=0)

left = Entity(name="left", join_keys=["left_code"], value_type=ValueType.STRING)
right = Entity(name="right", join_keys=["right_code"], value_type=ValueType.STRING)
driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
KEYS = {
    "left": Field(name="left_code", dtype=String),
    "right": Field(name="right_code", dtype=String),
    "driver": Field(name="driver_id", dtype=Int64),
}


def source(table: str, created: str | None, **more: Any) -> PostgreSQLSource:
    where = {"query": f"select * from {table}"} if created is None else {"table": table}
    return PostgreSQLSource(name=f"{table}_source", timestamp_field="happened", created_timestamp_column=created, **where, **more)


def view(name: str, entities: list[Entity], features: list[Field], found: Any, ttl: timedelta | None) -> FeatureView:
    return FeatureView(name=name, entities=entities, schema=[*(KEYS[entity.name] for entity in entities), *features], source=found, ttl=ttl)


CODES = (("AB", "X"), ("A", "BX"), ("AB", "X"), ("?", "X"))
TYPED = [
    Field(name="trips", dtype=Int64),
    Field(name="label", dtype=String),
    Field(name="active", dtype=Bool),
    Field(name="price", dtype=Float64),
    Field(name="history", dtype=Array(Float64)),
]
EVERY_TYPE = [f"plain:{field.name}" for field in TYPED]
VALUE = Field(name="value", dtype=Float64)
VIEWS = [
    view("pairs", [left, right], [VALUE], source("pairs", "created"), timedelta(days=30)),
    view("plain", [driver], TYPED, source("plain", None, field_mapping={"n": "trips"}), None),
    view("quick", [driver], [VALUE, Field(name="other", dtype=Float64)], source("quick", "created"), HOUR),
    view("market", [], [VALUE], source("market", "created"), None),
    view("pushed", [driver], [VALUE], PushSource(name="events", batch_source=source("pushed", "created")), HOUR),
]
TABLES = """
create table pairs (left_code text, right_code text, happened timestamptz, created timestamptz, value double precision);
create table plain (driver_id bigint, happened timestamp, n bigint, label text, active boolean, price numeric, history double precision[]);
create table quick (driver_id bigint, happened timestamptz, created timestamptz, value double precision, other double precision);
create table market (happened timestamptz, created timestamptz, value double precision);
create table pushed (driver_id bigint, happened timestamptz, created timestamptz, value double precision);
"""


class Side:
    """One configuration, its tables and what it did."""

    def __init__(self, folder: Path, name: str, conninfo: str) -> None:
        self.store = FeatureStore(str(folder / name))
        self.connection = psycopg.connect(conninfo, autocommit=True, options=f"-c search_path={name}")
        self.connection.execute(f"create schema {name}")
        self.connection.execute(TABLES)
        self.store.apply([left, right, driver, *VIEWS])
        self.seen: dict[str, Any] = {}

    def add(self, table: str, *row: Any) -> None:
        self.connection.execute(f"insert into {table} values ({', '.join(['%s'] * len(row))})", row)

    def history(self, features: list[str], rows: Any) -> list[dict[str, Any]]:
        frame = rows if isinstance(rows, str) else pd.DataFrame(rows)
        return plain(self.store.get_historical_features(frame, features).to_df())

    def range(self, features: list[str], start: datetime, end: datetime | None = None) -> list[dict[str, Any]]:
        return plain(self.store.get_historical_features(None, features, start_date=start, end_date=end).to_df())

    def online(self, features: list[str], *drivers: int) -> dict[str, list[Any]]:
        answer = self.store.get_online_features(features, [{"driver_id": number} for number in drivers])
        return shown(answer)

    def materialize(self, *views: str) -> None:
        self.store.materialize(NOW - DAY, datetime.now(UTC), list(views))


def plain(frame: pd.DataFrame) -> list[dict[str, Any]]:
    rows = []
    for row in frame.to_dict("records"):
        for name, value in row.items():
            row[name] = list(value) if hasattr(value, "__len__") and not isinstance(value, str) else None if pd.isna(value) else value
            if isinstance(value, pd.Timestamp):
                row[name] = value.isoformat()
        rows.append(row)
    return rows


def shown(answer: Any) -> dict[str, list[Any]]:
    values = answer.to_dict()
    names = answer.proto.metadata.feature_names.val
    return {
        name: [[value, FieldStatus.Name(status)] for value, status in zip(values[name], column.statuses, strict=True)]
        for name, column in zip(names, answer.proto.results, strict=True)
        if not name.endswith(("_id", "_code"))
    }


def refused(call: Any) -> str:
    try:
        return f"answered {call()}"
    except Exception as error:  # noqa: BLE001 - whatever it is, the test judges its name
        return f"{type(error).__name__}: {error}"


def scenario(side: Side) -> None:
    """The same steps for both."""
    seen, ours = side.seen, "ours" in str(side.store.repo_path)

    at = NOW - 10 * DAY
    for codes, value in ((("A", "BX"), 1.0), (("AB", "X"), 2.0)):
        side.add("pairs", *codes, at, at, value)
    asked = [
        {"left_code": a, "right_code": b, "event_timestamp": at + HOUR} for a, b in (("AB", "X"), ("A", "BX"), ("AB", "X"), ("?", "X"))
    ]
    seen["T1"] = side.history(["pairs:value"], asked)

    side.add("pairs", "R", "R", at, at, 1.0)
    side.add("pairs", "R", "R", at, at + 3 * DAY, 2.0)
    asked = [{"left_code": "R", "right_code": "R", "event_timestamp": at + days * DAY} for days in (4, 1)]
    seen["T3"] = side.history(["pairs:value"], asked)
    seen["edge"] = side.history(
        ["pairs:value"],
        [{"left_code": "A", "right_code": "BX", "event_timestamp": at + 30 * DAY - timedelta(microseconds=short)} for short in (0, 1)],
    )
    sql = f"select 'A' as left_code, 'BX' as right_code, '{(at + HOUR).isoformat()}'::timestamptz as event_timestamp"
    seen["from_sql"] = [
        refused(lambda text=sql + end: side.history(["pairs:value"], text)[0]["value"]) for end in ("", ";\n", " -- a comment")
    ]

    side.add("market", at, at, 7.0)
    seen["no entity"] = side.history(["market:value"], [{"event_timestamp": NOW}, {"event_timestamp": at - HOUR}])

    side.add("pairs", "R", "R", NOW - DAY, NOW + 3 * HOUR, 5.0)
    seen["range"] = side.range(["pairs:value"], at)
    seen["range before a correction"] = side.range(["pairs:value"], at, at + DAY)

    naive = (NOW - HOUR).replace(tzinfo=None)
    for label in ("first", "second"):
        side.add("plain", 7, naive, 3, label, True, "1.25", [1.5, 2.5])
    seen["T2"] = side.history(["plain:label"], [{"driver_id": 7, "event_timestamp": NOW}])
    seen["range of duplicates"] = side.range(["plain:label"], NOW - DAY)
    side.add("plain", 2**40, naive, None, "wide", None, None, None)
    seen["types"] = side.history(EVERY_TYPE, [{"driver_id": number, "event_timestamp": NOW, "note": "kept"} for number in (2**40, 8)])
    side.materialize("plain")
    seen["typed_online"] = side.online(EVERY_TYPE, 7, 2**40)

    side.add("quick", 1, NOW - 2 * HOUR, NOW - 2 * HOUR, 1.0, 1.0)
    side.add("quick", 2, NOW - 10 * MINUTE, NOW - 10 * MINUTE, 1.0, None)
    seen["range of two views"] = side.range(["quick:value", "plain:trips"], NOW - DAY)
    side.materialize("quick")
    seen["T4 T12"] = side.online(["quick:value", "quick:other"], 1, 2, 404)
    side.add("quick", 2, NOW - 10 * MINUTE, NOW - MINUTE, 2.0, 2.0)
    side.materialize("quick")
    seen["T6"] = side.online(["quick:value"], 2)

    side.store.materialize_incremental(datetime.now(UTC), ["quick"])
    side.add("quick", 3, NOW - 30 * MINUTE, datetime.now(UTC), 3.0, 3.0)
    side.store.materialize_incremental(datetime.now(UTC), ["quick"])
    seen["T5"] = side.online(["quick:value"], 3)

    for event, value in ((NOW + 300 * DAY, 99.0), (NOW - 5 * MINUTE, 5.0), (NOW - 6 * MINUTE, 4.0)):
        row = {"driver_id": [5], "happened": [event], "created": [event], "value": [value], "other": [value]}
        side.store.write_to_online_store("quick", pd.DataFrame(row))
    seen["T11 written"] = side.online(["quick:value"], 5)
    for number, created in ((9, None), (10, NOW - MINUTE)):
        side.add("quick", number, NOW - 5 * MINUTE, created, float(number), None)
    seen["no known-at materialized"] = refused(lambda: side.materialize("quick"))
    seen["no known-at"] = side.online(["quick:value"], 9, 10)
    undated = pd.DataFrame({"driver_id": [9, 11], "happened": [pd.NaT, NOW], "created": [NOW, NOW], "value": 1.0, "other": 1.0})
    seen["no event time"] = refused(lambda: side.store.write_to_online_store("quick", undated))
    seen["no event time written"] = side.online(["quick:value"], 11)
    side.add("quick", 6, NOW + 300 * DAY, NOW, 99.0, 99.0)
    side.add("quick", 6, NOW - 5 * MINUTE, NOW, 6.0, 6.0)
    side.store.materialize(NOW - DAY, NOW + 400 * DAY, ["quick"])
    seen["T11 materialized"] = side.online(["quick:value"], 6)

    async def pushes() -> dict[str, Any]:
        for minutes, value in ((5, 1.0), (5, 2.0), (9, 9.0)):
            event = NOW - minutes * MINUTE
            frame = pd.DataFrame({"driver_id": [1], "happened": [event], "created": [event + value * MINUTE / 10], "value": [value]})
            await side.store.push_async("events", frame)
        answer = await side.store.get_online_features_async(["pushed:value"], [{"driver_id": 1}, {"driver_id": 404}])
        await side.store.close()
        return shown(answer)

    seen["push"] = asyncio.run(pushes())
    seen["no join key in history"] = refused(lambda: side.history(["quick:value"], [{"event_timestamp": NOW}]))
    seen["T20"] = refused(lambda: shown(side.store.get_online_features(["pairs:value"], [{"left_code": "A"}])))

    quick = next(one for one in VIEWS if one.name == "quick")
    service = FeatureService(
        name="two_drivers",
        features=[quick[["value"]].with_name("self"), quick[["value"]].with_name("partner").with_join_key_map({"driver_id": "partner_id"})],
    )
    side.store.apply([service])
    both = {"driver_id": 5, "partner_id": 6}
    answer = side.store.get_online_features(service, [both], full_feature_names=True)
    history = side.store.get_historical_features(pd.DataFrame([both | {"event_timestamp": NOW}]), service, full_feature_names=True)
    seen["aliases"] = {"online": shown(answer), "history": plain(history.to_df())}
    seen["T4 precomputed"] = precomputed(side)
    side.store.set_feature_view_state("plain", FeatureViewState.MATERIALIZING)
    seen["T14"] = refused(lambda: side.online(["plain:label"], 7))
    side.store.set_feature_view_state("plain", FeatureViewState.AVAILABLE_ONLINE)
    side.connection.execute("delete from quick where driver_id = 2")
    side.materialize("quick")
    seen["T7"] = side.online(["quick:value"], 2)
    if ours:
        storage = side.store.get_historical_features(pd.DataFrame([{"driver_id": 2, "event_timestamp": NOW}]), ["quick:value"])
        seen["to_sql"] = refused(storage.to_sql)


def precomputed(side: Side) -> dict[str, list[Any]]:
    """T4 where a service has precomputed vectors: one that was made before its value became too old."""
    quick = next(one for one in VIEWS if one.name == "quick")
    service = FeatureService(name="ready", features=[quick[["value"]]], precompute_online=True)
    side.store.apply([service])
    for number, age in ((30, 2 * HOUR), (31, MINUTE)):
        vector = PrecomputedFeatureVector(feature_names=["value"], values=[Value(double_val=1.0)])
        vector.fv_timestamps.add(feature_view_name="quick").event_timestamp.FromDatetime(NOW - age)
        key = EntityKey(join_keys=["driver_id"], entity_values=[Value(int64_val=number)])
        online = side.store._get_provider().online_store
        online.write_precomputed_vector(side.store.config, "ready", side.store.project, key, vector.SerializeToString())
    return shown(side.store.get_online_features(service, [{"driver_id": 30}, {"driver_id": 31}]))


def silence(folder: Path, seen: dict[str, Any]) -> None:
    """T8: a Redis that accepts connections and never says a word."""
    stores = {name: FeatureStore(str(folder / f"silent_{name}")) for name in ("stock", "ours")}
    for store in stores.values():
        store.apply([left, right, driver, *VIEWS])

    def read(store: FeatureStore) -> str:
        return refused(lambda: store.get_online_features(["quick:value"], [{"driver_id": 1}]).to_dict())

    stock = threading.Thread(target=read, args=(stores["stock"],), daemon=True)
    stock.start()
    begun = time.monotonic()
    seen["T8"] = {"ours": read(stores["ours"]), "seconds": time.monotonic() - begun, "stock_still_waits": stock.is_alive()}


def teardown(folder: Path, ours: Side, seen: dict[str, Any]) -> None:
    """A project whose name ends like another's."""
    yours = FeatureStore(str(folder / "yours"))
    yours.apply([left, right, driver, *VIEWS])
    frame = pd.DataFrame({"driver_id": [1], "happened": [NOW], "created": [NOW], "value": [1.0], "other": [1.0]})
    yours.write_to_online_store("quick", frame)
    ours.store.apply([], objects_to_delete=[ours.store.get_feature_view("quick")], partial=False)
    seen["view deleted"] = ours.online(["pushed:value"], 1)
    ours.store.teardown()
    seen["other project"] = shown(yours.get_online_features(["quick:value"], [{"driver_id": 1}]))
    yours.teardown()


def main() -> None:
    request = json.load(sys.stdin)
    folder, answer = Path(request["folder"]), {}
    with contextlib.redirect_stdout(sys.stderr):
        sides = {name: Side(folder, name, request["conninfo"]) for name in ("stock", "ours")}
        for name, side in sides.items():
            scenario(side)
            answer[name] = side.seen
        reader = FeatureStore(str(folder / "reader"))
        answer["reader"] = {
            "typed": shown(
                reader.get_online_features([f"plain:{field.name}" for field in TYPED], [{"driver_id": 7}, {"driver_id": 2**40}])
            ),
            "quick": shown(reader.get_online_features(["quick:value"], [{"driver_id": 5}])),
        }
        silence(folder, answer)
        for name in ("stock", "ours"):
            store = FeatureStore(str(folder / f"no_tls_{name}"))
            store.apply([left, right, driver, *VIEWS])
            frame = pd.DataFrame([{"driver_id": 7, "event_timestamp": NOW}])
            answer[f"T19 {name}"] = refused(
                lambda store=store, frame=frame: len(store.get_historical_features(frame, ["plain:label"]).to_df())
            )
        answer["T19 variable"] = refused(lambda: FeatureStore(str(folder / "unexpanded")).config.online_store)
        teardown(folder, sides["ours"], answer)
    json.dump(answer, sys.stdout)


main()
