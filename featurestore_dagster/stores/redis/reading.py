"""A read of several views and entities as bytes, and rows from its answers. Sans-io: both stores send what is made here.

One round trip asks, for each entity, Feast's hash for the event time of each view, for each view our hash for the packed rows, and the
remembered publication of each view. Only where a packed row is not the newest does a second one ask for Feast's own fields of that row.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple, cast

from featurestore_dagster.model.feature_view import FeatureView
from featurestore_dagster.stores.redis import layout
from featurestore_dagster.stores.redis.packed import ABSENT, STALE_ROW, PackedView, StoredRow, entity_fields, rows_key
from featurestore_dagster.stores.redis.whole import WholeRow, WholeRows

ViewRequest = tuple[FeatureView, Sequence[str]]
Rows = list[list[StoredRow | None] | WholeRow]

MULTI, EXEC = b"*1\r\n$5\r\nMULTI\r\n", b"*1\r\n$4\r\nEXEC\r\n"
REMEMBERED_REQUESTS = 256
LAYOUT_VERSION = 2


class OnlineRead(NamedTuple):
    """What a read found: `rows` entity by entity, in each a row or None for each view, in the order asked.

    `publication_ids` are the last publications that were applied whole, view by view: None where Redis was never filled or was flushed, so
    that a missing row says nothing. `epochs` are the streams' newest bars of which every view was written, microseconds since 1970; only a
    coherent read asks for them.
    """

    rows: Rows
    publication_ids: tuple[int | None, ...]
    epochs: Mapping[str, int]

    def incoherent(self) -> set[int]:
        """Positions of views whose rows must not be used together with others of their stream.

        The views of a stream are coherent for an entity when their rows are of the same bar, and no row is of a bar that is still being
        written: after the stream's epoch, or of a stream without one.
        """
        found: set[int] = set()
        for row in self.rows:
            by_stream: dict[str | None, dict[int, int]] = {}
            for position, stored in enumerate(row.heads.of if type(row) is WholeRow else row):
                if stored is not None:
                    by_stream.setdefault(stored.stream, {})[position] = stored.event_microseconds
            for stream, events in by_stream.items():
                epoch = None if stream is None else self.epochs.get(stream)
                if len(set(events.values())) > 1 or epoch is None or max(events.values()) > epoch:
                    found.update(events)
        return found

    def after(self, moment: int) -> set[int]:
        """Positions of views of which a row is from after an instant, microseconds since 1970, by event time or known-at."""
        return {
            position
            for row in self.rows
            if not (type(row) is WholeRow and row.heads.newest_microseconds <= moment)
            for position, stored in enumerate(row)
            if stored is not None and (stored.event_microseconds > moment or (stored.known_microseconds or 0) > moment)
        }


class ReadRequest:
    """The parts of a read that do not depend on the entities."""

    def __init__(self, project: str, views: Sequence[ViewRequest]) -> None:
        self.views = tuple(views)
        self._project = project
        groups: dict[tuple[str, ...], list[int]] = {}
        for position, (view, _) in enumerate(self.views):
            groups.setdefault(tuple(sorted(view.join_keys)), []).append(position)
        self._groups = [_Group(project, keys, positions, self.views) for keys, positions in groups.items()]
        self._streams = sorted({stream.name for view, _ in self.views for stream in view.streams})
        self._ids = _command(b"MGET", [publication_key(project, view) for view, _ in self.views])
        self._epochs = _command(b"MGET", [epoch_key(project, stream) for stream in self._streams])
        packed, names = [PackedView(view) for view, _ in self.views], [names for _, names in self.views]
        self._arrival = [position for group in self._groups for position in group.positions]
        self._whole = WholeRows(packed, names, self._arrival)
        self._readers = [packed[position].reader(names[position]) for position in self._arrival]
        self._publications: tuple[list[bytes | None], tuple[int | None, ...]] = ([], ())

    def commands(self, entities: Sequence[Mapping[str, str]], *, coherent: bool = False) -> tuple[bytes, int]:
        """What is sent, and how many answers come. A coherent read is one transaction: nothing is written in its midst."""
        parts = [MULTI] if coherent else []
        for group in self._groups:
            group.add_commands(parts, entities)
        parts.append(self._ids)
        if coherent:
            parts += (self._epochs, EXEC)
        commands = len(self._groups) * len(entities) + len(self.views) * bool(entities) + 1
        return b"".join(parts), commands + 3 if coherent else commands

    def decoded(self, answers: list[Any], *, coherent: bool = False) -> "Decoded":
        """What was found, and what is left to ask."""
        epochs: dict[str, int] = {}
        if coherent:
            *answers, texts = answers[-1]
            epochs = {stream: int(text) for stream, text in zip(self._streams, texts, strict=True) if text is not None}
        *about_entities, held = answers
        rows: Rows = []
        stale: list[tuple[int, int]] = []
        for number, (own, times) in enumerate(self._by_entity(about_entities)):
            whole = self._whole.read(own, times)
            if whole is not None:
                rows.append(whole)
                continue
            row = self._view_by_view(own, times)
            rows.append(row)
            stale += [(number, position) for position, stored in enumerate(row) if stored is STALE_ROW]
        return Decoded(OnlineRead(rows, self._publication_ids(held), epochs), stale)

    def _by_entity(self, answers: list[list[bytes | None]]) -> Iterable[tuple[tuple[bytes | None, ...], list[bytes | None]]]:
        """Packed rows and `_ts` fields of each entity, as they arrive."""
        if not answers:
            return ()
        entities = (len(answers) - len(self.views)) // len(self._groups)
        times, columns, start = [], [], 0
        for group in self._groups:
            middle, end = start + entities, start + entities + len(group.positions)
            times.append(answers[start:middle])
            columns += answers[middle:end]
            start = end
        joined = times[0] if len(times) == 1 else [list(chain.from_iterable(parts)) for parts in zip(*times, strict=True)]
        return zip(zip(*columns, strict=True), joined, strict=True)

    def _view_by_view(self, packed: Sequence[bytes | None], timestamps: Sequence[bytes | None]) -> list[StoredRow | None]:
        row: list[StoredRow | None] = [None] * len(self.views)
        for position, read, own, timestamp in zip(self._arrival, self._readers, packed, timestamps, strict=True):
            row[position] = read(own, timestamp)
        return row

    def _publication_ids(self, held: list[bytes | None]) -> tuple[int | None, ...]:
        """They are the same from one read to the next, but for some a day."""
        known, ids = self._publications
        if held != known:
            ids = tuple(publication_of(view, text) for (view, _), text in zip(self.views, held, strict=True))
            self._publications = (held, ids)
        return ids

    def again(self, entities: Sequence[Mapping[str, str]], stale: Sequence[tuple[int, int]]) -> tuple[bytes, int]:
        """What is sent for rows that must be read from Feast's fields: a transaction each, since a newer row may come in between."""
        parts: list[bytes] = []
        for number, position in stale:
            view, names = self.views[position]
            keys = tuple(sorted(view.join_keys))
            key, field = _keys(self._project, keys, tuple(entities[number][name] for name in keys))
            parts += (MULTI, b"*3\r\n$4\r\nHGET\r\n", bulk(rows_key(self._project, keys, view.name)), field)
            parts += (b"*%d\r\n$5\r\nHMGET\r\n" % (len(names) + 3), key, _fields(view.name, tuple(names)), EXEC)
        return b"".join(parts), 4 * len(stale)

    def complete(self, read: OnlineRead, stale: Sequence[tuple[int, int]], answers: list[Any]) -> OnlineRead:
        """The read with the rows that were asked for again."""
        for (number, position), (packed, (timestamp, *encoded)) in zip(stale, answers[3::4], strict=True):
            row = cast("list[StoredRow | None]", read.rows[number])  # a whole row has nothing stale
            row[position] = self._from_fields(position, packed, timestamp, encoded)
        return read

    def _from_fields(self, position: int, packed: bytes | None, timestamp: bytes | None, encoded: list[bytes | None]) -> StoredRow | None:
        if timestamp is None:
            return None
        view, _ = self.views[position]
        event = layout.decode_timestamp(timestamp)
        header = None if packed is None else PackedView(view).header(packed)
        decoded = layout.decode_values(encoded)
        values = tuple(ABSENT if text is None else value for text, value in zip(encoded, decoded, strict=True))
        if header is None or header.event_microseconds != event:
            return StoredRow(event, None, 0, header and header.stream, values)
        return StoredRow(event, header.known_microseconds, header.flags, header.stream, values)


class Decoded(NamedTuple):
    """A read, and the rows (entity, view) of it that must be asked for again."""

    read: OnlineRead
    stale: list[tuple[int, int]]


class _Group:
    """Views with the same join keys: they share Feast's hash of an entity."""

    def __init__(self, project: str, keys: tuple[str, ...], positions: list[int], views: Sequence[ViewRequest]) -> None:
        self.positions = positions
        self._project = project
        self._keys = keys
        names = [views[position][0].name for position in positions]
        self._head = b"*%d\r\n$5\r\nHMGET\r\n" % (len(names) + 2)
        self._timestamps = b"".join(bulk(layout.timestamp_field(name)) for name in names)
        self._rows = [bulk(rows_key(project, keys, name)) for name in names]

    def add_commands(self, parts: list[bytes], entities: Sequence[Mapping[str, str]]) -> None:
        """A command for each entity, then one for each view; none when there is no entity."""
        project, names, head, timestamps = self._project, self._keys, self._head, self._timestamps
        fields = []
        for entity in entities:
            key, field = _keys(project, names, tuple([entity[name] for name in names]))
            parts += (head, key, timestamps)
            fields.append(field)
        if fields:
            head, joined = b"*%d\r\n$5\r\nHMGET\r\n" % (len(fields) + 2), b"".join(fields)
            for rows in self._rows:
                parts += (head, rows, joined)


class Requests:
    """Remembered requests of one project; a request is known by the identity of its parts, which plans keep."""

    def __init__(self, project: str) -> None:
        self._project = project
        self._known: dict[tuple[int, ...], ReadRequest] = {}

    def of(self, views: Sequence[ViewRequest]) -> ReadRequest:
        """The request for these views."""
        identity = tuple(map(id, views))
        known = self._known.get(identity)
        if known is None:
            if len(self._known) >= REMEMBERED_REQUESTS:
                self._known.clear()
            known = self._known[identity] = ReadRequest(self._project, views)
        return known


def publication_key(project: str, view: FeatureView) -> bytes:
    """Key of the version of a view that Redis holds, and of its last publication that was applied whole."""
    return f"{project}:publication:{view.name}".encode()


def stored_version(view: FeatureView) -> str:
    """What must be the same for rows to be believed: how they lie in Redis, and the view's version."""
    return f"{LAYOUT_VERSION}.{view.version}"


def publication_of(view: FeatureView, held: bytes | None) -> int | None:
    """The publication that is remembered of rows that can be believed: `stored version:id`."""
    version, _, number = (held or b"").partition(b":")
    return int(number) if version == stored_version(view).encode() and number else None


def epoch_key(project: str, stream: str) -> bytes:
    """Key of a stream's newest bar of which every view was written."""
    return f"{project}:epoch:{stream}".encode()


def watermark_key(project: str, view: FeatureView, stream: str) -> bytes:
    """Key of the greatest event time that was written of a stream of a view."""
    return f"{project}:watermark:{view.name}:{view.version}:{stream}".encode()


def bulk(text: bytes) -> bytes:
    """A word of a command."""
    return b"$%d\r\n%b\r\n" % (len(text), text)


def _command(name: bytes, words: Sequence[bytes]) -> bytes:
    return b"*%d\r\n" % (len(words) + 1) + b"".join(map(bulk, (name, *words)))


@lru_cache(maxsize=16_384)
def _keys(project: str, names: tuple[str, ...], values: tuple[str, ...]) -> tuple[bytes, bytes]:
    """Feast's key of an entity and our field of it, as words of a command."""
    entity = {name: [value] for name, value in zip(names, values, strict=True)}
    (key,), (field,) = layout.entity_keys(project, entity), entity_fields(entity)
    return bulk(key), bulk(field)


@lru_cache(maxsize=1024)
def _fields(view: str, features: tuple[str, ...]) -> bytes:
    names = [layout.feature_field(view, feature) for feature in features]
    return b"".join(map(bulk, [layout.timestamp_field(view), *names]))
