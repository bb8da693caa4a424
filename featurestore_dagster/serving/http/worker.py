"""One worker process: `python -m featurestore_dagster.serving.http.worker LISTENER METRICS_FOLDER`; `supervisor` starts it.

On SIGTERM, SIGINT or the end of its parent (which holds the other end of standard input) it answers what it has begun, refuses the rest
with 503, and ends. It writes one line of JSON to standard output when it is ready.
"""

import asyncio
import gc
import json
import logging
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from types import FrameType

import uvicorn

from featurestore_dagster.serving.async_client import AsyncFeatureStoreClient
from featurestore_dagster.serving.http.application import create_application
from featurestore_dagster.serving.http.protocol import JoiningProtocol
from featurestore_dagster.serving.http.service import Service
from featurestore_dagster.settings import Settings

KEEP_ALIVE_SECONDS = 75
"""Longer than the usual idle time of a client's pool, so that the client closes first."""


class DrainingServer(uvicorn.Server):
    """Goes on listening while it drains, so that new requests get an answer that sends them elsewhere."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        """`service` says what is in flight."""
        super().__init__(config)
        self._service = service
        self._drain_until = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain; a second Ctrl-C ends at once."""
        if self._service.is_draining and sig == signal.SIGINT:
            super().handle_exit(sig, frame)
        self._service.is_draining = True

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop: drained, or drained long enough."""
        if await super().on_tick(counter):
            return True
        if not self._service.is_draining:
            return False
        now = asyncio.get_running_loop().time()
        self._drain_until = self._drain_until or now + self._service.settings.serve_deadline_seconds
        return self._service.is_idle or now > self._drain_until

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Say so when requests are answered."""
        await super().startup(sockets)
        gc.collect()
        gc.freeze()  # the declarations and the framework never become garbage: a full collection takes 50 ms with them
        tier = await self._service.first_answering_tier()
        sys.stdout.write(json.dumps({"tier": tier}) + "\n")
        sys.stdout.flush()


def main(listener: int, metrics_folder: Path) -> None:
    """Serve what the environment describes until drained."""
    settings = Settings()
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    serve(Service(settings, AsyncFeatureStoreClient(settings), metrics_folder), socket.socket(fileno=listener))


def serve(service: Service, listener: socket.socket) -> None:
    """Answer requests in this process until drained."""
    config = uvicorn.Config(
        create_application(service),
        loop="uvloop",
        http=JoiningProtocol,
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        log_level="warning",
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(service.settings.serve_deadline_seconds)),
    )
    threading.Thread(target=_end_with_parent, daemon=True).start()
    DrainingServer(config, service).run([listener])


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
