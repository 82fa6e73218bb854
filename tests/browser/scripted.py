"""A service whose answers a test writes: the real page and its files, and a /generate and a /chat that do as they are told."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from promptgen.config import ServeSettings
from promptgen.server import guards, pages

Fields = dict[str, Any]
_PIECE = re.compile(r"\s*[a-zA-Z]+|\s*.", re.DOTALL)


@dataclass(frozen=True)
class Reply:
    """`candidates` are streamed a piece each in turn, after `before_s`, each round after `between_s`, or when the test says
    go_on() if `stepwise`. Or an error with `status` and `code`."""

    candidates: Sequence[str] = ()
    scores: Sequence[float] = ()
    status: int = 200
    code: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    before_s: float = 0.0
    between_s: float = 0.0
    stepwise: bool = False

    def rounds(self) -> list[bytes]:
        """The stream in portions."""
        pieces = [_PIECE.findall(text) for text in self.candidates]
        longest = max(map(len, pieces), default=0)
        rounds = [
            b"".join(_event({"index": i, "text": texts[n]}) for i, texts in enumerate(pieces) if n < len(texts))
            for n in range(longest)
        ]
        order = sorted(range(len(self.candidates)), key=lambda i: -self.scores[i]) if self.scores else None
        last = b"".join(_event({"index": i, "finish_reason": "stop"}) for i in range(len(pieces)))
        result: Fields = {"result": list(self.candidates), "time": 0.01}
        if order is not None:
            result |= {"order": order, "scores": [self.scores[i] for i in order]}
        return [*rounds, last + _event(result) + b"data: [DONE]\n\n"]

    def chat_rounds(self, fields: Fields) -> list[bytes]:
        """The stream of /chat in portions: the first candidate is the answer."""
        best = next(iter(self.candidates), "")
        said = [{"role": "user", "content": fields["question"]}, {"role": "assistant", "content": best}]
        last = {
            "answer": best,
            "finish_reason": "stop",
            "history": [*fields["history"], *said],
            "turns_read": 0,
            "seed": 1,
            "time": 0.01,
            "candidates": [{"text": text, "score": -1.0, "finish_reason": "stop"} for text in self.candidates],
        }
        pieces = [_event({"text": piece}) for piece in _PIECE.findall(best)]
        return [*pieces, _event(last) + b"event: end\ndata: [DONE]\n\n"]


def _event(value: Fields) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


class ScriptedService:
    """Runs in a thread of its own. `answer(fields)` decides, `calls` are the bodies that came, `came_at` when, `left` those whose
    caller hung up."""

    def __init__(self) -> None:
        self.answer: Callable[[Fields], Reply] = lambda fields: Reply()
        self.key = ""
        self.calls: list[Fields] = []
        self.came_at: list[float] = []
        self.left: list[Fields] = []
        self.origin = ""
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._stopping = asyncio.Event()
        self._steps = asyncio.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()
        assert self._started.wait(10)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(10)

    def reset(self) -> None:
        self.answer, self.key = lambda fields: Reply(), ""
        self.calls, self.came_at, self.left = [], [], []
        self._steps = asyncio.Semaphore(0)

    def go_on(self) -> None:
        """The next round of a stepwise reply goes out."""
        self._loop.call_soon_threadsafe(self._steps.release)

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        app = web.Application()
        routes = [*pages.routes(), ("POST", "/generate", self._generate), ("POST", "/chat", self._generate)]
        for method, path, handler in sorted(routes, key=lambda route: route[1]):  # as in server/app.py
            app.router.add_route(method, path, handler)
        guards.add_cors(app, ServeSettings())
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.origin = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._started.set()
        await self._stopping.wait()
        await runner.cleanup()

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        fields = await request.json()
        self.calls.append(fields)
        self.came_at.append(time.monotonic())
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return _refusal(Reply(status=401, code="invalid_api_key"))
        reply = self.answer(fields)
        try:
            await asyncio.sleep(reply.before_s)
            return await self._stream(request, reply, fields) if reply.status == 200 else _refusal(reply)
        except (asyncio.CancelledError, ConnectionResetError):
            self.left.append(fields)
            raise

    async def _stream(self, request: web.Request, reply: Reply, fields: Fields) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for portion in reply.chat_rounds(fields) if "question" in fields else reply.rounds():
            if reply.stepwise:
                await self._steps.acquire()
            await response.write(portion)
            await asyncio.sleep(reply.between_s)
        return response


def _refusal(reply: Reply) -> web.Response:
    error = {"message": "not now", "type": "some_error", "param": None, "code": reply.code}
    return web.json_response({"error": error}, status=reply.status, headers=reply.headers)
