"""Real receivers of alerts on loopback: a webhook that answers what it is told to, and a mailbox behind SMTP."""

import email
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session


@dataclass
class Webhook:
    """Answers each request with the next of `statuses`, then with 200; `taken` are the messages that it answered with 200.

    `on_request` runs when a message has arrived and is not answered yet.
    """

    url: str = ""
    statuses: list[int] = field(default_factory=list)
    taken: list[dict[str, Any]] = field(default_factory=list)
    requests: int = 0
    on_request: Callable[[], None] = lambda: None

    def keys(self) -> list[str]:
        """Idempotency keys of the messages taken, in order of arrival."""
        return [message["key"] for message in self.taken]


@contextmanager
def webhook() -> Iterator[Webhook]:
    """A running webhook; `url` is Apprise's for it."""
    hook, lock = Webhook(), threading.Lock()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            hook.on_request()
            with lock:
                hook.requests += 1
                status = hook.statuses.pop(0) if hook.statuses else 200
                if status == 200:
                    hook.taken.append({**message, "key": self.headers["Idempotency-Key"]})
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        hook.url = f"json://127.0.0.1:{server.server_address[1]}/token-of-the-webhook"
        try:
            yield hook
        finally:
            server.shutdown()
            thread.join()


@dataclass
class Mailbox:
    """What arrived by SMTP."""

    url: str = ""
    mails: list[Message] = field(default_factory=list)

    async def handle_DATA(self, _: SMTP, __: Session, envelope: Envelope) -> str:  # noqa: N802 - aiosmtpd's name
        assert isinstance(envelope.content, bytes)
        self.mails.append(email.message_from_bytes(envelope.content))
        return "250 taken"


class FreePortController(Controller):
    """Listens on whatever port is free."""

    def _trigger_server(self) -> None:
        assert self.server is not None
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()


@contextmanager
def mailbox() -> Iterator[Mailbox]:
    """A running SMTP server; `url` is Apprise's for it."""
    box = Mailbox()
    controller = FreePortController(box, hostname="127.0.0.1", port=0)
    controller.start()
    try:
        box.url = f"mailto://127.0.0.1:{controller.port}?from=platform@example.com&to=duty@example.com&mode=insecure"
        yield box
    finally:
        controller.stop()
