"""The endpoints, a few lines each: read, ask the engine, answer."""

from __future__ import annotations

import json
import time
from importlib.metadata import version
from typing import Any

from aiohttp import web

import promptgen
from promptgen.config import ServeSettings
from promptgen.errors import InvalidRequest
from promptgen.generation.async_engine import AsyncEngine
from promptgen.generation.pool import ModelPool
from promptgen.generation.request import Sampling
from promptgen.server import schema
from promptgen.server.body import read_json_object
from promptgen.server.faults import HttpFault
from promptgen.server.guards import wants_ascii
from promptgen.server.keys import Keys
from promptgen.server.outcome import CALLER, OUTCOME, combined
from promptgen.server.sse import stream_answer

ENGINE = web.AppKey("engine", AsyncEngine)  # of the model that answers who names none
MODELS = web.AppKey("models", ModelPool)
KEYS = web.AppKey("keys", Keys)
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
    settings = request.app[SETTINGS]
    fields = await read_json_object(request, settings.body_timeout_s)
    name = fields.get("model")
    engine = engine_of(request, name if isinstance(name, str) else None)
    body = schema.parse_generate(fields, engine.info.vocabulary if engine.info else None)
    started = time.perf_counter()
    if isinstance(body.context, list):
        return await _generate_each(request, engine, body)
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


async def _generate_each(request: web.Request, engine: AsyncEngine, body: schema.GenerateBody) -> web.Response:
    """Several contexts, answered together. Blank ones are not asked."""
    settings, started = request.app[SETTINGS], time.perf_counter()
    sampling = engine.info.sampling if engine.info else Sampling()
    caller, timeout_s = request.get(CALLER, ""), body.timeout_s(settings.request_timeout_s)
    singles = body.each()
    asked = [None if one.is_blank else one.to_request(sampling, caller) for one in singles]
    try:
        answers = await engine.answer_all([one for one in asked if one is not None], first_token_timeout_s=timeout_s)
    except InvalidRequest as fault:
        place = [index for index, one in enumerate(asked) if one is not None][fault.index]
        raise HttpFault(400, fault.code, f"context[{place}]: {fault}", param=fault.param) from fault
    request[OUTCOME].answer = combined(answers)
    total_s = time.perf_counter() - started
    name = engine.info.name if engine.info else ""
    value = schema.together(singles, asked, answers, name, total_s, with_details=body.details)
    return json_response(request, value)


def engine_of(request: web.Request, name: str | None) -> AsyncEngine:
    """The engine of a model, None for the default. Raises UnknownModel."""
    return request.app[MODELS].get(name)


async def health(request: web.Request) -> web.Response:
    """200 while this process answers or can still come to answer."""
    state = request.app[MODELS].state
    return json_response(request, {"status": state}, status=503 if state in ("failed", "stopped") else 200)


async def ready(request: web.Request) -> web.Response:
    """200 only when a request sent now is answered. One to a model that sleeps is, when it has been loaded again."""
    state = request.app[MODELS].state
    is_ready = state in ("ready", "asleep")
    response = json_response(request, {"status": state}, status=200 if is_ready else 503)
    if not is_ready:
        response.headers["Retry-After"] = "1"
    return response


async def version_of(request: web.Request) -> web.Response:
    model = model_json(request.app[ENGINE])
    return json_response(
        request,
        {"version": promptgen.__version__, "model": model, "packages": {name: version(name) for name in _PARTS}},
    )


def model_json(engine: AsyncEngine) -> dict[str, Any] | None:
    """What is told of a model; None until it was loaded once."""
    info = engine.info
    if info is None:
        return None
    return {
        "name": info.name,
        "window": info.window,
        "vocabulary": info.vocabulary,
        "layers": info.layers,
        "width": info.width,
        "heads": info.heads,
        "step": engine.stats.steps,
    }
