"""What the scripts of many callers share (bench/throughput.py): the work, their options, and callers who ask again as soon as they are answered.

The standard library alone. A request is a prompt of 6 ids and SAMPLES candidates of exactly TOKENS new tokens, drawn with top_k 30 at temperature 1.
A script prints one JSON line for each number of callers.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

SAMPLES, TOKENS, TOP_K = 5, 15, 30
BEGIN_ID, FIRST_WORD, LAST_WORD = 2, 1000, 4500
PROMPT_TOKENS = 6


@dataclass(frozen=True, slots=True)
class Task:
    engine: str
    model: Path
    callers: tuple[int, ...]
    warm_up_s: float
    seconds: float
    threads: int


class Crowd(Protocol):
    """An engine that is driven step by step."""

    def ask(self, caller: int, prompt: Sequence[int], seed: int) -> None:
        """Takes a request; what has no room yet waits."""

    def step(self) -> list[int]:
        """Advances what runs. Gives the callers whose candidates are all complete."""


def parser(description: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--engine", default="", help="name to print")
    made.add_argument("--model", type=Path, required=True)
    made.add_argument("--callers", type=int, nargs="+", default=[1, 8, 32, 128])
    made.add_argument("--warm-up", type=float, default=1.0, help="seconds")
    made.add_argument("--seconds", type=float, default=8.0)
    made.add_argument("--threads", type=int, default=2)
    return made


def task_of(args: argparse.Namespace) -> Task:
    return Task(args.engine, args.model, tuple(args.callers), args.warm_up, args.seconds, args.threads)


def prompt_of(number: int) -> tuple[int, ...]:
    """Ids of request `number`: the same for every engine, another for every request."""
    chance = random.Random(number)
    return (BEGIN_ID, *(chance.randrange(FIRST_WORD, LAST_WORD) for _ in range(PROMPT_TOKENS - 1)))


def tell(task: Task, callers: int, took_ms: Sequence[float], elapsed_s: float) -> None:
    """Prints the line of one number of callers. `took_ms` are the answers that came within `elapsed_s`."""
    line = {
        "engine": task.engine,
        "callers": callers,
        "tokens_per_s": len(took_ms) * SAMPLES * TOKENS / elapsed_s,
        "ms": [round(ms, 2) for ms in took_ms],
    }
    print(json.dumps(line), flush=True)


def drive(task: Task, callers: int, crowd: Crowd) -> None:
    """Callers who each ask again as soon as they have their answer; the answers of the warm-up are not counted."""
    asked, number = dict[int, float](), 0
    for caller in range(callers):
        number, asked[caller] = number + 1, time.perf_counter()
        crowd.ask(caller, prompt_of(number), number)
    begin = time.perf_counter() + task.warm_up_s
    end, took = begin + task.seconds, list[float]()
    while (now := time.perf_counter()) < end:
        for caller in crowd.step():
            now = time.perf_counter()
            if now >= begin:
                took.append((now - asked[caller]) * 1000)
            number, asked[caller] = number + 1, now
            crowd.ask(caller, prompt_of(number), number)
    tell(task, callers, took, now - begin)
