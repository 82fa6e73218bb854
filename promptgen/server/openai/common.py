"""What the routes of /v1 share: which engine answers, text to ids, several requests at once, usage."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, TypeVar

from aiohttp import web

import promptgen
from promptgen.errors import ContextLengthExceeded, DeadlineExceeded, Overloaded, UnknownModel
from promptgen.generation.async_engine import AsyncEngine, Delta, Visit
from promptgen.generation.loader import ModelInfo
from promptgen.generation.request import Answer, Sampling, ScoredToken, TextRequest
from promptgen.server.faults import HttpFault
from promptgen.server.handlers import SETTINGS, engine_of
from promptgen.server.openai.models import ChatCompletionBody, CompletionBody, check_ids
from promptgen.server.outcome import CALLER
from promptgen.text.tokenizer import Tokenizer

MAX_AT_ONCE = 32  # prompts of one request with the engine; the others wait here, so that they do not fill its queue
LONG_TEXT = 2000  # characters; work on more than this is moved off the loop
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Served:
    """The engine that answers a request, and what is known of its model. All that it is asked for one request is one `visit`."""

    engine: AsyncEngine
    info: ModelInfo
    tokenizer: Tokenizer
    timeout_s: float
    caller: str
    visit: Visit


def served(request: web.Request, model: str | None) -> Served:
    """Raises Overloaded while the model loads, HttpFault 404 for a model that is not served."""
    try:
        engine = engine_of(request, model)
    except UnknownModel as fault:
        message = "no such model is served here; GET /v1/models lists those that are"
        raise HttpFault(404, "model_not_found", message, param="model") from fault
    info = engine.info
    if info is None:
        raise Overloaded(f"the service is {engine.state}", retry_after_s=5)
    timeout_s, caller = request.app[SETTINGS].request_timeout_s, request.get(CALLER, "")
    return Served(engine, info, engine.tokenizer, timeout_s, caller, engine.visit())


def sampling_of(body: CompletionBody | ChatCompletionBody, info: ModelInfo) -> Sampling:
    """The model's own settings where the body says nothing."""
    drawn = info.sampling.with_(
        seed=secrets.randbits(53) if body.seed is None else body.seed,
        temperature=body.temperature,
        top_k=body.top_k,
        top_p=body.top_p,
        repetition_penalty=body.repetition_penalty,
    )
    return drawn.with_penalties(body.presence_penalty, body.frequency_penalty)


def bias_of(body: CompletionBody | ChatCompletionBody, info: ModelInfo) -> tuple[tuple[int, float], ...]:
    """Raises HttpFault 400 for a token that the vocabulary does not have."""
    bias = tuple((int(token_id), value) for token_id, value in body.logit_bias.items())
    check_ids([token_id for token_id, _ in bias], info.vocabulary, "logit_bias")
    return bias


async def aside(length: int, work: Callable[[], Result]) -> Result:
    """Short work at once, long work in a thread."""
    return work() if length <= LONG_TEXT else await asyncio.to_thread(work)


def check_fits(num_prompt: int, num_new: int, window: int, param: str, new_param: str) -> None:
    """Raises HttpFault 400 when a prompt with its new tokens is longer than the window."""
    if num_prompt + num_new > window:
        raise too_long(num_prompt, num_new, window, param, new_param)


def too_long(num_prompt: int, num_new: int, window: int, param: str, new_param: str) -> HttpFault:
    message = (
        f"this model's maximum context length is {window} tokens; {param} takes {num_prompt} of them and {new_param} asks "
        f"for {num_new} more; shorten the one or lower the other"
    )
    return HttpFault(400, ContextLengthExceeded.code, message, param=param)


async def gathered(works: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """The results of several coroutines, in order, MAX_AT_ONCE of which run at once. When one fails the others are cancelled, and its fault is
    raised."""
    room = asyncio.Semaphore(MAX_AT_ONCE)

    async def in_turn(work: Coroutine[Any, Any, Result]) -> Result:
        async with room:
            return await work

    tasks = [asyncio.ensure_future(in_turn(work)) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        await _cancelled(tasks)
        for work in works:
            work.close()


async def answers(on: Served, asked: Sequence[TextRequest]) -> list[Answer]:
    """Whole answers of several requests, which run beside each other."""
    return await gathered([on.engine.answer(ask, first_token_timeout_s=on.timeout_s, visit=on.visit) for ask in asked])


async def merged(on: Served, asked: Sequence[TextRequest]) -> AsyncGenerator[tuple[int, Delta], None]:
    """The deltas of several requests as they come, each with the number of its request. Raises as AsyncEngine.stream does."""
    inbox = asyncio.Queue[tuple[int, Delta] | BaseException]()
    room = asyncio.Semaphore(MAX_AT_ONCE)

    async def pump(number: int, ask: TextRequest) -> None:
        try:
            stream = on.engine.stream(ask, first_token_timeout_s=on.timeout_s, visit=on.visit)
            async with room, contextlib.aclosing(stream) as deltas:
                async for delta in deltas:
                    inbox.put_nowait((number, delta))
        except Exception as fault:
            inbox.put_nowait(fault)

    tasks = [asyncio.ensure_future(pump(number, ask)) for number, ask in enumerate(asked)]
    num_running = len(tasks)
    try:
        while num_running:
            item = await inbox.get()
            if isinstance(item, BaseException):
                raise item
            num_running -= isinstance(item[1], Answer)
            yield item
    finally:
        await _cancelled(tasks)


async def _cancelled(tasks: Sequence[asyncio.Future[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def deadline(seconds: float) -> AsyncGenerator[None, None]:
    """Raises DeadlineExceeded when what is within takes longer."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as fault:
        raise DeadlineExceeded(f"no answer within {seconds:g} s; the service is busy") from fault


def head(kind: str, prefix: str, on: Served) -> dict[str, Any]:
    """The fields that every object begins with."""
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": on.info.name,
        "system_fingerprint": fingerprint(on),
    }


def fingerprint(on: Served) -> str:
    """Changes with what a seeded answer depends on: version, model and the way it is computed."""
    told = f"{promptgen.__version__} {on.info} {on.engine.stats.steps}"
    return "fp_" + blake2b(told.encode(), digest_size=5).hexdigest()


def usage(num_prompt: int, num_completion: int) -> dict[str, int]:
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_completion,
        "total_tokens": num_prompt + num_completion,
    }


def chat_token(token: ScoredToken) -> dict[str, Any]:
    """A token in the shape of chat's logprobs."""
    return {"token": token.text, "logprob": rounded(token.logprob), "bytes": list(token.raw)}


def rounded(logprob: float | None) -> float | None:
    return None if logprob is None else round(logprob, 7)
