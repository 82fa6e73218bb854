"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from aiohttp import web

from promptgen.generation.async_engine import Delta
from promptgen.generation.candidates import Finished, Piece, Withdrawn
from promptgen.generation.request import Answer, Candidate, Sampling, TextRequest, TokenDetail
from promptgen.generation.token_log import scored_token
from promptgen.server.body import read_json_object
from promptgen.server.handlers import SETTINGS, json_response
from promptgen.server.openai import common
from promptgen.server.openai.common import Served
from promptgen.server.openai.models import CompletionBody, check_ids, parse
from promptgen.server.openai.streaming import Chunk, stream_chunks
from promptgen.server.outcome import OUTCOME, combined
from promptgen.server.sse import PIECE_CHARACTERS

DEFAULT_MAX_TOKENS = 16
_TOKENS_OF_PIECE = 32  # of a prompt, with 20 alternatives each some 16 KiB


@dataclass(frozen=True, slots=True)
class Prompt:
    """`text` as it was sent, or what the ids that were sent say. `ids` are what the model reads; a text has the begin token before it.

    `details` are its tokens with their log-probabilities, where asked for.
    """

    text: str
    ids: tuple[int, ...]
    is_text: bool
    details: tuple[TokenDetail, ...] = ()


async def completions(request: web.Request) -> web.StreamResponse:
    fields = await read_json_object(request, request.app[SETTINGS].body_timeout_s)
    body = parse(CompletionBody, fields)
    body.check()
    on = common.served(request, body.model)
    prompts = await _prompts(on, body)
    max_tokens = _max_tokens(on, body, prompts)
    sampling, bias = common.sampling_of(body, on.info), common.bias_of(body, on.info)
    asked = [_ask(on, body, prompt, max_tokens, sampling, bias) for prompt in prompts] if max_tokens else []
    with on.visit:
        if body.echo and body.logprobs is not None:
            prompts = await common.gathered([_scored(on, prompt, body.logprobs) for prompt in prompts])
        writer = _Writer(body, prompts, common.head("text_completion", "cmpl", on), not asked)
        if body.stream:
            return await stream_chunks(request, on, asked, writer)
        answers = await common.answers(on, asked)
    request[OUTCOME].answer = combined(answers)
    return json_response(request, writer.whole(answers))


async def _prompts(on: Served, body: CompletionBody) -> list[Prompt]:
    tokenizer = on.tokenizer

    def read() -> list[Prompt]:
        return [
            Prompt(given, (tokenizer.begin_id, *tokenizer.encode(given)), True)
            if isinstance(given, str)
            else Prompt(tokenizer.decode(given), given, False)
            for given in body.prompts
        ]

    for given in body.prompts:
        if not isinstance(given, str):
            check_ids(given, on.info.vocabulary, "prompt")
    return await common.aside(sum(map(len, body.prompts)), read)


def _max_tokens(on: Served, body: CompletionBody, prompts: Sequence[Prompt]) -> int:
    """The new tokens of each choice. Raises HttpFault 400 when a prompt leaves no room for them."""
    longest, window = max(len(prompt.ids) for prompt in prompts), on.info.window
    asked = body.max_tokens
    if asked is None:
        asked = max(1, min(DEFAULT_MAX_TOKENS, window - longest))
    common.check_fits(longest, asked, window, "prompt", "max_tokens")
    return asked


def _ask(
    on: Served,
    body: CompletionBody,
    prompt: Prompt,
    max_tokens: int,
    sampling: Sampling,
    bias: tuple[tuple[int, float], ...],
) -> TextRequest:
    return TextRequest(
        prompt.text,
        body.num_drawn,
        max_tokens,
        sampling,
        body.stops,
        ignore_end=body.ignore_eos,
        salt=on.caller,
        heal=body.heal,
        distinct=body.distinct,
        rank="likelihood" if body.num_drawn > body.n else body.rank,
        min_new_tokens=body.min_tokens,
        prompt_ids=() if body.heal else prompt.ids,
        token_bias=bias,
        num_top=body.logprobs,
    )


async def _scored(on: Served, prompt: Prompt, num_top: int) -> Prompt:
    """The prompt with its details: all its tokens but the first are given to the model, which says how likely they are."""
    tokenizer, first, rest = on.tokenizer, prompt.ids[:1], prompt.ids[1:]
    details: tuple[TokenDetail, ...] = ()
    begin = "" if prompt.is_text else tokenizer.decode(first)
    if not prompt.is_text:
        details = (TokenDetail(scored_token(tokenizer, first[0], None, begin), (), 0),)
    if rest:
        ask = TextRequest(
            begin, 1, len(rest), salt=on.caller, heal=False, distinct=False, rank="none",
            prompt_ids=first, forced_ids=rest, num_top=num_top,
        )  # fmt: skip
        (answer,) = await common.answers(on, [ask])
        details += tuple(replace(d, offset=len(begin) + d.offset) for d in answer.candidates[0].tokens)
    return replace(prompt, details=details)


class _Writer:
    """The answer in OpenAI's shapes: whole, or in chunks. Choice c of prompt p has the index p * n + c."""

    def __init__(self, body: CompletionBody, prompts: Sequence[Prompt], head: dict[str, Any], is_empty: bool) -> None:
        self._body, self._prompts, self._head, self._is_empty = body, prompts, head, is_empty
        self._num_prompt = sum(len(prompt.ids) for prompt in prompts)
        self._num_completion = 0
        self._num_sent: dict[int, int] = {}  # and tokens

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        choices: list[dict[str, Any]] = []
        for number, prompt in enumerate(self._prompts):
            found: Sequence[Candidate] = answers[number].candidates if answers else (_NOTHING,) * self._body.n
            for place, candidate in enumerate(found[: self._body.n]):
                text = (prompt.text if self._body.echo else "") + candidate.completion
                details = [*prompt.details, *self._moved(prompt, candidate.tokens)]
                index = number * self._body.n + place
                choices.append(self._choice(index, text, details, candidate.finish_reason))
        num_completion = sum(answer.num_completion_tokens for answer in answers)
        return self._head | {"choices": choices, "usage": common.usage(self._num_prompt, num_completion)}

    def start(self) -> Iterable[Chunk]:
        if not self._body.echo:
            return
        for number, prompt in enumerate(self._prompts):
            for index in range(number * self._body.n, (number + 1) * self._body.n):
                *pieces, (last, details) = _pieces_of(prompt)
                for piece, tokens in pieces:
                    yield self._chunk(self._choice(index, piece, tokens, None))
                yield self._chunk(self._choice(index, last, details, "length" if self._is_empty else None))

    def delta(self, number: int, delta: Delta) -> Iterable[Chunk]:
        prompt = self._prompts[number]
        match delta:
            case Piece(sample, text, tokens):
                index = number * self._body.n + sample
                self._num_sent[index] = self._num_sent.get(index, 0) + len(tokens)
                yield self._chunk(self._choice(index, text, self._moved(prompt, tokens), None))
            case Finished(sample, candidate):
                index = number * self._body.n + sample
                left = candidate.tokens[self._num_sent.get(index, 0) :]
                yield self._chunk(self._choice(index, "", self._moved(prompt, left), candidate.finish_reason))
            case Answer():
                self._num_completion += delta.num_completion_tokens
            case Withdrawn():
                raise AssertionError("choices of a stream are never withdrawn")

    def end(self) -> Iterable[Chunk]:
        if self._body.includes_usage:
            yield self._head | {"choices": [], "usage": common.usage(self._num_prompt, self._num_completion)}

    def _chunk(self, choice: dict[str, Any]) -> Chunk:
        return self._head | {"choices": [choice]} | ({"usage": None} if self._body.includes_usage else {})

    def _choice(self, index: int, text: str, details: Sequence[TokenDetail], reason: str | None) -> dict[str, Any]:
        logprobs = None if self._body.logprobs is None else _logprobs(details, self._body.logprobs)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _moved(self, prompt: Prompt, tokens: Sequence[TokenDetail]) -> list[TokenDetail]:
        """With the offsets that they have in the choice's text."""
        shift = len(prompt.text) if self._body.echo else 0
        return [replace(token, offset=shift + token.offset) for token in tokens]


_NOTHING = Candidate("", 0, None, "length")


def _pieces_of(prompt: Prompt) -> list[tuple[str, Sequence[TokenDetail]]]:
    """A prompt in pieces with the tokens that begin in them, each for a line of some kilobytes. One at least."""
    text, details = prompt.text, prompt.details
    groups = [details[at : at + _TOKENS_OF_PIECE] for at in range(0, len(details), _TOKENS_OF_PIECE)] or [()]
    ends = [*(group[0].offset for group in groups[1:]), len(text)]
    pieces: list[tuple[str, Sequence[TokenDetail]]] = []
    begin = 0
    for group, end in zip(groups, ends, strict=True):
        cuts = [*range(begin, end, PIECE_CHARACTERS), end] if end > begin else [begin, end]
        pieces += ((text[a:b], ()) for a, b in pairwise(cuts[:-1]))
        pieces.append((text[cuts[-2] : end], group))
        begin = end
    return pieces


def _logprobs(details: Sequence[TokenDetail], num_top: int) -> dict[str, Any]:
    return {
        "tokens": [detail.token.text for detail in details],
        "token_logprobs": [common.rounded(detail.token.logprob) for detail in details],
        "top_logprobs": [_top(detail) for detail in details] if num_top else None,
        "text_offset": [detail.offset for detail in details],
    }


def _top(detail: TokenDetail) -> dict[str, float | None] | None:
    """The alternatives by their text; of two that read the same, the likelier."""
    if detail.token.logprob is None:
        return None
    found: dict[str, float | None] = {}
    for token in (*detail.top, detail.token):
        found.setdefault(token.text, common.rounded(token.logprob))
    return found
