"""What is asked of the engine, and what comes back. Plain values: nothing here holds a tensor, a lock or a file.

The words: a *request* asks for several *candidates* of one *prompt*. A candidate being decoded is a *sequence*, numbered by
its *sample* index within the request.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length"]
GREEDY_BELOW = 1e-3  # a lower temperature is greedy: nothing but the likeliest token would be drawn anyway


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn.

    `temperature` 0 is greedy. `top_k` 0 and `top_p` 0 or 1 are off. `repetition_penalty` as in CTRL (Keskar et al. 2019,
    section 4.1): positive logits of tokens already there are divided by it, negative ones multiplied. Order: penalty,
    temperature, top-k, top-p. A draw depends on (seed, sample, position) and on nothing else that is running.
    """

    temperature: float = 1.0
    top_k: int = 30
    top_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def with_(
        self,
        *,
        seed: int,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float | None = None,
    ) -> Sampling:
        """The same, but for what is given: a model's defaults with a caller's wishes."""
        return Sampling(
            self.temperature if temperature is None else temperature,
            self.top_k if top_k is None else top_k,
            self.top_p if top_p is None else top_p,
            self.repetition_penalty if repetition_penalty is None else repetition_penalty,
            seed,
        )


@dataclass(frozen=True, slots=True)
class TextRequest:
    """`num_samples` continuations of the text `prompt`, of at most `max_new_tokens` tokens each, cut before any of `stop`.

    `ignore_end` goes on past the end of a document: exactly `max_new_tokens` tokens, for measuring. What was computed for a prompt is
    reused for others of the same `salt` only.
    """

    prompt: str
    num_samples: int = 5
    max_new_tokens: int = 50
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    want_logprobs: bool = False
    ignore_end: bool = False
    salt: str = ""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """The same in ids: what the engine works on."""

    prompt_ids: tuple[int, ...]
    num_samples: int
    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    want_logprobs: bool = False
    ignore_end: bool = False
    salt: str = ""


# Events are not frozen: making a frozen one takes three times as long, and there is one for every token.


@dataclass(slots=True)
class StartEvent:
    """A request left the queue: its first candidates have their first token in this step."""

    request_id: int


@dataclass(slots=True)
class TokenEvent:
    """A candidate has one more token. `logprob` (nats, at temperature 1) is 0.0 unless asked for."""

    request_id: int
    sample: int
    token_id: int
    logprob: float


@dataclass(slots=True)
class FinishEvent:
    """A candidate is complete."""

    request_id: int
    sample: int
    reason: FinishReason


@dataclass(slots=True)
class FailureEvent:
    """The whole request failed; nothing more will come."""

    request_id: int
    message: str


Event = StartEvent | TokenEvent | FinishEvent | FailureEvent


@dataclass(frozen=True, slots=True)
class Candidate:
    """One finished continuation. `logprob` is the sum over its tokens, None unless asked for."""

    completion: str
    num_tokens: int
    logprob: float | None
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class Answer:
    """All candidates of a request, in order, and where the time went (seconds)."""

    candidates: tuple[Candidate, ...]
    num_prompt_tokens: int
    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    num_unknown_tokens: int = 0  # of the prompt: what the vocabulary lacks

    @property
    def num_completion_tokens(self) -> int:
        return sum(candidate.num_tokens for candidate in self.candidates)


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot of the engine: counts of now, and sums since the start."""

    num_waiting: int = 0
    num_rows: int = 0
    max_rows: int = 0
    num_steps: int = 0
    num_prompt_tokens: int = 0
    num_reused_tokens: int = 0  # of prompts, found in the cache instead of computed
    num_generated_tokens: int = 0
    steps: str = ""  # implementation, precision and threads
