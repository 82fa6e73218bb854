"""The words of the wire, here alone: what /generate takes and gives."""

from __future__ import annotations

import secrets
from typing import Annotated, Any

from pydantic import BaseModel, Field

from promptgen.generation.request import Answer, Candidate, Sampling, TextRequest
from promptgen.server.faults import HttpFault
from promptgen.server.strict import STRICT, validate

MAX_SAMPLES = 64
_SAMPLING_FIELDS = ("temperature", "top_k", "top_p", "repetition_penalty")  # a model may have defaults of its own
_StopText = Annotated[str, Field(min_length=1, max_length=256)]


class GenerateBody(BaseModel):
    """POST /generate, as the contract's table has it. Unknown fields are refused by name."""

    model_config = STRICT

    context: Annotated[str, Field(description="the beginning of the prompt")]
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

    @property
    def is_blank(self) -> bool:
        return not self.context.strip()

    def to_request(self, defaults: Sampling, caller: str = "") -> TextRequest:
        """What the engine is asked; `defaults` are the model's. Without a seed a random one is chosen, small enough for JavaScript's numbers.

        What was computed for a prompt is reused among requests of one `caller` only.
        """
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        seed = secrets.randbits(53) if self.seed is None else self.seed
        given = {name: getattr(self, name) for name in _SAMPLING_FIELDS if name in self.model_fields_set}
        sampling = defaults.with_(seed=seed, **given)
        return TextRequest(self.context, self.samples or 1, self.maxlength, sampling, stops, self.details, salt=caller)


def parse_generate(body: dict[str, Any], vocabulary_size: int | None) -> GenerateBody:
    """Raises HttpFault 400 whose `param` names the field. `vocabulary_size` bounds top_k."""
    parsed = validate(GenerateBody, body)
    if vocabulary_size is not None and parsed.top_k > vocabulary_size:
        raise HttpFault(
            400, "invalid_value", f"top_k: the vocabulary has {vocabulary_size} tokens; 0 is off", param="top_k"
        )
    return parsed


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
                "logprob": None if candidate.logprob is None else round(candidate.logprob, 5),
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
    }


def _text(body: GenerateBody, candidate: Candidate) -> str:
    return body.context + candidate.completion if body.echo else candidate.completion
