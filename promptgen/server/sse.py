"""A streamed answer: server-sent events as the contract has them.

    data: {"index": i, "text": piece}            as text comes, candidates interleaved
    data: {"index": i, "finish_reason": "..."}   when a candidate is complete
    data: {"index": i, "reset": true}            when it is withdrawn: equal to another, it is drawn anew
    data: {"result": [...], "time": s, "order": [i, ...], "scores": [...]}   once; order is best first
    data: [DONE]

The line with the result stays under 64 KiB like every other: a longer result is null there, its pieces have been sent.
Errors before the first byte are ordinary HTTP errors. A reader that takes nothing for 30 s is dropped (server/protocol).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from aiohttp import web

from promptgen.errors import RequestError
from promptgen.generation.async_engine import AsyncEngine, Delta
from promptgen.generation.candidates import Finished, Piece, Withdrawn
from promptgen.generation.request import Answer, TextRequest
from promptgen.server import schema
from promptgen.server.faults import HttpFault
from promptgen.server.guards import wants_ascii
from promptgen.server.outcome import ID, OUTCOME, Outcome

HEARTBEAT_S = 15.0
MAX_LINE_BYTES = 64 * 1024 - 1
PIECE_CHARACTERS = 4000  # 12 bytes each at most, when escaped
STILL_HERE = b": still here\n\n"
_DONE = b"data: [DONE]\n\n"
_Part = TypeVar("_Part")
_log = logging.getLogger(__name__)


async def stream_answer(
    request: web.Request, engine: AsyncEngine, body: schema.GenerateBody, asked: TextRequest, timeout_s: float
) -> web.StreamResponse:
    """Sends the answer as events."""
    model = engine.info.name if engine.info else ""
    writer = _Writer(body, asked, model, wants_ascii(request), time.perf_counter(), request[OUTCOME])
    return await send_events(request, _events(engine, writer, body.timeout_s(timeout_s)))


async def _events(engine: AsyncEngine, writer: _Writer, timeout_s: float) -> AsyncGenerator[bytes, None]:
    """The stream as bytes to send. Raises RequestError only before the first of them."""
    if writer.body.is_blank:
        yield writer.event({"result": [], "time": 0}) + _DONE
        return
    async with contextlib.aclosing(engine.stream(writer.asked, first_token_timeout_s=timeout_s)) as deltas:
        yield writer.start() + writer.delta(await anext(deltas))
        async with contextlib.aclosing(beating(deltas)) as beats:
            try:
                async for delta in beats:
                    yield STILL_HERE if delta is None else writer.delta(delta)
            except RequestError as fault:
                yield writer.fault(HttpFault.of(fault))
            except Exception:
                _log.exception("a stream failed")
                yield writer.fault(HttpFault.unforeseen())
    yield _DONE


@dataclass(frozen=True, slots=True)
class _Writer:
    """Turns the deltas of one answer into events."""

    body: schema.GenerateBody
    asked: TextRequest
    model: str
    ascii_only: bool
    started: float
    outcome: Outcome
    withdrawn: set[int] = field(default_factory=set)

    @property
    def num_candidates(self) -> int:
        return len(self.asked.choices) or self.asked.num_samples

    def start(self) -> bytes:
        return b"".join(map(self.echo, range(self.num_candidates)))

    def echo(self, index: int) -> bytes:
        """With echo, the context comes first in each candidate: joined pieces are exactly the results."""
        context = self.body.text if self.body.echo else ""
        pieces = [context[begin : begin + PIECE_CHARACTERS] for begin in range(0, len(context), PIECE_CHARACTERS)]
        return b"".join(self.event({"index": index, "text": piece}) for piece in pieces)

    def again(self, index: int) -> bytes:
        """The echo of a candidate that was withdrawn, when it is drawn anew."""
        if index not in self.withdrawn:
            return b""
        self.withdrawn.remove(index)
        return self.echo(index)

    def delta(self, delta: Delta) -> bytes:
        match delta:
            case Piece(index, text):
                return self.again(index) + self.event({"index": index, "text": text})
            case Finished(index, candidate):
                return self.again(index) + self.event({"index": index, "finish_reason": candidate.finish_reason})
            case Withdrawn(index):
                self.withdrawn.add(index)
                return self.event({"index": index, "reset": True})
            case Answer():
                return self.answer(delta)

    def fault(self, fault: HttpFault) -> bytes:
        self.outcome.code = fault.code
        return self.event(fault.body())

    def answer(self, answer: Answer) -> bytes:
        self.outcome.answer = answer
        total_s = time.perf_counter() - self.started
        value: dict[str, Any] = schema.by_index(self.body, answer, self.num_candidates) | {"time": round(total_s, 6)}
        if self.body.details:
            value |= schema.details(self.body, self.asked, answer, self.model, total_s)
        event = self.event(value)
        if len(event) > MAX_LINE_BYTES:
            event = self.event(
                value | {"result": None, "candidates": None, "omitted": "the result is over 64 KiB; join the pieces"}
            )
        return event

    def event(self, value: dict[str, Any]) -> bytes:
        return b"data: " + json.dumps(value, ensure_ascii=self.ascii_only).encode() + b"\n\n"


async def send_events(request: web.Request, events: AsyncGenerator[bytes, None]) -> web.StreamResponse:
    """Sends what `events` gives. The first is awaited before the status goes out, so that a refusal is a real 4xx or 5xx."""
    response = web.StreamResponse(
        headers={
            "Content-Type": "text/event-stream",
            "Cache-Control": "no-store",
            "X-Accel-Buffering": "no",
            "X-Request-Id": request[ID],
            "X-Content-Type-Options": "nosniff",
        }
    )
    async with contextlib.aclosing(events):
        first = await anext(events)
        try:
            await response.prepare(request)
            await response.write(first)
            async for event in events:
                await response.write(event)
        except ConnectionResetError:
            request[OUTCOME].left = True
            _log.info("the reader of a stream left", extra={"request_id": request[ID]})
    return response


async def beating(parts: AsyncGenerator[_Part, None]) -> AsyncGenerator[_Part | None, None]:
    """The parts as they come, and None whenever nothing came for HEARTBEAT_S."""
    pending = asyncio.ensure_future(anext(parts, None))
    try:
        while True:
            done, _ = await asyncio.wait({pending}, timeout=HEARTBEAT_S)
            if not done:
                yield None
            elif (part := pending.result()) is None:
                return
            else:
                yield part
                pending = asyncio.ensure_future(anext(parts, None))
    finally:  # a generator may only be closed when nothing awaits it any more
        pending.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await pending
