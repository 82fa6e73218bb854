"""The engine alone: `python -m bench.engine [--quick] [--save]`, no HTTP in between.

For callers x samples x maxlength: every caller asks again as soon as it has its answer, over one AsyncEngine. Tokens per second over all callers,
milliseconds of an answer, and how late the event loop was meanwhile (a timer of 2 ms): the step runs in a thread that has let go of the
GIL. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path
from typing import Any

import promptgen
from bench.machine import percentile, report
from promptgen.config import DEFAULT_MODEL, EngineSettings
from promptgen.generation.async_engine import AsyncEngine

PROMPTS = [
    "高血压要注意",
    "糖尿病患者",
    "失眠怎么办",
    "周末去杭州",
    "红烧肉怎么做",
    "帮我写一封",
    "How can I",
    "What should I",
]
GRID = [(1, 5, 15), (1, 5, 50), (1, 20, 50), (8, 5, 15), (32, 5, 15), (128, 5, 15)]
TICK_S = 0.002


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--seconds", type=float, default=6, help="of each cell")
    parser.add_argument("--quick", action="store_true", help="one second a cell")
    parser.add_argument("--save", action="store_true", help="keep the figures in bench/results/")
    args = parser.parse_args()
    settings = EngineSettings(model=args.model, precision=args.precision)
    figures = asyncio.run(measure(settings, 1.0 if args.quick else args.seconds))
    print(f"{'callers x samples x length':28} {'tokens/s':>9} {'p50 ms':>8} {'p95 ms':>8} {'loop late p99 ms':>17}")
    for cell, row in figures["cells"].items():
        print(f"{cell:28} {row['tokens_per_s']:9} {row['p50']:8} {row['p95']:8} {row['loop_late_p99']:17}")
    report("engine", figures, save=args.save)


async def measure(settings: EngineSettings, seconds: float) -> dict[str, Any]:
    engine = AsyncEngine(settings)
    await engine.start()
    await engine.settled()
    cells = {}
    for callers, samples, length in GRID:
        await run_cell(engine, callers, samples, length, 0.5)
        cells[f"{callers} x {samples} x {length}"] = await run_cell(engine, callers, samples, length, seconds)
    steps = engine.stats.steps
    await engine.stop()
    return {"model": settings.model.name, "step": steps, "unit": "ms", "cells": cells}


async def run_cell(engine: AsyncEngine, callers: int, samples: int, length: int, seconds: float) -> dict[str, float]:
    times: list[float] = []
    late: list[float] = []
    tokens = 0
    started = time.perf_counter()

    async def caller(number: int) -> None:
        nonlocal tokens
        turn = 0
        while time.perf_counter() - started < seconds:
            prompt = PROMPTS[(number + turn) % len(PROMPTS)]
            sampling = promptgen.Sampling(seed=number * 100_003 + turn)
            request = promptgen.TextRequest(
                prompt, samples, length, sampling, ignore_end=True, heal=False, distinct=False, rank="none"
            )
            asked = time.perf_counter()
            answer = await engine.answer(request)
            times.append((time.perf_counter() - asked) * 1000)
            tokens += answer.num_completion_tokens
            turn += 1

    async def ticking() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(TICK_S)
            late.append((time.perf_counter() - before - TICK_S) * 1000)

    ticks = asyncio.create_task(ticking())
    await asyncio.gather(*(caller(number) for number in range(callers)))
    ticks.cancel()
    elapsed = time.perf_counter() - started
    return {
        "tokens_per_s": round(tokens / elapsed),
        "p50": round(percentile(times, 0.5), 2),
        "p95": round(percentile(times, 0.95), 2),
        "loop_late_p99": round(percentile(late, 0.99), 2),
    }


if __name__ == "__main__":
    main()
