"""Bodies of requests: read within a bound, taken apart as JSON, each field checked by hand.

What the fields ask for belongs to the routes.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeAlias, TypeVar

import orjson
from starlette.types import Receive

from featurestore_dagster.errors import MalformedDataError, RefusedError
from featurestore_dagster.serving.http.answers import HttpError

Headers: TypeAlias = Iterable[tuple[bytes, bytes]]
Checked = TypeVar("Checked")

NUL = "\0"
"""PostgreSQL has no text with it."""


class DisconnectedError(Exception):
    """The client went away before its body was whole; there is nobody to answer."""


def header(headers: Headers, name: bytes) -> str:
    """Value of a header, empty when it was not sent."""
    return next((value.decode("latin-1") for key, value in headers if key == name), "")


async def read_body(headers: Headers, receive: Receive, maximum_bytes: int) -> bytes:
    """The whole body.

    Raises:
        HttpError: 413, as soon as it is known to be too large.
        DisconnectedError: The client went away.
    """
    announced = header(headers, b"content-length")
    if announced and int(announced) > maximum_bytes:
        raise _too_large(maximum_bytes)
    message = await receive()
    body: bytes = message.get("body", b"")
    if message.get("more_body"):
        collected = bytearray(body)
        while message.get("more_body") and len(collected) <= maximum_bytes:
            message = await receive()
            collected += message.get("body", b"")
        body = bytes(collected)
    if message["type"] == "http.disconnect":
        raise DisconnectedError
    if len(body) > maximum_bytes:
        raise _too_large(maximum_bytes)
    return body


def _too_large(maximum_bytes: int) -> HttpError:
    return HttpError(413, "BodyTooLarge", f"the body has more than {maximum_bytes} bytes; send it in parts")


def json_object(body: bytes) -> dict[str, Any]:
    """The JSON object that a body is.

    Raises:
        MalformedDataError: It is no JSON, is nested too deeply, or is no object.
    """
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedDataError(f"the body is no JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise MalformedDataError(f"the body is a JSON {type(parsed).__name__}; an object is needed")
    return parsed


def refuse_unknown(parsed: Mapping[str, Any], known: Iterable[str], where: str = "the body") -> None:
    """Raise MalformedDataError when an object has a field that nobody reads: it would be a misspelt one."""
    if unknown := sorted(set(parsed) - set(known)):
        raise MalformedDataError(f"{where} has unknown fields {unknown}; known: {', '.join(known) or 'none'}")


def field(parsed: Mapping[str, Any], name: str, kind: type[Checked] | tuple[type[Checked], ...], needed: str) -> Checked | None:
    """A field of one of the types, or None when it is absent or null.

    Raises:
        MalformedDataError: It has another type; `needed` says which is needed.
    """
    value: Checked | None = parsed.get(name)
    if value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
        raise MalformedDataError(f"{name} is {_shown(value)}; {needed} is needed")
    return value


def instant(text: str, name: str) -> datetime:
    """An RFC 3339 instant as UTC.

    Raises:
        MalformedDataError: It is none, or has no time zone.
    """
    try:
        parsed = datetime.fromisoformat(text)
        if parsed.tzinfo is not None:
            return parsed.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise MalformedDataError(f"{name} is {_shown(text)}; an instant with its time zone is needed, for example 2018-12-31T21:00:00Z")


def features_asked(parsed: Mapping[str, Any], service_field: str, maximum: int) -> str | list[str]:
    """Name of the service, or the list of references, exactly one of which is asked for.

    Raises:
        MalformedDataError: Both, neither, or something else is given.
        RefusedError: Too many references.
    """
    service = field(parsed, service_field, str, "the name of a feature service")
    references = parsed.get("features")
    if references is not None and not isinstance(references, list):
        raise MalformedDataError(f"features is {_shown(references)}; a list of view:feature references is needed")
    if service and references:
        raise MalformedDataError(f"give features or {service_field}, not both")
    if service:
        return service
    if not references:
        raise MalformedDataError(f"nothing is asked for; give features, a list of view:feature references, or {service_field}, a name")
    if len(references) > maximum:
        raise RefusedError(f"{len(references)} features are asked for; at most {maximum} in one request: split it")
    for reference in references:
        if not isinstance(reference, str):
            raise MalformedDataError(f"features holds {_shown(reference)}; view:feature references are needed")
    return references


def entity_rows(columns: Any, maximum: int, name: str = "entities") -> list[dict[str, Any]]:
    """Entity rows of columns: join key -> values, all of one length. Which keys must be text is the plan's to say.

    Raises:
        MalformedDataError: No columns, unequal lengths, or no rows.
        RefusedError: Too many rows.
    """
    if not isinstance(columns, dict) or not columns:
        raise MalformedDataError(
            f'{name} is {_shown(columns)}; an object of join keys and their values is needed, as in {{"symbol": ["AAPL"]}}'
        )
    count = -1
    for key, values in columns.items():
        if not isinstance(values, list):
            raise MalformedDataError(f"{name}.{key} is {_shown(values)}; a list of values is needed")
        if count not in (-1, len(values)):
            lengths = {key: len(values) for key, values in columns.items() if isinstance(values, list)}
            raise MalformedDataError(f"the lists of {name} have different lengths: {lengths}")
        count = len(values)
    _refuse_count(count, maximum, name)
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def entity_dicts(rows: Any, maximum: int, name: str = "entities") -> list[dict[str, Any]]:
    """Entity rows given as such: a list of objects of join keys and values; errors as `entity_rows`."""
    if not isinstance(rows, list):
        raise MalformedDataError(f'{name} is {_shown(rows)}; a list of objects is needed, as in [{{"symbol": "AAPL"}}]')
    _refuse_count(len(rows), maximum, name)
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise MalformedDataError(f"{name}[{number}] is {_shown(row)}; an object of join keys and values is needed")
    return rows


def refuse_no_text(key: str, values: Sequence[Any], where: str) -> None:
    """Raise MalformedDataError when a value of a key is no text that a store can hold."""
    for value in values:
        if type(value) is not str or NUL in value:
            raise MalformedDataError(f"{where}.{key} holds {_shown(value)}; text without NUL is needed, for example 'AAPL'")


def _refuse_count(count: int, maximum: int, name: str) -> None:
    if count < 1:
        raise MalformedDataError(f"{name} has no rows; at least one is needed")
    if count > maximum:
        raise RefusedError(f"{name} has {count} rows; at most {maximum} in one request: split it")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
