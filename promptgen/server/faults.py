"""What goes wrong, over HTTP: one shape, one table.

    {"error": {"message": ..., "type": ..., "param": ..., "code": ...}}

Never a traceback, and never the input echoed back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from aiohttp import web

from promptgen.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    EngineFailure,
    InvalidRequest,
    Overloaded,
    RequestError,
    Superseded,
    UnknownModel,
)

STATUS: Mapping[type[RequestError], int] = {
    ContextLengthExceeded: 400,
    InvalidRequest: 400,
    Overloaded: 503,
    UnknownModel: 404,
    Superseded: 409,
    DeadlineExceeded: 504,
    EngineFailure: 500,
    RequestError: 500,
}
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "superseded_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_MAX_RETRY_AFTER_S = 60


class HttpFault(Exception):
    """An answer other than 200. `headers` go out with it."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param, self.headers = (
            status,
            code,
            message,
            param,
            dict(headers or {}),
        )

    @classmethod
    def of(cls, error: RequestError) -> HttpFault:
        headers = {}
        if isinstance(error, Overloaded):
            headers["Retry-After"] = str(max(1, min(_MAX_RETRY_AFTER_S, error.retry_after_s)))
        status = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
        return cls(status, error.code, str(error), param=error.param, headers=headers)

    @classmethod
    def unforeseen(cls) -> HttpFault:
        """What a stream says when its fault is in the log."""
        return cls(500, "internal_error", "something unforeseen happened; the log has more")

    def body(self) -> dict[str, object]:
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self, *, ascii_only: bool = False) -> web.Response:
        response = web.Response(
            status=self.status,
            body=json.dumps(self.body(), ensure_ascii=ascii_only).encode(),
            content_type="application/json",
            charset="utf-8",
            headers=self.headers,
        )
        if self.headers.get("Connection") == "close":
            response.force_close()
        return response
