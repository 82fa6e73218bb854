"""POST /tokenize and POST /detokenize: how the model's vocabulary cuts a text, and what ids read as.

A long text takes tens of milliseconds: it is cut in a thread, one at a time, and a few may wait.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

from aiohttp import web
from pydantic import BaseModel, Field

from promptgen.errors import Overloaded
from promptgen.generation.pool import ModelPool
from promptgen.server.body import read_json_object
from promptgen.server.faults import HttpFault
from promptgen.server.guards import wants_ascii
from promptgen.server.strict import STRICT, ModelName, validate
from promptgen.text.tokenizer import Tokenizer

LONG_TEXT = 2000  # characters, or ids
MAX_LONG_TEXTS = 16  # being worked on or waiting
_AT_A_TIME = 500  # tokens; the JSON encoder lets nobody else run meanwhile
_MAX_SHOWN_ID = 10**12  # a larger number in an error is told by its place alone


class TokenizeBody(BaseModel):
    """POST /tokenize."""

    model_config = STRICT

    text: Annotated[str, Field(description="what to cut into tokens")]
    model: ModelName = None


class DetokenizeBody(BaseModel):
    """POST /detokenize."""

    model_config = STRICT

    ids: Annotated[
        list[Annotated[int, Field(ge=0)]], Field(description="ids of tokens, each less than the size of the vocabulary")
    ]
    model: ModelName = None


class TextRoutes:
    """The two endpoints over the models' vocabularies."""

    def __init__(self, models: ModelPool, body_timeout_s: float) -> None:
        self._models = models
        self._body_timeout_s = body_timeout_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="text")
        self._room = threading.BoundedSemaphore(MAX_LONG_TEXTS)

    async def tokenize(self, request: web.Request) -> web.Response:
        body = validate(TokenizeBody, await read_json_object(request, self._body_timeout_s))
        tokenizer, ascii_only = self._models.get(body.model).tokenizer, wants_ascii(request)
        return _response(await self._work(len(body.text), lambda: tokens_json(tokenizer, body.text, ascii_only)))

    async def detokenize(self, request: web.Request) -> web.Response:
        body = validate(DetokenizeBody, await read_json_object(request, self._body_timeout_s))
        tokenizer, ascii_only = self._models.get(body.model).tokenizer, wants_ascii(request)
        check_ids(body.ids, tokenizer.size)
        return _response(
            await self._work(
                len(body.ids), lambda: json.dumps({"text": tokenizer.decode(body.ids)}, ensure_ascii=ascii_only)
            )
        )

    async def _work(self, length: int, work: Callable[[], str]) -> str:
        """Short texts at once, long ones in a thread. Raises Overloaded when too many long ones wait."""
        if length <= LONG_TEXT:
            return work()
        if not self._room.acquire(blocking=False):
            raise Overloaded(f"{MAX_LONG_TEXTS} long texts are waiting already; try again in a moment")
        future = self._thread.submit(work)
        # Its place is free when the work is over, which may be after its caller has left.
        future.add_done_callback(lambda _: self._room.release())
        return await asyncio.wrap_future(future)

    async def close(self, _: web.Application) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


def check_ids(ids: list[int], size: int) -> None:
    """Raises HttpFault 400 that names the first id outside a vocabulary of `size` tokens."""
    for index, token_id in enumerate(ids):
        if token_id >= size:
            named = f" is {token_id}, which" if token_id <= _MAX_SHOWN_ID else ""
            message = f"ids[{index}]{named} is outside the vocabulary of {size} tokens"
            raise HttpFault(400, "invalid_value", message, param="ids")


def tokens_json(tokenizer: Tokenizer, text: str, ascii_only: bool) -> str:
    """The answer of /tokenize, put together in short stretches: this may run beside the event loop."""
    ids = tokenizer.encode(text)
    parts = []
    for begin in range(0, len(ids), _AT_A_TIME):
        some = ids[begin : begin + _AT_A_TIME]
        entries = [{"id": i, "token": token} for i, token in zip(some, tokenizer.convert(some), strict=True)]
        parts.append(json.dumps(entries, ensure_ascii=ascii_only)[1:-1])
    return f'{{"tokens": [{", ".join(parts)}], "count": {len(ids)}}}'


def _response(body: str) -> web.Response:
    return web.Response(
        body=body.encode(), content_type="application/json", charset="utf-8", headers={"Cache-Control": "no-store"}
    )
