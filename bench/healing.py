"""Healing and difference on prompts cut at every character: `measure_healing`, a part of `python -m bench.typing`.

Each prompt is typed as the vocabulary spells it, so what the model would have to say is known to the character. The *true next word* is the token
that the cut falls into, or that follows; it is found when one of the five candidates begins with what is left of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

import promptgen
from promptgen.config import EngineSettings
from promptgen.generation.request import Answer, Sampling, TextRequest
from promptgen.text.tokenizer import Tokenizer, load_tokenizer
from promptgen.text.words import clean, is_spaced

SAMPLES, TOKENS = 5, 15


@dataclass(frozen=True, slots=True)
class Cut:
    """A prompt as far as it is typed, and the characters up to the end of the true next word."""

    typed: str
    rest: str
    is_word_end: bool


def cuts_of(tokenizer: Tokenizer, prompt: str) -> list[Cut]:
    """Every cut within a prompt, none for what the vocabulary lacks."""
    ids = tokenizer.encode(prompt)
    if tokenizer.unknown_id in ids:
        return []
    detokenizer = tokenizer.detokenizer("")
    text = ""
    words: list[tuple[int, int]] = []  # where they begin, after the space before them, and end
    for piece in (*map(detokenizer.push, ids), detokenizer.finish()):
        if visible := piece.lstrip():
            words.append((len(text) + len(piece) - len(visible), len(text) + len(piece)))
        text += piece
    cuts = []
    for at in range(1, len(text)):
        begin, end = next((begin, end) for begin, end in words if at < end)
        is_inner = begin == at and is_spaced(text[at - 1]) and is_spaced(text[at])  # a piece that goes on within a word
        cuts.append(Cut(text[:at], text[at:end], begin >= at and not is_inner))
    return cuts


def measure_healing(settings: EngineSettings, prompts: Sequence[str], seed: int) -> dict[str, dict[str, Any]]:
    """Share of cuts whose true next word is found, with healing and without, and of those with five different candidates."""
    tokenizer = load_tokenizer(settings.model)
    cuts = [cut for prompt in prompts for cut in cuts_of(tokenizer, prompt)]
    generator = promptgen.Generator(settings)
    generator.settle()
    usual = generator.info.sampling
    warm = Sampling(1.0, usual.top_k, 0.0)
    figures = {}
    for name, sampling, heal in (
        ("healed", usual, True),
        ("not healed", usual, False),
        ("healed, temperature 1", warm, True),
    ):
        requests = (
            TextRequest(cut.typed, SAMPLES, TOKENS, sampling.with_(seed=seed * 1_000_003 + number), heal=heal)
            for number, cut in enumerate(cuts)
        )
        answers: dict[int, Answer] = {}
        for number, answer in tqdm(
            generator.generate_many(requests), desc=name, total=len(cuts), leave=False, disable=None
        ):
            if isinstance(answer, Answer):
                answers[number] = answer
        figures[name] = summarize(cuts, answers) | {
            "sampling": f"{sampling.temperature}, {sampling.top_k}, {sampling.top_p}"
        }
    return figures


def summarize(cuts: Sequence[Cut], answers: dict[int, Answer]) -> dict[str, Any]:
    """Over all cuts, those at the end of a word, and those within one."""
    groups = {
        "everywhere": list(answers),
        "word ends": [n for n in answers if cuts[n].is_word_end],
        "within words": [n for n in answers if not cuts[n].is_word_end],
    }
    found = {name: _share([is_found(cuts[n], answers[n]) for n in group]) for name, group in groups.items()}
    different = [is_distinct(answer) for answer in answers.values()]
    redrawn = sum(answer.num_redrawn for answer in answers.values()) / max(1, len(answers))
    return {"cuts": len(answers), "found": found, "distinct": _share(different), "redrawn": round(redrawn, 3)}


def is_found(cut: Cut, answer: Answer) -> bool:
    return any(candidate.completion.startswith(cut.rest) for candidate in answer.candidates)


def is_distinct(answer: Answer) -> bool:
    return len({clean(candidate.completion).strip() for candidate in answer.candidates}) == SAMPLES


def _share(hits: Sequence[bool]) -> float | None:
    return round(sum(hits) / len(hits), 4) if hits else None
