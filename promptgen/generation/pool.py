"""The models that one process serves, by name: all loaded at the start, each in an engine thread of its own.

The first is the one that answers requests without a name. With `unload_after_s` a model that nobody has asked for so long leaves memory, and the
next request for it waits until it is loaded again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator, Mapping

from promptgen.config import EngineSettings
from promptgen.errors import UnknownModel
from promptgen.generation.async_engine import AsyncEngine, State

_CANNOT_ANSWER: tuple[State, ...] = ("failed", "stopped", "new", "loading", "restarting", "draining")
_log = logging.getLogger(__name__)


class ModelPool:
    """One AsyncEngine for each name, the default first."""

    def __init__(self, engines: Mapping[str, AsyncEngine], *, unload_after_s: float = 0.0) -> None:
        assert engines
        self._engines = dict(engines)
        self._unload_after_s = unload_after_s
        self._dozing: asyncio.Task[None] | None = None
        self.died = asyncio.Event()
        for engine in self._engines.values():
            engine.died = self.died

    @classmethod
    def of(cls, settings: Mapping[str, EngineSettings], *, unload_after_s: float = 0.0) -> ModelPool:
        engines = {name: AsyncEngine(each, name=name) for name, each in settings.items()}
        return cls(engines, unload_after_s=unload_after_s)

    def __iter__(self) -> Iterator[tuple[str, AsyncEngine]]:
        return iter(self._engines.items())

    @property
    def default(self) -> AsyncEngine:
        return next(iter(self._engines.values()))

    @property
    def state(self) -> State:
        """Of the model that is furthest from answering; one that was unloaded on purpose counts only as the default."""
        states = [engine.state for engine in self._engines.values()]
        return next((state for state in _CANNOT_ANSWER if state in states), self.default.state)

    @property
    def is_hung(self) -> bool:
        return any(engine.is_hung for engine in self._engines.values())

    def get(self, name: str | None) -> AsyncEngine:
        """The engine of a model, None for the default. Raises UnknownModel, also for one that was unloaded."""
        engine = self.default if name is None else self._engines.get(name)
        if engine is None:
            raise UnknownModel("there is no model of this name; GET /models lists those that are served")
        if engine.state == "unloaded":
            raise UnknownModel("this model is not loaded; GET /models lists those that are served")
        return engine

    def find(self, name: str) -> AsyncEngine:
        """The same, loaded or not."""
        if name not in self._engines:
            raise UnknownModel("there is no model of this name; GET /models lists those that are served")
        return self._engines[name]

    async def start(self) -> None:
        """Raises what loading raises (FileFault)."""
        for engine in self._engines.values():
            await engine.start()
        if self._unload_after_s:
            self._dozing = asyncio.create_task(self._doze())

    async def drain(self, timeout_s: float) -> bool:
        """Whether all that was accepted ended in time."""
        return all(await asyncio.gather(*(engine.drain(timeout_s) for engine in self._engines.values())))

    async def stop(self) -> None:
        if self._dozing is not None:
            self._dozing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._dozing
        await asyncio.gather(*(engine.stop() for engine in self._engines.values()))

    async def _doze(self) -> None:
        while True:
            await asyncio.sleep(min(1.0, self._unload_after_s / 4))
            for name, engine in self._engines.items():
                is_idle = not engine.num_active and time.monotonic() - engine.last_used >= self._unload_after_s
                if is_idle and engine.state == "ready" and await engine.sleep():
                    _log.info("the model %s sleeps: nobody has asked for it for %g s", name, self._unload_after_s)
