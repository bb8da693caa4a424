"""The one HTTP client of all providers: paced, retried, bounded, and every payload kept before anybody parses it.

What a payload means does not belong here, nor do credentials: a provider hands them in as SecretStr, and they reach only the wire.
"""

import gzip
import hashlib
import json
import logging
import os
import random
import tempfile
import threading
import time
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from pathlib import Path
from typing import NoReturn, Protocol, Self
from urllib.parse import quote, quote_plus, urlencode

import httpx
from pydantic import SecretStr

from featurestore_dagster.errors import MalformedDataError, SourceRefusedError, SourceUnavailableError
from featurestore_dagster.model.source import Source
from featurestore_dagster.model.time import Clock

TIMEOUT = httpx.Timeout(30.0, connect=5.0)
ATTEMPTS = 6
FIRST_BACK_OFF_SECONDS, LONGEST_BACK_OFF_SECONDS = 1.0, 60.0
LONGEST_RETRY_AFTER_SECONDS = 300.0
"""A provider that asks for more patience than this is left to the next run, which need not hold a slot while it waits."""

LARGEST_BODY_BYTES = 64 * 1024 * 1024
LONGEST_EXCERPT = 300
RETRIED = frozenset({429, 500, 502, 503, 504})
BANNED = 418
MASK = "********"

# httpx logs each URL, query and all, at INFO.
logging.getLogger("httpx").addFilter(lambda record: record.levelno >= logging.WARNING)


class Timer(Hashable, Protocol):
    """What the module `time` offers to those who wait; tests hand in one that does not."""

    def monotonic(self) -> float:
        """Seconds since any fixed instant."""

    def sleep(self, seconds: float, /) -> None:
        """Return after this many seconds."""


@dataclass(frozen=True)
class Payload:
    """A complete JSON text of a 2xx answer.

    `received_at` is the platform's clock at its arrival, `server_time` the provider's own (header Date, when it sent one), both UTC;
    `url` is for messages: its secrets are masked.
    """

    body: bytes
    url: str
    status: int
    received_at: datetime
    server_time: datetime | None

    @property
    def asked_at(self) -> datetime:
        """The earlier of both clocks: what had not ended then on either is still open."""
        return min(self.received_at, self.server_time or self.received_at)


class Pace:
    """Evenly spaced requests of one provider: no minute, wherever it starts, holds more than `requests_per_minute`."""

    def __init__(self, requests_per_minute: int | None, timer: Timer) -> None:
        self.interval_seconds = 60 / requests_per_minute if requests_per_minute else 0.0
        self.timer = timer
        self.free_at = 0.0
        self.banned_until = 0.0
        self.lock = threading.Lock()

    def wait(self) -> None:
        """Return when the next request may be sent."""
        with self.lock:
            now = self.timer.monotonic()
            start = max(now, self.free_at)
            self.free_at = start + self.interval_seconds
        if start > now:
            self.timer.sleep(start - now)


@cache
def _pace(_provider: str, requests_per_minute: int | None, timer: Timer) -> Pace:
    """The pace that all clients of a provider share in this process."""
    return Pace(requests_per_minute, timer)


class HttpClient:
    """GETs JSON from one provider.

    Args:
        source: The provider; its `requests_per_minute` is kept.
        base_url: Scheme and host, and a path when everything lies below it.
        folder: Payloads go to `<folder>/<source>/<day>/<sha256>.json.gz`, and a line per arrival (URL with masked secrets, status, time) to
            `<sha256>.receipts.jsonl` beside it.
        clock: Says when a payload arrived.
        timer: Waits.
        largest_bytes: A larger body is refused without reading the rest.
    """

    def __init__(
        self, source: Source, base_url: str, folder: Path, clock: Clock, *, timer: Timer = time, largest_bytes: int = LARGEST_BODY_BYTES
    ) -> None:
        self.name, self.clock = source.name, clock
        self._base_url, self._folder, self._largest_bytes = base_url.rstrip("/"), folder / source.name, largest_bytes
        self._timer, self._pace = timer, _pace(source.name, source.requests_per_minute, timer)
        self._http = httpx.Client(timeout=TIMEOUT, headers={"Accept": "application/json", "User-Agent": "featurestore-dagster"})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(
        self, path: str, params: Mapping[str, str | int | SecretStr] | None = None, headers: Mapping[str, str | SecretStr] | None = None
    ) -> Payload:
        """A complete JSON body, kept on disk. Retried: 429, 5xx of an overloaded server, timeouts, broken connections, cut bodies.

        Args:
            path: Below the base URL, starting with a slash.
            params: Query; a SecretStr is sent in clear and shown masked.
            headers: Sent as they are, never kept.

        Raises:
            SourceUnavailableError: Every attempt failed, or the provider asks to come back much later.
            SourceRefusedError: Any other 3xx or 4xx, at once; after a 418 every request of this process to the provider, until it ends.
            MalformedDataError: The body is no JSON at all, or too large.
        """
        secrets = [
            value.get_secret_value() for value in (*(params or {}).values(), *(headers or {}).values()) if isinstance(value, SecretStr)
        ]
        query = {name: _plain(value) for name, value in (params or {}).items()}
        shown_query = {name: MASK if isinstance(value, SecretStr) else value for name, value in (params or {}).items()}
        exchange = _Exchange(
            self._http.build_request(
                "GET", self._base_url + path, params=query, headers={k: _plain(v) for k, v in (headers or {}).items()}
            ),
            _shown_url(self._base_url + path) + (f"?{urlencode(shown_query, safe='*')}" if shown_query else ""),
            tuple(secret for secret in secrets if secret),
        )
        failure = _Failure("")
        for attempt in range(ATTEMPTS):
            if attempt:
                self._timer.sleep(self._delay(failure, attempt, exchange))
            self._refuse_if_banned(exchange)
            self._pace.wait()
            answer = self._send(exchange)
            if isinstance(answer, Payload):
                self._keep(answer)
                return answer
            failure = answer
        raise SourceUnavailableError(
            f"{self.name}: {exchange.shown_url} failed {ATTEMPTS} times, at last with {failure.reason}; try again later"
        )

    def _send(self, exchange: "_Exchange") -> "Payload | _Failure":
        try:
            response = self._http.send(exchange.request, stream=True)
            try:
                body = self._read(response, exchange)
            finally:
                response.close()
        except httpx.RequestError as error:
            return _Failure(exchange.masked(f"{type(error).__name__} {error}".strip()))
        status, server_time = response.status_code, _http_date(response.headers.get("date"))
        if status in RETRIED:
            return _Failure(f"status {status}", _retry_after(response, server_time))
        if not response.is_success:
            self._refuse(exchange, status, body, _retry_after(response, server_time))
        if failure := _no_complete_json(body):
            if body.lstrip()[:1] in {b"[", b"{", b""}:
                return _Failure(failure)
            raise MalformedDataError(
                f"{self.name}: {exchange.shown_url} answered no JSON but {exchange.excerpt(body)!r}; nothing was taken"
            )
        return Payload(body, exchange.shown_url, status, self.clock.now(), server_time)

    def _read(self, response: httpx.Response, exchange: "_Exchange") -> bytes:
        """The decoded body; of an error only its beginning."""
        declared = int(response.headers.get("content-length", "0"))
        body = bytearray()
        if response.is_success and declared > self._largest_bytes:
            self._too_large(exchange, declared)
        for part in response.iter_bytes():
            body += part
            if not response.is_success and len(body) > LONGEST_EXCERPT * 4:
                break
            if len(body) > self._largest_bytes:
                self._too_large(exchange, len(body))
        return bytes(body)

    def _too_large(self, exchange: "_Exchange", size: int) -> NoReturn:
        raise MalformedDataError(
            f"{self.name}: the body of {exchange.shown_url} has {size} bytes or more, allowed {self._largest_bytes}; nothing was taken"
        )

    def _refuse(self, exchange: "_Exchange", status: int, body: bytes, retry_after: float | None) -> NoReturn:
        answer = exchange.excerpt(body)
        if status == BANNED:
            self._pace.banned_until = self._timer.monotonic() + max(retry_after or 0.0, LONGEST_BACK_OFF_SECONDS)
        raise SourceRefusedError(
            f"{self.name}: {exchange.shown_url} was refused with status {status}: {answer}", status=status, answer=answer
        )

    def _refuse_if_banned(self, exchange: "_Exchange") -> None:
        if (left := self._pace.banned_until - self._timer.monotonic()) > 0:
            raise SourceRefusedError(
                f"{self.name} has banned this address; {exchange.shown_url} was not sent. Wait {left:.0f} s, and lower requests_per_minute",
                status=BANNED,
            )

    def _delay(self, failure: "_Failure", attempt: int, exchange: "_Exchange") -> float:
        if failure.retry_after_seconds is None:
            ceiling = min(LONGEST_BACK_OFF_SECONDS, FIRST_BACK_OFF_SECONDS * 2 ** (attempt - 1))
            return random.uniform(0, ceiling)  # noqa: S311 - jitter, no secret
        if failure.retry_after_seconds > LONGEST_RETRY_AFTER_SECONDS:
            raise SourceUnavailableError(
                f"{self.name}: {exchange.shown_url} failed with {failure.reason} and asks to come back in "
                f"{failure.retry_after_seconds:.0f} s; try again then"
            )
        return failure.retry_after_seconds

    def _keep(self, payload: Payload) -> None:
        digest = hashlib.sha256(payload.body).hexdigest()
        folder = self._folder / payload.received_at.astimezone(UTC).date().isoformat()
        folder.mkdir(parents=True, exist_ok=True)
        kept = folder / f"{digest}.json.gz"
        if not kept.exists():
            handle, name = tempfile.mkstemp(dir=folder, suffix=".part")
            with os.fdopen(handle, "wb") as file:
                file.write(gzip.compress(payload.body, mtime=0))
            Path(name).replace(kept)
        receipt = {"url": payload.url, "received_at": payload.received_at.isoformat(), "status": payload.status, "sha256": digest}
        with (folder / f"{digest}.receipts.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(receipt) + "\n")


@dataclass(frozen=True)
class _Exchange:
    """A request with what may be told about it."""

    request: httpx.Request
    shown_url: str
    secrets: tuple[str, ...]

    def masked(self, text: str) -> str:
        for secret in self.secrets:
            for spelling in (secret, quote(secret, safe=""), quote_plus(secret)):
                text = text.replace(spelling, MASK)
        return text

    def excerpt(self, body: bytes) -> str:
        return self.masked(" ".join(body.decode(errors="replace").split()))[:LONGEST_EXCERPT]


@dataclass(frozen=True)
class _Failure:
    """An attempt that may succeed when repeated."""

    reason: str
    retry_after_seconds: float | None = None


def _plain(value: str | int | SecretStr) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


def _shown_url(url: str) -> str:
    return str(httpx.URL(url).copy_with(username="", password=""))


def _no_complete_json(body: bytes) -> str | None:
    """Why the body is not one whole JSON document."""
    try:
        json.loads(body)
    except (ValueError, RecursionError) as error:
        return f"a cut or broken body ({type(error).__name__} after {len(body)} bytes)"
    return None


def _http_date(text: str | None) -> datetime | None:
    try:
        parsed = parsedate_to_datetime(text) if text else None
    except ValueError:
        return None
    return parsed.astimezone(UTC) if parsed else None


def _retry_after(response: httpx.Response, server_time: datetime | None) -> float | None:
    """Seconds that the answer asks to wait: a number, or a date against the answer's own clock."""
    text = response.headers.get("retry-after", "").strip()
    if text.isdecimal():
        return float(text)
    until = _http_date(text)
    return max((until - server_time).total_seconds(), 0.0) if until and server_time else None
