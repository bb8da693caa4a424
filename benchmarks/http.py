"""`python -m benchmarks.http`: online reads over HTTP beside `feast serve`, in one run, on one Redis that holds the same rows.

A hundred Float64 features over six views, for one and for fifty entities, JSON over one kept connection; both servers have one process, all
settings of `feast serve` are its defaults. Closed loop: the next request begins when the last answer is whole; blocks of the servers
alternate, so that other load meets all alike. Open loop: requests are due at a fixed rate, and a latency counts from the instant at which
its request was due. Prints milliseconds, the processor time of the server for each request, and ratios.
"""

import argparse
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import orjson
import psutil
import yaml

from benchmarks.online import NOW, PROJECT, WIDTHS, percentiles, random_rows, stock_feast, toy_views
from benchmarks.printing import machine, show
from featurestore_dagster.features import CATALOGUE
from featurestore_dagster.model.feature_service import FeatureService
from featurestore_dagster.settings import RedisSettings, Settings
from featurestore_dagster.stores.embedded import EmbeddedServices
from featurestore_dagster.stores.embedded.processes import free_port
from featurestore_dagster.stores.postgres import PostgresStore
from featurestore_dagster.stores.redis import RedisStore

ENTITIES = 2_000
BLOCKS = 10
START_SECONDS = 120
CATALOGUE_OF_BENCHMARK = replace(
    CATALOGUE, views=toy_views(WIDTHS), services=(FeatureService("hundred", "A hundred features", toy_views(WIDTHS)),)
)

Results = dict[str, list[dict[str, Any]]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--samples", type=int, default=5_000, help="our requests for one entity (default: %(default)s)")
    parser.add_argument("--feast-samples", type=int, default=1_000, help="Feast's; a fifth of both for 50 (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second of the open loop (default: %(default)s)")
    parser.add_argument("--worker", type=int, metavar="LISTENER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        work(options.worker)
        return
    with tempfile.TemporaryDirectory() as folder, EmbeddedServices(Settings(data_folder=Path(folder) / "data")) as settings:
        results = measure(settings.model_copy(update={"clock": NOW.isoformat()}), Path(folder), options)
    show(results, as_json=options.json)


def work(listener: int) -> None:
    """One of our worker processes, as `featurestore serve` starts them, with the benchmark's views."""
    from featurestore_dagster.serving.async_client import AsyncFeatureStoreClient
    from featurestore_dagster.serving.http.service import Service
    from featurestore_dagster.serving.http.worker import serve

    settings = Settings()
    serve(Service(settings, AsyncFeatureStoreClient(settings, CATALOGUE_OF_BENCHMARK)), socket.socket(fileno=listener))


@dataclass
class Target:
    """A route of a server, and what was measured there."""

    name: str
    port: int
    process: psutil.Process
    path: str
    body: dict[str, Any]
    samples: int
    seconds: list[float] = field(default_factory=list)
    processor_seconds: float = 0.0
    lost_connections: int = 0

    def request(self) -> bytes:
        """The bytes sent."""
        body = orjson.dumps(self.body)
        return b"POST %b HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
            self.path.encode(), len(body), body,
        )  # fmt: skip

    def spent(self) -> float:
        """Processor time of the server up to now, its children included."""
        own = self.process.cpu_times()
        ended = own.children_user + own.children_system
        times = [own, *(child.cpu_times() for child in self.process.children(recursive=True))]
        return float(ended + sum(time.user + time.system for time in times))


def measure(settings: Settings, folder: Path, options: argparse.Namespace) -> Results:
    """All measurements, by table."""
    PostgresStore(settings.postgres, settings.make_clock()).apply(CATALOGUE_OF_BENCHMARK)
    store = RedisStore(settings.redis, PROJECT)
    for view in CATALOGUE_OF_BENCHMARK.views:
        store.write(view, random_rows(view, ENTITIES), 1, now=NOW)
    store.close()
    results: Results = {"machine": [machine()]}
    with ExitStack() as stack:
        feast = stack.enter_context(feast_server(settings.redis, folder))
        ours = stack.enter_context(our_server(settings, folder))
        for entities, share in ((1, 1.0), (50, 0.2)):
            found = targets(feast, ours, entities, round(options.feast_samples * share), round(options.samples * share))
            refuse_different_values(found)
            for _ in range(BLOCKS):
                for target in found:
                    closed_loop(target, target.samples // BLOCKS)
            results[f"100 features over 6 views, {entities} entities, closed loop: ms"] = rows_of(found)
        found = targets(feast, ours, 1, options.feast_samples, options.feast_samples)
        for target in found:
            open_loop(target, options.rate)
        results[f"100 features over 6 views, 1 entity, {options.rate:g} requests a second: ms from when due"] = rows_of(found)
    return results


Server = tuple[int, psutil.Process]


def targets(feast: Server, ours: Server, entities: int, feast_samples: int, our_samples: int) -> list[Target]:
    """The same question to each; Feast first, the ratios are to it."""
    references = [f"{view.label}:{name}" for view in CATALOGUE_OF_BENCHMARK.views for name in view.feature_names]
    symbols = {"symbol": [f"S{number:05d}" for number in range(entities)]}
    stock, own = {"features": references, "entities": symbols}, {"features": references, "entities": symbols}
    return [
        Target("feast serve", *feast, "/get-online-features", stock, feast_samples),
        Target("ours, Feast's protocol", *ours, "/get-online-features", stock, our_samples),
        Target("ours, with ages, flags and tiers", *ours, "/v1/online-features", own | {"policy": {"deadline_seconds": 1}}, our_samples),
    ]


def refuse_different_values(found: list[Target]) -> None:
    """Stop when servers disagree: what is measured must be the same work."""
    answers = [orjson.loads(one_answer(target)) for target in found[:2]]
    stock, own = (
        {name: column["values"] for name, column in zip(answer["metadata"]["feature_names"], answer["results"], strict=True)}
        for answer in answers
    )
    if stock != own:
        raise SystemExit("the servers answer different values")


def one_answer(target: Target) -> bytes:
    """Body of an answer."""
    with KeptConnection(target) as connection:
        return connection.exchange()


class KeptConnection:
    """One connection to a target; opened again, and counted, when the server closes it (`feast serve` does, every 1,000 requests)."""

    def __init__(self, target: Target) -> None:
        """Connected at once."""
        self._target = target
        self._request = target.request()
        self._socket = self._connected()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self._socket.close()

    def _connected(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self._target.port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def exchange(self) -> bytes:
        """Send the request, and receive the body of the whole answer."""
        while True:
            try:
                self._socket.sendall(self._request)
                return self._answer()
            except ConnectionError:
                self._target.lost_connections += 1
                self._socket.close()
                self._socket = self._connected()

    def _answer(self) -> bytes:
        received = bytearray()
        while (end := received.find(b"\r\n\r\n")) < 0:
            received += self._more()
        head = bytes(received[:end]).lower()
        if not head.startswith(b"http/1.1 200"):
            raise SystemExit(bytes(received).decode())
        whole = end + 4 + int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
        while len(received) < whole:
            received += self._more()
        return bytes(received[end + 4 :])

    def _more(self) -> bytes:
        if not (part := self._socket.recv(1 << 20)):
            raise ConnectionResetError
        return part


def closed_loop(target: Target, count: int) -> None:
    """Add a block of samples."""
    with KeptConnection(target) as connection:
        connection.exchange()
        spent = target.spent()
        for _ in range(count):
            began = time.perf_counter()
            connection.exchange()
            target.seconds.append(time.perf_counter() - began)
        target.processor_seconds += target.spent() - spent


def open_loop(target: Target, rate: float) -> None:
    """All samples, each due at its instant."""
    with KeptConnection(target) as connection:
        connection.exchange()
        spent, began = target.spent(), time.perf_counter()
        for number in range(target.samples):
            due = began + number / rate
            if (early := due - time.perf_counter()) > 0:
                time.sleep(early)
            connection.exchange()
            target.seconds.append(time.perf_counter() - due)
        target.processor_seconds = target.spent() - spent


def rows_of(found: list[Target]) -> list[dict[str, Any]]:
    """A line for each target, with ratios to the first."""
    first = percentiles(found[0].seconds)
    return [
        {
            "server": target.name,
            **(measured := percentiles(target.seconds)),
            "server's processor": target.processor_seconds / len(target.seconds) * 1000,
            "requests": len(target.seconds),
            "lost connections": target.lost_connections,
            "times faster, p50": first["p50"] / measured["p50"],
            "times faster, p95": first["p95"] / measured["p95"],
        }
        for target in found
    ]


@contextmanager
def feast_server(connection: RedisSettings, folder: Path) -> Iterator[Server]:
    """`feast serve` with its defaults."""
    config = stock_feast(connection, folder, CATALOGUE_OF_BENCHMARK.views).config
    repository = {
        "project": PROJECT, "provider": "local", "registry": config.registry if isinstance(config.registry, str) else config.registry.path,
        "online_store": {"type": "redis", "connection_string": connection.feast_connection_string},
        "offline_store": {"type": "file"}, "entity_key_serialization_version": 3,
    }  # fmt: skip
    (folder / "feature_store.yaml").write_text(yaml.safe_dump(repository))
    port = free_port()
    command = [str(Path(sys.executable).with_name("feast")), "-c", str(folder), "serve", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "feast.log").open("w") as log, running(command, port, stdout=log, stderr=log) as process:
        yield port, psutil.Process(process.pid)


@contextmanager
def our_server(settings: Settings, folder: Path) -> Iterator[Server]:
    """One worker process of ours."""
    (folder / "metrics").mkdir()
    environment = settings.child_environment() | {"PROMETHEUS_MULTIPROC_DIR": str(folder / "metrics")}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
        command = [sys.executable, "-m", "benchmarks.http", "--worker", str(listener.fileno())]
        options: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "pass_fds": [listener.fileno()]}
        with running(command, port, env=environment, **options) as process:
            yield port, psutil.Process(process.pid)


@contextmanager
def running(command: list[str], port: int, **options: Any) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that answers on the port, ended on leaving."""
    with subprocess.Popen(command, **options) as process:
        try:
            wait_for(lambda: answers(port), process)
            yield process
        finally:
            process.terminate()


def answers(port: int) -> bool:
    """Whether an HTTP server is there."""
    try:
        with closing(socket.create_connection(("127.0.0.1", port), 5)) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
            return connection.recv(100).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[bytes]") -> None:
    """Until the condition holds; stops when it does not in time, or the process ended."""
    ends = time.monotonic() + START_SECONDS
    while not condition():
        if process.poll() is not None or time.monotonic() > ends:
            raise SystemExit(f"a server did not start: exit code {process.poll()}")
        time.sleep(0.1)


if __name__ == "__main__":
    main()
