"""The routes of /v1."""

from __future__ import annotations

import time
from typing import Any

from aiohttp import web

from promptgen.errors import Overloaded
from promptgen.generation.loader import ModelInfo
from promptgen.server.handlers import MODELS, json_response
from promptgen.server.openai import common
from promptgen.server.openai.chat import chat_completions
from promptgen.server.openai.completions import completions
from promptgen.server.openai.embeddings import embeddings

_STARTED = int(time.time())


async def models(request: web.Request) -> web.Response:
    """Those of which something is known. Raises Overloaded while that is none."""
    engines = [engine for _, engine in request.app[MODELS] if engine.state != "unloaded"]
    found = [_model(engine.info) for engine in engines if engine.info is not None]
    if engines and not found:
        raise Overloaded(f"the service is {request.app[MODELS].state}", retry_after_s=5)
    return json_response(request, {"object": "list", "data": found})


async def model(request: web.Request) -> web.Response:
    return json_response(request, _model(common.served(request, request.match_info["model"]).info))


def _model(info: ModelInfo) -> dict[str, Any]:
    return {
        "id": info.name,
        "object": "model",
        "created": _STARTED,
        "owned_by": "promptgen",
        "max_model_len": info.window,
    }


ROUTES = (
    ("GET", "/v1/models", models),
    ("GET", "/v1/models/{model}", model),
    ("POST", "/v1/completions", completions),
    ("POST", "/v1/chat/completions", chat_completions),
    ("POST", "/v1/embeddings", embeddings),
)
