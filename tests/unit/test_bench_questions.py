"""The scores of bench.questions on replies whose worth is known, and one run over the shipped model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.questions import QUESTIONS, _parser, figures, messages_of, share_with_a_right_one
from promptgen.generation.reply import RankedAnswer, Reply
from promptgen.generation.request import Answer, FinishReason
from promptgen.training.questions import FIRST, FOLLOW_UP, NEW, Question, load_questions

ROOT = Path(__file__).resolve().parents[2]
SALT = Question(1, FIRST, NEW, "高血压", "diet", (), "吃什么？", (("盐",), ("芹菜",)), 1)
LATER = Question(
    2,
    FOLLOW_UP,
    NEW,
    "高血压",
    "care",
    (("user", "吃什么？"), ("assistant", "少吃盐。")),
    "那运动呢？",
    (("走路",),),
    1,
)


def replied(*texts: str, reason: FinishReason = "stop") -> Reply:
    return Reply(tuple(RankedAnswer(text, reason, len(text)) for text in texts), 0, Answer((), 1))


def test_the_question_comes_after_its_history() -> None:
    assert [(m.role, m.content) for m in messages_of(LATER)] == [*LATER.history, ("user", "那运动呢？")]


def test_a_right_answer_behind_a_wrong_one_is_counted_apart() -> None:
    replies = [replied("不知道。", "少吃盐。"), replied("少吃盐。")]
    told = figures(_parser().parse_args([]), [SALT, LATER], replies, [0.1, 0.3])
    assert told["right"] == {FIRST: 0.0, FOLLOW_UP: 0.0}
    assert told["any_candidate_right"] == share_with_a_right_one([SALT, LATER], replies) == {FIRST: 1.0, FOLLOW_UP: 0.0}
    assert told["repeats_a_sentence"] == 0.5
    assert told["ms"] == {"p50": 100.0, "p95": 300.0}


@pytest.mark.parametrize(
    ("text", "reason", "cut", "limit"),
    [("少吃", "stop", 1.0, 0.0), ("少吃", "length", 0.0, 1.0), ("好。", "stop", 0.0, 0.0)],
)
def test_an_answer_that_ends_early_counts_where_there_was_room(
    text: str, reason: FinishReason, cut: float, limit: float
) -> None:
    told = figures(_parser().parse_args([]), [SALT], [replied(text, reason=reason)], [0.1])
    assert (told["ends_in_mid_sentence_below_the_limit"], told["reached_the_limit"]) == (cut, limit)


def test_it_runs_and_its_last_line_is_json() -> None:
    command = [
        sys.executable,
        "-m",
        "bench.questions",
        "--limit",
        "2",
        "--samples",
        "2",
        "--threads",
        "1",
        "--precision",
        "float32",
        "--show",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=100, check=True)
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["bench"], told["questions"], told["samples"]) == ("questions", 2, 2)
    assert len(load_questions(QUESTIONS)) == 300
    assert all(len(messages_of(question)) % 2 for question in load_questions(QUESTIONS))
