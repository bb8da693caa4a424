"""What is sent back: an answer's parts, and for each error the status and body that stand for it. Routes do not belong here."""

from collections.abc import Mapping
from typing import NamedTuple

import orjson

from featurestore_dagster.errors import (
    FeatureStoreError,
    InsufficientCoverageError,
    MalformedDataError,
    NotOnlineError,
    NullFeaturesError,
    RefusedError,
    TransientError,
    UnknownNameError,
    UnknownPartitionError,
)

JSON = "application/json"
RETRY_AFTER_SECONDS = 1


class Answer(NamedTuple):
    """A whole answer."""

    status: int
    body: bytes
    media_type: str = JSON
    headers: Mapping[str, str] = {}


class HttpError(Exception):
    """A request that HTTP itself has a word for; `name` is what the body calls the error."""

    def __init__(self, status: int, name: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        """See `failure`."""
        super().__init__(message)
        self.status = status
        self.name = name
        self.headers = headers or {}


STATUSES: tuple[tuple[type[FeatureStoreError], int], ...] = (
    (UnknownNameError, 404),
    (InsufficientCoverageError, 412),
    (MalformedDataError, 422),
    (RefusedError, 422),
    (NotOnlineError, 422),
    (NullFeaturesError, 422),
    (UnknownPartitionError, 422),
    (TransientError, 503),
)
"""Status of an error of ours, the first that fits; 500 for all others, a point-in-time violation among them."""


def failure(error: Exception) -> Answer:
    """The answer that stands for an error: JSON with `error` and `message`. What nobody expected tells nothing of itself."""
    if isinstance(error, HttpError):
        return Answer(error.status, _body(error.name, str(error)), headers=error.headers)
    if not isinstance(error, FeatureStoreError):
        return Answer(500, _body("InternalError", "the server failed; its log says why"))
    status = next((status for kind, status in STATUSES if isinstance(error, kind)), 500)
    headers = {"retry-after": str(RETRY_AFTER_SECONDS)} if status == 503 else {}
    return Answer(status, _body(type(error).__name__, str(error)), headers=headers)


def overloaded(message: str, headers: Mapping[str, str] | None = None) -> HttpError:
    """A refusal that a retry may get past."""
    return HttpError(503, "Overloaded", message, {"retry-after": str(RETRY_AFTER_SECONDS), **(headers or {})})


def _body(name: str, message: str) -> bytes:
    return orjson.dumps({"error": name, "message": message.encode("utf-8", "replace").decode()})
