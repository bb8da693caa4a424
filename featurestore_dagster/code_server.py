"""Dagster's code server, with a worker process that waits for the next run: `python -m featurestore_dagster.code_server api grpc ...`.

Stock Dagster starts an interpreter for each run, which then imports Dagster and loads the definitions: seconds of CPU between a bar and its
features. Here that is done before the run is asked for. Every run still has a process of its own, started by `spawn`; what runs do, and how
they are watched and cancelled, is Dagster's and does not belong here. ADR 0017 says why it is no fork.
"""

import atexit
import importlib
import multiprocessing
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any

import dagster as dg
from dagster._cli import main
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._grpc import server

REPLACE_SECONDS = 15.0
"""A new worker gets ready when the run has ended, or after so long: getting ready costs the run's own CPU."""

USED_BY_STEPS = ("dagster_postgres", "featurestore_dagster.projections.pandera_schema", "pandera.backends.polars.builtin_checks")
"""Imported on first use elsewhere."""


class Worker:
    """A process that is ready, or is getting ready, for one run; stands for the `Process` that the code server believes to start."""

    def __init__(self, spawn: SpawnContext, module_name: str) -> None:
        """Starts it."""
        self.queue = spawn.Queue()
        self.event = spawn.Event()
        theirs, self._ours = spawn.Pipe(duplex=False)
        self._process: SpawnProcess = spawn.Process(target=_work, args=(theirs, self.queue, self.event, module_name))
        self._process.start()
        theirs.close()
        self._work: tuple[Callable[..., None], tuple[Any, ...]] | None = None

    def assign(self, target: Callable[..., None], args: Sequence[Any]) -> "Worker":
        """What `start` hands over. The last two arguments are this worker's queue and event, which it has already."""
        self._work = target, tuple(args[:-2])
        return self

    def start(self) -> None:
        """Let it run."""
        with suppress(BrokenPipeError):  # it died: the server finds that out by itself
            self._ours.send(self._work)
        self.close()

    def close(self) -> None:
        """Without work it ends."""
        self._ours.close()

    def is_alive(self) -> bool:
        """As a process."""
        return self._process.is_alive()

    @property
    def exitcode(self) -> int | None:
        """As a process."""
        return self._process.exitcode

    @property
    def pid(self) -> int | None:
        """As a process."""
        return self._process.pid

    @property
    def sentinel(self) -> int:
        """As a process."""
        return self._process.sentinel


class Workers:
    """Stands for the `spawn` context of the code server, which asks for a queue, an event and a process, in this order, for each run."""

    def __init__(self, module_name: str, replace_seconds: float = REPLACE_SECONDS) -> None:
        """The first worker gets ready at once."""
        self._new = partial(Worker, multiprocessing.get_context("spawn"), module_name)
        self._replace_seconds = replace_seconds
        self._lock = threading.Lock()
        self._spare: Worker | None = self._new()
        self._of_thread = threading.local()
        atexit.register(self.close)

    def Queue(self) -> Any:  # noqa: N802 - multiprocessing's name
        """Of the spare worker, or of a new one while there is none."""
        with self._lock:
            spare, self._spare = self._spare, None
        self._of_thread.worker = spare if spare is not None and spare.is_alive() else self._new()
        return self._of_thread.worker.queue

    def Event(self) -> Any:  # noqa: N802
        """Of the same worker."""
        return self._of_thread.worker.event

    def Process(self, target: Callable[..., None], args: Sequence[Any]) -> Worker:  # noqa: N802
        """The same worker; another one will get ready."""
        worker: Worker = self._of_thread.worker
        threading.Thread(target=self._replace, args=(worker.sentinel,), daemon=True).start()
        return worker.assign(target, args)

    def close(self) -> None:
        """End the spare worker: Python waits for its children when it ends."""
        with self._lock:
            if self._spare is not None:
                self._spare.close()
            self._spare = None

    def _replace(self, sentinel: int) -> None:
        wait([sentinel], self._replace_seconds)
        with self._lock:
            if self._spare is None:
                self._spare = self._new()


def _work(connection: Connection, queue: Any, event: Any, module_name: str) -> None:
    """What a worker does: get ready, wait, run."""
    with suppress(Exception):  # the run will find the same error, and say it in its log
        _get_ready(module_name)
    try:
        target, arguments = connection.recv()
    except EOFError:
        return  # the code server has ended
    target(*arguments, queue, event)


def _get_ready(module_name: str) -> None:
    for name in USED_BY_STEPS:
        importlib.import_module(name)
    for value in vars(importlib.import_module(module_name)).values():
        if isinstance(value, dg.Definitions):
            value.get_repository_def().load_all_definitions()


class CodeServer(server.DagsterApiServer):
    """Dagster's, with `Workers`."""

    def __init__(self, *, loadable_target_origin: LoadableTargetOrigin | None = None, **options: Any) -> None:
        """See the parent."""
        super().__init__(loadable_target_origin=loadable_target_origin, **options)
        if loadable_target_origin is not None and loadable_target_origin.module_name is not None:
            self._mp_ctx = Workers(loadable_target_origin.module_name)  # type: ignore[assignment]


if __name__ == "__main__":
    server.DagsterApiServer = CodeServer  # type: ignore[assignment, misc]
    sys.argv[0] = "dagster"
    main()  # type: ignore[no-untyped-call]
