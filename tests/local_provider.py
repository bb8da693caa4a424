"""A provider's HTTP server on this machine: it answers from a script, remembers what it was asked, and breaks where the script says so."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit


@dataclass(frozen=True)
class Answer:
    """What is sent for one request.

    `cut_after`: so many bytes of the body are sent, then the connection breaks. `endless`: the body repeats without a declared length until
    the client hangs up.
    """

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    endless: bool = False


@dataclass(frozen=True)
class Asked:
    """A request that came."""

    path: str
    query: dict[str, str]
    headers: dict[str, str]


@dataclass(frozen=True)
class Route:
    """Requests for `path` whose query holds `query` get `answers` in turn, the last one again and again."""

    path: str
    query: Mapping[str, str]
    answers: Sequence[Answer]

    def takes(self, asked: Asked) -> bool:
        return asked.path == self.path and self.query.items() <= asked.query.items()


@dataclass
class LocalProvider:
    """`first` is served before anything else, whatever is asked; then `routes`, or `respond` when one is given."""

    url: str = ""
    routes: Sequence[Route] = ()
    first: list[Answer] = field(default_factory=list)
    respond: Callable[[Asked], Answer] | None = None
    asked: list[Asked] = field(default_factory=list)
    unexpected: list[Asked] = field(default_factory=list)
    served: dict[int, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, asked: Asked) -> Answer:
        with self.lock:
            self.asked.append(asked)
            if self.first:
                return self.first.pop(0)
            if self.respond:
                return self.respond(asked)
            for number, route in enumerate(self.routes):
                if route.takes(asked):
                    turn = self.served.get(number, 0)
                    self.served[number] = turn + 1
                    return route.answers[min(turn, len(route.answers) - 1)]
            self.unexpected.append(asked)
            return Answer(404, b"no such route in the case")


@contextmanager
def local_provider() -> Iterator[LocalProvider]:
    """A running server."""
    provider = LocalProvider()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            answer = provider.answer(Asked(parts.path, dict(parse_qsl(parts.query, keep_blank_values=True)), dict(self.headers)))
            self.send_response_only(answer.status)
            for name, value in ({} if answer.endless else {"Content-Length": str(len(answer.body))} | dict(answer.headers)).items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(ConnectionError):
                self.wfile.write(answer.body[: answer.cut_after])
                while answer.endless:
                    self.wfile.write(answer.body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        provider.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield provider
        finally:
            server.shutdown()
            thread.join()


class Patience:
    """A timer that never waits: sleeping moves its own clock, and is remembered."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.waits: list[float] = []

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float, /) -> None:
        self.seconds += seconds
        self.waits.append(seconds)
