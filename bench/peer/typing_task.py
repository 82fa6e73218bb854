"""What the scripts of bench.typing_peers share: the keystrokes, and how they are timed.

The standard library alone. A script reads a JSON file (bench/typing_peers.py writes it), asks for candidates after each keystroke as soon as
the one before has its own, and prints one JSON line: {"engine": ..., "ms": [...], "candidates": [...], "tokens": [...]}, of each keystroke milliseconds,
candidates and their tokens.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Key:
    """The text so far, and its ids with the begin token."""

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TypingTask:
    """`samples` candidates of at most `tokens` after each of `keys`; they end at `end_id`. `warm_up` is typed before, untimed."""

    warm_up: tuple[Key, ...]
    keys: tuple[Key, ...]
    samples: int
    tokens: int
    temperature: float
    top_k: int
    top_p: float
    end_id: int
    seed: int
    threads: int

    @property
    def longest(self) -> int:
        """Ids of a prompt and a candidate."""
        return max(len(key.ids) for key in (*self.warm_up, *self.keys)) + self.tokens


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every script has."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--engine", default="", help="name to print")
    made.add_argument("--model", type=Path, required=True)
    made.add_argument("--task", type=Path, required=True, help="JSON file of the keystrokes")
    return made


def read_task(path: Path) -> TypingTask:
    told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    keys = {name: tuple(Key(text, tuple(ids)) for text, ids in told.pop(name)) for name in ("warm_up", "keys")}
    return TypingTask(**told, **keys)


def time_keystrokes(engine: str, task: TypingTask, answer: Callable[[Key, int], Sequence[int]]) -> None:
    """Times `answer(key, seed)`, which returns the number of tokens of each candidate.

    There may be fewer candidates than asked for, where they have to differ and the model has no more. Raises AssertionError for none, for
    more, and for one that is too long.
    """
    ms, candidates, tokens = [], [], []
    for number, key in enumerate((*task.warm_up, *task.keys)):
        started = time.perf_counter()
        lengths = answer(key, task.seed + number)
        taken = (time.perf_counter() - started) * 1000
        assert 0 < len(lengths) <= task.samples, f"{len(lengths)} candidates"
        assert all(length <= task.tokens for length in lengths), f"candidates of {list(lengths)} tokens"
        if number >= len(task.warm_up):
            ms.append(round(taken, 3))
            candidates.append(len(lengths))
            tokens.append(sum(lengths))
    print(json.dumps({"engine": engine, "ms": ms, "candidates": candidates, "tokens": tokens}), flush=True)
