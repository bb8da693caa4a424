"""`/v1/online-features` and `/v1/coverage`: requests as JSON, answers with ages, flags and tiers of each view, once for each entity."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

import orjson

from featurestore_dagster.errors import MalformedDataError, RefusedError
from featurestore_dagster.serving.answer import OnlineFeatures, OnlineRow, ViewState
from featurestore_dagster.serving.coverage import Coverage
from featurestore_dagster.serving.http.bodies import (
    entity_dicts,
    entity_rows,
    features_asked,
    field,
    instant,
    json_object,
    refuse_no_text,
    refuse_unknown,
)
from featurestore_dagster.serving.plan import ReadPlan
from featurestore_dagster.serving.policy import DEFAULT_POLICY, ReadPolicy
from featurestore_dagster.settings import Settings

FIELDS = ("features", "service", "entities", "entity_ids", "as_of", "policy")
COVERAGE_FIELDS = ("features", "service", "entities", "entity_ids", "policy", "tier")
POLICY_FIELDS = ("deadline_seconds", "max_age_seconds", "min_coverage", "fail_closed", "coherent")
LONGEST_AGE_SECONDS = 3_660 * 86_400


@dataclass(frozen=True)
class OnlineRequest:
    """Arguments of the client's `get_online_features`."""

    features: str | list[str]
    entities: Sequence[Mapping[str, str]]
    entity_ids: Sequence[str]
    as_of: datetime | None
    policy: ReadPolicy


def parse(body: bytes, settings: Settings) -> OnlineRequest:
    """Take a body apart.

    Raises:
        MalformedDataError: It does not have the declared form.
        RefusedError: It asks too much.
    """
    parsed = json_object(body)
    refuse_unknown(parsed, FIELDS)
    return _request(parsed, settings)


def parse_coverage(body: bytes, settings: Settings) -> tuple[OnlineRequest, int | None]:
    """As `parse`, with the tier of the instruments that count: 1 when it is not given, None when it is null."""
    parsed = json_object(body)
    refuse_unknown(parsed, COVERAGE_FIELDS)
    tier = field(parsed, "tier", int, "a whole number")
    return _request(parsed, settings), tier if "tier" in parsed else 1


def _request(parsed: Mapping[str, Any], settings: Settings) -> OnlineRequest:
    features = features_asked(parsed, "service", settings.serve_maximum_features)
    entities, identifiers = parsed.get("entities"), field(parsed, "entity_ids", list, "a list of texts") or []
    if (entities is None) == (not identifiers):
        raise MalformedDataError("give either entities, rows or columns of join keys, or entity_ids, a list that is not empty")
    if len(identifiers) > settings.serve_maximum_entities:
        raise RefusedError(f"entity_ids has {len(identifiers)} entries; at most {settings.serve_maximum_entities} in one request: split it")
    refuse_no_text("entity_ids", identifiers, "the body")
    as_of = field(parsed, "as_of", str, "an instant as text")
    read = entity_rows if isinstance(entities, dict) else entity_dicts
    return OnlineRequest(
        features,
        [] if entities is None else read(entities, settings.serve_maximum_entities),
        identifiers,
        None if as_of is None else instant(as_of, "as_of"),
        _policy(field(parsed, "policy", dict, "an object"), settings),
    )


def _policy(parsed: Mapping[str, Any] | None, settings: Settings) -> ReadPolicy:
    if not parsed:
        return DEFAULT_POLICY
    refuse_unknown(parsed, POLICY_FIELDS, "policy")
    age = field(parsed, "max_age_seconds", (int, float), "a number")
    if age is not None and not 0 < age <= LONGEST_AGE_SECONDS:
        raise RefusedError(f"max_age_seconds={age}; allowed: above 0, at most {LONGEST_AGE_SECONDS}")
    deadline = field(parsed, "deadline_seconds", (int, float), "a number")
    if deadline is not None and deadline > settings.serve_deadline_seconds:
        raise RefusedError(f"deadline_seconds={deadline}; this server answers within {settings.serve_deadline_seconds:g}")
    coverage = field(parsed, "min_coverage", (int, float), "a number")
    return ReadPolicy(
        deadline_seconds=deadline,
        max_age=None if age is None else timedelta(seconds=age),
        min_coverage=DEFAULT_POLICY.min_coverage if coverage is None else coverage,
        fail_closed=bool(field(parsed, "fail_closed", bool, "true or false")),
        coherent=bool(field(parsed, "coherent", bool, "true or false")),
    )


def render(answer: OnlineFeatures) -> bytes:
    """Names and units once; for each entity its values and statuses in the order asked, and for each view where they come from."""
    rows = b",".join([_row(row) for row in answer.rows])
    return b'{"as_of":%b,%b,"rows":[%b]}' % (orjson.dumps(answer.as_of), _head(answer.plan), rows)


@lru_cache(maxsize=256)
def _head(plan: ReadPlan) -> bytes:
    names = {
        "features": plan.references,
        "units": [unit.value for unit in plan.units],
        "views": [view.label for view, _ in plan.views],
        "view_of_feature": plan.view_of,
    }
    return orjson.dumps(names)[1:-1]


def _row(row: OnlineRow) -> bytes:
    states = b",".join([_state(state) for state in row.states])
    return b'{"entity":%b,"values":%b,"statuses":["%b"],"views":[%b]}' % (
        orjson.dumps(row.entity),
        orjson.dumps(row.numbers),
        '","'.join(row.statuses).encode(),
        states,
    )


@lru_cache(maxsize=4096)
def _state(state: ViewState) -> bytes:
    """Entities of a view mostly share event time, known-at and so their state."""
    return orjson.dumps(
        {
            "tier": state.tier,
            "event_timestamp": state.event_timestamp,
            "known_at": state.known_at,
            "age_seconds": state.age_seconds,
            "flags": state.flags,
        }
    )


def render_coverage(found: Coverage) -> dict[str, Any]:
    """JSON-ready, each feature with its bar."""
    return {
        "as_of": found.as_of,
        "tier": found.tier,
        "is_met": found.is_met,
        "not_judged": found.not_judged,
        "features": [
            {
                "reference": feature.reference,
                "eligible": feature.eligible,
                "present": feature.present,
                "coverage": feature.coverage,
                "demanded": feature.demanded,
                "is_met": feature.is_met,
            }
            for feature in found.features
        ],
    }
