"""A request for online values as callers write it -> a plan and entity rows, or a refusal. Nothing is read here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from featurestore_dagster.errors import MalformedDataError, NotOnlineError, RefusedError
from featurestore_dagster.features.entities import PORTFOLIO, TICKER, TIMEFRAME, WHOLE_FIRM
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.entity import TIMEFRAMES, parse_entity_id
from featurestore_dagster.serving.plan import ReadPlan, plan

MAXIMUM_VALUES = 5_000_000
"""Entity rows times features of one request: beyond it, read in parts or use the historical reads."""


@dataclass(frozen=True, slots=True)
class OnlineRequest:
    """What is asked of the stores."""

    plan: ReadPlan
    entities: Sequence[Mapping[str, str]]


def online_request(
    catalogue: Catalogue,
    features: str | Sequence[str],
    entity_rows: Sequence[Mapping[str, str]],
    entity_ids: Sequence[str] = (),
    *,
    historical: bool = False,
) -> OnlineRequest:
    """Resolve a request.

    Args:
        catalogue: The declarations.
        features: Name of a feature service, or `view:feature` or `view@version:feature` references.
        entity_rows: Join key -> value; keys that no view needs are ignored.
        entity_ids: In place of rows: a symbol, or `BTCUSDT_1h` for symbol and timeframe; the portfolio is then the whole firm.
        historical: Views for training only may be read too.

    Raises:
        UnknownNameError: No such service, view or feature.
        NotOnlineError: A view is for training only.
        MalformedDataError: A row lacks a join key, an id does not name what is needed, or both rows and ids are given.
        RefusedError: More values than one request may ask for.
    """
    if isinstance(entity_ids, str) or isinstance(entity_rows, str | Mapping):  # each letter or key would be taken for an entity
        raise MalformedDataError(f"entity rows and ids are lists, not {entity_ids or entity_rows!r}")
    resolved = plan(catalogue, features)
    if resolved.training_only and not historical:
        asked = features if isinstance(features, str) else ", ".join(features)
        raise NotOnlineError(
            f"{asked}: {', '.join(resolved.training_only)} is for training only and never online; read it with get_historical_features or "
            "as of an instant"
        )
    if entity_rows and entity_ids:
        raise MalformedDataError("give entity_rows or entity_ids, not both")
    entities = entity_rows or [entity_row(identifier, resolved) for identifier in entity_ids]
    if len(entities) * len(resolved.references) > MAXIMUM_VALUES:
        raise RefusedError(
            f"{len(entities)} entity rows of {len(resolved.references)} features; at most {MAXIMUM_VALUES} values in one request: split it"
        )
    resolved.refuse_incomplete(entities)
    return OnlineRequest(resolved, entities)


def entity_row(identifier: str, resolved: ReadPlan) -> dict[str, str]:
    """The entity row of an id: split at the last `_` when a timeframe follows, whether or not a view needs it.

    Raises:
        MalformedDataError: A timeframe is needed, and the id does not end with one; or it is no text.
    """
    if not isinstance(identifier, str):
        raise MalformedDataError(f"entity id {identifier!r} is no text; a symbol is needed, or symbol and timeframe as in BTCUSDT_1h")
    symbol, timeframe = parse_entity_id(identifier)
    row = {TICKER.join_key: symbol, PORTFOLIO.join_key: WHOLE_FIRM}
    if timeframe is not None:
        return row | {TIMEFRAME.join_key: timeframe}
    if TIMEFRAME.join_key in resolved.join_keys:
        raise MalformedDataError(
            f"entity id {identifier!r} does not end with a timeframe, which view {resolved.join_keys[TIMEFRAME.join_key]} needs; write "
            f"it as in BTCUSDT_1h, with one of {', '.join(TIMEFRAMES)}"
        )
    return row
