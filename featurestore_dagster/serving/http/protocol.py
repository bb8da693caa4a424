"""uvicorn's HTTP over a transport that sends the head of an answer together with its body: one system call, one wake-up of the client."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class JoinedWrites:
    """A transport that holds a write back until the next one, or the end of the event loop's turn; one at most, so that little is held."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        """All but writing and closing is the transport's own."""
        self._transport = transport
        self._loop = loop
        self._held: bytes | None = None

    def __getattr__(self, name: str) -> Any:
        """What the transport has."""
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send soon, in the order of the calls."""
        if self._held is None:
            self._held = data
            self._loop.call_soon(self._flush)
        else:
            held, self._held = self._held, None
            self._transport.writelines((held, data))

    def close(self) -> None:
        """Send what is held, and close."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._held is not None:
            held, self._held = self._held, None
            self._transport.write(held)


class JoiningProtocol(HttpToolsProtocol):
    """uvicorn's own, but for the transport."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called by the loop."""
        super().connection_made(JoinedWrites(transport, self.loop))  # type: ignore[arg-type] # it has all that a transport has
