"""What the scripts of this folder share: the work, their options, and how an answer is timed.

The standard library alone: every script runs in the environment of its engine. A script prints one JSON line for each number of candidates:
{"engine": ..., "rows": 5, "ms": [...], "greedy": [...]}.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

PROMPT = (2, 1000, 2000, 3000, 4000, 4500)  # [MASK], which begins a document in promptgen, and five words
NEW_TOKENS, TOP_K = 50, 30
GREEDY_TOKENS = 12  # compared with transformers' own: is the model still the model?
LEAST_RUNS = 3
BEGIN, END = "[MASK]", "[CLS]"
SPECIAL_TOKENS = ("[SEP]", "[CLS]", "[MASK]", "[PAD]", "[UNK]")


@dataclass(frozen=True, slots=True)
class Task:
    """One process's share: the model, the numbers of candidates, and how often."""

    engine: str
    model: Path
    rows: tuple[int, ...]
    warm_up: int
    runs: int
    limit_s: float
    threads: int


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every script has."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--engine", default="", help="name to print")
    made.add_argument("--model", type=Path, required=True)
    made.add_argument("--rows", type=int, nargs="+", default=[5, 20], help="numbers of candidates")
    made.add_argument("--warm-up", type=int, default=3)
    made.add_argument("--runs", type=int, default=7)
    made.add_argument("--limit", type=float, default=5.0, help="no further run after this many seconds, from the third")
    made.add_argument("--threads", type=int, default=2)
    return made


def task_of(args: argparse.Namespace) -> Task:
    return Task(args.engine, args.model, tuple(args.rows), args.warm_up, args.runs, args.limit, args.threads)


def time_answers(task: Task, answer: Callable[[int, int], Sequence[int]], greedy: Sequence[int]) -> None:
    """Times `answer(rows, seed)`, which returns the number of tokens of each candidate, and prints the JSON lines.

    `greedy` are the likeliest tokens after the prompt. Raises AssertionError for an answer that is not rows x NEW_TOKENS.
    """
    for rows in task.rows:
        _timed(task.warm_up, task.limit_s / 2, 1, answer, rows, 0)
        times = _timed(task.runs, task.limit_s, LEAST_RUNS, answer, rows, 1000)
        line = {
            "engine": task.engine,
            "rows": rows,
            "ms": [round(ms, 3) for ms in times],
            "greedy": list(map(int, greedy)),
        }
        print(json.dumps(line), flush=True)


def _timed(
    runs: int, limit_s: float, least: int, answer: Callable[[int, int], Sequence[int]], rows: int, first_seed: int
) -> list[float]:
    """Milliseconds of each run. A slow engine has fewer of them, at least `least`, once `limit_s` seconds have gone by."""
    times: list[float] = []
    while len(times) < runs and (len(times) < least or sum(times) < limit_s * 1000):
        started = time.perf_counter()
        lengths = answer(rows, first_seed + len(times))
        times.append((time.perf_counter() - started) * 1000)
        assert list(lengths) == [NEW_TOKENS] * rows, f"asked for {rows} x {NEW_TOKENS} tokens, got {list(lengths)}"
    return times
