"""Answers in order: what says something for the question first, what repeats itself or was cut last. Then the whole way with a small model."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest

from promptgen.config import EngineSettings
from promptgen.errors import InvalidRequest
from promptgen.generation.async_engine import AsyncEngine
from promptgen.generation.dialogue import Message
from promptgen.generation.reply import LEAST_LIKELY, MILD, RankedAnswer, Reply, ReplyOptions, answer, rank, reply
from promptgen.generation.request import Candidate, FinishReason
from promptgen.generation.said import said_in

QUESTION = [Message("user", "高血压要注意什么？")]


def candidate(text: str, score: float, reason: FinishReason = "stop") -> Candidate:
    return Candidate(text, len(text), None, reason, score)


def order(
    *candidates: Candidate,
    by_itself: dict[str, float] | None = None,
    weight: float = 0.5,
    earlier: tuple[str, ...] = (),
) -> list[str]:
    return [one.text for one in rank(candidates, by_itself or {}, weight, said_in(earlier))]


def test_a_safe_phrase_loses_to_one_that_the_question_made_likely() -> None:
    safe, told = candidate("请去医院。", -0.3), candidate("少吃盐。", -0.5)
    assert order(safe, told) == ["请去医院。", "少吃盐。"]
    assert order(safe, told, by_itself={"请去医院。": -0.4, "少吃盐。": -2.0}) == ["少吃盐。", "请去医院。"]
    assert order(safe, told, by_itself={"请去医院。": -0.4, "少吃盐。": -2.0}, weight=0.0) == ["请去医院。", "少吃盐。"]


def test_the_score_is_the_formula() -> None:
    (one,) = rank([candidate("少吃盐。", -0.5)], {"少吃盐。": -2.0}, 0.3)
    assert one == RankedAnswer("少吃盐。", "stop", 4, pytest.approx(-0.5 + 0.3 * 2.0))


def test_nonsense_gains_no_more_than_what_is_merely_unlikely() -> None:
    nonsense, told = candidate("盐吃吃。", -1.5), candidate("少吃盐。", -0.5)
    by_itself = {"盐吃吃。": 10 * LEAST_LIKELY, "少吃盐。": LEAST_LIKELY}
    assert order(nonsense, told, by_itself=by_itself) == ["少吃盐。", "盐吃吃。"]


def test_what_was_cut_or_repeats_stands_behind_and_the_empty_is_left_out() -> None:
    found = order(
        candidate("", -0.1),
        candidate("早睡，", -0.2, "length"),
        candidate("戒烟。戒烟。", -0.3),
        candidate("少盐。", -0.9),
        candidate("多走。", -0.8),
    )
    assert found == ["多走。", "少盐。", "早睡，", "戒烟。"]
    assert order(candidate("戒烟。", -0.1), candidate("少盐。", -2.0), earlier=("戒烟。",)) == ["少盐。", "戒烟。"]


def test_equal_answers_are_one_and_there_is_always_one() -> None:
    assert order(candidate("戒烟。戒烟。", -0.1), candidate("戒烟。", -0.5)) == ["戒烟。"]
    assert order(candidate(" ", -0.1)) == [""]
    assert order() == [""]


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def engine(runner: asyncio.Runner) -> Iterator[AsyncEngine]:
    engine = AsyncEngine(EngineSettings(threads=1, precision="float32", compiler="", max_rows=8, prompt_slots=8))
    runner.run(engine.start())
    yield engine
    runner.run(engine.stop())


async def parts_of(
    engine: AsyncEngine, options: ReplyOptions, messages: list[Message] = QUESTION
) -> tuple[list[str], Reply]:
    *pieces, last = [part async for part in reply(engine, messages, options)]
    assert isinstance(last, Reply)
    assert all(isinstance(piece, str) and piece for piece in pieces)
    return pieces, last


@pytest.mark.parametrize("num_samples", [1, 3])
def test_the_pieces_are_the_best_answer(runner: asyncio.Runner, engine: AsyncEngine, num_samples: int) -> None:
    options = ReplyOptions(num_samples, 60, replace(MILD, seed=3))
    pieces, replied = runner.run(parts_of(engine, options))
    assert len(pieces) > 1
    assert "".join(pieces) == replied.text == replied.answers[0].text
    assert 1 <= len(replied.answers) <= num_samples
    scores = [one.score for one in replied.answers if one.score is not None]
    assert scores == sorted(scores, reverse=True)
    assert bool(scores) == (num_samples > 1)
    assert runner.run(answer(engine, QUESTION, options)).text == replied.text


def test_an_answer_ends_with_its_turn(runner: asyncio.Runner, engine: AsyncEngine) -> None:
    _, replied = runner.run(parts_of(engine, ReplyOptions(1, 100, replace(MILD, temperature=0))))
    assert replied.answers[0].finish_reason == "stop"
    assert "\n" not in replied.text
    assert replied.drawn.num_prompt_tokens < 12


def test_closing_a_reply_leaves_nothing_running(runner: asyncio.Runner, engine: AsyncEngine) -> None:
    async def leave() -> None:
        for num_samples in (1, 4):
            parts = reply(engine, QUESTION, ReplyOptions(num_samples, 60, MILD))
            await anext(parts)
            await parts.aclose()
        async with asyncio.timeout(10):
            while engine.num_active or engine.stats.num_rows:  # noqa: ASYNC110 - counts of another thread have no event
                await asyncio.sleep(0.01)

    runner.run(leave())


def test_what_asks_nothing_is_refused_before_anything_runs(runner: asyncio.Runner, engine: AsyncEngine) -> None:
    with pytest.raises(InvalidRequest):
        runner.run(parts_of(engine, ReplyOptions(), [Message("assistant", "好")]))
    assert engine.num_active == 0
