"""GET /models, and the routes that load, unload and reload a model. These want an admin key, and change nothing but what is in memory: which
folder a name stands for is said at the start."""

from __future__ import annotations

import logging
from typing import Any

from aiohttp import web

from promptgen.errors import FileFault, Overloaded
from promptgen.generation.async_engine import AsyncEngine
from promptgen.server.faults import HttpFault
from promptgen.server.handlers import KEYS, MODELS, json_response, model_json
from promptgen.server.outcome import ID

_log = logging.getLogger(__name__)


async def models(request: web.Request) -> web.Response:
    default = request.app[MODELS].default
    listed = [_entry(name, engine, default) for name, engine in request.app[MODELS]]
    return json_response(request, {"models": listed})


async def load(request: web.Request) -> web.Response:
    """Puts a model into memory that is not there."""
    engine = _asked(request)
    if engine.state != "ready":
        await _reload(engine)
    return _now(request, engine)


async def reload(request: web.Request) -> web.Response:
    """Reads the folder of a model anew. What runs ends with the model it began with."""
    engine = _asked(request)
    await _reload(engine)
    return _now(request, engine)


async def unload(request: web.Request) -> web.Response:
    """Takes a model out of memory, when what runs has ended."""
    engine = _asked(request)
    await engine.unload()
    return _now(request, engine)


def _asked(request: web.Request) -> AsyncEngine:
    """Raises HttpFault 401 or 403, UnknownModel, Overloaded."""
    request.app[KEYS].check_admin(request)
    engine = request.app[MODELS].find(request.match_info["name"])
    if engine.state not in ("ready", "asleep", "unloaded"):
        raise Overloaded(f"the model is {engine.state}", retry_after_s=5)
    _log.info("asked to change what is served: %s", request.path, extra={"request_id": request[ID]})
    return engine


async def _reload(engine: AsyncEngine) -> None:
    try:
        await engine.reload()
    except FileFault as fault:
        raise HttpFault(422, "model_unusable", f"{fault}; what was served before is served on") from fault


def _now(request: web.Request, engine: AsyncEngine) -> web.Response:
    name = request.match_info["name"]
    return json_response(request, _entry(name, engine, request.app[MODELS].default))


def _entry(name: str, engine: AsyncEngine, default: AsyncEngine) -> dict[str, Any]:
    entry = {"name": name, "state": engine.state, "default": engine is default, "requests": engine.num_active}
    return entry | {"model": model_json(engine)}
