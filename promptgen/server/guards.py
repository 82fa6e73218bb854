"""The door: request ids, Host, Origin, keys, and CORS as the contract wants it on the wire.

aiohttp-cors knows the routes and answers preflights. Two of its habits are corrected here: for "any origin" it reflects the caller's
origin (`null` too) and sends no Vary, where the contract wants a literal `*` without credentials; and what is not a route (404,
405, errors) gets no headers from it, which a browser shows as an opaque failure.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import time
import uuid
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

import aiohttp_cors
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from promptgen.config import ServeSettings
from promptgen.errors import RequestError, UsageError
from promptgen.server import pages
from promptgen.server.faults import HttpFault
from promptgen.server.keys import Keys, Limits, unauthorized
from promptgen.server.metrics import Metrics
from promptgen.server.outcome import CALLER, CLIENT_LEFT, ID, OUTCOME, Outcome, route_of, server_timing

REQUEST_ID = "X-Request-Id"
OPEN_PATHS = frozenset({"/health", "/ready"}) | pages.PATHS  # answered without a key
EXPOSED_HEADERS = ("Retry-After", "X-Request-Id", "Server-Timing")
_ALLOWED_HEADERS = frozenset({"content-type", "authorization", "x-api-key", "x-request-id"})
_ALLOWED_PREFIX = "x-stainless-"
_PREFLIGHT_AGE_S = 600
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_log = logging.getLogger(__name__)


def add_cors(app: web.Application, settings: ServeSettings) -> None:
    """Puts every route of the app under the CORS policy of the settings. Call it when all routes are there."""
    if settings.cors_credentials and (not settings.cors_origin or "*" in settings.cors_origin):
        raise UsageError(
            "--cors-credentials needs --cors-origin with exact origins; * with credentials would open this service to every page"
        )
    for origin in _listed(settings):
        if urlsplit(origin).scheme not in ("http", "https") or not urlsplit(origin).netloc or urlsplit(origin).path:
            raise UsageError(
                f"--cors-origin {origin!r} is not an origin, which is scheme, host and port: https://example.org"
            )
    origins = _listed(settings) or ("*",)
    options = aiohttp_cors.ResourceOptions(  # type: ignore[no-untyped-call]
        allow_credentials=settings.cors_credentials,
        expose_headers=EXPOSED_HEADERS,
        allow_headers="*",
        max_age=_PREFLIGHT_AGE_S,
    )
    cors = aiohttp_cors.setup(app, defaults=dict.fromkeys(origins, options))
    for route in list(app.router.routes()):
        cors.add(route)

    async def correct(request: web.Request, response: web.StreamResponse) -> None:
        _correct_cors(request, response, settings)

    app.on_response_prepare.append(correct)


def _listed(settings: ServeSettings) -> tuple[str, ...]:
    return () if "*" in settings.cors_origin else tuple(origin.rstrip("/") for origin in settings.cors_origin)


def _correct_cors(request: web.Request, response: web.StreamResponse, settings: ServeSettings) -> None:
    listed = _listed(settings)
    if listed:
        response.headers.add(hdrs.VARY, hdrs.ORIGIN)
    origin = request.headers.get(hdrs.ORIGIN)
    if origin is None:
        return
    headers = response.headers
    if not listed:
        headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = "*"
        headers.pop(hdrs.ACCESS_CONTROL_ALLOW_CREDENTIALS, None)
    elif origin in listed:
        headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
        if settings.cors_credentials:
            headers[hdrs.ACCESS_CONTROL_ALLOW_CREDENTIALS] = "true"
    else:
        return
    if hdrs.ACCESS_CONTROL_ALLOW_HEADERS in headers:
        asked = (name.strip() for name in request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, "").split(","))
        granted = [
            name for name in asked if name.lower() in _ALLOWED_HEADERS or name.lower().startswith(_ALLOWED_PREFIX)
        ]
        headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = ",".join(granted)
    if request.method != hdrs.METH_OPTIONS:
        headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = ",".join(EXPOSED_HEADERS)


def is_preflight(request: web.Request) -> bool:
    return (
        request.method == hdrs.METH_OPTIONS
        and hdrs.ORIGIN in request.headers
        and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
    )


def outer(metrics: Metrics) -> Middleware:
    """The outermost middleware: request id, one error shape, headers that every answer has, metrics, one log line without the prompt."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get(REQUEST_ID, "")
        request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        request[ID] = request_id
        outcome = request[OUTCOME] = Outcome()
        started = time.perf_counter()
        status = CLIENT_LEFT
        try:
            response = await _answer(request, handler, outcome)
            status = CLIENT_LEFT if outcome.left else response.status
        except asyncio.CancelledError:
            outcome.left = True
            raise
        finally:
            took_s = time.perf_counter() - started
            metrics.observe(request, status, took_s, outcome)
            _log_access(request, status, took_s, outcome)
        if not response.prepared:
            response.headers[REQUEST_ID] = request_id
            response.headers["X-Content-Type-Options"] = "nosniff"
            if outcome.answer is not None:
                response.headers["Server-Timing"] = server_timing(outcome.answer, took_s)
        return response

    return middleware


def _log_access(request: web.Request, status: int, took_s: float, outcome: Outcome) -> None:
    extra: dict[str, Any] = {
        "method": request.method,
        "route": route_of(request),
        "status": status,
        "took_ms": round(took_s * 1000, 1),
        "request_id": request[ID],
    }
    if outcome.code is not None:
        extra["code"] = outcome.code
    if outcome.answer is not None:
        extra["prompt_tokens"] = outcome.answer.num_prompt_tokens
        extra["tokens"] = outcome.answer.num_completion_tokens
    _log.info("%s %s", request.method, request.rel_url.raw_path[:200], extra=extra)


async def _answer(request: web.Request, handler: Handler, outcome: Outcome) -> web.StreamResponse:
    """The handler's answer, or the fault in its place."""
    try:
        return await handler(request)
    except (HttpFault, RequestError, web.HTTPException) as error:
        fault = _fault_of(error, request)
    except Exception:
        _log.exception("unforeseen", extra={"request_id": request[ID]})
        message = f"something unforeseen happened; look for {request[ID]} in the log"
        fault = HttpFault(500, "internal_error", message)
    outcome.code = fault.code
    return fault.response(ascii_only=wants_ascii(request))


def _fault_of(error: HttpFault | RequestError | web.HTTPException, request: web.Request) -> HttpFault:
    match error:
        case HttpFault():
            return error
        case RequestError():
            return HttpFault.of(error)
        case web.HTTPMethodNotAllowed():
            return _method_not_allowed(error.allowed_methods)
        case web.HTTPNotFound():
            return HttpFault(404, "not_found", "there is nothing at this path; /openapi.json lists what there is")
        case web.HTTPForbidden() if is_preflight(request):
            return HttpFault(403, "preflight_refused", "this origin may not call this path with this method")
        case web.HTTPForbidden():
            # aiohttp-cors answers OPTIONS on every route, for preflights alone.
            route = request.match_info.route.resource
            return _method_not_allowed({r.method for r in route or ()} - {hdrs.METH_OPTIONS})
        case _:
            return HttpFault(error.status, "http_error", error.reason)


def _method_not_allowed(methods: Iterable[str]) -> HttpFault:
    allowed = ", ".join(sorted(methods))
    return HttpFault(405, "method_not_allowed", f"this path answers {allowed}", headers={"Allow": allowed})


def wants_ascii(request: web.BaseRequest) -> bool:
    """?ascii=1: everything beyond ASCII is escaped, for consoles that cannot show it."""
    return request.query.get("ascii") == "1"


def check_host(settings: ServeSettings) -> Middleware:
    """Refuses foreign Host headers (DNS rebinding) and, where origins are listed, foreign Origins."""
    names = {"localhost", settings.host.lower(), *(host.lower() for host in settings.allowed_host)}
    listed = _listed(settings)

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        host = request.headers.get(hdrs.HOST, "").strip().lower()
        # A browser always sends Host; a client without one (HTTP/1.0) cannot be rebound.
        if hdrs.HOST in request.headers and not _host_allowed(host, names):
            raise HttpFault(403, "host_not_allowed", "this Host is not served; name it with --allowed-host")
        origin = request.headers.get(hdrs.ORIGIN)
        if listed and origin is not None and origin not in listed and origin.partition("://")[2].lower() != host:
            raise HttpFault(403, "origin_not_allowed", "this origin may not call; name it with --cors-origin")
        return await handler(request)

    return middleware


def _host_allowed(host: str, names: set[str]) -> bool:
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    if host in names or name in names:
        return True
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def check_key(keys: Keys, limits: Limits) -> Middleware:
    """With keys set, wants one as `Authorization: Bearer` or `X-Api-Key` on everything but preflights and what is open, and holds each caller
    to its limits."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not keys.are_wanted or is_open_without_key(request.method, request.path) or is_preflight(request):
            return await handler(request)
        caller = keys.caller(request)
        if caller is None:
            raise unauthorized()
        request[CALLER] = caller
        if request.method != hdrs.METH_POST:
            return await handler(request)
        with limits.using(caller):
            return await handler(request)

    return middleware


def is_open_without_key(method: str, path: str) -> bool:
    """A page may be read, though what is posted to its path wants a key."""
    return path in OPEN_PATHS and method != hdrs.METH_POST
