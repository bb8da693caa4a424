"""What a request for features asks of the stores: each view once, and where every value goes. Reading does not belong here."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache

from featurestore_dagster.errors import MalformedDataError, RefusedError
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.model.indicator import Feature
from featurestore_dagster.model.units import Unit

MAXIMUM_FEATURES = 2_000
NEEDED = "the name of a service is needed, or a list of view:feature references"


@dataclass(frozen=True, eq=False, slots=True)
class ReadPlan:
    """A request, resolved against the catalogue. Equal requests to one catalogue give the same object.

    `references` are `view:feature` labels in the order asked, `units` are theirs. `views` holds each view once, in the order in which the
    request first names it, with the feature names wanted of it. A store's answer for an entity has one tuple of values for each of `views`;
    `order` maps these tuples, chained, to `references`: None when that is already the order asked. `view_of` is the position in `views` of
    each reference. `join_keys` says for each key needed which view needs it. `ageing` says for each of `views` how a row ages: stream name
    -> calendar name and TTL in microseconds of open time; None stands for a row whose stream is not known, which ages as the view's first.
    `training_only` names the views that are never online.
    """

    references: tuple[str, ...]
    units: tuple[Unit, ...]
    views: tuple[tuple[FeatureView, tuple[str, ...]], ...]
    order: tuple[int, ...] | None
    view_of: tuple[int, ...]
    join_keys: Mapping[str, str]
    ageing: tuple[Mapping[str | None, tuple[str, int]], ...]
    training_only: tuple[str, ...]

    def refuse_incomplete(self, entity_rows: Sequence[Mapping[str, str]]) -> None:
        """Check that every entity row has the join keys; others are ignored.

        Raises:
            MalformedDataError: The rows are no mappings; or a row lacks a join key, or its value is no text that UTF-8 can hold, or holds a
                NUL: the message names row, key and view.
        """
        for number, row in enumerate(entity_rows):
            for key, view in self.join_keys.items():
                try:
                    value = row.get(key)
                except AttributeError:
                    raise MalformedDataError(
                        f"entity row {number} is {row!r:.80}; a mapping of join key to text is needed for each entity: {{{key!r}: 'AAPL'}}"
                    ) from None
                if not isinstance(value, str) or "\0" in value or not (value.isascii() or _encodable(value)):
                    was = f"has {key}={value!r:.80}" if key in row else f"lacks join key {key!r}"
                    raise MalformedDataError(f"entity row {number} {was}; view {view} needs text there, for example {{{key!r}: 'AAPL'}}")


def _encodable(text: str) -> bool:
    """False for a lone half of a pair of surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def plan(catalogue: Catalogue, features: str | Sequence[str], *, maximum_features: int = MAXIMUM_FEATURES) -> ReadPlan:
    """The plan of a request, remembered for the next equal one.

    Args:
        catalogue: The declarations; a catalogue is known by identity.
        features: Name of a feature service, or `view:feature` or `view@version:feature` references; values come in this order.
        maximum_features: The most features that a request may name.

    Raises:
        UnknownNameError: No such service, view or feature.
        MalformedDataError: No feature is named, or something is no name.
        RefusedError: Too many features.
    """
    if not isinstance(features, str):
        try:
            features = tuple(features)
        except TypeError:
            raise MalformedDataError(f"features are {features!r}; {NEEDED}") from None
        if not features:
            raise MalformedDataError("no features are asked for; name a service, or features as view:feature")
        if len(features) > maximum_features:
            raise RefusedError(f"{len(features)} features are asked for; at most {maximum_features} in one request: split it")
    try:
        found = _plan(_Identity(catalogue), features)
    except (AttributeError, TypeError):
        if all(isinstance(reference, str) for reference in features):
            raise
        raise MalformedDataError(f"features hold what is no text; {NEEDED}") from None
    if len(found.references) > maximum_features:
        raise RefusedError(f"{features} has {len(found.references)} features; at most {maximum_features} in one request: split it")
    return found


class _Identity:
    """A catalogue as a key: comparing two by content would cost more than the plan."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue

    def __hash__(self) -> int:
        return id(self.catalogue)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and other.catalogue is self.catalogue


@lru_cache(maxsize=256)
def _plan(identity: _Identity, features: str | tuple[str, ...]) -> ReadPlan:
    catalogue = identity.catalogue
    return _resolved(catalogue.service(features).references if isinstance(features, str) else catalogue.references(features))


def _resolved(pairs: Iterable[tuple[FeatureView, Feature]]) -> ReadPlan:
    pairs = tuple(pairs)
    wanted: dict[str, tuple[FeatureView, dict[str, None]]] = {}
    for view, feature in pairs:
        wanted.setdefault(view.label, (view, {}))[1][feature.name] = None
    chained = {(label, name): None for label, (_, names) in wanted.items() for name in names}
    positions = {reference: position for position, reference in enumerate(chained)}
    view_positions = {label: position for position, label in enumerate(wanted)}
    order = tuple(positions[view.label, feature.name] for view, feature in pairs)
    return ReadPlan(
        references=tuple(f"{view.label}:{feature.name}" for view, feature in pairs),
        units=tuple(feature.indicator.unit for _, feature in pairs),
        views=tuple((view, tuple(names)) for view, names in wanted.values()),
        order=None if order == tuple(range(len(chained))) else order,
        view_of=tuple(view_positions[view.label] for view, _ in pairs),
        join_keys={key: view.label for view, _ in reversed(wanted.values()) for key in view.join_keys},
        ageing=tuple(_ageing(view) for view, _ in wanted.values()),
        training_only=tuple(sorted(label for label, (view, _) in wanted.items() if not (view.online or view.is_superseded))),
    )


def _ageing(view: FeatureView) -> dict[str | None, tuple[str, int]]:
    known: dict[str | None, tuple[str, int]] = {
        stream.name: (stream.calendar, view.ttl_of(stream) // timedelta(microseconds=1)) for stream in view.streams
    }
    return known | {None: known[view.streams[0].name]}
