"""The exporter: a process of its own that answers Prometheus at `/metrics`, whatever else is down.

A scrape asks every collector at once and waits `SCRAPE_SECONDS` at most. A collector that fails or is late is down
(`metrics.COLLECTOR_UP`) and has no other sample, so that nobody takes an old value for a new one. What is collected belongs to
`collectors`.
"""

import json
import logging
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from featurestore_dagster.errors import ConfigurationError, FeatureStoreError
from featurestore_dagster.model.catalogue import Catalogue
from featurestore_dagster.monitoring import metrics
from featurestore_dagster.monitoring.collectors import Collect, Collectors, Family, scalar
from featurestore_dagster.settings import Settings

SCRAPE_SECONDS = 8.0
"""Prometheus itself waits 10."""

CLIENT_SECONDS = 30.0
"""A client that sends nothing for so long is hung up on."""

logger = logging.getLogger(__name__)


class Worker:
    """A collector in a thread of its own: one that hangs keeps its thread, and no scrape, waiting."""

    def __init__(self, name: str, collect: Collect) -> None:
        self.seconds = 0.0
        self._name = name
        self._collect = collect
        self._asked: queue.SimpleQueue[Future[list[Family]]] = queue.SimpleQueue()
        self._under_way: Future[list[Family]] | None = None
        self._is_late = False
        self._complaint = ""
        threading.Thread(target=self._work, name=f"collector-{name}", daemon=True).start()

    def ask(self) -> "Future[list[Family]]":
        """Something new; while the answer to an earlier scrape is under way, that one, which `take` then discards."""
        if self._under_way is None or self._under_way.done():
            self._under_way, self._is_late = Future(), False
            self._asked.put(self._under_way)
        return self._under_way

    def take(self, answer: "Future[list[Family]]") -> list[Family] | None:
        """The samples, or None while there are none that this scrape asked for. What was taken is not given again."""
        if not answer.done():
            self._is_late = True
            self._complain("no answer in time")
            return None
        self._under_way = None
        if error := answer.exception():
            self._complain(f"{type(error).__name__}: {error}", None if isinstance(error, FeatureStoreError) else error)
            return None
        if self._is_late:
            return None
        if self._complaint:
            logger.info("collector %s answers again", self._name)
            self._complaint = ""
        return answer.result()

    def _complain(self, complaint: str, error: BaseException | None = None) -> None:
        """Once for each reason: a store that is down for a day is not a thousand lines."""
        if complaint != self._complaint:
            logger.warning("collector %s: %s", self._name, complaint, exc_info=error)
            self._complaint = complaint

    def _work(self) -> None:
        while True:
            asked = self._asked.get()
            started = time.perf_counter()
            try:
                found = list(self._collect())
            except Exception as error:  # noqa: BLE001 - whatever it is, the others are answered
                asked.set_exception(error)
            else:
                self.seconds = time.perf_counter() - started
                asked.set_result(found)


class Scrape(Collector):
    """All collectors as one of prometheus_client's."""

    def __init__(self, collectors: Mapping[str, Collect], patience_seconds: float = SCRAPE_SECONDS) -> None:
        """`collectors` by the value of the label `collector`."""
        self._workers = {name: Worker(name, collect) for name, collect in collectors.items()}
        self._patience_seconds = patience_seconds
        self._one_at_a_time = threading.Lock()

    def collect(self) -> Iterator[Family]:
        """Samples of all that answered in time, and which did."""
        with self._one_at_a_time:
            asked = {name: worker.ask() for name, worker in self._workers.items()}
            wait(asked.values(), timeout=self._patience_seconds)
            found = {name: self._workers[name].take(answer) for name, answer in asked.items()}
        up = {(name,): float(families is not None) for name, families in found.items()}
        yield scalar(metrics.COLLECTOR_UP, up)
        seconds = {(name,): self._workers[name].seconds for name, families in found.items() if families is not None}
        yield scalar(metrics.COLLECTOR_DURATION, seconds)
        for families in found.values():
            yield from families or ()

    def describe(self) -> Iterable[Family]:
        """Nothing: registering must not wait for the stores."""
        return ()


class _Handler(BaseHTTPRequestHandler):
    registry: ClassVar[CollectorRegistry]
    protocol_version = "HTTP/1.1"
    timeout = CLIENT_SECONDS
    server_version, sys_version = "featurestore-exporter", ""

    def do_GET(self) -> None:
        """Answer `/metrics` and `/health`."""
        match self.path.partition("?")[0]:
            case "/metrics":
                self._answer(200, generate_latest(self.registry), CONTENT_TYPE_LATEST)
            case "/health":
                self._answer(200, json.dumps({"status": "ok"}).encode(), "application/json")
            case _:
                self._answer(404, b"there are /metrics and /health\n", "text/plain; charset=utf-8")

    def _answer(self, status: int, body: bytes, media_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Nothing: Prometheus asks for ever."""

    def log_message(self, template: str, *arguments: object) -> None:
        """To our log, not to standard error."""
        logger.info(template, *arguments)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - http.server gives both
        """A client that hung up is no error of ours."""
        logger.info("%s hung up", client_address)


def registry(settings: Settings, catalogue: Catalogue) -> CollectorRegistry:
    """The exporter's metrics, and those of its process."""
    found = CollectorRegistry()
    ProcessCollector(registry=found)
    found.register(Scrape(Collectors(settings, catalogue).by_name()))
    return found


def serve(settings: Settings, catalogue: Catalogue, say: Callable[[str], None]) -> None:
    """Answer scrapes until SIGTERM or SIGINT.

    Args:
        settings: Where to listen and where the stores are; none of them needs to run.
        catalogue: What is expected to be fresh.
        say: Is told where it listens.

    Raises:
        ConfigurationError: The address cannot be listened on.
    """
    host, port = settings.exporter_host, settings.exporter_port
    handler = type("Handler", (_Handler,), {"registry": registry(settings, catalogue)})
    try:
        server = _Server((host, port), handler)
    except OSError as error:
        raise ConfigurationError(
            f"{host} port {port} cannot be listened on: {error.strerror or error}; stop what listens there, or set "
            "FEATURESTORE_EXPORTER_PORT"
        ) from None
    with server, _ended_by_signals(server):
        say(f"exporting on http://{host}:{server.server_port}/metrics; Ctrl-C to stop")
        server.serve_forever()


@contextmanager
def _ended_by_signals(server: ThreadingHTTPServer) -> Iterator[None]:
    def end(_number: int, _frame: object) -> None:
        threading.Thread(target=server.shutdown).start()  # it waits for the loop that this handler interrupts

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
