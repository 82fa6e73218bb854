"""The routes of /v1."""

from __future__ import annotations

import time
from typing import Any

from aiohttp import web

from promptgen.server.handlers import MODELS, json_response
from promptgen.server.openai import common
from promptgen.server.openai.chat import chat_completions
from promptgen.server.openai.common import Served
from promptgen.server.openai.completions import completions
from promptgen.server.openai.embeddings import embeddings

_STARTED = int(time.time())


async def models(request: web.Request) -> web.Response:
    names = [name for name, engine in request.app[MODELS] if engine.state != "unloaded"]
    return json_response(request, {"object": "list", "data": [_model(common.served(request, name)) for name in names]})


async def model(request: web.Request) -> web.Response:
    return json_response(request, _model(common.served(request, request.match_info["model"])))


def _model(on: Served) -> dict[str, Any]:
    return {
        "id": on.info.name,
        "object": "model",
        "created": _STARTED,
        "owned_by": "promptgen",
        "max_model_len": on.info.window,
    }


ROUTES = (
    ("GET", "/v1/models", models),
    ("GET", "/v1/models/{model}", model),
    ("POST", "/v1/completions", completions),
    ("POST", "/v1/chat/completions", chat_completions),
    ("POST", "/v1/embeddings", embeddings),
)
