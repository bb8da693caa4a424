"""Writes that are joined arrive whole and in order, whatever their number, and also when the connection is closed at once."""

import asyncio

import pytest
import uvloop

from featurestore_dagster.serving.http.protocol import JoinedWrites

HEAD, BODY = b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 300_000
TURNS = [
    [[HEAD]],
    [[HEAD, BODY]],
    [[HEAD, BODY, b"next"]],
    [[HEAD], [BODY]],
    [[HEAD, BODY], [HEAD, BODY, BODY], [b"last"]],
]


class Writing(asyncio.Protocol):
    """Writes each turn's pieces in a turn of the event loop, then closes in the last one's."""

    def __init__(self, turns: list[list[bytes]]) -> None:
        self.turns = turns

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.joined = JoinedWrites(transport, asyncio.get_running_loop())
        self.write_turn()

    def write_turn(self) -> None:
        turn, *self.turns = self.turns
        for piece in turn:
            self.joined.write(piece)
        if self.turns:
            asyncio.get_running_loop().call_soon(self.write_turn)
        else:
            self.joined.close()


@pytest.mark.parametrize("turns", TURNS, ids=range(len(TURNS)))
def test_all_writes_arrive_in_order(turns: list[list[bytes]]) -> None:
    async def received() -> bytes:
        server = await asyncio.get_running_loop().create_server(lambda: Writing(turns), "127.0.0.1", 0)
        async with asyncio.timeout(30), server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            found = await reader.read()
            writer.close()
            await writer.wait_closed()
        return found

    assert uvloop.run(received()) == b"".join(piece for turn in turns for piece in turn)
