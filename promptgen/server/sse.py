"""A streamed answer: server-sent events as the contract has them.

    data: {"index": i, "text": piece}            as text comes, candidates interleaved
    data: {"index": i, "finish_reason": "..."}   when a candidate is complete
    data: {"result": [...], "time": s}           once
    data: [DONE]

Errors before the first byte are ordinary HTTP errors. A reader that takes nothing for 30 s is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncGenerator
from typing import Any

from aiohttp import web

from promptgen.errors import RequestError
from promptgen.generation.async_engine import AsyncEngine, Delta
from promptgen.generation.candidates import Finished, Piece
from promptgen.generation.request import Answer, TextRequest
from promptgen.server import schema
from promptgen.server.faults import HttpFault

HEARTBEAT_S = 15.0
STALLED_READER_S = 30.0
_DONE = b"data: [DONE]\n\n"
_log = logging.getLogger(__name__)


async def stream_answer(
    request: web.Request, engine: AsyncEngine, body: schema.GenerateBody, asked: TextRequest, timeout_s: float
) -> web.StreamResponse:
    """Sends the answer as events. The first delta is awaited before the status goes out, so that a refusal is a real 4xx or 5xx."""
    started = time.perf_counter()
    response = _new_response(request)
    async with contextlib.aclosing(_events(engine, body, asked, timeout_s, started)) as events:
        first = await anext(events)
        try:
            await response.prepare(request)
            await _send(response, first)
            async for event in events:
                await _send(response, event)
        except ConnectionResetError:
            _log.info("the reader of a stream left", extra={"request_id": request["id"]})
    return response


async def _events(
    engine: AsyncEngine, body: schema.GenerateBody, asked: TextRequest, timeout_s: float, started: float
) -> AsyncGenerator[bytes, None]:
    """The stream as bytes to send. Raises RequestError only before the first of them."""
    if body.is_blank:
        yield _event({"result": [], "time": 0}) + _DONE
        return
    async with contextlib.aclosing(engine.stream(asked, first_token_timeout_s=timeout_s)) as deltas:
        yield _encode(await anext(deltas), body, asked, engine, started, before=_echo(body, asked))
        pending = asyncio.ensure_future(anext(deltas, None))
        try:
            while True:
                done, _ = await asyncio.wait({pending}, timeout=HEARTBEAT_S)
                if not done:
                    yield b": still here\n\n"
                elif (delta := pending.result()) is None:
                    break
                else:
                    pending = asyncio.ensure_future(anext(deltas, None))
                    yield _encode(delta, body, asked, engine, started)
        except RequestError as fault:
            yield _event(HttpFault.of(fault).body())
        finally:
            await _settle(pending)
    yield _DONE


async def _settle(pending: asyncio.Future[Delta | None]) -> None:
    """The generator may only be closed when nothing awaits it any more."""
    pending.cancel()
    with contextlib.suppress(asyncio.CancelledError, RequestError):
        await pending


def _new_response(request: web.Request) -> web.StreamResponse:
    return web.StreamResponse(
        headers={
            "Content-Type": "text/event-stream",
            "Cache-Control": "no-store",
            "X-Accel-Buffering": "no",
            "X-Request-Id": request["id"],
            "X-Content-Type-Options": "nosniff",
        }
    )


async def _send(response: web.StreamResponse, data: bytes) -> None:
    try:
        async with asyncio.timeout(STALLED_READER_S):
            await response.write(data)
    except TimeoutError as fault:
        raise ConnectionResetError("the reader took nothing for too long") from fault


def _echo(body: schema.GenerateBody, asked: TextRequest) -> bytes:
    """With echo, the context is the first piece of each candidate: joined pieces are exactly the results."""
    return b"".join(_event({"index": i, "text": body.context}) for i in range(asked.num_samples)) if body.echo else b""


def _encode(
    delta: Delta,
    body: schema.GenerateBody,
    asked: TextRequest,
    engine: AsyncEngine,
    started: float,
    *,
    before: bytes = b"",
) -> bytes:
    match delta:
        case Piece(sample, text):
            return before + _event({"index": sample, "text": text})
        case Finished(sample, candidate):
            return before + _event({"index": sample, "finish_reason": candidate.finish_reason})
        case Answer():
            total_s = time.perf_counter() - started
            value: dict[str, Any] = {"result": schema.results(body, delta), "time": round(total_s, 6)}
            if body.details:
                value |= schema.details(body, asked, delta, engine.info.name if engine.info else "", total_s)
            return before + _event(value)


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"
