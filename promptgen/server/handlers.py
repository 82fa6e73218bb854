"""The endpoints, a few lines each: read, ask the engine, answer."""

from __future__ import annotations

import json
import time
from importlib.metadata import version
from typing import Any

from aiohttp import web

import promptgen
from promptgen.config import ServeSettings
from promptgen.generation.async_engine import AsyncEngine
from promptgen.generation.request import Sampling
from promptgen.server import schema
from promptgen.server.body import read_json_object
from promptgen.server.guards import wants_ascii
from promptgen.server.outcome import CALLER, OUTCOME
from promptgen.server.sse import stream_answer

ENGINE = web.AppKey("engine", AsyncEngine)
SETTINGS = web.AppKey("settings", ServeSettings)
_PARTS = ("torch", "aiohttp", "transformers")


def json_response(request: web.Request, value: dict[str, Any], *, status: int = 200) -> web.Response:
    """Raw UTF-8; with ?ascii=1 everything beyond ASCII is escaped, for consoles that cannot show it."""
    body = json.dumps(value, ensure_ascii=wants_ascii(request))
    return web.Response(
        status=status,
        body=body.encode(),
        content_type="application/json",
        charset="utf-8",
        headers={"Cache-Control": "no-store"},
    )


async def generate(request: web.Request) -> web.StreamResponse:
    engine, settings = request.app[ENGINE], request.app[SETTINGS]
    fields = await read_json_object(request, settings.body_timeout_s)
    body = schema.parse_generate(fields, engine.info.vocabulary if engine.info else None)
    started = time.perf_counter()
    if body.is_blank and not body.stream:
        return json_response(request, {"result": [], "time": 0})
    asked = body.to_request(engine.info.sampling if engine.info else Sampling(), request.get(CALLER, ""))
    if body.stream:
        return await stream_answer(request, engine, body, asked, settings.request_timeout_s)
    answer = await engine.answer(asked, first_token_timeout_s=body.timeout_s(settings.request_timeout_s))
    request[OUTCOME].answer = answer
    total_s = time.perf_counter() - started
    value: dict[str, Any] = {"result": schema.results(body, answer), "time": round(total_s, 6)}
    if body.details:
        value |= schema.details(body, asked, answer, engine.info.name if engine.info else "", total_s)
    return json_response(request, value)


async def health(request: web.Request) -> web.Response:
    """200 while this process answers or can still come to answer."""
    state = request.app[ENGINE].state
    return json_response(request, {"status": state}, status=503 if state in ("failed", "stopped") else 200)


async def ready(request: web.Request) -> web.Response:
    """200 only when a request sent now is answered."""
    state = request.app[ENGINE].state
    response = json_response(request, {"status": state}, status=200 if state == "ready" else 503)
    if state != "ready":
        response.headers["Retry-After"] = "1"
    return response


async def version_of(request: web.Request) -> web.Response:
    info = request.app[ENGINE].info
    model = (
        None
        if info is None
        else {
            "name": info.name,
            "window": info.window,
            "vocabulary": info.vocabulary,
            "layers": info.layers,
            "width": info.width,
            "heads": info.heads,
            "step": request.app[ENGINE].stats.steps,
        }
    )
    return json_response(
        request,
        {"version": promptgen.__version__, "model": model, "packages": {name: version(name) for name in _PARTS}},
    )
