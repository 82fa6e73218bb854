"""What is asked of the engine, and what comes back. Plain values: nothing here holds a tensor, a lock or a file.

The words: a *request* asks for several *candidates* of one *prompt*. A candidate being decoded is a *sequence*, numbered by
its *sample* index within the request.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Rank = Literal["likelihood", "none"]
Until = Literal["sentence", "line", "document"]
FinishReason = Literal["stop", "length"]
GREEDY_BELOW = 1e-3  # a lower temperature is greedy: nothing but the likeliest token would be drawn anyway


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn.

    `temperature` 0 is greedy. `top_k` 0 and `top_p` 0 or 1 are off. `repetition_penalty` as in CTRL (Keskar et al. 2019,
    section 4.1): positive logits of tokens already there are divided by it, negative ones multiplied. `presence_penalty` is taken off
    the logits of tokens that were drawn before, `frequency_penalty` once for each time (127 at most); those of the prompt do not count.
    Order: penalties, temperature, top-k, top-p. A draw depends on (seed, sample, position) and on nothing else that is running.
    """

    temperature: float = 1.0
    top_k: int = 30
    top_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    @property
    def keeps_seen(self) -> bool:
        """Whether a draw depends on which tokens there are already."""
        return self.repetition_penalty != 1 or self.counts_drawn

    @property
    def counts_drawn(self) -> bool:
        """Whether a draw depends on where drawing began."""
        return self.presence_penalty != 0 or self.frequency_penalty != 0

    @property
    def is_greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW

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
        return replace(
            self,
            temperature=self.temperature if temperature is None else temperature,
            top_k=self.top_k if top_k is None else top_k,
            top_p=self.top_p if top_p is None else top_p,
            repetition_penalty=self.repetition_penalty if repetition_penalty is None else repetition_penalty,
            seed=seed,
        )

    def with_penalties(self, presence: float, frequency: float) -> Sampling:
        return replace(self, presence_penalty=presence, frequency_penalty=frequency)


@dataclass(frozen=True, slots=True)
class TextRequest:
    """`num_samples` continuations of the text `prompt`, of at most `max_new_tokens` tokens each, cut before any of `stop`.

    What a candidate may be: `min_new_tokens` before it may end, none of `bad_words` in it, `logit_bias` (word, nats) added to words of the
    vocabulary, its end at the first sentence, line or document (`until`). With `choices` nothing is drawn: these texts are scored.

    Which candidates: `heal` goes on with the word that the prompt was cut in; `distinct` has no two equal; `distinct_first` no two with the
    same first word; `rank` orders them.

    `ignore_end` goes on past the end of a document: exactly `max_new_tokens` tokens, for measuring. What was computed for a prompt is
    reused for others of the same `salt` only. A newer request of the same `session` and `salt` takes the place of an older one, and
    draws of the older that are still right are used again; nobody sees it but in time.

    For callers who count in tokens: `prompt_ids` are read in place of the prompt's own, the begin token with them, and `prompt` only
    says what text they end with; `forced_ids` are given instead of drawn; a candidate ends at any of `end_ids` as it does at the end of a
    document; `token_bias` is `logit_bias` by token. With `num_top` candidates say what their tokens are and how likely, beside so many
    likeliest alternatives of each.
    """

    prompt: str
    num_samples: int = 5
    max_new_tokens: int = 50
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    want_logprobs: bool = False
    ignore_end: bool = False
    salt: str = ""
    heal: bool = True
    distinct: bool = True
    distinct_first: bool = False
    rank: Rank = "likelihood"
    session: str = ""
    min_new_tokens: int = 0
    bad_words: tuple[str, ...] = ()
    logit_bias: tuple[tuple[str, float], ...] = ()
    choices: tuple[str, ...] = ()
    until: Until = "document"
    prompt_ids: tuple[int, ...] = ()
    forced_ids: tuple[int, ...] = ()
    end_ids: tuple[int, ...] = ()
    token_bias: tuple[tuple[int, float], ...] = ()
    num_top: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Branch:
    """A place from which a candidate may go on: after the tokens `path_ids`, with one of `cover_ids` that is not among `excluded_ids`.

    Most spell the beginning of a word that was typed: each of `cover_ids` reaches the end of what was typed or goes beyond it, and
    `spelled_ids` are those that add nothing. Others lie on a candidate that was drawn already: `num_new` tokens of the path were new then, and
    `path_logprobs` are of its last tokens, the first of them among what could follow the typed text.
    """

    path_ids: tuple[int, ...]
    cover_ids: NDArray[np.int64]
    spelled_ids: frozenset[int] = frozenset()
    excluded_ids: tuple[int, ...] = ()
    num_new: int = 0
    path_logprobs: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """The same in ids: what the engine works on, for samples first_sample, first_sample + 1...

    With `branches` the first token comes from them, in proportion to the model's probability of the whole branch; a branch without
    path stands first. No two samples go on from a branch with the same token when they are to be `different`. `bias` are (token id, nats).
    `forced_ids` are given instead of drawn, one a step; their log-probabilities are among the whole vocabulary. `end_ids` end a candidate as
    the end-of-document token does. `num_top` alternatives of each token are told. With `remember` finished samples stay in the cache, as does
    what passes gave, and a sample whose tokens are there already is not computed again.
    """

    prompt_ids: tuple[int, ...]
    num_samples: int
    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    want_logprobs: bool = False
    ignore_end: bool = False
    salt: str = ""
    first_sample: int = 0
    min_new_tokens: int = 0
    bias: tuple[tuple[int, float], ...] = ()
    forced_ids: tuple[int, ...] = ()
    branches: tuple[Branch, ...] = ()
    distinct_first: bool = False
    different: bool = False
    remember: bool = False
    end_ids: tuple[int, ...] = ()
    num_top: int = 0

    @property
    def samples(self) -> range:
        return range(self.first_sample, self.first_sample + self.num_samples)


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
class TopEvent:
    """The likeliest tokens, (token id, log-probability) from the best down, where the next token of a candidate will stand."""

    request_id: int
    sample: int
    top: tuple[tuple[int, float], ...]


@dataclass(slots=True)
class FinishEvent:
    """A candidate is complete. `token_id` is the token that ended it and `logprob` its own; None and 0.0 if it ended otherwise."""

    request_id: int
    sample: int
    reason: FinishReason
    logprob: float = 0.0
    token_id: int | None = None


@dataclass(slots=True)
class FailureEvent:
    """The whole request failed; nothing more will come."""

    request_id: int
    message: str


Event = StartEvent | TokenEvent | TopEvent | FinishEvent | FailureEvent


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token as text where it stands, its bytes, and its log-probability (nats, at temperature 1); None for what nothing stands before."""

    token_id: int
    text: str
    raw: bytes
    logprob: float | None


@dataclass(frozen=True, slots=True)
class TokenDetail:
    """A token of a candidate: its text begins at character `offset`; `top` are the likeliest in its place. The one that ended the
    candidate `is_end`: it is not in the text."""

    token: ScoredToken
    top: tuple[ScoredToken, ...]
    offset: int
    is_end: bool = False


@dataclass(frozen=True, slots=True)
class Candidate:
    """One finished continuation. `logprob` is the sum over its tokens (nats, at temperature 1), None unless asked for.

    `score` is the mean over its tokens and its end, for ranking. `index` is its place in a stream. `tokens` only where asked for.
    """

    completion: str
    num_tokens: int
    logprob: float | None
    finish_reason: FinishReason
    score: float | None = None
    index: int = 0
    tokens: tuple[TokenDetail, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """The candidates of a request, in the order that was asked for, and where the time went (seconds).

    `num_redrawn` were drawn anew because they were equal to others or held a bad word; `num_missing` are wanting because no other came.
    """

    candidates: tuple[Candidate, ...]
    num_prompt_tokens: int
    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    num_redrawn: int = 0
    num_missing: int = 0
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
    num_recalled_tokens: int = 0  # of candidates, drawn for an earlier request of the session
    num_shared_tokens: int = 0  # not computed, as another one after the same tokens is, or was
    steps: str = ""  # implementation, precision and threads
