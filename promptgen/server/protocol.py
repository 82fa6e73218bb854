"""The connections: what is not HTTP at all is refused in the one error shape, readers that take nothing are cut off, and Expect waits its turn.

aiohttp's own handler answers plain text that quotes the bad bytes, and logs a traceback with them; it waits for readers without end, with all of
an answer in memory; and it answers Expect before any middleware has looked at the request.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from typing import Any

from aiohttp import hdrs, web
from aiohttp.http_parser import RawRequestMessage
from aiohttp.web_protocol import RequestHandler
from multidict import CIMultiDictProxy

from promptgen.server.faults import HttpFault
from promptgen.server.outcome import EXPECTED

STALLED_READER_S = 30.0
SEND_BUFFER_BYTES = 128 * 1024
_LOOKS = 10  # at what a reader has left, in STALLED_READER_S
_log = logging.getLogger(__name__)


class QuietHandler(RequestHandler):
    """aiohttp's connection handler with another answer to requests it cannot parse, and an eye on its reader."""

    __slots__ = ("_is_watched",)

    def __init__(self, manager: web.Server, **kwargs: Any) -> None:
        super().__init__(manager, **kwargs)
        self._is_watched = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # The kernel takes more when a third of its buffer is free: in a small one a slow reader is seen to read.
        connection: socket.socket = transport.get_extra_info("socket")
        with contextlib.suppress(OSError):  # it may be closed already
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        super().connection_made(transport)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        finished = await super().finish_response(request, resp, start_time)
        self._watch()  # aiohttp closes a connection when the rest has been taken, however long that is
        return finished

    def _watch(self) -> None:
        """From now until all that was written is taken."""
        if self.transport is not None and not self._is_watched:
            self._look(self.transport, 0, 0)

    def _look(self, transport: asyncio.Transport, left_before: int, num_idle: int) -> None:
        """Cuts the reader off after _LOOKS at the same rest. Counted in looks: a machine that slept makes nobody look idle. More that was written
        meanwhile counts as taken; soon its writer waits."""
        left = transport.get_write_buffer_size()
        num_idle = num_idle + 1 if left == left_before else 0
        self._is_watched = left > 0
        if num_idle >= _LOOKS:
            _log.info("a reader took nothing for %g s and was cut off", STALLED_READER_S)
            transport.abort()
        elif self._is_watched:
            self._loop.call_later(STALLED_READER_S / _LOOKS, self._look, transport, left, num_idle)

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        if status >= 500:
            return super().handle_error(request, status, exc, message)
        _log.info("not a request that HTTP knows", extra={"status": status})
        if request.writer.output_size > 0:
            raise ConnectionError("an answer is on its way already")
        return HttpFault(
            status, "bad_request", "this is not a well-formed HTTP request", headers={"Connection": "close"}
        ).response()


class QuietServer(web.Server):
    def __call__(self) -> RequestHandler:
        return QuietHandler(self, loop=self._loop, **self._kwargs)


class QuietRunner(web.AppRunner):
    """web.AppRunner whose connections are QuietHandlers."""

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        server.__class__ = QuietServer
        server.request_factory = _defer_expectation(server.request_factory)
        return server


def _defer_expectation(make_request: Callable[..., web.BaseRequest]) -> Callable[..., web.BaseRequest]:
    """Takes Expect from the headers, where aiohttp would meet it, to where server/body does: after host and key, before a body is read."""

    def make(message: RawRequestMessage, *others: Any) -> web.BaseRequest:
        if hdrs.EXPECT not in message.headers:
            return make_request(message, *others)
        headers = message.headers.copy()
        expected = headers.popall(hdrs.EXPECT)[0]
        request = make_request(message._replace(headers=CIMultiDictProxy(headers)), *others)
        request[EXPECTED] = expected
        return request

    return make
