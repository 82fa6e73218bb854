"""The test set of questions, and the share of answers that tell the right facts. It knows no model: answers are texts.

A line of data/questions.jsonl is one question:

    {"id": 1, "kind": "first", "wording": "new", "condition": "高血压", "aspect": "diet", "history": [],
     "question": "...", "facts": [["芹菜"], ["番茄", "西红柿"]], "needed": 2}

`facts` holds lists of alternatives: a fact is told when one of its alternatives stands in the answer; an answer is right when `needed` facts are
told. `history` is what was said before, as role and content; a question of the kind "follow-up" has one and cannot be understood without.
`wording` says how the question is foreign to the training: "new", or a "held-out pair" of a condition and a wording that both occur, apart.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptgen.errors import FileFault
from promptgen.training.compose import repeats_a_sentence

FIRST, FOLLOW_UP = "first", "follow-up"
NEW, HELD_OUT_PAIR = "new", "held-out pair"
SENTENCE_ENDS = '。！？.!?…”’")）'


@dataclass(frozen=True, slots=True)
class Question:
    """One question of the test set; the module says what the parts mean."""

    id: int
    kind: str
    wording: str
    condition: str
    aspect: str
    history: tuple[tuple[str, str], ...]  # (role, content), "user" first, "assistant" last
    question: str
    facts: tuple[tuple[str, ...], ...]
    needed: int


def load_questions(path: Path) -> list[Question]:
    """Reads a test set. Raises FileFault naming the line that is not as described."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as fault:
        raise FileFault(path, f"cannot be read: {fault}") from fault
    questions = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            questions.append(_parsed(json.loads(line)))
        except (ValueError, KeyError, TypeError) as fault:
            raise FileFault(path, f"line {number} is no question: {fault!r}") from fault
    if not questions:
        raise FileFault(path, "holds no questions")
    if len({question.id for question in questions}) < len(questions):
        raise FileFault(path, "gives an id twice")
    return questions


def _parsed(raw: dict[str, Any]) -> Question:
    question = Question(
        id=int(raw["id"]),
        kind=raw["kind"],
        wording=raw["wording"],
        condition=raw["condition"],
        aspect=raw["aspect"],
        history=tuple((turn["role"], turn["content"]) for turn in raw["history"]),
        question=raw["question"],
        facts=tuple(tuple(alternatives) for alternatives in raw["facts"]),
        needed=int(raw["needed"]),
    )
    if question.kind not in (FIRST, FOLLOW_UP) or question.wording not in (NEW, HELD_OUT_PAIR):
        raise ValueError(f"kind {question.kind!r}, wording {question.wording!r}")
    if bool(question.history) != (question.kind == FOLLOW_UP):
        raise ValueError("a follow-up has a history, a first question has none")
    if [role for role, _ in question.history] != ["user", "assistant"] * (len(question.history) // 2):
        raise ValueError("history goes from user to assistant, in pairs")
    if not 1 <= question.needed <= len(question.facts) or not all(all(fact) and fact for fact in question.facts):
        raise ValueError("needed is from 1 to the number of facts, and no fact is empty")
    return question


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).lower()


def facts_told(answer: str, question: Question) -> int:
    """How many of the question's facts the answer mentions; case and spacing do not count."""
    told = _plain(answer)
    return sum(any(_plain(alternative) in told for alternative in fact) for fact in question.facts)


def is_right(answer: str, question: Question) -> bool:
    return facts_told(answer, question) >= question.needed


def repeats_itself(answer: str, question: Question) -> bool:
    """Whether the answer has a sentence twice, or one that an earlier answer had."""
    earlier = [content for role, content in question.history if role == "assistant"]
    return repeats_a_sentence([*earlier, answer]) and not repeats_a_sentence(earlier)


def ends_in_mid_sentence(answer: str) -> bool:
    return not answer.rstrip().endswith(tuple(SENTENCE_ENDS))


def score(answers: Sequence[str], questions: Sequence[Question]) -> dict[str, Any]:
    """Shares from 0 to 1 over answers in the order of their questions: of right facts by kind, by wording and by aspect, and of flaws.

    Raises ValueError if there are not as many answers as questions.
    """
    pairs = list(zip(answers, questions, strict=True))

    def right(kind: str | None = None, wording: str | None = None, aspect: str | None = None) -> float | None:
        return _share(
            is_right(answer, question)
            for answer, question in pairs
            if kind in (None, question.kind)
            and wording in (None, question.wording)
            and aspect in (None, question.aspect)
        )

    return {
        "questions": len(pairs),
        "right": {kind: right(kind) for kind in (FIRST, FOLLOW_UP)},
        "right_by_wording": {
            kind: {wording: right(kind, wording) for wording in (NEW, HELD_OUT_PAIR)} for kind in (FIRST, FOLLOW_UP)
        },
        "right_by_aspect": {
            aspect: right(aspect=aspect) for aspect in sorted({question.aspect for question in questions})
        },
        "names_the_condition": _share(
            question.condition in answer for answer, question in pairs if not question.aspect.startswith("en_")
        ),
        "repeats_a_sentence": _share(repeats_itself(answer, question) for answer, question in pairs),
        "ends_in_mid_sentence": _share(ends_in_mid_sentence(answer) for answer, _ in pairs),
        "empty": _share(not answer.strip() for answer, _ in pairs),
        "wrong_ids": [question.id for answer, question in pairs if not is_right(answer, question)],
    }


def _share(found: Iterable[bool]) -> float | None:
    """Of the true ones; None when there are none at all."""
    values = list(found)
    return round(sum(values) / len(values), 4) if values else None
