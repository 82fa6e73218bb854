"""The scorer on answers whose worth is known; the shipped test set against the tables it was made from."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from promptgen.errors import FileFault
from promptgen.training import expand
from promptgen.training.compose import sentences
from promptgen.training.questions import (
    FIRST,
    FOLLOW_UP,
    HELD_OUT_PAIR,
    NEW,
    Question,
    ends_in_mid_sentence,
    facts_told,
    is_right,
    load_questions,
    repeats_itself,
    score,
)

REAL_DATA = Path(__file__).resolve().parents[2] / "data"

SALT: dict[str, Any] = {
    "id": 1,
    "kind": "first",
    "wording": "new",
    "condition": "高血压",
    "aspect": "diet",
    "history": [],
    "question": "吃啥？",
    "facts": [["盐", "钠"], ["Green tea"], ["戒烟"]],
    "needed": 2,
}
LATER: dict[str, Any] = SALT | {
    "id": 2,
    "kind": "follow-up",
    "aspect": "care",
    "history": [
        {"role": "user", "content": "高血压怎么办？"},
        {"role": "assistant", "content": "高血压要少吃盐。要戒烟。"},
    ],
}


def load(folder: Path, *lines: object) -> list[Question]:
    path = folder / "questions.jsonl"
    path.write_text(
        "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), encoding="utf-8"
    )
    return load_questions(path)


def test_any_alternative_tells_a_fact_once(tmp_path: Path) -> None:
    (question,) = load(tmp_path, SALT)
    assert facts_told("少吃盐，也就是少吃钠。", question) == 1
    assert not is_right("少吃盐，也就是少吃钠。", question)
    assert is_right("少吃钠，喝GREEN  tea。", question)
    assert facts_told("", question) == 0


def test_a_sentence_of_the_history_said_again_is_a_repetition(tmp_path: Path) -> None:
    first, later = load(tmp_path, SALT, LATER)
    assert repeats_itself("要运动。要运动。", first)
    assert not repeats_itself("要运动，要戒烟。", first)
    assert repeats_itself("好的。要戒烟。", later)
    assert not repeats_itself("好的，要戒烟。", later)


@pytest.mark.parametrize(
    ("answer", "cut"), [("要戒烟。", False), ("Stop smoking. ", False), ("要戒", True), ("", True)]
)
def test_an_answer_that_stops_early_is_seen(answer: str, cut: bool) -> None:
    assert ends_in_mid_sentence(answer) is cut


def test_scores_are_shares_by_kind_wording_and_aspect(tmp_path: Path) -> None:
    questions = load(tmp_path, SALT, SALT | {"id": 3, "wording": "held-out pair"}, LATER)
    found = score(["高血压要少盐戒烟。", "高血压要少盐", "要戒烟。"], questions)
    assert found["questions"] == 3
    assert found["right"] == {FIRST: 0.5, FOLLOW_UP: 0.0}
    assert found["right_by_wording"][FIRST] == {NEW: 1.0, HELD_OUT_PAIR: 0.0}
    assert found["right_by_wording"][FOLLOW_UP] == {NEW: 0.0, HELD_OUT_PAIR: None}
    assert found["right_by_aspect"] == {"care": 0.0, "diet": 0.5}
    assert found["names_the_condition"] == pytest.approx(2 / 3, abs=1e-4)
    assert found["repeats_a_sentence"] == found["ends_in_mid_sentence"] == pytest.approx(1 / 3, abs=1e-4)
    assert (found["empty"], found["wrong_ids"]) == (0.0, [3, 2])


def test_answers_and_questions_must_match_in_number(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="argument 2"):
        score([], load(tmp_path, SALT))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "line 2 is no question"),
        ([], "line 2 is no question"),
        ({"id": 1}, "line 2 is no question: KeyError"),
        (LATER | {"history": []}, "a follow-up has a history"),
        (SALT | {"id": 9, "history": LATER["history"]}, "a first question has none"),
        (LATER | {"history": LATER["history"][1:]}, "from user to assistant"),
        (LATER | {"needed": 4}, "needed is from 1"),
        (LATER | {"facts": [[""]], "needed": 1}, "no fact is empty"),
        (LATER | {"kind": "second"}, "kind 'second'"),
        (SALT, "gives an id twice"),
    ],
)
def test_a_test_set_that_is_not_as_described_is_refused(tmp_path: Path, line: object, told: str) -> None:
    with pytest.raises(FileFault, match=told):
        load(tmp_path, SALT, line)


def test_an_empty_or_missing_test_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileFault, match="holds no questions"):
        load(tmp_path, "")
    with pytest.raises(FileFault, match="cannot be read"):
        load_questions(tmp_path / "none.jsonl")


@pytest.fixture(scope="module")
def real_questions() -> list[Question]:
    return load_questions(REAL_DATA / "questions.jsonl")


@pytest.fixture(scope="module")
def health() -> expand.Field:
    return expand.load_field(REAL_DATA / "health")


def test_the_real_set_has_the_promised_size(real_questions: list[Question]) -> None:
    assert Counter(question.kind for question in real_questions) == {FIRST: 200, FOLLOW_UP: 100}
    assert len({question.condition for question in real_questions}) >= 100
    assert len({(question.history, question.question) for question in real_questions}) == 300


def test_facts_are_those_of_the_condition(real_questions: list[Question], health: expand.Field) -> None:
    conditions = {str(entity["name"]): entity for entity in health.entities}
    for question in real_questions:
        values = conditions[question.condition].values()
        known = {item for value in values for item in ([value] if isinstance(value, str) else value)}
        assert {fact[0] for fact in question.facts} <= known, question


def test_a_follow_up_names_no_condition(real_questions: list[Question], health: expand.Field) -> None:
    names = [str(entity[key]) for entity in health.entities for key in ("name", "en")]
    follow_ups = [question.question for question in real_questions if question.kind == FOLLOW_UP]
    assert not [text for text in follow_ups if any(name in text for name in names)]


def test_no_question_is_one_of_the_training(real_questions: list[Question], health: expand.Field) -> None:
    """A new wording is none of the tables'; a held-out pair is one that no dialogue for training asks in."""
    wordings = {text for aspect in health.talk.aspects for text in (*aspect.first, *aspect.follow)}
    conditions = {str(entity["name"]): entity for entity in health.entities}
    plain_wordings = {_bare(text) for text in wordings}
    for question in real_questions:
        entity = conditions[question.condition]
        pattern = question.question.replace(question.condition, "{name}").replace(str(entity["en"]), "{en}")
        if question.wording == NEW:
            assert _bare(pattern) not in plain_wordings, question
        elif "suspect" not in question.aspect:  # those name a symptom too
            assert pattern in wordings, question
            assert expand.is_held_out(health, (pattern,), entity), question


def test_the_tables_answers_are_right_and_those_of_others_are_not(
    real_questions: list[Question], health: expand.Field
) -> None:
    conditions = {str(entity["name"]): entity for entity in health.entities}
    answers = {aspect.id: aspect.answers[0] for aspect in health.talk.aspects}
    others = [question.condition for question in real_questions[50:] + real_questions[:50]]

    def told(name: str, question: Question) -> str:
        entity = conditions[name]
        if not health.suits(entity, (answers[question.aspect],)):
            return ""
        line = expand.draw_line(health, (answers[question.aspect],), entity, 0)
        return line[0] if line else ""

    own = [told(question.condition, question) for question in real_questions]
    scores = score(own, real_questions)
    assert scores["right"] == {FIRST: 1.0, FOLLOW_UP: 1.0}
    assert scores["repeats_a_sentence"] == scores["ends_in_mid_sentence"] == 0.0
    foreign = score(
        [told(name, question) for name, question in zip(others, real_questions, strict=True)], real_questions
    )
    assert all(share < 0.2 for share in foreign["right"].values())


def test_answers_are_short(health: expand.Field) -> None:
    assert all(
        len(sentences(re.sub(r"<[^>]*>", "", answer))) <= 3
        for aspect in health.talk.aspects
        for answer in aspect.answers
    )


def _bare(text: str) -> str:
    return re.sub(r"[^\w{}]", "", text.lower())
