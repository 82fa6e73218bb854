"""Latency of whole answers: `python -m bench.latency [--quick] [--save]`.

For samples x maxlength: in process (promptgen.Generator) and over HTTP (a real server process that this script starts, one connection).
Warm-up is apart; every run has its own seed. Then the original loop, one sample after another over transformers' model, against the engine for
5 x 50 tokens, the two taking turns in one run. Times are milliseconds; the last line is JSON.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM

import promptgen
from bench.machine import percentile, report
from promptgen.config import DEFAULT_MODEL, EngineSettings

# The original loop neither heals nor looks for duplicates.
AS_DRAWN: dict[str, Any] = {"heal": False, "distinct": False, "rank": "none"}
PROMPT = "高血压要注意"
GRID = [(samples, length) for samples in (1, 5, 20) for length in (15, 50)]
WARM_UP = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    parser.add_argument("--runs", type=int, default=60, help="measured runs of each cell")
    parser.add_argument("--quick", action="store_true", help="5 runs a cell")
    parser.add_argument("--save", action="store_true", help="keep the figures in bench/results/")
    args = parser.parse_args()
    runs = 5 if args.quick else args.runs
    figures: dict[str, Any] = {"model": args.model.name, "threads": torch.get_num_threads(), "runs": runs, "unit": "ms"}
    generator = promptgen.Generator(EngineSettings(model=args.model))
    generator.settle()
    figures["in_process"] = measure_grid(
        lambda n, length, seed: ask_in_process(generator, n, length, seed), runs, "in process"
    )
    with server(args.model) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        figures["http"] = measure_grid(lambda n, length, seed: ask_over_http(connection, n, length, seed), runs, "http")
    figures["original_loop"] = against_the_original(args.model, generator, max(3, runs // 6))
    for place in ("in_process", "http"):
        print(f"\n{place:12} " + " ".join(f"{cell:>8}" for cell in ("p50", "p95", "p99", "tokens/s")))
        for cell, row in figures[place].items():
            print(f"{cell:12} " + " ".join(f"{row[key]:8}" for key in ("p50", "p95", "p99", "tokens_per_s")))
    print(f"\nthe original loop, 5 x 50: {figures['original_loop']}\n")
    report("latency", figures, save=args.save)


def measure_grid(ask: Callable[[int, int, int], int], runs: int, name: str) -> dict[str, dict[str, float]]:
    return {f"{n}x{length}": measure(partial(ask, n, length), runs, f"{name} {n}x{length}") for n, length in GRID}


def measure(ask: Callable[[int], int], runs: int, name: str) -> dict[str, float]:
    """p50, p95, p99 in ms and tokens per second over `runs` calls; `ask(seed)` returns how many tokens came."""
    for seed in range(WARM_UP):
        ask(seed)
    times: list[float] = []
    tokens = 0
    for seed in tqdm(range(runs), desc=name, leave=False, disable=None):
        started = time.perf_counter()
        tokens += ask(WARM_UP + seed)
        times.append((time.perf_counter() - started) * 1000)
    row = {f"p{round(share * 100)}": round(percentile(times, share), 2) for share in (0.5, 0.95, 0.99)}
    return row | {"tokens_per_s": round(tokens / sum(times) * 1000)}


def ask_in_process(generator: promptgen.Generator, samples: int, length: int, seed: int) -> int:
    request = promptgen.TextRequest(PROMPT, samples, length, generator.info.sampling.with_(seed=seed))
    return generator.generate(request).num_completion_tokens


def ask_over_http(connection: http.client.HTTPConnection, samples: int, length: int, seed: int) -> int:
    body = json.dumps({"context": PROMPT, "samples": samples, "maxlength": length, "seed": seed, "details": True})
    connection.request("POST", "/generate", body, {"Content-Type": "application/json"})
    answer = json.loads(connection.getresponse().read())
    return int(answer["usage"]["completion_tokens"])


@contextmanager
def server(model: Path) -> Iterator[int]:
    """A server process of its own on a free port, until the block ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "promptgen.cli", "serve", "--port", str(port), "--model", str(model)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ)
    try:
        for _ in range(600):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
            try:
                connection.request("GET", "/ready")
                if connection.getresponse().status == 200:
                    break
            except OSError:
                pass
            finally:
                connection.close()
            time.sleep(0.1)
        else:
            raise RuntimeError("the server did not become ready within a minute")
        yield port
    finally:
        process.terminate()
        process.wait(40)


def against_the_original(model_folder: Path, generator: promptgen.Generator, runs: int) -> dict[str, float]:
    """The loop this project grew from and the engine, in turns: 5 candidates of exactly 50 tokens on both sides, the same draws."""
    tokenizer = promptgen.load_tokenizer(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    context = [tokenizer.begin_id, *tokenizer.encode(PROMPT)]
    banned = [*tokenizer.banned_ids, tokenizer.end_id]
    loop_ms, engine_ms = [], []
    for seed in tqdm(range(runs + 1), desc="original loop", leave=False, disable=None):
        started = time.perf_counter()
        for sample in range(5):
            promptgen.fast_sample_sequence(model, context, 50, seed=seed, sample=sample, banned_ids=banned)
        between = time.perf_counter()
        request = promptgen.TextRequest(PROMPT, 5, 50, promptgen.Sampling(seed=seed), ignore_end=True, **AS_DRAWN)
        assert generator.generate(request).num_completion_tokens == 250
        loop_ms.append((between - started) * 1000)
        engine_ms.append((time.perf_counter() - between) * 1000)
    loop, engine = percentile(loop_ms[1:], 0.5), percentile(engine_ms[1:], 0.5)
    return {"loop_p50": round(loop, 1), "engine_p50": round(engine, 1), "times_faster": round(loop / engine, 1)}


if __name__ == "__main__":
    main()
