"""How well a model answers: `python -m bench.questions [--model DIR] [--limit N] [--show] [--save]`.

Asks the test set of data/questions.jsonl through the dialogue engine, as POST /chat does, follow-ups with the history that the set gives, and scores the
answers (promptgen/training/questions.py): the share of first answers and of follow-ups that tell enough of the right facts, of answers that say a
sentence twice, and of those that end in mid-sentence though there was room. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench.machine import percentile, report
from promptgen.config import DEFAULT_MODEL, EngineSettings
from promptgen.generation.async_engine import AsyncEngine
from promptgen.generation.dialogue import USER, Message
from promptgen.generation.reply import MILD, USUAL_SAMPLES, WEIGHT, Reply, ReplyOptions, answer
from promptgen.training.questions import (
    FIRST,
    FOLLOW_UP,
    Question,
    ends_in_mid_sentence,
    is_right,
    load_questions,
    score,
)

QUESTIONS = Path(__file__).parent.parent / "data" / "questions.jsonl"
AT_A_TIME = 8  # questions


def main() -> None:
    arguments = _parser().parse_args()
    questions = load_questions(arguments.questions)[: arguments.limit]
    sampling = replace(
        MILD, seed=arguments.seed, temperature=arguments.temperature, repetition_penalty=arguments.repetition_penalty
    )
    options = ReplyOptions(arguments.samples, sampling=sampling, weight=arguments.weight)
    settings = EngineSettings(model=arguments.model, threads=arguments.threads, precision=arguments.precision)
    replies, times = asyncio.run(ask_all(settings, questions, options, arguments.alone))
    if arguments.show:
        show(questions, replies)
    report("questions", figures(arguments, questions, replies, times), save=arguments.save)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    parser.add_argument("--questions", type=Path, default=QUESTIONS)
    parser.add_argument("--limit", type=int, help="the first so many questions only")
    parser.add_argument("--samples", type=int, default=USUAL_SAMPLES, help="answers to choose the best from")
    parser.add_argument(
        "--weight", type=float, default=WEIGHT, help="of an answer's own likelihood, taken off its score"
    )
    parser.add_argument("--temperature", type=float, default=MILD.temperature)
    parser.add_argument("--repetition-penalty", type=float, default=MILD.repetition_penalty)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--alone", action="store_true", help="one question after another, for the times")
    parser.add_argument("--show", action="store_true", help="print the answers that are wrong")
    parser.add_argument("--save", action="store_true", help="keep the figures in bench/results/")
    return parser


async def ask_all(
    settings: EngineSettings, questions: Sequence[Question], options: ReplyOptions, alone: bool
) -> tuple[list[Reply], list[float]]:
    """The replies, and how long each took (seconds)."""
    engine = AsyncEngine(settings)
    await engine.start()
    await engine.settled()
    turn = asyncio.Semaphore(1 if alone else AT_A_TIME)
    try:
        with tqdm(total=len(questions), desc="questions", disable=None) as bar:

            async def ask(question: Question) -> tuple[Reply, float]:
                async with turn:
                    started = time.perf_counter()
                    replied = await answer(engine, messages_of(question), options)
                    bar.update()
                    return replied, time.perf_counter() - started

            answered = await asyncio.gather(*map(ask, questions))
    finally:
        await engine.stop()
    return [replied for replied, _ in answered], [took for _, took in answered]


def messages_of(question: Question) -> list[Message]:
    return [*(Message(role, content) for role, content in question.history), Message(USER, question.question)]


def figures(
    arguments: argparse.Namespace, questions: Sequence[Question], replies: Sequence[Reply], times: Sequence[float]
) -> dict[str, Any]:
    answers = [replied.text for replied in replies]
    ended = [replied.answers[0].finish_reason == "stop" for replied in replies]
    cut = sum(done and ends_in_mid_sentence(text) for text, done in zip(answers, ended, strict=True))
    ordered = sorted(1000 * took for took in times)
    return {
        "model": arguments.model.name,
        **{
            name: getattr(arguments, name)
            for name in ("samples", "weight", "temperature", "repetition_penalty", "seed", "alone")
        },
        **score(answers, questions),
        "any_candidate_right": share_with_a_right_one(questions, replies),
        "ends_in_mid_sentence_below_the_limit": round(cut / len(answers), 4),
        "reached_the_limit": round(1 - sum(ended) / len(ended), 4),
        "ms": {f"p{round(100 * share)}": round(percentile(ordered, share), 1) for share in (0.5, 0.95)},
    }


def share_with_a_right_one(questions: Sequence[Question], replies: Sequence[Reply]) -> dict[str, float | None]:
    """How often one of all answers was right: what a better choice among them could reach."""
    shares: dict[str, float | None] = {}
    for kind in (FIRST, FOLLOW_UP):
        found = [
            any(is_right(one.text, question) for one in replied.answers)
            for question, replied in zip(questions, replies, strict=True)
            if question.kind == kind
        ]
        shares[kind] = round(sum(found) / len(found), 4) if found else None
    return shares


def show(questions: Sequence[Question], replies: Sequence[Reply]) -> None:
    for question, replied in zip(questions, replies, strict=True):
        if not is_right(replied.text, question):
            before = " / ".join(content for _, content in question.history)
            print(
                f"{question.id} [{question.condition} {question.aspect}] {before} > {question.question}\n    {replied.text}"
            )


if __name__ == "__main__":
    main()
