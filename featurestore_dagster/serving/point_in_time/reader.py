"""Historical features for training and audits: every value as it was known at the row's instant. Online vectors do not belong here."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal, TypeAlias, TypedDict

import polars as pl

from featurestore_dagster.errors import MalformedDataError, PointInTimeViolation
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.projections.relation import stream_relation
from featurestore_dagster.serving.plan import ReadPlan, plan
from featurestore_dagster.serving.point_in_time.entities import EARLIEST, LATEST, Entities, checked, frame_of
from featurestore_dagster.serving.point_in_time.history import EPOCH
from featurestore_dagster.serving.point_in_time.lookup import DETAILS, Answer, Lookup, answers, askable
from featurestore_dagster.serving.point_in_time.output import (
    ContentHash,
    Manifest,
    OnDisk,
    id_runs,
    in_memory,
    slices,
    write_manifest,
    write_parquet,
)
from featurestore_dagster.stores.columnar_cache import ColumnarCache
from featurestore_dagster.stores.postgres import PostgresStore
from featurestore_dagster.stores.postgres.bulk import Snapshot, snapshot

Detail: TypeAlias = Literal["event_timestamp", "created_timestamp", "age_seconds", "flags"]


@dataclass(frozen=True)
class Label:
    """What a model is to predict: a feature's value `horizon` after the row's instant, as known then. `reference` is `view:feature`."""

    reference: str
    horizon: timedelta


class HistoryOptions(TypedDict, total=False):
    """Keyword arguments of `PointInTimeReader.get_historical_features`, which says what they mean."""

    as_of: str | Mapping[str, str] | None
    labels: Mapping[str, Label] | None
    details: Sequence[Detail]
    streamed: bool | None


@dataclass(frozen=True)
class Retrieval:
    """Rows with their features, and what was read for them."""

    frame: pl.DataFrame
    manifest: Manifest


@dataclass(frozen=True)
class _Request:
    """A request that was checked: the caller's rows, what is needed of them, and the lookups that answer it."""

    given: pl.DataFrame
    asked: pl.DataFrame
    plan: ReadPlan
    lookups: tuple[Lookup, ...]
    schema: dict[str, pl.DataType]
    labels: Mapping[str, Label]
    as_of: Mapping[str, str]
    details: tuple[str, ...]
    now: datetime


class PointInTimeReader:
    """Historical reads from Postgres, through a local cache when there is one."""

    def __init__(self, store: PostgresStore, catalogue: Catalogue, cache: ColumnarCache | None = None) -> None:
        """Nothing is read before the first call."""
        self._store = store
        self._catalogue = catalogue
        self._cache = cache

    def get_historical_features(
        self,
        entities: Entities,
        features: str | Sequence[str],
        *,
        as_of: str | Mapping[str, str] | None = None,
        labels: Mapping[str, Label] | None = None,
        details: Sequence[Detail] = (),
        streamed: bool | None = None,
    ) -> pl.DataFrame:
        """The entity frame with each feature as it was known at the row's `event_timestamp`.

        A version is visible at t when its event time <= t and its known-at <= t, or <= the row's instant of knowledge with `as_of`; nothing
        is visible that the clock's now does not know, so that an instant in the future sees what is known now. Among visible versions the
        greatest event time wins, then the greatest known-at. Everything is read from one snapshot of the database.

        Args:
            entities: Join keys of all views asked for (text; NULL sees nothing) and `event_timestamp` (timezone-aware, not NULL): a frame
                of Polars (also lazy), pandas or PyArrow, or the text of a SELECT, which is run read-only. Other columns are kept;
                duplicates and any order are allowed.
            features: Name of a feature service, or `view:feature` or `view@version:feature` references.
            as_of: Column with the instant of knowledge: for all views, or by view. Labels are not concerned.
            labels: Output column -> label. NULL where the horizon ends after the clock's now.
            details: Columns to add for each view, `view__event_timestamp`, `view__created_timestamp` (known-at), `view__age_seconds` (of
                open-market time), `view__flags`.
            streamed: Forces one engine: history streamed through the rows, or each row looked up by the server; None: the quicker one.

        Returns:
            As many rows as given, in the same order, with columns `view__feature`, details and labels. NULL where nothing was visible, the
            value was NULL, or its age in open-market time reached the TTL of its stream.

        Raises:
            MalformedDataError: A frame that is none; a missing column, a key that is no text, an instant that is NULL, naive or
                implausible; an output named like a column or another output.
            PointInTimeViolation: A label's horizon is not positive.
            UnknownNameError: No such service, view or feature.
            RefusedError: Too many features.
            StoreUnavailableError: The store does not answer.
        """
        request = self._request(entities, features, as_of, labels or {}, details)
        with snapshot(self._store.settings) as source:
            return self._in_memory(request, source, streamed)

    def retrieve(
        self,
        entities: Entities,
        features: str | Sequence[str],
        *,
        as_of: str | Mapping[str, str] | None = None,
        labels: Mapping[str, Label] | None = None,
        details: Sequence[Detail] = (),
        streamed: bool | None = None,
    ) -> Retrieval:
        """As `get_historical_features`, with the manifest of what was read."""
        request = self._request(entities, features, as_of, labels or {}, details)
        with snapshot(self._store.settings) as source:
            frame = self._in_memory(request, source, streamed)
            content = ContentHash()
            content.add(pl.concat([request.asked, frame.select(list(request.schema))], how="horizontal"))
            return Retrieval(frame, self._manifest(request, source, content))

    def write_historical_features(
        self,
        path: str | Path,
        entities: Entities,
        features: str | Sequence[str],
        *,
        as_of: str | Mapping[str, str] | None = None,
        labels: Mapping[str, Label] | None = None,
        details: Sequence[Detail] = (),
        streamed: bool | None = None,
    ) -> Manifest:
        """As `get_historical_features`, into a Parquet file with its manifest beside it (`<path>.manifest.json`).

        Memory holds the entity frame, what identifies its rows and two spans of history (`history.SPAN_BYTES` each, times a small factor),
        whatever the number of versions and features; the answers wait in files beside `path`. The file appears when it is whole.
        """
        path = Path(path)
        request = self._request(entities, features, as_of, labels or {}, details)
        with (
            tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder,
            snapshot(self._store.settings) as source,
        ):
            columns, content = OnDisk(Path(folder), request.given.height, request.schema), ContentHash()
            for answered in self._answers(request, source, streamed):
                columns.put(answered)

            def frames() -> Iterator[pl.DataFrame]:
                for start, given in slices(request.given):
                    added = columns.rows(start, given.height)
                    content.add(pl.concat([request.asked.slice(start, given.height), added], how="horizontal"))
                    yield pl.concat([given, added], how="horizontal")

            write_parquet(path, frames())
            manifest = self._manifest(request, source, content)
            write_manifest(path, manifest)
            return manifest

    def _request(
        self,
        entities: Entities,
        features: str | Sequence[str],
        as_of: str | Mapping[str, str] | None,
        labels: Mapping[str, Label],
        details: Sequence[str],
    ) -> _Request:
        wanted = plan(self._catalogue, features)
        if unknown := [name for name in details if name not in DETAILS]:
            raise MalformedDataError(f"unknown details {unknown}; allowed: {', '.join(DETAILS)}")
        if not isinstance(as_of, str | Mapping | None):
            raise MalformedDataError(f"as_of is {as_of!r:.80}; the name of a column is needed, or one for each view: {{'view': 'column'}}")
        knowledge = {view.label: as_of for view, _ in wanted.views} if isinstance(as_of, str) else dict(as_of or {})
        if unknown := sorted(set(knowledge) - {view.label for view, _ in wanted.views}):
            raise MalformedDataError(
                f"as_of names {unknown}, of which nothing is asked; views asked for: {[v.label for v, _ in wanted.views]}"
            )
        lookups = [
            Lookup(
                view,
                {f"{view.label}__{name}": name for name in (*names, *dict.fromkeys(details))},
                knowledge.get(view.label),
            )
            for view, names in wanted.views
        ]
        outputs = [reference.replace(":", "__", 1) for reference in wanted.references]
        outputs += [f"{view.label}__{name}" for view, _ in wanted.views for name in dict.fromkeys(details)]
        for name, label in labels.items():
            lookups.append(self._label(name, label, (*wanted.references, *outputs)))
            outputs.append(name)
        schema = {name: dtype for lookup in lookups for name, dtype in lookup.schema.items()}
        given = self._frame(entities)
        keys = dict.fromkeys(key for lookup in lookups for key in lookup.view.join_keys)
        asked = checked(given, keys, ["event_timestamp", *knowledge.values()], outputs)
        ordered = {name: schema[name] for name in dict.fromkeys(outputs)}
        return _Request(given, asked, wanted, tuple(lookups), ordered, labels, knowledge, tuple(details), self._store.clock.now())

    def _label(self, name: str, label: Label, taken: Sequence[str]) -> Lookup:
        if label.horizon <= timedelta(0):
            raise PointInTimeViolation(f"label {name} has horizon {label.horizon}; a label lies in the row's future: give more than 0")
        if label.horizon > LATEST - EARLIEST:
            raise MalformedDataError(f"label {name} has horizon {label.horizon}, longer than all of time from {EARLIEST} to {LATEST}")
        if name in taken:
            raise MalformedDataError(
                f"label {name} is also asked for as a feature: a model would read its own answer; give it another name"
            )
        ((view, feature),) = self._catalogue.references([label.reference])
        return Lookup(view, {name: feature.name}, horizon=label.horizon)

    def _frame(self, entities: Entities) -> pl.DataFrame:
        if not isinstance(entities, str):
            return frame_of(entities)
        with snapshot(self._store.settings) as source:
            return source.select(entities)

    def _answers(self, request: _Request, source: Snapshot, streamed: bool | None) -> Iterator[Iterator[Answer]]:
        now = (request.now - EPOCH) // timedelta(microseconds=1)
        for lookup in request.lookups:
            yield answers(lookup, askable(lookup, request.asked, now), source, self._cache, streamed=streamed)

    def _in_memory(self, request: _Request, source: Snapshot, streamed: bool | None) -> pl.DataFrame:
        found: dict[str, pl.Series] = {}
        for lookup, answered in zip(request.lookups, self._answers(request, source, streamed), strict=True):
            schema = {name: request.schema[name] for name in lookup.outputs}
            found |= {column.name: column for column in in_memory(answered, request.given.height, schema)}
        return request.given.with_columns(found[name] for name in request.schema)

    def _manifest(self, request: _Request, source: Snapshot, content: ContentHash) -> Manifest:
        views = {lookup.view.label: lookup.view for lookup in request.lookups}
        return Manifest(
            references=request.plan.references,
            labels={
                name: {"reference": label.reference, "horizon_seconds": label.horizon.total_seconds()}
                for name, label in request.labels.items()
            },
            as_of=request.as_of,
            details=request.details,
            versions={
                label: {stream.name: stream_relation(view, stream).code_version for stream in view.streams} for label, view in views.items()
            },
            publications={label: id_runs(source.publication_ids(view)) for label, view in views.items()},
            now=request.now.isoformat(),
            row_count=request.given.height,
            columns={name: str(dtype) for name, dtype in request.schema.items()},
            content_sha256=content.hexdigest(),
        )
