"""`/v1/historical-features`: entity rows as JSON, Arrow or Parquet in, a stream of Arrow or Parquet out. The join belongs to the client."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import polars as pl

from featurestore_dagster.errors import MalformedDataError, RefusedError, UnknownNameError
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.model.raw_table import UTC_MICROSECONDS
from featurestore_dagster.serving.http.answers import JSON, HttpError
from featurestore_dagster.serving.http.bodies import features_asked, field, instant, json_object, refuse_unknown
from featurestore_dagster.serving.http.uploads import ARROW, PARQUET, frame_of_bytes, refuse_rows
from featurestore_dagster.settings import Settings

ANSWERS = {"*/*": ARROW, "application/*": ARROW, ARROW: ARROW, PARQUET: PARQUET}

FIELDS = ("features", "service", "entities", "as_of", "details")
DETAILS = ("event_timestamp", "created_timestamp", "age_seconds", "flags")
INSTANT_COLUMN = "event_timestamp"
ROWS_PER_CHUNK = 65_536


@dataclass(frozen=True)
class HistoryRequest:
    """Arguments of the client's `get_historical_features`; `as_of` names a column."""

    features: str | list[str]
    entities: pl.DataFrame
    as_of: str | None
    details: tuple[str, ...]


def answer_type(accept: str) -> str:
    """The media type to answer with: the first that the client accepts, Arrow when it does not say.

    Raises:
        HttpError: 406, it accepts neither.
    """
    if not accept:
        return ARROW
    for part in accept.split(","):
        if found := ANSWERS.get(part.partition(";")[0].strip().lower()):
            return found
    raise HttpError(406, "NotAcceptable", f"Accept is {accept[:80]!r}; this route answers {ARROW} or {PARQUET}")


def parse(body: bytes, content_type: str, query: Mapping[str, Sequence[str]], settings: Settings) -> HistoryRequest:
    """Take a request apart: all in a JSON body, or the entity rows as Arrow stream or Parquet and the rest in the query.

    Raises:
        HttpError: 415, another content type.
        MalformedDataError: It does not have the declared form.
        RefusedError: It asks too much.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind in {JSON, ""}:
        refuse_unknown(query, (), "the query of a request with a JSON body")
        parsed = json_object(body)
        refuse_unknown(parsed, FIELDS)
        as_of = field(parsed, "as_of", str, "the name of a column")
        request = HistoryRequest(
            features_asked(parsed, "service", settings.serve_maximum_features),
            frame_of_json(parsed.get("entities"), [INSTANT_COLUMN] + ([as_of] if as_of else []), settings.serve_maximum_history_rows),
            as_of,
            _details(field(parsed, "details", list, "a list") or []),
        )
    elif kind in {ARROW, PARQUET}:
        refuse_unknown(query, [name for name in FIELDS if name != "entities"], "the query")
        asked = {"features": list(query.get("features", ())), "service": _first(query, "service")}
        request = HistoryRequest(
            features_asked(asked, "service", settings.serve_maximum_features),
            frame_of_bytes(body, kind, settings.serve_maximum_history_rows, settings.serve_maximum_history_body_bytes),
            _first(query, "as_of"),
            _details(query.get("details", ())),
        )
    else:
        raise HttpError(415, "UnsupportedMediaType", f"Content-Type is {content_type[:80]!r}; send {JSON}, {ARROW} or {PARQUET}")
    return request


def _first(query: Mapping[str, Sequence[str]], name: str) -> str | None:
    return next(iter(query.get(name, ())), None)


def refuse_too_many_values(request: HistoryRequest, catalogue: Catalogue, maximum: int) -> None:
    """Raise RefusedError when rows times features are more than an answer may hold, UnknownNameError for an unknown service."""
    asked = request.features
    features = len(catalogue.service(asked).references if isinstance(asked, str) else asked)
    if (values := request.entities.height * features) > maximum:
        raise RefusedError(
            f"{request.entities.height} rows of {features} features are {values} values; at most {maximum} in one request: split it"
        )


def frame_of_json(rows: Any, instants: Sequence[str], maximum: int) -> pl.DataFrame:
    """The frame of a list of objects with the same fields; instants as text, other values as JSON has them.

    Raises:
        MalformedDataError: It is none, fields differ, an instant has no time zone, or a column mixes types.
        RefusedError: Too many rows.
    """
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise MalformedDataError(
            f"entities must be a list of objects, as in [{{'symbol': 'AAPL', '{INSTANT_COLUMN}': '2018-12-31T21:00:00Z'}}]"
        )
    refuse_rows(len(rows), maximum)
    names = list(rows[0])
    if different := next((number for number, row in enumerate(rows) if row.keys() != rows[0].keys()), 0):
        raise MalformedDataError(f"entities[{different}] has fields {sorted(rows[different])}; the first has {sorted(names)}")
    if missing := [name for name in instants if name not in names]:
        raise MalformedDataError(f"entities lack {missing}; they have {names}")
    columns: dict[str, pl.Series] = {}
    for name in names:
        values = [row[name] for row in rows]
        try:
            if name in instants:
                columns[name] = pl.Series(name, [_instant(value, name) for value in values], dtype=UTC_MICROSECONDS)
            elif all(isinstance(value, str | int | float | None) for value in values):
                is_partly_whole = {type(value) for value in values} - {type(None)} == {int, float}
                columns[name] = pl.Series(name, values, pl.Float64 if is_partly_whole else None, strict=True)
            else:
                raise TypeError
        except (TypeError, pl.exceptions.PolarsError):
            raise MalformedDataError(f"entities.{name} mixes types, or holds lists or objects; give text or numbers") from None
    return pl.DataFrame(list(columns.values()))


def _instant(value: Any, name: str) -> datetime:
    if not isinstance(value, str):
        raise MalformedDataError(
            f"entities.{name} holds {value!r:.80}; instants are text with a time zone, for example 2018-12-31T21:00:00Z"
        )
    return instant(value, f"entities.{name}")


def _details(names: Sequence[Any]) -> tuple[str, ...]:
    for name in names:
        if name not in DETAILS:
            raise UnknownNameError("detail", str(name), DETAILS)
    return tuple(dict.fromkeys(names))


def stream(frame: pl.DataFrame, media_type: str) -> Iterator[bytes]:
    """The frame's bytes as they are encoded, a chunk of rows at a time."""
    import pyarrow as pa
    import pyarrow.parquet

    drain = _Drain()
    schema = frame.head(0).to_arrow(compat_level=pl.CompatLevel.oldest()).schema
    sink = pa.PythonFile(drain, mode="w")
    writer = pa.ipc.new_stream(sink, schema) if media_type == ARROW else pyarrow.parquet.ParquetWriter(sink, schema, compression="lz4")
    with writer:
        for part in frame.iter_slices(ROWS_PER_CHUNK):
            writer.write_table(part.to_arrow(compat_level=pl.CompatLevel.oldest()))
            yield drain.taken()
    yield drain.taken()


class _Drain(io.RawIOBase):
    """A file that keeps what was written until it is taken."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting: list[bytes] = []

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, content: Any) -> int:
        """Keep a copy."""
        kept = bytes(content)
        self._waiting.append(kept)
        return len(kept)

    def taken(self) -> bytes:
        """What was written since the last call."""
        waiting, self._waiting = self._waiting, []
        return b"".join(waiting)
