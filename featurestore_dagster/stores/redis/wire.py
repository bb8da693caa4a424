"""Connections to Redis: handshake, deadlines and pools, for threads and for asyncio. What is said over them belongs to the other modules.

redis-py would do the same at three times the cost of the round trip, and takes a tenth of a second to import. Bytes are made by the caller
and parsed by hiredis. A connection on which something went wrong is closed, never reused: a late answer would be taken for the next one's.
A read that is alone waits awake for its first moment (ADR 0020).
"""

import asyncio
import os
import select
import socket
import ssl
import threading
import time
from collections import deque
from math import inf
from typing import TYPE_CHECKING, Any

import hiredis

from featurestore_dagster.errors import ConfigurationError, StoreUnavailableError

if TYPE_CHECKING:
    from featurestore_dagster.settings import RedisSettings

RECEIVE_BYTES = 262_144
MAXIMUM_CONNECTIONS = 16
AWAKE_SECONDS = 200e-6
"""A Redis on this machine answers a read of some entities sooner."""
WAITS_ASLEEP = 31
"""After a wait that was spent awake for nothing."""
REFUSED_LOGINS = ("WRONGPASS", "NOAUTH", "ERR AUTH", "ERR Client sent AUTH")


def command(*words: bytes | str | int) -> bytes:
    """One command as bytes."""
    return bytes(hiredis.pack_command(words))  # type: ignore[arg-type] # its stub allows one word only


class Answers:
    """Collects the answers to one send; the sans-io half of both connections."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader(replyError=self._refuse)
        self._refusal: str | None = None
        self._found: list[Any] = []

    def feed(self, received: bytes | memoryview) -> list[Any]:
        """All answers so far, once more bytes have come."""
        self._reader.feed(received)  # type: ignore[arg-type] # its stub forgets buffers
        found = self._found
        while (answer := self._reader.gets()) is not False:
            found.append(answer)
        return found

    def take(self) -> list[Any]:
        """The answers; the next send begins anew.

        Raises:
            hiredis.ReplyError: Redis refused a command.
        """
        found, self._found = self._found, []
        if self._refusal is not None:
            refusal, self._refusal = self._refusal, None
            raise hiredis.ReplyError(refusal)
        return found

    def _refuse(self, text: str) -> hiredis.ReplyError:
        self._refusal = self._refusal or text
        return hiredis.ReplyError(text)


def handshake(settings: "RedisSettings") -> list[bytes]:
    """What is said first on a new connection."""
    words: list[bytes] = []
    password = settings.password.get_secret_value()
    if password:
        words.append(command("AUTH", settings.username or "default", password))
    if settings.db:
        words.append(command("SELECT", settings.db))
    return words


def tls(settings: "RedisSettings") -> ssl.SSLContext | None:
    """The context of an encrypted connection."""
    return ssl.create_default_context() if settings.tls else None


class Vigil:
    """Waits for the first moment of an exchange awake: to be woken costs more than what a near server needs for a small read.

    The processor is offered to others all the while, the server among them. Where nothing came in that moment, the server is far or busy,
    and the next waits are spent asleep.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._arrivals = select.poll()
        self._arrivals.register(descriptor, select.POLLIN)
        self._asleep = 0

    def arrived(self, deadline: float) -> bool:
        """Whether something can be received; False when it is time to sleep."""
        if self._asleep:
            self._asleep -= 1
            return False
        poll, offer, now = self._arrivals.poll, os.sched_yield, time.monotonic
        until = min(deadline, now() + AWAKE_SECONDS)
        while not poll(0):
            offer()
            if now() > until:
                self._asleep = WAITS_ASLEEP
                return False
        return True


class Connection:
    """A blocking connection, used by one thread at a time. Deadlines are instants of `time.monotonic`."""

    def __init__(self, settings: "RedisSettings", deadline: float) -> None:
        """Connect and log in, or raise as `exchange`."""
        self._socket = socket.create_connection((settings.host, settings.port), _remaining(deadline))
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if context := tls(settings):
                self._socket = context.wrap_socket(self._socket, server_hostname=settings.host)
            self._answers = Answers()
            self._buffer = memoryview(bytearray(RECEIVE_BYTES))
            self._vigil = Vigil(self._socket.fileno())
            if words := handshake(settings):
                self.exchange(b"".join(words), len(words), deadline)
        except BaseException:
            self.close()
            raise

    def exchange(self, sent: bytes, count: int, deadline: float, *, awake: bool = False) -> list[Any]:
        """Send commands and wait for their `count` answers, at first awake where nobody else waits.

        Raises:
            OSError: The connection broke; TimeoutError when the deadline passed.
            hiredis.ReplyError: Redis refused a command.
        """
        self.send(sent, deadline)
        if awake:
            self._vigil.arrived(deadline)
        return self.receive(deadline, count)

    def send(self, sent: bytes, deadline: float) -> None:
        """Send commands whose answers are received later."""
        self._socket.settimeout(_remaining(deadline))
        self._socket.sendall(sent)

    def receive(self, deadline: float, count: int = 1) -> list[Any]:
        """The answers that have come, once there are `count` of them."""
        answers, buffer, receive = self._answers, self._buffer, self._socket.recv_into
        while True:
            received = receive(buffer)
            if not received:
                raise ConnectionResetError("the server closed the connection")
            if len(answers.feed(buffer[:received])) >= count:
                return answers.take()
            self._socket.settimeout(_remaining(deadline))

    def close(self) -> None:
        """Close; no-op the second time."""
        self._socket.close()

    def __del__(self) -> None:
        """A store that is forgotten leaves no socket behind."""
        if hasattr(self, "_socket"):  # else the server could not be reached
            self.close()


class Pool:
    """At most `size` connections, shared by threads; the one used last is used first. Nothing is connected before the first call."""

    def __init__(self, settings: "RedisSettings", size: int = MAXIMUM_CONNECTIONS) -> None:
        self._settings = settings
        self.size = size
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._idle: deque[Connection] = deque()
        self._open = 0
        self._waiting = 0
        self._change = threading.Condition()

    def exchange(self, sent: bytes, count: int, deadline_seconds: float) -> list[Any]:
        """One round trip; repeated once when a connection had been closed while it was idle.

        Raises:
            OSError: As `Connection.exchange`, or TimeoutError when all connections are in use until the deadline.
            hiredis.ReplyError: Redis refused a command.
        """
        deadline = time.monotonic() + deadline_seconds
        while True:
            connection, reused = self._take(deadline)
            try:
                found = connection.exchange(sent, count, deadline, awake=len(self._idle) + 1 == self._open)
            except hiredis.ReplyError:
                self._give_back(connection)
                raise
            except BaseException as error:
                self._discard(connection)
                if reused and isinstance(error, ConnectionError):
                    continue
                raise
            self._give_back(connection)
            return found

    def close(self) -> None:
        """Close the idle connections; the next call opens new ones."""
        while self._idle:
            self._discard(self._idle.pop())

    def _take(self, deadline: float) -> tuple[Connection, bool]:
        if self._process != os.getpid():
            self._forget()  # a fork shares the parent's sockets: both would read from them
        try:
            return self._idle.pop(), True
        except IndexError:
            pass
        with self._change:
            self._waiting += 1
            try:
                while self._open >= self.size and not self._idle:
                    if not self._change.wait(_remaining(deadline)):
                        raise TimeoutError(f"all {self.size} connections are in use")
                if self._idle:
                    return self._idle.pop(), True
                self._open += 1
            finally:
                self._waiting -= 1
        try:
            return Connection(self._settings, deadline), False
        except BaseException:
            self._closed()
            raise

    def _give_back(self, connection: Connection) -> None:
        self._idle.append(connection)
        if self._waiting:
            with self._change:
                self._change.notify()

    def _discard(self, connection: Connection) -> None:
        connection.close()
        self._closed()

    def _closed(self) -> None:
        with self._change:
            self._open -= 1
            self._change.notify()


class AsyncConnection(asyncio.Protocol):
    """A connection of an event loop, used by one task at a time."""

    def __init__(self) -> None:
        self._answers = Answers()
        self._awaited: tuple[asyncio.Future[None], int] | None = None
        self._transport: Any = None
        self._vigil: Vigil | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._transport = transport
        if transport.get_extra_info("sslcontext") is None:  # else what arrives is not yet readable
            self._vigil = Vigil(transport.get_extra_info("socket").fileno())

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        found = self._answers.feed(data)
        if self._awaited and len(found) >= self._awaited[1] and not self._awaited[0].done():
            self._awaited[0].set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop."""
        if self._awaited and not self._awaited[0].done():
            self._awaited[0].set_exception(exc or ConnectionResetError("the server closed the connection"))

    @property
    def is_closed(self) -> bool:
        """Whether it can be used no more."""
        return bool(self._transport.is_closing())

    async def exchange(self, sent: bytes, count: int, *, awake: bool = False) -> list[Any]:
        """As `Connection.exchange`; the deadline is the caller's `asyncio.timeout`."""
        self._awaited = (asyncio.get_running_loop().create_future(), count)
        self._transport.write(sent)
        # A loop may send later only (uvloop does): then nothing comes before we sleep.
        if awake and self._vigil and not self._transport.get_write_buffer_size() and self._vigil.arrived(inf):
            if received := os.read(self._vigil.descriptor, RECEIVE_BYTES):  # nothing: the server closed, which the loop will tell
                self.data_received(received)
            await asyncio.sleep(0)  # who only reads must not keep the loop from all others
        await self._awaited[0]
        return self._answers.take()

    def close(self) -> None:
        """Close at once."""
        self._transport.abort()


class AsyncPool:
    """As `Pool`, for the tasks of one event loop at a time."""

    def __init__(self, settings: "RedisSettings", size: int = MAXIMUM_CONNECTIONS) -> None:
        self._settings = settings
        self.size = size
        self._loop: asyncio.AbstractEventLoop | None = None

    async def exchange(self, sent: bytes, count: int, deadline_seconds: float) -> list[Any]:
        """As `Pool.exchange`."""
        if self._loop is not asyncio.get_running_loop():
            self._loop = asyncio.get_running_loop()
            self._idle: list[AsyncConnection] = []
            self._places = asyncio.Semaphore(self.size)
            self._calls = 0
        self._calls += 1
        try:
            async with asyncio.timeout(deadline_seconds), self._places:
                return await self._exchange(sent, count)
        finally:
            self._calls -= 1

    async def _exchange(self, sent: bytes, count: int) -> list[Any]:
        while True:
            connection, reused = await self._take()
            try:
                found = await connection.exchange(sent, count, awake=self._calls == 1)
            except hiredis.ReplyError:
                self._idle.append(connection)
                raise
            except BaseException as error:
                connection.close()
                if reused and isinstance(error, ConnectionError):
                    continue
                raise
            self._idle.append(connection)
            return found

    def close(self) -> None:
        """Close the idle connections."""
        while self._loop and self._idle:
            self._idle.pop().close()

    async def _take(self) -> tuple[AsyncConnection, bool]:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed:
                return connection, True
        settings = self._settings
        _, connection = await asyncio.get_running_loop().create_connection(AsyncConnection, settings.host, settings.port, ssl=tls(settings))
        try:
            if words := handshake(settings):
                await connection.exchange(b"".join(words), len(words))
        except BaseException:
            connection.close()
            raise
        return connection, False


def translated(settings: "RedisSettings", deadline_seconds: float) -> "Translation":
    """A context in which errors of the wire become ours, with the server's place and the deadline in their text."""
    return Translation(f"Redis at {settings.host}:{settings.port}", deadline_seconds)


class Translation:
    """See `translated`; a class, because a generator costs as much as decoding a row."""

    __slots__ = ("_deadline_seconds", "_place")

    def __init__(self, place: str, deadline_seconds: float) -> None:
        self._place = place
        self._deadline_seconds = deadline_seconds

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None or kind is None or not issubclass(kind, (hiredis.HiredisError, OSError)):
            return
        if isinstance(error, hiredis.ReplyError) and str(error).startswith(REFUSED_LOGINS):
            raise ConfigurationError(f"{self._place} refuses the login ({error}); check REDIS_USERNAME and REDIS_PASSWORD") from None
        if isinstance(error, hiredis.ReplyError):
            raise StoreUnavailableError(f"{self._place} refuses: {error}") from error
        if isinstance(error, TimeoutError):
            detail = f" ({error})" if str(error) not in ("", "timed out") else ""
            raise StoreUnavailableError(f"{self._place} did not answer within {self._deadline_seconds:g} s{detail}") from error
        raise StoreUnavailableError(f"{self._place} did not answer: {error}") from error


def _remaining(deadline: float) -> float:
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds
