"""What every request passes first: key, drain, concurrency, deadline, metrics; and the last word on every error. Plain ASGI.

The two routes that must be quick are answered from here; all others belong to the application behind.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from featurestore_dagster.serving.http import metrics
from featurestore_dagster.serving.http.answers import Answer, HttpError, failure, overloaded
from featurestore_dagster.serving.http.bodies import DisconnectedError, header, read_body
from featurestore_dagster.serving.http.service import Service

OPEN = frozenset({"/health/live", "/health/ready"})
"""Routes for whoever keeps the process alive: no key, no limit, answered while draining."""

PAGE = "/status"
"""Where people come with a browser, which must be asked for the key in a way that it knows."""

CLOSE = {"connection": "close"}

logger = logging.getLogger(__name__)


class HotRoute(NamedTuple):
    """A POST route without a framework: body -> answer, and what stands for an error."""

    handle: Callable[[bytes], Awaitable[bytes]]
    refuse: Callable[[Exception], Answer]


class Gate:
    """An ASGI application around another."""

    def __init__(self, service: Service, hot: Mapping[str, HotRoute], application: ASGIApp) -> None:
        """`hot` maps paths to the routes answered here."""
        self._service = service
        self._settings = service.settings
        self._hot = hot
        self._application = application
        key = self._settings.serve_api_key.get_secret_value()
        self._key_digest = _digest(key) if key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; other kinds of scope go to the application."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # as GET: the server, which has the scope that it made, leaves the body out
            scope = {**scope, "method": "GET"}
        started = time.perf_counter()
        if scope["path"] in OPEN:
            status = await self._pass_on(scope, receive, send)
        else:
            status = await self._admit(scope, receive, send)
        if status:
            metrics.answered(_route(scope, self._hot), status, time.perf_counter() - started)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> int:
        service = self._service
        refusal = self._refusal(scope)
        if refusal is not None:
            return await _send(send, failure(refusal))
        service.in_flight += 1
        metrics.IN_PROGRESS.inc()
        try:
            hot = self._hot.get(scope["path"])
            if hot is not None and scope["method"] == "POST":
                return await self._answer(hot, scope, receive, send)
            return await self._pass_on(scope, receive, send)
        finally:
            service.in_flight -= 1
            metrics.IN_PROGRESS.dec()

    def _refusal(self, scope: Scope) -> HttpError | None:
        if self._key_digest is not None and not self._is_authorised(scope):
            said = "send the key as X-API-Key, as bearer token, or as the password of basic authentication"
            # One challenge: Chromium takes no other when the first of several is Bearer.
            challenge = 'Basic realm="featurestore", charset="UTF-8"' if scope["path"] == PAGE else "Bearer"
            return HttpError(401, "Unauthorized", said, {"www-authenticate": challenge})
        if self._service.is_draining:
            return overloaded("this server is being stopped; ask another, or again", CLOSE)
        if self._service.in_flight >= self._settings.serve_maximum_concurrent_requests:
            return overloaded(f"{self._service.in_flight} requests are being answered; try again")
        return None

    def _is_authorised(self, scope: Scope) -> bool:
        given = header(scope["headers"], b"x-api-key")
        if not given:
            kind, _, token = header(scope["headers"], b"authorization").partition(" ")
            given = token.strip() if kind.lower() == "bearer" else _password(token) if kind.lower() == "basic" else ""
        return hmac.compare_digest(_digest(given, "latin-1"), self._key_digest or b"")

    async def _answer(self, hot: HotRoute, scope: Scope, receive: Receive, send: Send) -> int:
        try:
            async with asyncio.timeout(self._settings.serve_deadline_seconds):
                body = await read_body(scope["headers"], receive, self._settings.serve_maximum_body_bytes)
                answer = Answer(200, await hot.handle(body))
        except DisconnectedError:
            return 0
        except TimeoutError:
            answer = failure(self._too_late())
        except Exception as error:
            answer = hot.refuse(error)
            if answer.status == 500:
                logger.exception("%s failed", scope["path"])
        return await _send(send, answer)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> int:
        status, seconds = 0, self._settings.serve_deadline_seconds

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            if status:  # from here on only the client makes it wait
                deadline.reschedule(asyncio.get_running_loop().time() + seconds)
            await send(message)
            if status:
                deadline.reschedule(None)

        try:
            async with asyncio.timeout(seconds) as deadline:
                await self._application(scope, receive, watched)
        except DisconnectedError:
            return status
        except TimeoutError:
            if not status:
                return await _send(send, failure(self._too_late()))
            logger.warning("%s: the client took nothing for %g s; its answer was broken off", scope["path"], seconds)
        except Exception as error:
            logger.exception("%s failed", scope["path"])
            if status not in {0, 500}:
                raise  # the answer broke off, which only a closed connection can tell
            return status or await _send(send, failure(error))
        return status

    def _too_late(self) -> HttpError:
        return HttpError(504, "DeadlineExceeded", f"no answer within {self._settings.serve_deadline_seconds:g} s")


async def _send(send: Send, answer: Answer) -> int:
    headers = [(b"content-type", answer.media_type.encode()), (b"content-length", b"%d" % len(answer.body))]
    headers += [(name.encode(), value.encode()) for name, value in answer.headers.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})
    return answer.status


def _route(scope: Scope, hot: Mapping[str, HotRoute]) -> str:
    """The declared path: what clients make up must not become a label."""
    path: str = scope["path"]
    if path in hot or path in OPEN:
        return path
    return getattr(scope.get("route"), "path", "unknown")


def _password(token: str) -> str:
    """The password of basic authentication, which is all that a browser can send; any user. Empty when it is malformed."""
    try:
        return base64.b64decode(token.strip(), validate=True).decode("latin-1").partition(":")[2]
    except (binascii.Error, ValueError):
        return ""


def _digest(text: str, encoding: str = "utf-8") -> bytes:
    return hashlib.sha256(text.encode(encoding, "replace")).digest()
