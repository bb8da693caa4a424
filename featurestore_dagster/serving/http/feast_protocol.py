"""Feast's feature-server protocol: its request and its columnar answer, byte for byte what Feast's clients understand.

What differs from `feast serve` on purpose: statuses tell NULL, unknown and too old apart, a missing join key is refused, columns come in
the order asked for.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import orjson

from featurestore_dagster.errors import MalformedDataError, UnknownNameError
from featurestore_dagster.serving.answer import OnlineFeatures, OnlineRow, instant
from featurestore_dagster.serving.http.answers import Answer, failure
from featurestore_dagster.serving.http.bodies import entity_rows, features_asked, field, json_object
from featurestore_dagster.serving.plan import ReadPlan
from featurestore_dagster.serving.policy import ReadPolicy
from featurestore_dagster.settings import Settings

POLICY = ReadPolicy(deadline_seconds=0.5)
"""Feast's clients cannot name a deadline, and wait longer than ours: a late answer is better than none."""

NEVER = "1970-01-01T00:00:00Z"
"""The event time of a join key, and of what was not found."""


class NameCollisionError(MalformedDataError):
    """Two features of the answer would have the same name."""


@dataclass(frozen=True)
class FeastRequest:
    """A request that was understood; `service` tells whether `features` is a service's name."""

    features: str | list[str]
    columns: dict[str, list[Any]]
    entities: list[dict[str, Any]]
    full_feature_names: bool


def parse(body: bytes, settings: Settings) -> FeastRequest:
    """Take a body apart; fields that newer clients add are ignored.

    Raises:
        MalformedDataError: It does not have Feast's form.
        RefusedError: It asks too much.
    """
    parsed = json_object(body)
    features = features_asked(parsed, "feature_service", settings.serve_maximum_features)
    full = field(parsed, "full_feature_names", bool, "true or false")
    entities = entity_rows(parsed.get("entities"), settings.serve_maximum_entities)
    return FeastRequest(features, parsed["entities"], entities, bool(full))


def render(request: FeastRequest, answer: OnlineFeatures) -> bytes:
    """The answer: a result for each column of the request's entities, then for each feature; their names in `metadata`.

    Raises:
        NameCollisionError: Features of two views share a name, and full names were not asked for.
    """
    plan, rows = answer.plan, answer.rows
    names = _full_names(plan) if request.full_feature_names else _short_names(plan)
    texts = [_event_times(rows, position) for position in range(len(plan.views))]
    # Numbers and null hold no "],[", so one call encodes all columns, and they come apart again.
    values = orjson.dumps(list(zip(*(row.numbers for row in rows), strict=True)))[2:-2].split(b"],[")
    statuses = _status_columns(rows)
    results = [
        b'{"values":%b,"statuses":%b,"event_timestamps":%b}'
        % (orjson.dumps(column), _repeated("PRESENT", len(column)), _repeated(NEVER, len(column)))
        for column in request.columns.values()
    ]
    results += [
        b'{"values":[%b],"statuses":%b,"event_timestamps":%b}' % (column, status, texts[view])
        for column, status, view in zip(values, statuses, plan.view_of, strict=True)
    ]
    return b'{"results":[%b],"metadata":{"feature_names":%b}}' % (b",".join(results), orjson.dumps([*request.columns, *names]))


def refusal(error: Exception) -> Answer:
    """As `answers.failure`; what Feast has an error class for is the JSON string that its clients make that class of."""
    plain = failure(error)
    if isinstance(error, UnknownNameError):
        service = "feature service" in error.message
        return plain._replace(body=_feast_error("FeatureServiceNotFoundException" if service else "FeatureViewNotFoundException", error))
    if isinstance(error, NameCollisionError):
        return plain._replace(body=_feast_error("FeatureNameCollisionError", error))
    return plain


def _feast_error(name: str, error: Exception) -> bytes:
    return orjson.dumps(json.dumps({"module": "feast.errors", "class": name, "message": str(error)}))


@lru_cache(maxsize=256)
def _full_names(plan: ReadPlan) -> tuple[str, ...]:
    return tuple(reference.replace(":", "__", 1) for reference in plan.references)


@lru_cache(maxsize=256)
def _short_names(plan: ReadPlan) -> tuple[str, ...]:
    names = tuple(reference.partition(":")[2] for reference in plan.references)
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise NameCollisionError(f"more than one feature is called {', '.join(twice)}; set full_feature_names, or ask for one of each name")
    return names


@lru_cache(maxsize=64)
def _repeated(text: str, count: int) -> bytes:
    return orjson.dumps([text] * count)


def _event_times(rows: Sequence[OnlineRow], view: int) -> bytes:
    moments = [row.states[view].event_microseconds for row in rows]
    if moments.count(moments[0]) == len(moments):
        return _repeated(_rfc3339(moments[0]), len(moments))
    return ('["' + '","'.join([_rfc3339(moment) for moment in moments]) + '"]').encode()


@lru_cache(maxsize=4096)
def _rfc3339(microseconds: int | None) -> str:
    return NEVER if microseconds is None else instant(microseconds).isoformat().replace("+00:00", "Z")


def _status_columns(rows: Sequence[OnlineRow]) -> list[bytes]:
    first: Any = rows[0].statuses
    if all(row.statuses is first for row in rows) and first.count(first[0]) == len(first):  # nothing is missing, mostly
        return [_repeated(first[0].value, len(rows))] * len(first)
    return [('["' + '","'.join(column) + '"]').encode() for column in zip(*(row.statuses for row in rows), strict=True)]
