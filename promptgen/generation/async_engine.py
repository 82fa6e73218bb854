"""The engine for an event loop: submit a text request, get its deltas, cancel by walking away.

The model lives in one thread of its own; the loop never runs it. Commands go there by a queue, events come back once a step. What
crosses this interface are plain values, so an engine may one day sit in another process or on another machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from promptgen.config import EngineSettings
from promptgen.errors import DeadlineExceeded, EngineFailure, Overloaded, PromptgenError, Superseded
from promptgen.generation.candidates import CandidateSet, Shown
from promptgen.generation.dialogue import Dialogue
from promptgen.generation.engine import Engine
from promptgen.generation.loader import ModelInfo, OpenModel, open_model
from promptgen.generation.request import (
    Answer,
    EngineStats,
    Event,
    FailureEvent,
    GenerationRequest,
    StartEvent,
    TextRequest,
)
from promptgen.text.tokenizer import Tokenizer

State = Literal["new", "loading", "ready", "draining", "failed", "stopped"]
Delta = Shown | Answer  # the Answer comes last, once

_Command = tuple[int, Callable[[Engine], None]]  # on behalf of which request, and what

SUPERSEDED = "a newer request of this session took its place"
_LONG_PROMPT = 2000  # characters; encoding more than this is moved off the loop
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Step:
    """The events of one engine step that concern one request, and when that step ran (time.perf_counter)."""

    events: list[Event]
    started: float
    ended: float


@dataclass(slots=True)
class _Timing:
    submitted: float
    started: float = 0.0
    first: float = 0.0
    last: float = 0.0

    def note(self, step: _Step) -> None:
        if not self.started:
            self.started, self.first = step.started, step.ended
        self.last = step.ended


@dataclass(slots=True)
class AsyncEngine:
    """One model behind an event loop. `start`, then `stream` or `answer` from any task, then `stop`."""

    settings: EngineSettings
    load: Callable[[EngineSettings], OpenModel] = open_model
    state: State = "new"
    fault: PromptgenError | None = None
    num_superseded: int = 0
    died: asyncio.Event = field(default_factory=asyncio.Event)
    _model: OpenModel | None = None
    _commands: queue.SimpleQueue[_Command | None] = field(default_factory=queue.SimpleQueue)
    _streams: dict[int, asyncio.Queue[_Step]] = field(default_factory=dict)
    _sessions: dict[tuple[str, str], int] = field(default_factory=dict)  # the request that runs, by salt and session
    _ids: count[int] = field(default_factory=count)
    _thread: threading.Thread | None = None
    _loop: asyncio.AbstractEventLoop | None = None
    _idle: asyncio.Event = field(default_factory=asyncio.Event)
    _embedding: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def info(self) -> ModelInfo | None:
        return self._model.info if self._model else None

    @property
    def dialogue(self) -> Dialogue:
        """How the model is asked questions. Raises Overloaded while nothing is answered."""
        return self._ready_model().dialogue

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's vocabulary at work. Raises Overloaded while nothing is answered."""
        if self.state != "ready" or self._model is None:
            raise Overloaded(f"the service is {self.state}", retry_after_s=5)
        return self._model.tokenizer

    @property
    def stats(self) -> EngineStats:
        return self._model.engine.stats if self._model else EngineStats()

    @property
    def num_active(self) -> int:
        return len(self._streams)

    async def start(self) -> None:
        """Loads the model in the engine thread and returns when it can answer. Raises what loading raised (FileFault)."""
        assert self.state == "new"
        self.state = "loading"
        self._loop = asyncio.get_running_loop()
        loaded: asyncio.Future[OpenModel] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, args=(loaded,), name="engine", daemon=True)
        self._thread.start()
        try:
            self._model = await loaded
        except BaseException as fault:
            self.state = "failed"
            self.fault = fault if isinstance(fault, PromptgenError) else None
            raise
        self.state = "ready"

    async def settled(self) -> None:
        """Waits until the model's step is the one that will stay: compiled, if it can be. For measuring."""
        assert self._model is not None
        await asyncio.to_thread(self._model.settle)

    async def drain(self, timeout_s: float) -> bool:
        """Refuses new requests and waits for the running ones. Returns whether all of them ended in time."""
        if self.state == "ready":
            self.state = "draining"
        self._idle.clear()
        if self._streams:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), timeout_s)
        return not self._streams

    async def stop(self) -> None:
        """Ends the engine thread; requests that still run get EngineFailure."""
        if self._thread is not None and self._thread.is_alive():
            self._commands.put(None)
            await asyncio.to_thread(self._thread.join, 10)
        if self.state != "failed":
            self.state = "stopped"
        self._fail_all("the service is stopping")

    async def answer(self, request: TextRequest, *, first_token_timeout_s: float | None = None) -> Answer:
        """The whole answer: the collected stream. Raises as `stream` does."""
        async with contextlib.aclosing(self.stream(request, first_token_timeout_s=first_token_timeout_s)) as deltas:
            async for delta in deltas:
                if isinstance(delta, Answer):
                    return delta
        raise AssertionError("a stream ends with its answer")

    async def stream(
        self, request: TextRequest, *, first_token_timeout_s: float | None = None
    ) -> AsyncGenerator[Delta, None]:
        """Pieces and finished candidates as they come, the Answer last. Closing the generator frees the rows before the next step.

        Raises Overloaded (not ready, or queue full), InvalidRequest, DeadlineExceeded (no token after `first_token_timeout_s`),
        EngineFailure, Superseded (a newer request of the same session came).
        """
        model = self._ready_model()
        timing = _Timing(time.perf_counter())
        request_id, inbox = next(self._ids), asyncio.Queue[_Step]()
        self._take_session(request, request_id)
        try:
            if (1 + len(request.choices)) * len(request.prompt) > _LONG_PROMPT:
                candidates = await asyncio.to_thread(model.candidates, request)
                self._ready_model()  # things may have changed meanwhile
                if request.session and self._sessions.get((request.salt, request.session)) != request_id:
                    raise Superseded()
            else:
                candidates = model.candidates(request)
        except BaseException:
            self._leave_session(request, request_id)
            raise
        self._streams[request_id] = inbox
        self._order(request_id, candidates.requests)
        try:
            while not candidates.is_complete:
                try:
                    async with asyncio.timeout(first_token_timeout_s if not timing.started else None):
                        step = await inbox.get()
                except TimeoutError as fault:
                    raise DeadlineExceeded(
                        f"no token within {first_token_timeout_s:g} s; the service is busy"
                    ) from fault
                timing.note(step)
                for delta in self._take(step, candidates, request_id):
                    yield delta
            yield replace(
                candidates.answer(),
                queue_s=timing.started - timing.submitted,
                prefill_s=timing.first - timing.started,
                decode_s=timing.last - timing.first,
            )
        finally:
            del self._streams[request_id]
            self._leave_session(request, request_id)
            if not self._streams:
                self._idle.set()
            if not candidates.is_complete:
                self._commands.put((request_id, lambda engine: engine.cancel(request_id)))

    async def embed(self, token_ids: tuple[int, ...]) -> NDArray[np.float32]:
        """The vector of a text given as ids, computed between two steps; one at a time, so that rows go on in between.

        Raises Overloaded, EngineFailure.
        """
        async with self._embedding:
            model, found = self._ready_model(), list[NDArray[np.float32]]()
            request_id, inbox = next(self._ids), asyncio.Queue[_Step]()
            self._streams[request_id] = inbox
            self._commands.put((request_id, lambda _: self._embed(model, request_id, token_ids, found)))
            try:
                step = await inbox.get()
            finally:
                del self._streams[request_id]
                if not self._streams:
                    self._idle.set()
        for event in step.events:
            if isinstance(event, FailureEvent):
                raise EngineFailure(event.message)
        return found[0]

    def _take(self, step: _Step, candidates: CandidateSet, request_id: int) -> list[Shown]:
        shown: list[Shown] = []
        for event in step.events:
            if isinstance(event, FailureEvent):
                raise Superseded() if event.message is SUPERSEDED else EngineFailure(event.message)
            shown += candidates.take(event)
        orders, needless = candidates.take_orders()
        for sample in needless:
            self._commands.put((request_id, partial(_cancel_sample, request_id, sample)))
        self._order(request_id, orders)
        return shown

    def _order(self, request_id: int, parts: list[GenerationRequest]) -> None:
        for part in parts:
            self._commands.put((request_id, partial(_add, request_id, part)))

    def _take_session(self, request: TextRequest, request_id: int) -> None:
        """A newer request of a session takes the place of the older one, whose rows are free at the next step."""
        if not request.session:
            return
        older = self._sessions.get((request.salt, request.session))
        self._sessions[request.salt, request.session] = request_id
        if older is not None and (inbox := self._streams.get(older)) is not None:
            self._commands.put((older, lambda engine: engine.cancel(older)))
            now = time.perf_counter()
            inbox.put_nowait(_Step([FailureEvent(older, SUPERSEDED)], now, now))
            self.num_superseded += 1

    def _leave_session(self, request: TextRequest, request_id: int) -> None:
        if self._sessions.get((request.salt, request.session)) == request_id:
            del self._sessions[request.salt, request.session]

    def _ready_model(self) -> OpenModel:
        if self.state != "ready" or self._model is None:
            raise Overloaded(f"the service is {self.state}", retry_after_s=5)
        if len(self._streams) >= self.settings.max_queue:
            raise Overloaded(f"{len(self._streams)} requests are being answered already", retry_after_s=1)
        return self._model

    # -- the engine thread ---------------------------------------------------------------------------------------------

    def _run(self, loaded: asyncio.Future[OpenModel]) -> None:
        try:
            model = self.load(self.settings)
        except BaseException as fault:
            self._call(_set_exception, loaded, fault)
            return
        self._call(_set_result, loaded, model)
        try:
            self._serve(model.engine)
        except BaseException:
            _log.exception("the engine thread died")
            self._call(self._die)

    def _serve(self, engine: Engine) -> None:
        while True:
            if not engine.has_work:
                command = self._commands.get()
                if command is None:
                    return
                self._execute(engine, command)
            with contextlib.suppress(queue.Empty):
                while True:
                    command = self._commands.get_nowait()
                    if command is None:
                        return
                    self._execute(engine, command)
            started = time.perf_counter()
            if events := engine.step():
                self._call(self._dispatch, events, started, time.perf_counter())

    def _embed(
        self, model: OpenModel, request_id: int, token_ids: tuple[int, ...], found: list[NDArray[np.float32]]
    ) -> None:
        assert model.embedder is not None
        started = time.perf_counter()
        found.append(model.embedder.embed(token_ids))
        self._call(self._dispatch, [StartEvent(request_id)], started, time.perf_counter())

    def _execute(self, engine: Engine, command: _Command) -> None:
        """A command that fails, fails its own request."""
        request_id, act = command
        try:
            act(engine)
        except Exception:
            _log.exception("a command for the engine failed")
            now = time.perf_counter()
            self._call(self._dispatch, [FailureEvent(request_id, "the engine could not take this request")], now, now)

    def _call(self, function: Callable[..., None], *args: object) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            self._loop.call_soon_threadsafe(function, *args)

    # -- back on the loop ------------------------------------------------------------------------------------------------

    def _dispatch(self, events: list[Event], started: float, ended: float) -> None:
        by_request: dict[int, list[Event]] = {}
        for event in events:
            by_request.setdefault(event.request_id, []).append(event)
        for request_id, own in by_request.items():
            if (inbox := self._streams.get(request_id)) is not None:
                inbox.put_nowait(_Step(own, started, ended))

    def _die(self) -> None:
        self.state = "failed"
        self.died.set()
        self._fail_all("the engine stopped unexpectedly")

    def _fail_all(self, message: str) -> None:
        now = time.perf_counter()
        for request_id, inbox in self._streams.items():
            inbox.put_nowait(_Step([FailureEvent(request_id, message)], now, now))


def _add(request_id: int, part: GenerationRequest, engine: Engine) -> None:
    engine.add(request_id, part)


def _cancel_sample(request_id: int, sample: int, engine: Engine) -> None:
    engine.cancel(request_id, sample)


def _set_result(future: asyncio.Future[OpenModel], model: OpenModel) -> None:
    if not future.done():
        future.set_result(model)


def _set_exception(future: asyncio.Future[OpenModel], fault: BaseException) -> None:
    if not future.done():
        future.set_exception(fault)
