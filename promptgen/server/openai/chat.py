"""POST /v1/chat/completions: a dialogue goes to the model as it was trained on them, and an answer ends where a turn does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from aiohttp import web

from promptgen.errors import ContextLengthExceeded, InvalidRequest
from promptgen.generation.async_engine import Delta
from promptgen.generation.candidates import Finished, Piece, Withdrawn
from promptgen.generation.dialogue import Message
from promptgen.generation.request import Answer, TextRequest, TokenDetail
from promptgen.server.body import read_json_object
from promptgen.server.handlers import SETTINGS, json_response
from promptgen.server.openai import common
from promptgen.server.openai.common import Served
from promptgen.server.openai.models import ChatCompletionBody, ChatMessage, parse
from promptgen.server.openai.streaming import Chunk, stream_chunks
from promptgen.server.outcome import OUTCOME

MAX_RESERVED = 0.5  # of the window, kept free of history for the answer


async def chat_completions(request: web.Request) -> web.StreamResponse:
    fields = await read_json_object(request, request.app[SETTINGS].body_timeout_s)
    body = parse(ChatCompletionBody, fields)
    body.check()
    on = common.served(request, body.model)
    prompt_ids = await _prompt_ids(on, body)
    asked = [_ask(on, body, prompt_ids)]
    kind = "chat.completion.chunk" if body.stream else "chat.completion"
    writer = _Writer(body, len(prompt_ids), common.head(kind, "chatcmpl", on))
    if body.stream:
        return await stream_chunks(request, on, asked, writer)
    (answer,) = await common.answers(on, asked)
    request[OUTCOME].answer = answer
    return json_response(request, writer.whole(answer))


async def _prompt_ids(on: Served, body: ChatCompletionBody) -> tuple[int, ...]:
    """The last turns that leave room for an answer. Raises HttpFault 400 when the last message alone does not, InvalidRequest when it says
    nothing or is not the user's."""
    dialogue, window = on.engine.dialogue, on.info.window
    most = int(window * MAX_RESERVED)
    reserved = most if body.most_tokens is None else min(body.most_tokens, most)
    messages = [_message(message) for message in body.messages]
    try:
        return tuple(
            await common.aside(
                sum(len(message.content) for message in messages),
                lambda: dialogue.prompt(messages, reserved),
            )
        )
    except ContextLengthExceeded as fault:
        raise common.too_long(fault.num_prompt_tokens, reserved, window, "messages", "the answer") from fault
    except InvalidRequest as fault:
        raise InvalidRequest(str(fault), param="messages") from fault


def _message(message: ChatMessage) -> Message:
    return Message(message.role, message.text)


def _ask(on: Served, body: ChatCompletionBody, prompt_ids: tuple[int, ...]) -> TextRequest:
    """max_tokens is a bound, and the end of the window another."""
    room = on.info.window - len(prompt_ids)
    return TextRequest(
        "",
        body.n,
        room if body.most_tokens is None else min(body.most_tokens, room),
        common.sampling_of(body, on.info),
        body.stops,
        ignore_end=body.ignore_eos,
        salt=on.caller,
        heal=False,
        distinct=body.distinct,
        rank=body.rank,
        min_new_tokens=body.min_tokens,
        prompt_ids=prompt_ids,
        end_ids=on.engine.dialogue.end_ids,
        token_bias=common.bias_of(body, on.info),
        num_top=body.num_top,
    )


class _Writer:
    """The answer in OpenAI's shapes: whole, or in chunks."""

    def __init__(self, body: ChatCompletionBody, num_prompt: int, head: dict[str, Any]) -> None:
        self._body, self._num_prompt, self._head = body, num_prompt, head
        self._num_completion = 0
        self._num_sent = [0] * body.n  # tokens of each choice

    def whole(self, answer: Answer) -> dict[str, Any]:
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": candidate.completion, "refusal": None},
                "logprobs": self._logprobs(candidate.tokens),
                "finish_reason": candidate.finish_reason,
            }
            for index, candidate in enumerate(answer.candidates)
        ]
        return self._head | {"choices": choices, "usage": common.usage(self._num_prompt, answer.num_completion_tokens)}

    def start(self) -> Iterable[Chunk]:
        for index in range(self._body.n):
            yield self._chunk(index, {"role": "assistant", "content": "", "refusal": None}, None, None)

    def delta(self, number: int, delta: Delta) -> Iterable[Chunk]:
        match delta:
            case Piece(index, text, tokens):
                self._num_sent[index] += len(tokens)
                yield self._chunk(index, {"content": text}, tokens, None)
            case Finished(index, candidate):
                left = candidate.tokens[self._num_sent[index] :]
                yield self._chunk(index, {}, left or None, candidate.finish_reason)
            case Answer():
                self._num_completion += delta.num_completion_tokens
            case Withdrawn():
                raise AssertionError("choices of a stream are never withdrawn")

    def end(self) -> Iterable[Chunk]:
        if self._body.includes_usage:
            yield self._head | {"choices": [], "usage": common.usage(self._num_prompt, self._num_completion)}

    def _chunk(
        self, index: int, delta: dict[str, Any], tokens: Sequence[TokenDetail] | None, reason: str | None
    ) -> Chunk:
        logprobs = None if tokens is None else self._logprobs(tokens)
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return self._head | {"choices": [choice]} | ({"usage": None} if self._body.includes_usage else {})

    def _logprobs(self, tokens: Sequence[TokenDetail]) -> dict[str, Any] | None:
        """Of the tokens that are text; the one that ended the answer is not among them."""
        if not self._body.logprobs:
            return None
        content = [
            common.chat_token(detail.token) | {"top_logprobs": [common.chat_token(token) for token in detail.top]}
            for detail in tokens
            if not detail.is_end
        ]
        return {"content": content, "refusal": None}
