"""Chunks as server-sent events: one JSON object for each `data: ` line, [DONE] last.

What comes together goes out together. The first chunk is awaited before the status goes out, so that a refusal is a real 4xx or 5xx; a fault
after that is `data: {"error": {...}}`.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Any, Protocol

from aiohttp import web

from promptgen.errors import RequestError
from promptgen.generation.async_engine import Delta
from promptgen.generation.request import Answer, TextRequest
from promptgen.server.faults import HttpFault
from promptgen.server.guards import wants_ascii
from promptgen.server.openai.common import Served, merged
from promptgen.server.outcome import OUTCOME, Outcome, combined
from promptgen.server.sse import STILL_HERE, beating, send_events

Chunk = dict[str, Any]
_DONE = b"data: [DONE]\n\n"
_log = logging.getLogger(__name__)


class Writer(Protocol):
    """Turns deltas into the chunks of one kind of object."""

    def start(self) -> Iterable[Chunk]: ...
    def delta(self, number: int, delta: Delta) -> Iterable[Chunk]: ...
    def end(self) -> Iterable[Chunk]: ...


async def stream_chunks(
    request: web.Request, on: Served, asked: Sequence[TextRequest], writer: Writer
) -> web.StreamResponse:
    return await send_events(request, _events(on, asked, writer, request[OUTCOME], ascii_only=wants_ascii(request)))


async def _events(
    on: Served, asked: Sequence[TextRequest], writer: Writer, outcome: Outcome, *, ascii_only: bool
) -> AsyncGenerator[bytes, None]:
    """The stream as bytes to send. Raises RequestError only before the first of them."""
    answers: list[Answer] = []

    def event(chunk: Chunk) -> bytes:
        return b"data: " + json.dumps(chunk, ensure_ascii=ascii_only).encode() + b"\n\n"

    def fault_event(fault: HttpFault) -> bytes:
        outcome.code = fault.code
        return event(fault.body())

    async with contextlib.aclosing(merged(on, asked)) as deltas:
        first = await anext(deltas, None)
        chunks = [*writer.start(), *(writer.delta(*first) if first is not None else ())]
        yield b"".join(map(event, chunks))
        async with contextlib.aclosing(beating(deltas)) as beats:
            try:
                async for item in beats:
                    if item is None:
                        yield STILL_HERE
                        continue
                    if isinstance(item[1], Answer):
                        answers.append(item[1])
                    if data := b"".join(map(event, writer.delta(*item))):
                        yield data
                outcome.answer = combined(answers)
                yield b"".join(map(event, writer.end()))
            except RequestError as fault:
                yield fault_event(HttpFault.of(fault))
            except Exception:
                _log.exception("a stream failed")
                yield fault_event(HttpFault.unforeseen())
    yield _DONE
