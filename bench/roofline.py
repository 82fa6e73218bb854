"""How near the compiled step is to what the machine allows: `python -m bench.roofline [--save]`.

For random GPT-2 models of three shapes and 1, 5, 20 rows: milliseconds of a decode step, against the larger of two bounds: reading all its
weights once at the bandwidth measured here for a block of that size, and its multiplications at the rate measured here for a large product in torch, of the
same precision. Keys, values and everything else are left out of the bounds. Both rates are the best that this program reaches, not the hardware's: a share over
100 % says that the step reads or multiplies faster than they. The last line is JSON.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from bench.machine import report
from promptgen.config import EngineSettings
from promptgen.generation.memory import Memory
from promptgen.generation.modelfile import Gpt2Shape
from promptgen.generation.native.compiler import compile_library, find_library
from promptgen.generation.native.model import Kernels, NativeGpt2
from promptgen.generation.request import GenerationRequest, Sampling
from promptgen.generation.steps import NO_TOKENS, NOTHING_TO_READ, Precision, PromptTokens

SHAPES = {
    "tiny": Gpt2Shape(5000, 256, 256, 4, 4, 1024, 1e-5),
    "small": Gpt2Shape(8192, 256, 384, 6, 6, 1536, 1e-5),
    "base": Gpt2Shape(13317, 512, 768, 12, 12, 3072, 1e-5),
}
ROWS = (1, 5, 20)
BYTES: dict[Precision, int] = {"float32": 4, "bfloat16": 2, "int8": 1}
PROMPT, LENGTH = 6, 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--save", action="store_true", help="keep the figures in bench/results/")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    settings = EngineSettings()
    folder = settings.cache.expanduser()
    kernels = Kernels(find_library(folder) or compile_library(folder, settings.compiler))
    rates = {name: multiplication_rate(getattr(torch, name)) for name in kernels.precisions}
    cells: dict[str, dict[str, float]] = {}
    print(f"{'shape, rows, precision':28} {'step ms':>8} {'bound ms':>9} {'share':>6}")
    for name, shape in SHAPES.items():
        num_weights = sum(int(np.prod(size)) for key, size in shape.tensors().items() if key != "wpe.weight")
        for precision in kernels.precisions:
            bandwidth = read_bandwidth(num_weights * BYTES[precision])
            for rows in ROWS:
                step_s = step_time(kernels, shape, precision, args.threads, rows)
                bound_s = max(num_weights * BYTES[precision] / bandwidth, num_weights * rows / rates[precision])
                cell = {
                    "step_ms": round(step_s * 1e3, 4),
                    "bound_ms": round(bound_s * 1e3, 4),
                    "share": round(bound_s / step_s, 3),
                    "gb_per_s": round(bandwidth / 1e9, 1),
                }
                cells[f"{name} {rows} {precision}"] = cell
                print(
                    f"{name + ' ' + str(rows) + ' ' + precision:28} {cell['step_ms']:8} {cell['bound_ms']:9} {cell['share']:6.0%}"
                )
    figures: dict[str, Any] = {"threads": args.threads, "cells": cells}
    figures["multiplications_per_s"] = {name: round(rate / 1e9, 1) for name, rate in rates.items()}
    report("roofline", figures, save=args.save)


def best_time(work: Callable[[], object], rounds: int = 15) -> float:
    """The shortest of some rounds, in seconds: a neighbour only ever adds."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times[2:])


def read_bandwidth(num_bytes: int) -> float:
    """Bytes per second when a block of this size is read over and over, from whichever cache holds it: the better of a sum and a product."""
    block = torch.ones(num_bytes // 4, dtype=torch.float32)
    repeats = max(1, (64 << 20) // num_bytes)
    matrix, vector = block[: len(block) // 256 * 256].reshape(-1, 256), torch.ones(256)
    sums = best_time(lambda: [block.sum() for _ in range(repeats)])
    return repeats * num_bytes / min(sums, best_time(lambda: [matrix @ vector for _ in range(repeats)]))


def multiplication_rate(dtype: torch.dtype) -> float:
    """Multiply-adds per second of a large product."""
    m, k, n = 512, 768, 3072
    if dtype == torch.int8:
        a, b = torch.ones(m, k, dtype=dtype), torch.ones(k, n, dtype=dtype)
        return m * k * n / best_time(lambda: torch._int_mm(a, b))
    x = torch.ones(m, k, dtype=dtype)
    packed = torch.ops.mkldnn._reorder_linear_weight(torch.ones(n, k, dtype=dtype))
    return m * k * n / best_time(lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], ""))


def step_time(kernels: Kernels, shape: Gpt2Shape, precision: Precision, num_threads: int, rows: int) -> float:
    """Mean seconds of a step over an answer of LENGTH tokens, the best of some answers; drawing from the top 30 included."""
    generator = torch.Generator().manual_seed(0)
    weights = {name: (0.05 * torch.randn(size, generator=generator)).numpy() for name, size in shape.tensors().items()}
    memory = Memory(shape, max_rows=rows, num_prompt_slots=1, banned_ids=[], end_id=0)
    steps = NativeGpt2(kernels, memory, weights, precision, num_threads)
    prompt = tuple(range(1, PROMPT + 1))
    steps.forward(0, PromptTokens.of([(rows, 0, prompt, True)]))
    request = GenerationRequest(prompt, rows, LENGTH, Sampling())

    def answer() -> None:
        steps.copy([memory.start_rows(request, rows, 0, range(rows))])
        steps.draw(rows, 0, np.full(rows, rows, np.int32))
        for _ in range(LENGTH):
            steps.forward(rows, NOTHING_TO_READ)
            steps.draw(rows, rows, NO_TOKENS)

    return best_time(answer) / LENGTH


if __name__ == "__main__":
    main()
