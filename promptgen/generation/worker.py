"""The engine thread: loads a model, takes commands, steps, tells the loop what came of it; until it is told to end, or dies.

Commands go in by a queue, events come back once a step. Nobody can end a thread that hangs in a native call, but it can be seen: `beats` grow
for as long as the thread does anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from promptgen.generation.engine import Engine
from promptgen.generation.loader import OpenModel
from promptgen.generation.request import Event, FailureEvent

Act = Callable[[Engine], None]
_Command = tuple[int, Act]  # on behalf of which request, and what
REFUSED = "the engine could not take this request"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Step:
    """The events of one engine step that concern one request, and when that step ran (time.perf_counter)."""

    events: list[Event]
    started: float
    ended: float


@dataclass(slots=True, eq=False)
class Worker:
    """One engine and its thread. All but `_run` and what it calls belongs to the event loop.

    `on_step(worker, request_id, step)` and `on_death(worker, ran)` are called on the loop; `ran` are the requests that had begun when the thread died.
    """

    load: Callable[[], OpenModel]
    on_step: Callable[[Worker, int, Step], None]
    on_death: Callable[[Worker, frozenset[int]], None]
    model: OpenModel | None = None
    beats: int = 0
    is_busy: bool = False
    _seen_beats: int = -1
    _stuck_s: float = 0.0
    _commands: queue.SimpleQueue[_Command | None] = field(default_factory=queue.SimpleQueue)
    _thread: threading.Thread | None = None
    _loop: asyncio.AbstractEventLoop | None = None

    async def start(self) -> OpenModel:
        """Returns when the model can answer. Raises what loading raised (FileFault)."""
        self._loop = asyncio.get_running_loop()
        loaded: asyncio.Future[OpenModel] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, args=(loaded,), name="engine", daemon=True)
        self._thread.start()
        try:
            self.model = await loaded
        except asyncio.CancelledError:
            self.end()
            raise
        return self.model

    def put(self, request_id: int, act: Act) -> None:
        self._commands.put((request_id, act))

    def end(self) -> None:
        """Lets the thread finish its step and stop."""
        self._commands.put(None)

    async def join(self, timeout_s: float) -> None:
        if self._thread is not None and self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, timeout_s)

    def watch(self, passed_s: float) -> float:
        """For how long the thread has had work and done nothing, as seen at calls `passed_s` apart.

        Counted in calls: a machine that slept, or a clock that was set, makes nothing look stuck.
        """
        is_stuck = self.is_busy and self.beats == self._seen_beats
        self._stuck_s = self._stuck_s + passed_s if is_stuck else 0.0
        self._seen_beats = self.beats
        return self._stuck_s

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self, loaded: asyncio.Future[OpenModel]) -> None:
        try:
            model = self.load()
        except BaseException as fault:
            self._call(_set_exception, loaded, fault)
            return
        self._call(_set_result, loaded, model)
        try:
            self._serve(model.engine)
        except BaseException:
            _log.exception("the engine thread died")
            self._call(self.on_death, self, _begun(model.engine))

    def _serve(self, engine: Engine) -> None:
        while True:
            if not engine.has_work:
                self.is_busy = False
                command = self._commands.get()
                self.is_busy = True
                if command is None:
                    return
                self._execute(engine, command)
            with contextlib.suppress(queue.Empty):
                while True:
                    command = self._commands.get_nowait()
                    if command is None:
                        return
                    self._execute(engine, command)
            self.beats += 1
            started = time.perf_counter()
            if events := engine.step():
                self.tell(events, started)

    def _execute(self, engine: Engine, command: _Command) -> None:
        """A command that fails, fails its own request."""
        request_id, act = command
        try:
            act(engine)
        except Exception:
            _log.exception("a command for the engine failed")
            self.tell([FailureEvent(request_id, REFUSED)], time.perf_counter())

    def tell(self, events: list[Event], started: float) -> None:
        """To those whom the events concern. `started` is when what caused them did (time.perf_counter)."""
        self._call(self._dispatch, events, started, time.perf_counter())

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
            self.on_step(self, request_id, Step(own, started, ended))


def _begun(engine: Engine) -> frozenset[int]:
    """The requests that had begun, as far as a broken engine can tell."""
    try:
        return engine.begun
    except Exception:
        return frozenset()


def _set_result(future: asyncio.Future[OpenModel], model: OpenModel) -> None:
    if not future.done():
        future.set_result(model)


def _set_exception(future: asyncio.Future[OpenModel], fault: BaseException) -> None:
    if not future.done():
        future.set_exception(fault)
