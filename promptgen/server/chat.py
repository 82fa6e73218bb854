"""POST /chat: a question and what was said before, an answer and what has been said now. The client keeps the history.

    {"question": "那饮食呢？", "history": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    {"messages": [..., {"role": "user", "content": "那饮食呢？"}]}

Whole, or with `stream` as server-sent events:

    data: {"text": piece}            joined they are the answer
    data: {"answer": ..., ...}       the whole answer, as it is without `stream`
    event: end
    data: [DONE]
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from promptgen.errors import InvalidRequest, RequestError
from promptgen.generation.dialogue import ASSISTANT, USER, Message
from promptgen.generation.reply import MILD, USUAL_SAMPLES, Reply, ReplyOptions, reply
from promptgen.server.body import read_json_object
from promptgen.server.faults import HttpFault
from promptgen.server.guards import wants_ascii
from promptgen.server.handlers import SETTINGS, engine_of, json_response
from promptgen.server.outcome import CALLER, OUTCOME, Outcome
from promptgen.server.schema import rounded
from promptgen.server.sse import MAX_LINE_BYTES, STILL_HERE, beating, send_events
from promptgen.server.strict import STRICT, ModelName, validate

MAX_SAMPLES = 16
_END = b"event: end\ndata: [DONE]\n\n"
_log = logging.getLogger(__name__)


class ChatMessage(BaseModel):
    """What one of them said. Other keys are not looked at."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    role: Annotated[Literal["user", "assistant", "system", "developer"], Field(description="who said it")]
    content: Annotated[str, Field(description="what was said")]

    def as_message(self) -> Message:
        return Message(self.role, self.content)


class ChatBody(BaseModel):
    """POST /chat. One of `question` and `messages` is wanted. Unknown fields are refused by name."""

    model_config = STRICT

    question: Annotated[str | None, Field(description="what is asked")] = None
    messages: Annotated[
        list[ChatMessage] | None,
        Field(description="all that was said, the question last; in place of question and history"),
    ] = None
    history: Annotated[list[ChatMessage], Field(description="what was said before the question, oldest first")] = []
    model: ModelName = None
    stream: Annotated[bool, Field(description="server-sent events")] = False
    max_new_tokens: Annotated[
        int | None,
        Field(ge=1, le=10**9, description="the longest answer, in tokens; without it 80, or half of a small window"),
    ] = None
    temperature: Annotated[float | None, Field(ge=0, le=2, description="0 always takes the likeliest word")] = None
    seed: Annotated[
        int | None, Field(ge=-(2**63), lt=2**63, description="same seed, same answer; random without one")
    ] = None
    samples: Annotated[
        int, Field(ge=1, le=MAX_SAMPLES, description="answers to choose from; 1 is streamed word by word")
    ] = USUAL_SAMPLES

    def to_messages(self) -> list[Message]:
        """Raises HttpFault unless the question is given, once."""
        if self.messages is not None:
            if self.question is not None or self.history:
                raise HttpFault(
                    400, "invalid_value", "messages takes the place of question and history", param="messages"
                )
            return [message.as_message() for message in self.messages]
        if self.question is None:
            raise HttpFault(400, "missing_field", "question: what is asked? (or messages)", param="question")
        if not self.question.strip():
            raise HttpFault(400, "invalid_value", "question: is blank", param="question")
        return [*(message.as_message() for message in self.history), Message(USER, self.question)]

    def to_options(self, caller: str) -> ReplyOptions:
        seed = secrets.randbits(53) if self.seed is None else self.seed
        sampling = MILD.with_(seed=seed, temperature=self.temperature)
        return ReplyOptions(self.samples, self.max_new_tokens, sampling, salt=caller)


@dataclass(frozen=True, slots=True)
class _Talk:
    """One request being answered."""

    messages: list[Message]
    options: ReplyOptions
    ascii_only: bool
    outcome: Outcome
    started: float = field(default_factory=time.perf_counter)

    def value(self, replied: Reply) -> dict[str, Any]:
        self.outcome.answer = replied.drawn
        value: dict[str, Any] = {
            "answer": replied.text,
            "finish_reason": replied.answers[0].finish_reason,
            "history": [
                {"role": message.role, "content": message.content}
                for message in (*self.messages, Message(ASSISTANT, replied.text))
            ],
            "turns_read": replied.num_turns,
            "seed": self.options.sampling.seed,
            "time": round(time.perf_counter() - self.started, 6),
        }
        if self.options.num_samples > 1:
            value["candidates"] = [
                {"text": one.text, "score": rounded(one.score), "finish_reason": one.finish_reason}
                for one in replied.answers
            ]
        return value

    def event(self, value: dict[str, Any]) -> bytes:
        return b"data: " + json.dumps(value, ensure_ascii=self.ascii_only).encode() + b"\n\n"

    def last_event(self, replied: Reply) -> bytes:
        """A history that does not fit into a line is left to the client, who has all of it."""
        value = self.value(replied)
        event = self.event(value)
        if len(event) > MAX_LINE_BYTES:
            event = self.event(value | {"history": None})
        if len(event) > MAX_LINE_BYTES:
            event = self.event(value | {"history": None, "candidates": value["candidates"][:1]})
        return event

    def fault(self, fault: HttpFault) -> bytes:
        self.outcome.code = fault.code
        return self.event(fault.body())


async def chat(request: web.Request) -> web.StreamResponse:
    settings = request.app[SETTINGS]
    body = validate(ChatBody, await read_json_object(request, settings.body_timeout_s))
    engine = engine_of(request, body.model)
    options = body.to_options(request.get(CALLER, ""))
    talk = _Talk(body.to_messages(), options, wants_ascii(request), request[OUTCOME])
    parts = reply(engine, talk.messages, talk.options, first_token_timeout_s=settings.request_timeout_s)
    try:
        return await (send_events(request, _events(talk, parts)) if body.stream else _whole(request, talk, parts))
    except InvalidRequest as fault:
        if body.messages is not None:
            fault.param = "messages"  # where the question was sent
        raise


async def _whole(request: web.Request, talk: _Talk, parts: AsyncGenerator[str | Reply, None]) -> web.Response:
    async with contextlib.aclosing(parts):
        async for part in parts:
            if isinstance(part, Reply):
                return json_response(request, talk.value(part))
    raise AssertionError("a reply ends with its answers")


async def _events(talk: _Talk, parts: AsyncGenerator[str | Reply, None]) -> AsyncGenerator[bytes, None]:
    """The stream as bytes to send. Raises RequestError only before the first of them."""
    has_begun = False
    async with contextlib.aclosing(parts), contextlib.aclosing(beating(parts)) as beats:
        try:
            async for part in beats:
                if part is None and not has_begun:
                    continue  # the status is still open
                has_begun = True
                if part is None:
                    yield STILL_HERE
                elif isinstance(part, Reply):
                    yield talk.last_event(part)
                else:
                    yield talk.event({"text": part})
        except RequestError as fault:
            if not has_begun:
                raise
            yield talk.fault(HttpFault.of(fault))
        except Exception:
            if not has_begun:
                raise
            _log.exception("a stream failed")
            yield talk.fault(HttpFault.unforeseen())
    yield _END
