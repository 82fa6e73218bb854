"""What Python costs in a step beside the model: `python -m bench.overhead [--save]`.

The engine runs as it does, but in place of the compiled forward pass and draw it calls a function of the same library that does nothing: what
is left of a step is the scheduler, the runner, the calls into C++ and the events. "handed" is what telling the event loop adds, on the engine's thread, while the loop sleeps in another one.
Microseconds, the least of some runs of the median step. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import threading
import time
from collections.abc import Callable
from statistics import median

import numpy as np

from bench.machine import report
from promptgen.config import EngineSettings
from promptgen.generation.engine import Engine
from promptgen.generation.memory import Memory
from promptgen.generation.modelfile import Gpt2Shape
from promptgen.generation.native.compiler import compile_library, find_library
from promptgen.generation.native.model import Kernels, NativeGpt2
from promptgen.generation.request import GenerationRequest, Sampling

SHAPE = Gpt2Shape(5000, 256, 64, 2, 2, 128, 1e-5)
ROWS = (1, 5, 20, 64, 128)
STEPS, RUNS = 200, 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true", help="keep the figures in bench/results/")
    args = parser.parse_args()
    handed = min(hand_over_time() for _ in range(RUNS))
    cells = {}
    for rows in ROWS:
        step = min(step_time(rows) for _ in range(RUNS))
        cells[str(rows)] = {"step_us": round(step * 1e6, 1), "handed_us": round(handed * 1e6, 1)}
        print(f"{rows:4} rows: {step * 1e6:5.1f} us a step, {handed * 1e6:.1f} handed to the event loop")
    report("overhead", {"cells": cells}, save=args.save)


def step_time(rows: int) -> float:
    """Seconds of the median step of `rows` running candidates."""
    settings = EngineSettings()
    folder = settings.cache.expanduser()
    memory = Memory(SHAPE, max_rows=max(ROWS), num_prompt_slots=4, banned_ids=[], end_id=0)
    weights = {name: np.zeros(size, np.float32) for name, size in SHAPE.tensors().items()}
    kernels = Kernels(find_library(folder) or compile_library(folder, settings.compiler))
    copy = kernels.copy  # of no rows: it returns at once
    kernels.forward = lambda model, cache, step: copy(model, cache, step, 0)  # type: ignore[assignment]
    kernels.draw = lambda model, draw: copy(model, draw, draw, 0)  # type: ignore[assignment]
    engine = Engine(memory, NativeGpt2(kernels, memory, weights, "float32", 1))
    # Every "draw" leaves token 0, which is the end; to a request with given tokens it is one as any other.
    engine.add(0, GenerationRequest((1, 2, 3), rows, STEPS, Sampling(), forced_ids=(1,) * STEPS))
    return median_time(engine.step, lambda: engine.has_work)


def hand_over_time() -> float:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    times = []
    for _ in range(STEPS):
        time.sleep(0.0005)  # about a step: the loop sleeps again
        started = time.perf_counter()
        loop.call_soon_threadsafe(lambda: None)
        times.append(time.perf_counter() - started)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
    return median(times)


def median_time(work: Callable[[], object], goes_on: Callable[[], bool]) -> float:
    times = []
    while goes_on():
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return median(times)


if __name__ == "__main__":
    main()
