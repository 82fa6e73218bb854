"""What is not taken is not kept: a reader that takes nothing is cut off, however its answer comes, and one that is slow is not."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest
from aiohttp import web

from promptgen.server import protocol

PATIENCE_S = 1.0
BIG = 8_000_000


@dataclass(frozen=True)
class Service:
    runner: web.AppRunner
    port: int

    @property
    def num_connections(self) -> int:
        assert self.runner.server is not None
        return len(self.runner.server.connections)

    async def ask(self, path: str) -> socket.socket:
        """A request sent by one whose own buffer is small, and nothing read."""
        connection = socket.socket()
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(connection, ("127.0.0.1", self.port))
        await loop.sock_sendall(connection, f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        return connection


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[Service]:
    async def whole(request: web.Request) -> web.StreamResponse:
        return web.Response(body=bytes(int(request.query["size"])))

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(BIG // 1000):
            await response.write(bytes(1000))
        return response

    app = web.Application()
    app.router.add_get("/whole", whole)
    app.router.add_get("/stream", stream)
    runner = protocol.QuietRunner(app, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield Service(runner, runner.addresses[0][1])
    finally:
        await runner.cleanup()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20 * PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - aiohttp has no event for it
            await asyncio.sleep(0.02)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "STALLED_READER_S", PATIENCE_S)


@pytest.mark.parametrize("path", [f"/whole?size={BIG}", "/stream"])
def test_a_reader_that_takes_nothing_is_cut_off(path: str) -> None:
    async def scenario() -> None:
        async with serving() as service:
            with await service.ask(path):
                await until(lambda: service.num_connections == 1)
                await asyncio.sleep(PATIENCE_S / 2)
                assert service.num_connections == 1
                await until(lambda: service.num_connections == 0)

    asyncio.run(scenario())


def test_the_rest_of_an_answer_is_not_kept_either() -> None:
    """Of some of these the system's buffers take all but a rest, too little to make the writer wait."""

    async def scenario() -> None:
        async with serving() as service, contextlib.AsyncExitStack() as readers:
            for size in range(50_000, 1_000_000, 25_000):
                readers.enter_context(await service.ask(f"/whole?size={size}"))
            await until(lambda: service.num_connections > 0)
            await until(lambda: service.num_connections == 0)

    asyncio.run(scenario())


def test_a_slow_reader_gets_all_of_it() -> None:
    async def scenario() -> None:
        loop, num_read = asyncio.get_running_loop(), 0
        async with serving() as service:
            with await service.ask(f"/whole?size={BIG}") as connection:
                ends = loop.time() + 4 * PATIENCE_S
                while part := await loop.sock_recv(connection, 40_000):
                    num_read += len(part)
                    if loop.time() < ends:
                        await asyncio.sleep(0.05)
        assert num_read > BIG

    asyncio.run(scenario())
