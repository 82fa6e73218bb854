"""Chooses precision and threads for this model on this machine: measured once, kept, and forced by settings.

Quality goes first. A precision is taken only if it costs the model less than 1 % of perplexity, measured on text that the exact model
itself writes: the rise is e^KL of the two distributions (Kullback, Leibler 1951), needs no held-out file, and works for any model. Among
those left, the fastest decode step of TIMED_ROWS rows wins.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from promptgen.generation.memory import Memory
from promptgen.generation.modelfile import Gpt2Shape
from promptgen.generation.request import GenerationRequest, Sampling
from promptgen.generation.steps import NO_TOKENS, NOTHING_TO_READ, Precision, PromptTokens, Steps

MAX_PERPLEXITY_RISE = 0.01
TIMED_ROWS, TIMED_STEPS, TIMED_ROUNDS = 5, 16, 5
OWN_TEXTS, OWN_TOKENS = 32, 24  # written by the exact model to be judged by the others
_log = logging.getLogger(__name__)

Tokens = NDArray[np.int64]  # [texts, tokens]
MakeSteps = Callable[[Memory, Precision, int], Steps]


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen, and why: perplexity rise by precision, milliseconds of a step by "precision x threads"."""

    precision: Precision
    threads: int
    perplexity_rise: dict[str, float]
    step_ms: dict[str, float]


def choose(
    shape: Gpt2Shape, make: MakeSteps, precisions: Sequence[Precision], threads: Sequence[int], begin_id: int
) -> Choice:
    """Measures every precision that keeps the quality with every number of threads; a second or two for a model of 100 M weights."""
    most = max(threads)
    rises = {"float32": 0.0}
    if list(precisions) != ["float32"]:
        rises |= _perplexity_rises(shape, make, [p for p in precisions if p != "float32"], most, begin_id)
    forced = len(precisions) == 1
    kept = [p for p in precisions if forced or rises[p] < MAX_PERPLEXITY_RISE] or ["float32"]
    step_ms: dict[str, float] = {}
    candidates: list[tuple[float, Precision, int]] = []
    for precision in kept:
        for num in threads:
            step_s = _step_time(shape, make, precision, num, begin_id)
            step_ms[f"{precision} x {num}"] = round(step_s * 1e3, 4)
            candidates.append((step_s, precision, num))
    _, precision, num = min(candidates)
    return Choice(precision, num, {p: round(r, 5) for p, r in rises.items() if p in precisions}, step_ms)


def _small_memory(shape: Gpt2Shape, num_rows: int) -> Memory:
    return Memory(shape, max_rows=num_rows, num_prompt_slots=1, banned_ids=[], end_id=0)


def _step_time(shape: Gpt2Shape, make: MakeSteps, precision: Precision, num_threads: int, begin_id: int) -> float:
    memory = _small_memory(shape, TIMED_ROWS)
    steps = make(memory, precision, num_threads)
    _start(memory, steps, TIMED_ROWS, begin_id, Sampling())  # as most requests draw
    num_steps = min(TIMED_STEPS, shape.window - 1)
    first = min(8, shape.window - num_steps)
    times: list[float] = []
    for _ in range(TIMED_ROUNDS):
        memory.rows["position"], memory.rows["beginning"] = first, 0  # all rows are to be computed
        started = time.perf_counter()
        for _ in range(num_steps):
            steps.forward(TIMED_ROWS, NOTHING_TO_READ)
            steps.draw(TIMED_ROWS, TIMED_ROWS, NO_TOKENS)
        times.append((time.perf_counter() - started) / num_steps)
    return min(times)  # of rounds: a neighbour only ever adds


def _start(memory: Memory, steps: Steps, num_rows: int, begin_id: int, sampling: Sampling) -> None:
    slot = num_rows
    steps.forward(0, PromptTokens.of([(slot, 0, (begin_id,), True)]))
    request = GenerationRequest((begin_id,), num_rows, 1, sampling, ignore_end=True)
    steps.copy([memory.start_rows(request, slot, 0, range(num_rows))])
    steps.draw(num_rows, 0, np.full(num_rows, slot, np.int32))


def _perplexity_rises(
    shape: Gpt2Shape, make: MakeSteps, precisions: Sequence[Precision], num_threads: int, begin_id: int
) -> dict[str, float]:
    num_tokens = min(OWN_TOKENS, shape.window - 1)
    memory = _small_memory(shape, OWN_TEXTS)
    exact = make(memory, "float32", num_threads)
    _start(memory, exact, OWN_TEXTS, begin_id, Sampling(top_k=0))
    texts = [memory.rows["token_id"].copy()]
    for _ in range(num_tokens - 1):
        exact.forward(OWN_TEXTS, NOTHING_TO_READ)
        exact.draw(OWN_TEXTS, OWN_TEXTS, NO_TOKENS)
        texts.append(memory.rows["token_id"].copy())
    tokens = np.stack(texts, axis=1)  # [texts, tokens]
    loss = losses(memory, exact, tokens, begin_id).mean()
    rises: dict[str, float] = {}
    for precision in precisions:
        own = _small_memory(shape, OWN_TEXTS)
        theirs = losses(own, make(own, precision, num_threads), tokens, begin_id).mean()
        rises[precision] = math.expm1(min(theirs - loss, 50.0))
    return rises


def losses(memory: Memory, steps: Steps, tokens: Tokens, begin_id: int) -> NDArray[np.float64]:
    """Negative log-likelihoods (nats) [texts, tokens] of texts that follow the begin token; rows 0..texts-1 are used up."""
    num_texts = len(tokens)
    memory.rows[:num_texts]["position"], memory.rows[:num_texts]["token_id"] = 0, begin_id
    by_column = []
    for column in tokens.T:
        steps.forward(num_texts, NOTHING_TO_READ)
        logits = memory.logits[:num_texts, : memory.shape.vocabulary].astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        by_column.append(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(num_texts), column])
        memory.rows[:num_texts]["position"] += 1
        memory.rows[:num_texts]["token_id"] = column
    return np.stack(by_column, axis=1)


def load_choice(file: Path) -> Choice | None:
    """What an earlier start chose, None when it is not there or not readable."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        choice = Choice(**json.loads(file.read_text(encoding="utf-8")))
        if choice.precision in get_args(Precision) and isinstance(choice.threads, int) and choice.threads >= 1:
            return choice
    return None


def save_choice(file: Path, choice: Choice) -> None:
    """Keeps it for the next start; a folder that cannot be written costs only that."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(asdict(choice), indent=1), encoding="utf-8")
        os.replace(draft, file)
    except OSError as fault:
        _log.warning("what was measured cannot be kept: %s", fault)
