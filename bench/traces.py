"""How held-out prompts might be typed: `make_traces` turns texts into keystrokes with the times between them.

Letters, digits and marks come one by one, Chinese as an input method gives it: MIN_BURST to MAX_BURST characters at once. Now and then
something wrong is typed and taken back, a character a key. A finished prompt is followed by the next one. A trace is a function
of the texts, the seed and the person's number.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from random import Random
from typing import Literal, get_args

from promptgen.text.tokenizer import load_tokenizer
from promptgen.text.words import Kind, clean, runs
from promptgen.training.dataset import load_part
from promptgen.training.typing_figures import MAX_CHARACTERS, MIN_CHARACTERS, held_out_prompts

MIN_GAP_S, MAX_GAP_S = 0.1, 0.4  # between two keys
MIN_BURST, MAX_BURST = 2, 4
MOST_WRONG = 3  # characters
MISTAKES = 0.04  # share of keys before which one is made
MOST_PROMPTS = 10_000  # of a prepared folder

How = Literal["key", "burst", "wrong", "back"]


@dataclass(frozen=True, slots=True)
class Keystroke:
    """After a pause `text` stands in the box."""

    gap_s: float
    text: str
    kind: How


def read_prompts(path: Path, seed: int) -> list[str]:
    """The beginnings of documents, shuffled by `seed`, from a text with one a line or the held-out part of a prepared folder.

    What is too short to be typed is left out.
    """
    if path.is_dir():
        return held_out_prompts(load_part(path, "valid"), load_tokenizer(path), MOST_PROMPTS, seed)
    lines = (clean(line).strip()[:MAX_CHARACTERS].rstrip() for line in path.read_text(encoding="utf-8").splitlines())
    prompts = [line for line in lines if len(line) >= MIN_CHARACTERS]
    Random(seed).shuffle(prompts)
    return prompts


def make_traces(prompts: Sequence[str], people: int, seed: int, *, seconds: float) -> list[list[Keystroke]]:
    """One trace for each of `people`, `seconds` long; they type different prompts as far as there are enough."""
    return [list(_until(typed(prompts[n::people] or prompts, seed, n), seconds)) for n in range(people)]


def first_keystrokes(prompts: Sequence[str], seed: int, number: int) -> list[Keystroke]:
    """What one person types first."""
    return list(islice(typed(prompts, seed, 0), number))


def typed(prompts: Sequence[str], seed: int, person: int) -> Iterator[Keystroke]:
    """Endless: after the last prompt comes the first one again."""
    draw = Random(f"{seed} {person}")
    dense = "".join(run for prompt in prompts for kind, run in runs(clean(prompt)) if kind is Kind.DENSE)
    while True:
        for prompt in prompts:
            for text, kind in _edits(prompt, draw, dense):
                yield Keystroke(draw.uniform(MIN_GAP_S, MAX_GAP_S), text, kind)


def counts(trace: Sequence[Keystroke]) -> dict[str, int]:
    """Keystrokes by kind, and the prompts that were begun."""
    texts = ["", *(key.text for key in trace)]
    begun = sum(not last or not (text.startswith(last) or last.startswith(text)) for last, text in pairwise(texts))
    kinds = Counter(key.kind for key in trace)
    return {"keystrokes": len(trace), "prompts": begun, **{kind: kinds[kind] for kind in get_args(How)}}


def _edits(prompt: str, draw: Random, dense: str) -> Iterator[tuple[str, How]]:
    at = 0
    for piece in _pieces(prompt, draw):
        if at and draw.random() < MISTAKES:
            yield from _mistake(prompt[:at], piece, draw, dense)
        at += len(piece)
        if prompt[:at].strip():
            yield prompt[:at], "burst" if len(piece) > 1 else "key"


def _pieces(prompt: str, draw: Random) -> Iterator[str]:
    """What comes at once."""
    at = 0
    is_dense = [_is_dense(char) for char in prompt]
    while at < len(prompt):
        length = draw.randint(MIN_BURST, MAX_BURST) if is_dense[at] else 1
        end = at + 1
        while end < min(at + length, len(prompt)) and is_dense[end]:
            end += 1
        yield prompt[at:end]
        at = end


def _mistake(before: str, right: str, draw: Random, dense: str) -> Iterator[tuple[str, How]]:
    """Something else than `right` is typed, then taken back."""
    is_burst = _is_dense(right[0])
    alphabet = dense if is_burst else string.ascii_lowercase
    first = draw.choice([char for char in alphabet if char != right[0]] or ["x"])
    wrong = first + "".join(draw.choices(alphabet, k=draw.randint(1, MOST_WRONG) - 1))
    for end in [len(wrong)] if is_burst else range(1, len(wrong) + 1):
        yield before + wrong[:end], "wrong"
    for end in range(len(wrong) - 1, -1, -1):
        yield before + wrong[:end], "back"


def _is_dense(char: str) -> bool:
    return next((kind is Kind.DENSE for kind, _ in runs(char)), False)


def _until(trace: Iterator[Keystroke], seconds: float) -> Iterator[Keystroke]:
    left = seconds
    for key in trace:
        left -= key.gap_s
        if left < 0:
            return
        yield key
