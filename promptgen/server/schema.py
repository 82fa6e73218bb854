"""The words of the wire, here alone: what /generate takes and gives."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from hashlib import blake2b
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from promptgen.generation.request import Answer, Candidate, Sampling, TextRequest
from promptgen.server.faults import HttpFault
from promptgen.server.strict import STRICT, ModelName, validate

MAX_SAMPLES = 64
MAX_CONTEXTS = 64
MAX_CANDIDATES = 1024  # of all contexts together
_SEEDS = 2**63
_NOTHING = Answer((), 0)  # to a blank context
_SAMPLING_FIELDS = ("temperature", "top_k", "top_p", "repetition_penalty")  # a model may have defaults of its own
_StopText = Annotated[str, Field(min_length=1, max_length=256)]
_Word = Annotated[str, Field(min_length=1, max_length=256, pattern=r"\S")]
_Bias = Annotated[float, Field(ge=-100, le=100)]


class GenerateBody(BaseModel):
    """POST /generate, as the contract's table has it. Unknown fields are refused by name."""

    model_config = STRICT

    context: Annotated[
        str | Annotated[list[str], Field(max_length=MAX_CONTEXTS)],
        Field(
            description="the beginning of the prompt; or several: the result is then a list for each, context k with the seed + k"
        ),
    ]
    model: ModelName = None
    maxlength: Annotated[int, Field(ge=1, le=10**9, description="new tokens (words) per candidate")] = 50
    samples: Annotated[int, Field(ge=0, le=MAX_SAMPLES, description="candidates; 0 means 1")] = 5
    temperature: Annotated[float, Field(ge=0, le=2, description="0 is greedy")] = 1.0
    top_k: Annotated[int, Field(ge=0, description="draw from the k likeliest, 0 is off")] = 30
    top_p: Annotated[
        float, Field(ge=0, le=1, description="draw from the smallest set of this probability, 0 and 1 are off")
    ] = 0.0
    repetition_penalty: Annotated[
        float, Field(ge=0.1, le=10, description="CTRL's: over 1 makes repetition less likely")
    ] = 1.0
    seed: Annotated[
        int | None, Field(ge=-(2**63), lt=2**63, description="same seed, same text; random and reported without one")
    ] = None
    stop: Annotated[
        _StopText | Annotated[list[_StopText], Field(max_length=16)] | None,
        Field(description="cut before the first match"),
    ] = None
    echo: Annotated[bool, Field(description="each result starts with context exactly as it was sent")] = True
    stream: Annotated[bool, Field(description="server-sent events")] = False
    details: Annotated[bool, Field(description="adds candidates, usage, timing, model and seed")] = False
    heal: Annotated[bool, Field(description="a context that was cut within a word goes on with that word")] = True
    distinct: Annotated[
        bool, Field(description="no two results are equal; there are fewer if the model finds no others")
    ] = True
    distinct_first: Annotated[bool, Field(description="at most one candidate for each first word")] = False
    rank: Annotated[
        Literal["likelihood", "none"], Field(description="order of the results: likeliest first, or as drawn")
    ] = "likelihood"
    session: Annotated[
        str | None,
        Field(
            pattern=r"^[A-Za-z0-9._:-]{1,64}$",
            description="a newer request of a session takes the place of the older one",
        ),
    ] = None
    min_length: Annotated[int, Field(ge=0, le=10**9, description="words before a candidate may end")] = 0
    bad_words: Annotated[list[_Word], Field(max_length=64, description="never in a candidate")] = []
    logit_bias: Annotated[
        dict[_Word, _Bias], Field(max_length=256, description="added to the logits of words; -100 forbids one")
    ] = {}
    choices: Annotated[
        list[_Word], Field(max_length=MAX_SAMPLES, description="texts to score and rank instead of drawing any")
    ] = []
    until: Annotated[
        Literal["sentence", "line", "document"], Field(description="where a candidate ends, at the latest")
    ] = "document"
    timeout_ms: Annotated[
        int | None,
        Field(ge=1, le=10**9, description="no first token after this long is a 504; only shortens the service's own"),
    ] = None

    @property
    def text(self) -> str:
        """The only context."""
        assert isinstance(self.context, str)
        return self.context

    @property
    def is_blank(self) -> bool:
        return not self.text.strip()

    def each(self) -> list[GenerateBody]:
        """One for each context: context k is answered as it would be alone with the seed + k."""
        assert isinstance(self.context, list)
        seed = secrets.randbits(52) if self.seed is None else self.seed
        return [
            self.model_copy(update={"context": context, "seed": (seed + index + _SEEDS) % (2 * _SEEDS) - _SEEDS})
            for index, context in enumerate(self.context)
        ]

    def to_request(self, defaults: Sampling, caller: str = "") -> TextRequest:
        """What the engine is asked; `defaults` are the model's. Without a seed a random one is chosen, small enough for JavaScript's numbers;
        a session has one of its own, so that its suggestions stay while someone types.

        What was computed for a prompt is reused among requests of one `caller` only.
        """
        if self.seed is not None:
            seed = self.seed
        elif self.session is not None:
            seed = int.from_bytes(blake2b(f"{caller} {self.session}".encode(), digest_size=6).digest())
        else:
            seed = secrets.randbits(53)
        given = {name: getattr(self, name) for name in _SAMPLING_FIELDS if name in self.model_fields_set}
        return TextRequest(
            self.text,
            self.samples or 1,
            self.maxlength,
            defaults.with_(seed=seed, **given),
            (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            self.details,
            salt=caller,
            heal=self.heal,
            distinct=self.distinct,
            distinct_first=self.distinct_first,
            rank=self.rank,
            session=self.session or "",
            min_new_tokens=self.min_length,
            bad_words=tuple(self.bad_words),
            logit_bias=tuple(self.logit_bias.items()),
            choices=tuple(self.choices),
            until=self.until,
        )

    def timeout_s(self, limit_s: float) -> float:
        """The deadline for the first token: the service's, or a shorter one."""
        return limit_s if self.timeout_ms is None else min(limit_s, self.timeout_ms / 1000)


def parse_generate(body: dict[str, Any], vocabulary_size: int | None) -> GenerateBody:
    """Raises HttpFault 400 whose `param` names the field. `vocabulary_size` bounds top_k."""
    parsed = validate(GenerateBody, body)
    if vocabulary_size is not None and parsed.top_k > vocabulary_size:
        raise HttpFault(
            400, "invalid_value", f"top_k: the vocabulary has {vocabulary_size} tokens; 0 is off", param="top_k"
        )
    if parsed.min_length > parsed.maxlength:
        raise HttpFault(400, "invalid_value", "min_length: is over maxlength", param="min_length")
    if isinstance(parsed.context, list):
        _check_several(parsed, len(parsed.context))
    return parsed


def _check_several(body: GenerateBody, num_contexts: int) -> None:
    for name in ("stream", "session"):
        if getattr(body, name):
            message = f"{name}: is for one context; send as many requests"
            raise HttpFault(400, "invalid_value", message, param=name)
    num_candidates = num_contexts * (len(body.choices) or body.samples or 1)
    if num_candidates > MAX_CANDIDATES:
        message = (
            f"samples: {num_contexts} contexts would have {num_candidates} candidates, {MAX_CANDIDATES} are allowed"
        )
        raise HttpFault(400, "invalid_value", message, param="samples")


def results(body: GenerateBody, answer: Answer) -> list[str]:
    return [_text(body, candidate) for candidate in answer.candidates]


def details(body: GenerateBody, request: TextRequest, answer: Answer, model: str, total_s: float) -> dict[str, Any]:
    """What `details: true` adds to an answer."""
    return {
        "candidates": [
            {
                "text": _text(body, candidate),
                "completion": candidate.completion,
                "num_tokens": candidate.num_tokens,
                "logprob": rounded(candidate.logprob),
                "score": rounded(candidate.score),
                "finish_reason": candidate.finish_reason,
            }
            for candidate in answer.candidates
        ],
        "usage": {"prompt_tokens": answer.num_prompt_tokens, "completion_tokens": answer.num_completion_tokens},
        "timing": {
            "queue": round(answer.queue_s, 6),
            "prefill": round(answer.prefill_s, 6),
            "decode": round(answer.decode_s, 6),
            "total": round(total_s, 6),
        },
        "model": model,
        "seed": request.sampling.seed,
        "redrawn": answer.num_redrawn,
        "missing": answer.num_missing,
    }


def together(
    bodies: Sequence[GenerateBody],
    requests: Sequence[TextRequest | None],
    answers: Sequence[Answer],
    model: str,
    total_s: float,
    *,
    with_details: bool,
) -> dict[str, Any]:
    """The answer to several contexts. Those without a request are blank."""
    left = iter(answers)
    found = [_NOTHING if request is None else next(left) for request in requests]
    value: dict[str, Any] = {
        "result": [results(body, answer) for body, answer in zip(bodies, found, strict=True)],
        "time": round(total_s, 6),
    }
    if with_details:
        value["contexts"] = [
            details(body, request or body.to_request(Sampling()), answer, model, total_s)
            for body, request, answer in zip(bodies, requests, found, strict=True)
        ]
        value["usage"] = {
            "prompt_tokens": sum(answer.num_prompt_tokens for answer in found),
            "completion_tokens": sum(answer.num_completion_tokens for answer in found),
        }
        value["model"] = model
    return value


def by_index(body: GenerateBody, answer: Answer, number: int) -> dict[str, Any]:
    """What the last event of a stream says: results where they were streamed, and their order, best first."""
    texts: list[str | None] = [None] * number
    for candidate in answer.candidates:
        texts[candidate.index] = _text(body, candidate)
    return {
        "result": texts,
        "order": [candidate.index for candidate in answer.candidates],
        "scores": [rounded(candidate.score) for candidate in answer.candidates],
    }


def rounded(value: float | None) -> float | None:
    """Five digits; what is no finite number is none, for JSON."""
    return None if value is None or not math.isfinite(value) else round(value, 5)


def _text(body: GenerateBody, candidate: Candidate) -> str:
    return body.text + candidate.completion if body.echo else candidate.completion
