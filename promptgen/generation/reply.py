"""Answers a question: several answers are drawn, those that say little for the question are put behind, and the best is given out in pieces.

The order is that of maximum mutual information (Li et al. 2016, "A Diversity-Promoting Objective Function for Neural Conversation Models"):

    log p(answer | question, history) - weight * log p(answer)

each per token. What the model would say to anybody loses what it gains by being likely: a short safe phrase does not win by being short and safe.
The second term is bounded: beyond LEAST_LIKELY nothing more is gained, or nonsense would win, which nobody ever says. An answer that says a sentence again, or was cut at its limit, stands behind all that do not.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace

from promptgen.generation.async_engine import AsyncEngine
from promptgen.generation.candidates import Piece
from promptgen.generation.dialogue import Fitted, Message, earlier_answers
from promptgen.generation.request import Answer, Candidate, FinishReason, Sampling, TextRequest
from promptgen.generation.said import Said, said_in, without_repetition

MILD = Sampling(temperature=0.7, top_k=30, top_p=0.9, repetition_penalty=1.05)
USUAL_SAMPLES = 4
WEIGHT = 0.05
LEAST_LIKELY = -4.0  # nats per token
_LONG_TALK = 2000  # characters; reading more than this is moved off the loop
_CLAUSE = re.compile(r"[^，。；！？,;!?\n]*[，。；！？,;!?\n]*\s*")


@dataclass(frozen=True, slots=True)
class ReplyOptions:
    """With one sample the answer is given out as it is drawn; with more it is chosen first. `weight` is that of the formula above.

    What was computed is reused for others of the same `salt` only.
    """

    num_samples: int = USUAL_SAMPLES
    max_new_tokens: int | None = None  # as many as are usual for the model
    sampling: Sampling = MILD
    weight: float = WEIGHT
    salt: str = ""


@dataclass(frozen=True, slots=True)
class RankedAnswer:
    """One answer. `score` is what it was ranked by, None where there was nothing to rank."""

    text: str
    finish_reason: FinishReason
    num_tokens: int
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """The answers, best first; the pieces given out before are the text of the first. `num_turns` of the history were read.

    `drawn` is what the engine says of tokens and times.
    """

    answers: tuple[RankedAnswer, ...]
    num_turns: int
    drawn: Answer

    @property
    def text(self) -> str:
        return self.answers[0].text


@dataclass(frozen=True, slots=True)
class _Asked:
    request: TextRequest
    num_turns: int
    said: Sequence[str]  # in earlier answers


async def reply(
    engine: AsyncEngine,
    messages: Sequence[Message],
    options: ReplyOptions = ReplyOptions(),
    *,
    first_token_timeout_s: float | None = None,
) -> AsyncGenerator[str | Reply, None]:
    """Pieces of the best answer, then the Reply. Closing the generator stops the work.

    Raises InvalidRequest for messages that cannot be answered (QuestionTooLong among them), and what AsyncEngine.stream raises.
    """
    asked = await _ask(engine, messages, options)
    one_or_more = _as_drawn if options.num_samples == 1 else _chosen
    async with contextlib.aclosing(one_or_more(engine, asked, options, first_token_timeout_s)) as parts:
        async for part in parts:
            yield part


async def answer(engine: AsyncEngine, messages: Sequence[Message], options: ReplyOptions = ReplyOptions()) -> Reply:
    """The whole reply. Raises as `reply` does."""
    async with contextlib.aclosing(reply(engine, messages, options)) as parts:
        async for part in parts:
            if isinstance(part, Reply):
                return part
    raise AssertionError("a reply ends with its answers")


async def _ask(engine: AsyncEngine, messages: Sequence[Message], options: ReplyOptions) -> _Asked:
    dialogue = engine.dialogue
    room = options.max_new_tokens or dialogue.usual_room

    def read() -> tuple[Fitted, tuple[str, ...]]:
        return dialogue.fit(messages, room), said_in(earlier_answers(messages))

    is_long = sum(len(message.content) for message in messages) > _LONG_TALK
    fitted, said = await asyncio.to_thread(read) if is_long else read()
    request = TextRequest(
        "",
        options.num_samples,
        room,
        options.sampling,
        want_logprobs=options.num_samples > 1,
        salt=options.salt,
        heal=False,
        rank="none",
        min_new_tokens=1,
        prompt_ids=fitted.prompt_ids,
        end_ids=dialogue.end_ids,
    )
    return _Asked(request, fitted.num_turns, said)


async def _as_drawn(
    engine: AsyncEngine, asked: _Asked, options: ReplyOptions, timeout_s: float | None
) -> AsyncGenerator[str | Reply, None]:
    said, shown = Said(asked.said), list[str]()
    async with contextlib.aclosing(engine.stream(asked.request, first_token_timeout_s=timeout_s)) as deltas:
        async for delta in deltas:
            if isinstance(delta, Piece):
                text = said.push(delta.text)
            elif isinstance(delta, Answer):
                text = said.finish()
            else:
                continue
            if text:
                shown.append(text)
                yield text
            if isinstance(delta, Answer):
                (one,) = delta.candidates
                yield Reply((RankedAnswer("".join(shown), one.finish_reason, one.num_tokens),), asked.num_turns, delta)


async def _chosen(
    engine: AsyncEngine, asked: _Asked, options: ReplyOptions, timeout_s: float | None
) -> AsyncGenerator[str | Reply, None]:
    empty_prompt = engine.dialogue.empty_prompt
    with engine.visit() as visit:
        drawn = await engine.answer(asked.request, first_token_timeout_s=timeout_s, visit=visit)
        texts = tuple(dict.fromkeys(c.completion for c in drawn.candidates if c.completion.strip()))
        by_itself: dict[str, float] = {}  # log p(answer) per token of each answer, after nothing that was asked
        if options.weight and texts:
            alone = replace(asked.request, choices=texts, prompt_ids=empty_prompt, end_ids=())
            scored = await engine.answer(alone, first_token_timeout_s=timeout_s, visit=visit)
            by_itself = {c.completion: c.score or 0.0 for c in scored.candidates}
    answers = rank(drawn.candidates, by_itself, options.weight, asked.said)
    for piece in _CLAUSE.findall(answers[0].text):
        if piece:
            yield piece
    yield Reply(answers, asked.num_turns, drawn)


def rank(
    candidates: Sequence[Candidate], by_itself: dict[str, float], weight: float, said: Sequence[str] = ()
) -> tuple[RankedAnswer, ...]:
    """The answers without repeated sentences, those that were `said` (see said_in) included, best first, no two equal. There is one at least, though it may be empty."""
    ranked: list[tuple[tuple[bool, bool, bool, float], RankedAnswer]] = []
    for candidate in candidates:
        text, has_repeated = without_repetition(candidate.completion, said)
        alone = max(LEAST_LIKELY, by_itself.get(candidate.completion, 0.0))
        score = (candidate.score or 0.0) - weight * alone
        answered = RankedAnswer(text, candidate.finish_reason, candidate.num_tokens, score)
        ranked.append(((not text.strip(), has_repeated, candidate.finish_reason == "length", -score), answered))
    ranked.sort(key=lambda pair: pair[0])
    by_text = {one.text.strip(): one for _, one in reversed(ranked)}  # of equal ones the better
    best_first = sorted(by_text.values(), key=[one for _, one in ranked].index)
    return tuple(one for one in best_first if one.text.strip()) or (RankedAnswer("", "stop", 0),)
