"""The service with a fault that happens when the process gets SIGUSR1: python faulty_server.py FAULT [options of serve].

For tests alone: nothing of it is in the package.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from promptgen import cli
from promptgen.generation.engine import Engine
from promptgen.generation.prompts import PromptCache
from promptgen.generation.request import Event
from promptgen.generation.runner import Runner
from promptgen.generation.worker import Worker

PACE_S = 0.005  # a step takes this long at least, so that on the fastest machine the signal finds it at work
armed = threading.Event()


def is_due() -> bool:
    """Once for each signal."""
    if not armed.is_set():
        return False
    armed.clear()
    return True


def before_step(act: Callable[[Engine], None]) -> None:
    step = Engine.step

    def faulty(engine: Engine) -> list[Event]:
        if engine.stats.num_rows:
            time.sleep(PACE_S)
            if is_due():
                act(engine)
        return step(engine)

    Engine.step = faulty  # type: ignore[method-assign]


def die(_: Engine) -> None:
    raise RuntimeError("the engine thread dies on purpose")


def hang(_: Engine) -> None:
    ctypes.CDLL(None).sleep(3600)  # in native code, as a lock that is never given back would


def plod() -> None:
    """Steps take 20 ms at least from the signal on, as those of a model that is too large for its machine."""
    step = Engine.step

    def slow(engine: Engine) -> list[Event]:
        if armed.is_set():
            time.sleep(0.02)
        return step(engine)

    Engine.step = slow  # type: ignore[method-assign]


def lose_numbers(engine: Engine) -> None:
    engine._runner._memory.values[:, 0, :, 0] = np.nan


def fail_once() -> None:
    compute = Runner._compute

    def faulty(runner: Runner, plan: Any) -> Any:
        if plan.num_rows:
            time.sleep(PACE_S)
            if is_due():
                raise MemoryError
        return compute(runner, plan)

    Runner._compute = faulty  # type: ignore[method-assign]


def refuse_memory() -> None:
    acquire = PromptCache.acquire

    def faulty(cache: PromptCache, token_ids: tuple[int, ...], salt: str) -> Any:
        if is_due():
            raise MemoryError
        return acquire(cache, token_ids, salt)

    PromptCache.acquire = faulty  # type: ignore[method-assign]


def jump_clock() -> None:
    """The clock on the wall is wrong by days from the signal on, another way at each look."""
    real, days = time.time, iter(range(10**9))

    def wrong() -> float:
        return real() + (86_400 * (-1) ** next(days) * 30 if armed.is_set() else 0)

    time.time = wrong
    time.time_ns = lambda: int(wrong() * 1e9)  # type: ignore[assignment]


def load_slowly() -> None:
    """From the start on, without a signal: for LOAD_S seconds."""
    run, seconds = Worker._run, float(os.environ.get("LOAD_S", "60"))

    def slow(worker: Worker, loaded: Any) -> None:
        time.sleep(seconds)
        run(worker, loaded)

    Worker._run = slow  # type: ignore[method-assign]


FAULTS: dict[str, Callable[[], None]] = {
    "die": lambda: before_step(die),
    "hang": lambda: before_step(hang),
    "slow": plod,
    "nan": lambda: before_step(lose_numbers),
    "step": fail_once,
    "admission": refuse_memory,
    "clock": jump_clock,
    "load": load_slowly,
}


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, lambda *_: armed.set())
    FAULTS[sys.argv[1]]()
    sys.exit(cli.main(["serve", *sys.argv[2:]]))
