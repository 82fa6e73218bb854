"""What is not HTTP at all: refused in the one error shape, without the input in the answer or the log.

aiohttp's own handler answers plain text that quotes the bad bytes, and logs a traceback with them.
"""

from __future__ import annotations

import logging

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from promptgen.server.faults import HttpFault

_log = logging.getLogger(__name__)


class QuietHandler(RequestHandler):
    """aiohttp's connection handler with another answer to requests it cannot parse."""

    __slots__ = ()

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
        return server
