"""Dialogues of one to four questions about one thing, composed of a field's aspects. data/README.md describes the tables.

The first question names the thing, the others do not: they need what was said before. Some turn to another thing (`那糖尿病呢？`) and keep the
aspect. A question's wording is drawn; the facts of an answer are the same ones each time.

A tenth of all (entity, wording) pairs is held out: a dialogue asks only in held-out wordings, or in none.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NUM_QUESTIONS = {1: 20, 2: 38, 3: 28, 4: 14}  # of a dialogue, and how often in a hundred
HELD_OUT_SHARE = 0.1  # of the dialogues
ENGLISH_SHARE = 0.1
SWITCH_SHARE = 0.1  # of the follow-ups that turn to another entity
OPENER_SHARE = 0.15  # of the questions that begin with a greeting or the like
BARE_SHARE = 0.2  # of the questions that end without a mark
OTHER_NAME_SHARE = 0.25  # of the first questions, where an entity has other names
OTHER_NAMES_KEY = "called"
MAX_TRIES = 40  # of a dialogue before it is given up

_SENTENCE_END = re.compile(r"[。！？]|[.!?](?: |$)")

Entity = Mapping[str, str | list[str]]
Turns = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Aspect:
    """What can be asked of an entity, and the answer; `first` wordings name the entity, `follow` wordings do not."""

    id: str
    first: tuple[str, ...]
    follow: tuple[str, ...]
    answers: tuple[str, ...]  # the first that suits the entity is used
    weight: float = 1.0
    after: tuple[str, ...] = ()  # as a follow-up only after one of these aspects
    not_for: tuple[str, ...] = ()  # names of entities
    lacking: str = ""  # only for entities without this key

    @property
    def is_english(self) -> bool:
        return self.id.startswith("en_")

    @property
    def can_switch(self) -> bool:
        return bool(self.follow) and not self.after and "#" not in self.answers[0]


@dataclass(frozen=True, slots=True)
class Talk:
    """All aspects of a field, and the small words around its questions."""

    aspects: tuple[Aspect, ...] = ()
    openers: tuple[str, ...] = ()
    then: tuple[str, ...] = ()
    switch: tuple[str, ...] = ()
    en_openers: tuple[str, ...] = ()
    en_then: tuple[str, ...] = ()
    en_switch: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Composed:
    """A dialogue, the wordings it was made of, and whether it is for validation."""

    texts: Turns
    wordings: Turns
    held_out: bool


def parse_talk(table: Mapping[str, Any]) -> Talk:
    """Reads `[talk]` and `[[aspects]]` of a parsed file. Raises ValueError naming what is not as described."""
    aspects = []
    for raw in table.get("aspects", []):
        values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}
        try:
            aspect = Aspect(**values)
        except TypeError as fault:
            raise ValueError(f"an aspect: {fault}") from fault
        texts = (*aspect.first, *aspect.follow, *aspect.answers, *aspect.after, *aspect.not_for)
        if not aspect.answers or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"the aspect {aspect.id} needs answers, and its lists hold texts")
        aspects.append(aspect)
    try:
        return Talk(tuple(aspects), **{key: tuple(value) for key, value in table.get("talk", {}).items()})
    except TypeError as fault:
        raise ValueError(f"[talk]: {fault}") from fault


class Composer:
    """Makes dialogues of a field's entities.

    `suits(entity, pattern)` says whether an entity has every key of a pattern, `fill(pattern, entity, rng)` fills one or says None,
    `is_held_out(pattern, entity)` whether a pair is for validation.
    """

    def __init__(
        self,
        talk: Talk,
        entities: Sequence[Entity],
        suits: Callable[[Entity, Turns], bool],
        fill: Callable[[Turns, Entity, random.Random], Turns | None],
        is_held_out: Callable[[Turns, Entity], bool],
    ) -> None:
        self._talk, self._entities, self._fill, self._is_held_out = talk, entities, fill, is_held_out
        self._answers = {
            (str(entity["name"]), aspect.id): answer
            for entity in entities
            for aspect in talk.aspects
            if not (aspect.lacking and aspect.lacking in entity) and entity["name"] not in aspect.not_for
            if (answer := next((a for a in aspect.answers if suits(entity, (a,))), None))
        }

    def compose(self, max_dialogues: int, seed: str) -> Iterator[Composed]:
        """Distinct dialogues, spread evenly over the entities; as many as were asked for, fewer when hardly any are new."""
        seen: set[Turns] = set()
        order = random.Random(seed).sample(list(self._entities), len(self._entities))
        draw = misses = 0
        while len(seen) < max_dialogues and misses <= 10 * len(order):
            entity = order[draw % len(order)]
            found = self._one(entity, random.Random(f"{seed}/{entity['name']}/{draw // len(order)}"))
            draw += 1
            if found is None or found.texts in seen:
                misses += 1
                continue
            misses = 0
            seen.add(found.texts)
            yield found

    def _one(self, entity: Entity, rng: random.Random) -> Composed | None:
        held_out = rng.random() < HELD_OUT_SHARE
        english = rng.random() < ENGLISH_SHARE
        (num_questions,) = rng.choices(list(NUM_QUESTIONS), list(NUM_QUESTIONS.values()))
        for _ in range(MAX_TRIES):
            found = self._try(entity, rng, held_out, english, num_questions)
            if found is not None and not repeats_a_sentence(found.texts[1::2]):
                return found
        return None

    def _try(self, entity: Entity, rng: random.Random, held_out: bool, english: bool, num: int) -> Composed | None:
        texts: list[str] = []
        wordings: list[str] = []
        asked: list[Aspect] = []
        for turn in range(num):
            if turn and asked[-1].can_switch and rng.random() < SWITCH_SHARE:
                entity, aspect = rng.choice(self._entities), asked[-1]
                choices: Turns = self._talk.en_switch if english else self._talk.switch
                asked = []
            else:
                possible = [
                    a for a in self._talk.aspects if a.is_english == english and self._may_ask(a, entity, asked)
                ]
                if not possible:
                    return None
                (aspect,) = rng.choices(possible, [a.weight for a in possible])
                choices = aspect.follow if turn else aspect.first
            answer = self._answers.get((str(entity["name"]), aspect.id))
            choices = tuple(w for w in choices if self._is_held_out((w,), entity) == held_out)
            if answer is None or not choices:
                return None
            wording = rng.choice(choices)
            filled = self._fill((_by_other_name(wording), answer), self._named(entity, turn, rng), rng)
            if filled is None:
                return None
            texts += [self._dressed(filled[0], turn > 0, english, rng), filled[1]]
            wordings.append(wording)
            asked.append(aspect)
        return Composed(tuple(texts), tuple(wordings), held_out)

    def _may_ask(self, aspect: Aspect, entity: Entity, asked: Sequence[Aspect]) -> bool:
        if (str(entity["name"]), aspect.id) not in self._answers or aspect in asked:
            return False
        return (
            bool(aspect.follow) and (not aspect.after or asked[-1].id in aspect.after) if asked else bool(aspect.first)
        )

    def _named(self, entity: Entity, turn: int, rng: random.Random) -> Entity:
        other = entity.get(OTHER_NAMES_KEY)
        name = (
            rng.choice(other)
            if isinstance(other, list) and turn == 0 and rng.random() < OTHER_NAME_SHARE
            else entity["name"]
        )
        return {**entity, "asked_name": name}

    def _dressed(self, question: str, follows: bool, english: bool, rng: random.Random) -> str:
        """With a greeting or a joining word before it, or without its mark."""
        talk = self._talk
        of_language = (talk.en_openers, talk.en_then) if english else (talk.openers, talk.then)
        openers = of_language[follows]
        if rng.random() < BARE_SHARE:
            question = question.rstrip("？。?.")
        if openers and rng.random() < OPENER_SHARE and not re.match("那|还|对|And |Hi", question):
            if english and not question.startswith("I "):
                question = question[0].lower() + question[1:]
            question = rng.choice(openers) + question
        return question


def _by_other_name(wording: str) -> str:
    return wording.replace("{name}", "{asked_name}")


def sentences(text: str) -> list[str]:
    return [sentence.strip() for sentence in _SENTENCE_END.split(text) if sentence.strip()]


def repeats_a_sentence(answers: Sequence[str]) -> bool:
    """Whether a sentence stands twice, in one answer or in two."""
    told = [sentence for answer in answers for sentence in sentences(answer)]
    return len(set(told)) < len(told)


def talk_faults(talk: Talk) -> Iterator[str]:
    """First questions and answers that name nothing, follow-ups that do, wordings given twice."""
    for aspect in talk.aspects:
        name = "{en}" if aspect.is_english else "{name}"
        yield from (
            f"{aspect.id}: {text!r} does not name {name}"
            for text in (*aspect.first, *aspect.answers)
            if name not in text
        )
        yield from (f"{aspect.id}: the follow-up {text!r} names {name}" for text in aspect.follow if name in text)
        for wordings in (aspect.first, aspect.follow):
            if len(set(wordings)) < len(wordings):
                yield f"{aspect.id} lists a wording twice: {sorted({w for w in wordings if wordings.count(w) > 1})}"
        if unknown := set(aspect.after) - {other.id for other in talk.aspects}:
            yield f"{aspect.id} is asked after unknown aspects {sorted(unknown)}"
