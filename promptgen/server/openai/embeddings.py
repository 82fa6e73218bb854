"""POST /v1/embeddings."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from aiohttp import web
from numpy.typing import NDArray

from promptgen.server.body import read_json_object
from promptgen.server.faults import HttpFault
from promptgen.server.handlers import SETTINGS, json_response
from promptgen.server.openai import common
from promptgen.server.openai.common import Served
from promptgen.server.openai.models import EmbeddingBody, check_ids, parse


async def embeddings(request: web.Request) -> web.Response:
    fields = await read_json_object(request, request.app[SETTINGS].body_timeout_s)
    body = parse(EmbeddingBody, fields)
    on = common.served(request, body.model)
    if body.dimensions not in (None, on.info.width):
        message = f"dimensions: the vectors of this model have {on.info.width}; leave it out"
        raise HttpFault(400, "invalid_value", message, param="dimensions")
    inputs = await _inputs(on, body)
    async with common.deadline(on.timeout_s):
        with on.visit:
            vectors = [await on.engine.embed(ids, visit=on.visit) for ids in inputs]
    data = [
        {"object": "embedding", "index": index, "embedding": _encoded(vector, body.encoding_format)}
        for index, vector in enumerate(vectors)
    ]
    num_tokens = sum(map(len, inputs))
    return json_response(
        request,
        {
            "object": "list",
            "data": data,
            "model": on.info.name,
            "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
        },
    )


async def _inputs(on: Served, body: EmbeddingBody) -> list[tuple[int, ...]]:
    """The ids of each input. Raises HttpFault 400 for one that is empty, foreign or too long."""
    tokenizer, window = on.tokenizer, on.info.window

    def read() -> list[tuple[int, ...]]:
        return [
            (tokenizer.begin_id, *tokenizer.encode(given)) if isinstance(given, str) else given for given in body.inputs
        ]

    for given in body.inputs:
        if isinstance(given, str) and not given.strip():
            raise HttpFault(400, "invalid_value", "input: a text is empty", param="input")
        if not isinstance(given, str):
            check_ids(given, on.info.vocabulary, "input")
    inputs = await common.aside(sum(map(len, body.inputs)), read)
    longest = max(map(len, inputs))
    if longest > window:
        message = f"this model's maximum context length is {window} tokens; an input has {longest}; shorten it"
        raise HttpFault(400, "context_length_exceeded", message, param="input")
    return inputs


def _encoded(vector: NDArray[np.float32], how: str) -> Any:
    return vector.tolist() if how == "float" else base64.b64encode(vector.astype("<f4").tobytes()).decode()
