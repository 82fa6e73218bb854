"""The engine for an event loop: submit a text request, get its deltas, cancel by walking away.

The model lives in a thread of its own (generation/worker.py); the loop never runs it. What crosses this interface are plain values, so an engine
may one day sit in another process or on another machine.

A thread that dies is replaced by a new one, with the model loaded anew: requests that had begun fail, those that waited wait on. One that hangs
cannot be replaced: the stacks are written to stderr, `died` is set, and the process should end. The same exchange of threads puts another version of
the model in place (`reload`) and takes it out of memory (`unload`, `sleep`): requests end where they began.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from promptgen.config import EngineSettings
from promptgen.errors import DeadlineExceeded, EngineFailure, InvalidRequest, Overloaded, PromptgenError, Superseded
from promptgen.generation.admission import Admission
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
    TokenEvent,
)
from promptgen.generation.worker import Step, Worker
from promptgen.text.tokenizer import Tokenizer

State = Literal["new", "loading", "ready", "restarting", "asleep", "unloaded", "draining", "failed", "stopped"]
Delta = Shown | Answer  # the Answer comes last, once

SUPERSEDED = "a newer request of this session took its place"
DIED = "the engine stopped unexpectedly"
MAX_DEATHS = 3  # within
DEATH_WINDOW_S = 600.0  # end it all: `died` is set
BACKOFF_S = 0.5  # before the first restart; twice as long before each further one
WATCH_S = 1.0
_BUNDLE = 32  # events: so many are handed over together where nobody looks at each step
_LONG = 2000  # characters; encoding more than this is moved off the loop
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Timing:
    submitted: float
    started: float = 0.0
    first: float = 0.0
    last: float = 0.0

    def note(self, step: Step) -> None:
        if not self.started:
            self.started, self.first = step.started, step.ended
        self.last = step.ended


@dataclass(slots=True, eq=False)
class _Stream:
    """An accepted request. `worker` is the thread it runs in, if it has one; None in the inbox says that this one died, before the request had
    begun, and after it was given to it (`is_ordered`)."""

    request_id: int
    request: TextRequest
    num_tokens: int
    timing: _Timing
    deadline: float | None
    timeout_s: float | None
    visit: Visit | None = None
    worker: Worker | None = None
    candidates: CandidateSet | None = None
    info: ModelInfo | None = None
    is_ordered: bool = False
    has_begun: bool = False
    was_moved: bool = False
    inbox: asyncio.Queue[list[Event] | None] = field(default_factory=asyncio.Queue)
    is_patient: bool = False  # what it gets is looked at when something ends, and not before
    _held: list[Event] = field(default_factory=list)

    def take(self, step: Step) -> None:
        """Hands over what a step gave. A task that is woken at every step costs more than all else that is done about a token."""
        is_first = not self.timing.started
        self.timing.note(step)
        self._held += step.events
        is_due = len(self._held) >= _BUNDLE or any(type(event) is not TokenEvent for event in step.events)
        if is_first or is_due or not self.is_patient:
            self.inbox.put_nowait(self._held)
            self._held = []

    def fail(self, message: str) -> None:
        self.inbox.put_nowait([FailureEvent(self.request_id, message)])


@dataclass(frozen=True, slots=True)
class _Known:
    """What stays of a model that sleeps."""

    info: ModelInfo
    tokenizer: Tokenizer
    dialogue: Dialogue


@dataclass(slots=True, eq=False)
class Visit:
    """Requests of one caller that belong together: when the first is accepted the others are as well, though the queue be full or the service
    draining by then. A drain waits until the visit is over. A context manager; `AsyncEngine.visit` makes them."""

    _engine: AsyncEngine
    is_accepted: bool = False
    worker: Worker | None = None  # of the first: what began with a model ends with it

    def __enter__(self) -> Visit:
        self._engine._visits.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._engine._visits.discard(self)
        self._engine._note_idle()
        if self.worker in self._engine._retired:
            self._engine._end_if_idle(self.worker)


@dataclass(slots=True)
class AsyncEngine:
    """One model behind an event loop. `start`, then `stream` or `answer` from any task, then `stop`."""

    settings: EngineSettings
    load: Callable[[EngineSettings], OpenModel] = open_model
    name: str = ""  # of the model; without one its folder's
    state: State = "new"
    fault: PromptgenError | None = None
    num_restarts: int = 0
    died: asyncio.Event = field(default_factory=asyncio.Event)
    is_hung: bool = False
    last_used: float = field(default_factory=time.monotonic)
    admission: Admission = field(init=False)
    _what_is_known: _Known | None = None
    _worker: Worker | None = None
    _opening: list[Worker] = field(default_factory=list)
    _retired: list[Worker] = field(default_factory=list)  # they end with their last request
    _streams: dict[int, _Stream] = field(default_factory=dict)
    _visits: set[Visit] = field(default_factory=set)
    _sessions: dict[tuple[str, str], int] = field(default_factory=dict)  # the request that runs, by salt and session
    _ids: count[int] = field(default_factory=count)
    _idle: asyncio.Event = field(default_factory=asyncio.Event)
    _embedding: asyncio.Lock = field(default_factory=asyncio.Lock)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _num_failed_wakes: int = 0
    _deaths: list[float] = field(default_factory=list)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _exchange: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self.admission = Admission(self.settings.max_queue, self.settings.max_queued_tokens)

    @property
    def info(self) -> ModelInfo | None:
        return self._what_is_known.info if self._what_is_known else None

    @property
    def dialogue(self) -> Dialogue:
        """How the model is asked questions. Raises Overloaded while nothing is answered."""
        return self._known().dialogue

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's vocabulary at work. Raises Overloaded while nothing is answered."""
        return self._known().tokenizer

    def _known(self) -> _Known:
        if self.state not in ("ready", "asleep") or self._what_is_known is None:
            raise Overloaded(f"the service is {self.state}", retry_after_s=5)
        return self._what_is_known

    @property
    def stats(self) -> EngineStats:
        return self._model.engine.stats if self._model else EngineStats()

    @property
    def num_active(self) -> int:
        return len(self._streams)

    @property
    def num_waiting(self) -> int:
        """Of these, requests none of whose candidates runs yet."""
        return sum(not stream.has_begun for stream in self._streams.values())

    @property
    def _workers(self) -> list[Worker]:
        return [*self._opening, *self._retired, *([self._worker] if self._worker else [])]

    @property
    def _model(self) -> OpenModel | None:
        return self._worker.model if self._worker else None

    # -- life ------------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Loads the model in the engine thread and returns when it can answer. Raises what loading raised (FileFault)."""
        assert self.state == "new"
        self.state = "loading"
        self._in_background(self._watch())
        try:
            await self._install(await self._open())
        except BaseException as fault:
            self.state = "failed"
            self.fault = fault if isinstance(fault, PromptgenError) else None
            raise

    async def settled(self) -> None:
        """Waits until the model's step is the one that will stay: compiled, if it can be. For measuring."""
        assert self._model is not None
        await asyncio.to_thread(self._model.settle)

    async def drain(self, timeout_s: float) -> bool:
        """Refuses new requests and waits for the accepted ones. Returns whether all of them ended in time."""
        if self.state not in ("new", "loading", "failed", "stopped"):
            self.state = "draining"
        self._idle.clear()
        self._note_idle()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        return self._is_idle

    @property
    def _is_idle(self) -> bool:
        return not self._streams and not any(visit.is_accepted for visit in self._visits)

    def _note_idle(self) -> None:
        if self._is_idle:
            self._idle.set()

    async def stop(self) -> None:
        """Ends the engine thread; requests that still run get EngineFailure."""
        workers = self._workers
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for worker in workers:
            worker.end()
        if not self.is_hung:
            await asyncio.gather(*(worker.join(10) for worker in workers))
        if self.state != "failed":
            self.state = "stopped"
        self._fail_all("the service is stopping")
        await self._tell()

    async def reload(self) -> None:
        """Loads the model folder anew, and puts it in the place of what is there. Raises as `start`; what was there then goes on.

        Requests that run end where they began; none is dropped. Puts an unloaded model into memory again.
        """
        async with self._exchange:
            await self._install(await self._open())

    async def unload(self) -> None:
        """Takes the model out of memory, when the last request that runs has ended. New ones are refused until `reload`."""
        async with self._exchange:
            self._take_out("unloaded")
        await self._tell()

    async def sleep(self) -> bool:
        """The same for a model that nobody uses; the next request wakes it. Returns whether it sleeps."""
        async with self._exchange:
            if self.state != "ready" or not self._is_idle:
                return False
            self._take_out("asleep")
            return True

    def _take_out(self, state: State) -> None:
        if self.state in ("ready", "restarting", "asleep"):
            self.state = state
        worker, self._worker = self._worker, None
        if worker is not None:
            self._retire(worker)

    async def _open(self) -> Worker:
        worker = Worker(partial(self.load, self.settings), self._on_step, self._on_death)
        self._opening.append(worker)
        try:
            model = await worker.start()
        finally:
            self._opening.remove(worker)
        worker.model = replace(model, info=replace(model.info, name=self.name or model.info.name))
        return worker

    async def _install(self, worker: Worker) -> None:
        """Whoever comes from now on is answered by `worker`."""
        if self.state in ("failed", "stopped"):
            worker.end()
            return
        assert worker.model is not None
        before, self._worker = self._worker, worker
        self._what_is_known = _Known(worker.model.info, worker.model.tokenizer, worker.model.dialogue)
        if before is not None:
            self._retire(before)
        if self.state != "draining":
            self.state = "ready"
        self.last_used = time.monotonic()
        await self._tell()

    def _retire(self, worker: Worker) -> None:
        self._retired.append(worker)
        self._end_if_idle(worker)

    def _end_if_idle(self, worker: Worker) -> None:
        users: list[_Stream | Visit] = [*self._streams.values(), *self._visits]
        if not any(user.worker is worker for user in users):
            self._retired.remove(worker)
            worker.end()

    async def _tell(self) -> None:
        """Who waits for a worker looks again."""
        async with self._changed:
            self._changed.notify_all()

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- faults of the thread ----------------------------------------------------------------------------------------------

    def _on_death(self, worker: Worker, ran: frozenset[int]) -> None:
        for visit in self._visits:
            if visit.worker is worker:
                visit.worker = None
        for stream in self._streams.values():
            if stream.worker is not worker:
                continue
            if stream.has_begun or stream.request_id in ran:
                stream.fail(DIED)
            else:
                stream.worker = None
                if stream.is_ordered:
                    stream.inbox.put_nowait(None)
        if worker is self._worker:
            self._worker = None
            if self.state == "ready":
                self.state = "restarting"
            self._in_background(self._restart())
        elif worker in self._retired:
            self._retired.remove(worker)

    async def _restart(self) -> None:
        async with self._exchange:
            while self._worker is None and self.state in ("restarting", "draining"):
                now = time.monotonic()
                self._deaths = [death for death in self._deaths if now - death < DEATH_WINDOW_S] + [now]
                if len(self._deaths) >= MAX_DEATHS:
                    await self._give_up(f"the engine died {MAX_DEATHS} times within {DEATH_WINDOW_S:g} s")
                    return
                await asyncio.sleep(BACKOFF_S * 2 ** (len(self._deaths) - 1))
                try:
                    worker = await self._open()
                except Exception:
                    _log.exception("the engine could not be started anew")
                    continue
                self.num_restarts += 1
                _log.warning("the engine was started anew")
                await self._install(worker)

    async def _watch(self) -> None:
        """Sees a thread that hangs."""
        limit_s = self.settings.step_timeout_s
        if not limit_s:
            return
        interval_s = min(WATCH_S, limit_s / 4)
        while not self.is_hung:
            await asyncio.sleep(interval_s)
            self.is_hung = max([worker.watch(interval_s) for worker in self._workers], default=0.0) >= limit_s
        with contextlib.suppress(Exception):  # stderr may be closed, or be no file
            faulthandler.dump_traceback(all_threads=True)
        await self._give_up(f"a step of the engine has hung for {limit_s:g} s; the stacks are above")

    async def _give_up(self, reason: str) -> None:
        _log.critical("%s", reason)
        self.state = "failed"
        self.died.set()
        self._fail_all(DIED)
        await self._tell()

    def _fail_all(self, message: str) -> None:
        for stream in self._streams.values():
            stream.fail(message)

    # -- requests ----------------------------------------------------------------------------------------------------------

    def visit(self) -> Visit:
        """For a caller who will ask several times: see Visit."""
        return Visit(self)

    async def answer(
        self, request: TextRequest, *, first_token_timeout_s: float | None = None, visit: Visit | None = None
    ) -> Answer:
        """The whole answer: the collected stream. Raises as `stream` does."""
        (answer,) = await self.answer_all([request], first_token_timeout_s=first_token_timeout_s, visit=visit)
        return answer

    async def answer_all(
        self,
        requests: Sequence[TextRequest],
        *,
        first_token_timeout_s: float | None = None,
        visit: Visit | None = None,
    ) -> list[Answer]:
        """The answers to several requests, or none: they are accepted together, all are looked at before one is begun, and when one fails the
        others are given up. Raises as `stream` does."""
        streams = self._enter(requests, first_token_timeout_s, visit)
        is_long = sum(map(_num_characters, requests)) > _LONG
        try:
            for index, stream in enumerate(streams):
                stream.is_patient = not stream.request.stop and stream.request.until == "document"
                try:
                    await self._prepare(stream, is_long=is_long)
                except InvalidRequest as fault:
                    fault.index = index
                    raise
            return await _together([self._collect(stream) for stream in streams])
        finally:
            for stream in streams:
                self._leave(stream)

    async def stream(
        self, request: TextRequest, *, first_token_timeout_s: float | None = None, visit: Visit | None = None
    ) -> AsyncGenerator[Delta, None]:
        """Pieces and finished candidates as they come, the Answer last. Closing the generator frees the rows before the next step.

        Raises Overloaded (not ready, or queue full), InvalidRequest, DeadlineExceeded (no token after `first_token_timeout_s`),
        EngineFailure, Superseded (a newer request of the same session came).
        """
        (stream,) = self._enter([request], first_token_timeout_s, visit)
        try:
            await self._prepare(stream, is_long=_num_characters(request) > _LONG)
            async with contextlib.aclosing(self._follow(stream)) as deltas:
                async for delta in deltas:
                    yield delta
        finally:
            self._leave(stream)

    async def embed(self, token_ids: tuple[int, ...], *, visit: Visit | None = None) -> NDArray[np.float32]:
        """The vector of a text given as ids, computed between two steps; one at a time, so that rows go on in between.

        Raises Overloaded, EngineFailure.
        """
        (stream,) = self._enter([TextRequest("", 1, len(token_ids))], None, visit)
        try:
            async with self._embedding:
                worker, found = stream.worker or await self._place(stream), list[NDArray[np.float32]]()
                stream.is_ordered = True
                worker.put(stream.request_id, partial(_embed, worker, stream.request_id, token_ids, found))
                events = await stream.inbox.get()
        finally:
            self._leave(stream)
        if events is None:
            raise Overloaded("the engine had to be started anew", retry_after_s=5)
        for event in events:
            if isinstance(event, FailureEvent):
                raise EngineFailure(event.message)
        return found[0]

    def _enter(self, requests: Sequence[TextRequest], timeout_s: float | None, visit: Visit | None) -> list[_Stream]:
        """Accepts all of them or raises Overloaded."""
        is_promised = visit is not None and visit.is_accepted
        kept = visit.worker if visit is not None else None
        anyway = ("draining", "restarting", *(("unloaded",) if kept else ())) if is_promised else ()
        if self.state not in ("ready", "asleep", *anyway):
            raise Overloaded(f"the service is {self.state}", retry_after_s=5)
        window = self.info.window if self.info is not None else 0
        costs = [
            max(len(r.prompt), len(r.prompt_ids))
            + (len(r.choices) or r.num_samples) * min(r.max_new_tokens, window or r.max_new_tokens)
            for r in requests
        ]
        self.admission.enter(len(requests), sum(costs), is_promised=is_promised)
        if visit is not None:
            visit.is_accepted, visit.worker = True, kept or self._worker
        deadline = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
        streams = []
        for request, cost in zip(requests, costs, strict=True):
            stream = _Stream(next(self._ids), request, cost, _Timing(time.perf_counter()), deadline, timeout_s, visit)
            stream.worker = kept or self._worker
            self._streams[stream.request_id] = stream
            streams.append(stream)
        return streams

    def _leave(self, stream: _Stream) -> None:
        del self._streams[stream.request_id]
        self.admission.leave(stream.num_tokens)
        self._leave_session(stream)
        self.last_used = time.monotonic()
        self._note_idle()
        worker, request_id = stream.worker, stream.request_id
        if worker is None:
            return
        if stream.candidates is not None and not stream.candidates.is_complete:
            worker.put(request_id, partial(_cancel, request_id))
        if worker in self._retired:
            self._end_if_idle(worker)

    async def _prepare(self, stream: _Stream, *, is_long: bool) -> None:
        """Text becomes ids, in a thread if that `is_long`. Raises InvalidRequest, and what _place raises."""
        async with self._deadline(stream):
            worker = stream.worker or await self._place(stream)
            assert worker.model is not None
            stream.info = worker.model.info
            make, request = worker.model.candidates, stream.request
            stream.candidates = await asyncio.to_thread(make, request) if is_long else make(request)

    async def _place(self, stream: _Stream) -> Worker:
        """A worker for a stream that has none. Raises Overloaded if there will be none."""
        if self.state == "asleep":
            self._in_background(self._wake())
        num_failed = self._num_failed_wakes
        async with self._changed:
            while self._worker is None:
                if self.state in ("failed", "stopped", "unloaded"):
                    raise Overloaded(f"the service is {self.state}", retry_after_s=5)
                if self._num_failed_wakes > num_failed:
                    raise EngineFailure("the model could not be loaded again")
                await self._changed.wait()
        stream.worker = self._worker
        if stream.visit is not None and stream.visit.worker is None:
            stream.visit.worker = self._worker
        return self._worker

    async def _wake(self) -> None:
        async with self._exchange:
            if self.state == "asleep" or (self.state == "draining" and self._worker is None):
                try:
                    await self._install(await self._open())
                except Exception:
                    _log.exception("a model that slept could not be loaded again")
                    self._num_failed_wakes += 1
                    await self._tell()

    async def _collect(self, stream: _Stream) -> Answer:
        async with contextlib.aclosing(self._follow(stream)) as deltas:
            async for delta in deltas:
                if isinstance(delta, Answer):
                    return delta
        raise AssertionError("a stream ends with its answer")

    async def _follow(self, stream: _Stream) -> AsyncGenerator[Delta, None]:
        candidates, timing = stream.candidates, stream.timing
        assert candidates is not None
        self._take_session(stream)
        if stream.worker is None:  # it died since the request was prepared
            async with self._deadline(stream):
                await self._move(stream)
        else:
            self._order(stream, candidates.requests)
        while not candidates.is_complete:
            events = await self._next_events(stream)
            for delta in self._take(events, stream, candidates):
                yield delta
        yield replace(
            candidates.answer(),
            queue_s=timing.started - timing.submitted,
            prefill_s=timing.first - timing.started,
            decode_s=timing.last - timing.first,
        )

    async def _next_events(self, stream: _Stream) -> list[Event]:
        if stream.timing.started:
            events = await stream.inbox.get()
        else:
            async with self._deadline(stream):
                while (events := await stream.inbox.get()) is None:
                    await self._move(stream)
        assert events is not None, "only requests that have not begun are moved"
        return events

    async def _move(self, stream: _Stream) -> None:
        """To the worker after the one that died. Once: a request may be what it died of."""
        if stream.was_moved:
            raise Overloaded("the engine had to be started anew", retry_after_s=5)
        stream.was_moved = True
        worker = await self._place(stream)
        assert worker.model is not None
        assert stream.candidates is not None
        if worker.model.info != stream.info:
            raise Overloaded("the model was changed", retry_after_s=1)
        self._order(stream, stream.candidates.requests)

    @contextlib.asynccontextmanager
    async def _deadline(self, stream: _Stream) -> AsyncGenerator[None, None]:
        try:
            async with asyncio.timeout_at(stream.deadline):
                yield
        except TimeoutError as fault:
            raise DeadlineExceeded(f"no token within {stream.timeout_s:g} s; the service is busy") from fault

    def _take(self, events: list[Event], stream: _Stream, candidates: CandidateSet) -> list[Shown]:
        shown: list[Shown] = []
        for event in events:
            if isinstance(event, FailureEvent):
                raise Superseded() if event.message is SUPERSEDED else EngineFailure(event.message)
            shown += candidates.take(event)
        orders, needless = candidates.take_orders()
        for sample in needless:
            self._put(stream, partial(_cancel_sample, stream.request_id, sample))
        self._order(stream, orders)
        return shown

    def _order(self, stream: _Stream, parts: Iterable[GenerationRequest]) -> None:
        for part in parts:
            stream.is_ordered = True
            self._put(stream, partial(_add, stream.request_id, part))

    def _put(self, stream: _Stream, act: Callable[[Engine], None]) -> None:
        if stream.worker is not None:
            stream.worker.put(stream.request_id, act)

    def _take_session(self, stream: _Stream) -> None:
        """A newer request of a session takes the place of the older one, whose rows are free at the next step."""
        if not stream.request.session:
            return
        key = stream.request.salt, stream.request.session
        if self._sessions.get(key, -1) > stream.request_id:
            raise Superseded()  # a newer one was ready sooner
        older = self._streams.get(self._sessions.get(key, -1))
        self._sessions[key] = stream.request_id
        if older is not None:
            self._put(older, partial(_cancel, older.request_id))
            older.fail(SUPERSEDED)

    def _leave_session(self, stream: _Stream) -> None:
        key = stream.request.salt, stream.request.session
        if self._sessions.get(key) == stream.request_id:
            del self._sessions[key]

    # -- called by a worker --------------------------------------------------------------------------------------------------

    def _on_step(self, worker: Worker, request_id: int, step: Step) -> None:
        stream = self._streams.get(request_id)
        if stream is not None and stream.worker is worker:
            stream.has_begun = True
            stream.take(step)


def _add(request_id: int, part: GenerationRequest, engine: Engine) -> None:
    engine.add(request_id, part)


def _cancel(request_id: int, engine: Engine) -> None:
    engine.cancel(request_id)


def _cancel_sample(request_id: int, sample: int, engine: Engine) -> None:
    engine.cancel(request_id, sample)


def _embed(
    worker: Worker, request_id: int, token_ids: tuple[int, ...], found: list[NDArray[np.float32]], _: Engine
) -> None:
    assert worker.model is not None
    assert worker.model.embedder is not None
    started = time.perf_counter()
    found.append(worker.model.embedder.embed(token_ids))
    worker.tell([StartEvent(request_id)], started)


def _num_characters(request: TextRequest) -> int:
    """Of what becomes ids."""
    wishes = sum(map(len, request.bad_words)) + sum(len(word) for word, _ in request.logit_bias)
    return (1 + len(request.choices)) * len(request.prompt) + sum(map(len, request.choices)) + wishes


async def _together(work: Sequence[Coroutine[Any, Any, Answer]]) -> list[Answer]:
    """All results; when one fails, the others are given up and its fault is raised."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
