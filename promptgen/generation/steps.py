"""What a model does in a step, and the plain arrays it is asked with. Implemented in gpt2.py (torch), native/ (C++) and cuda.py (GPU)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from promptgen.generation.request import GenerationRequest

Precision = Literal["float32", "bfloat16", "int8"]

NO_TOKENS: NDArray[np.int32] = np.zeros(0, np.int32)
NO_TOKEN = -1  # stands for a draw that failed: no token had a finite probability


class Pick(NamedTuple):
    """What was drawn for one sample: a branch of its request, a token after it, and the log-probability of both among all branches."""

    branch: int
    token_id: int
    logprob: float


class Copy(NamedTuple):
    """The first `length` positions of one slot over those of `num_targets` slots, from `target` on."""

    source: int
    target: int
    length: int
    num_targets: int = 1


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """Tokens of prompts to read in a pass, int32: several of a slot stand together, in order. `last` are the indices of those whose
    logits are wanted."""

    token_ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    slots: NDArray[np.int32]
    last: NDArray[np.int32]

    @classmethod
    def of(cls, stretches: Sequence[tuple[int, int, Sequence[int], bool]]) -> PromptTokens:
        """From (slot, first position, token ids, whether the logits of the last one are wanted)."""
        if not stretches:
            return NOTHING_TO_READ
        ids, positions, slots, last = list[int](), list[int](), list[int](), list[int]()
        for slot, start, token_ids, is_last in stretches:
            ids += token_ids
            positions += range(start, start + len(token_ids))
            slots += [slot] * len(token_ids)
            if is_last:
                last.append(len(ids) - 1)
        return cls(*(np.array(numbers, np.int32) for numbers in (ids, positions, slots, last)))


NOTHING_TO_READ = PromptTokens(NO_TOKENS, NO_TOKENS, NO_TOKENS, NO_TOKENS)


class Steps(Protocol):
    """A model over a Memory. Not thread-safe: one engine thread owns it."""

    precision: Precision
    cache_type: str  # of the keys and values it writes and reads: float32 or bfloat16
    description: str  # for people: implementation, precision, threads

    @property
    def num_shared(self) -> int:
        """Rows of the last passes that were not computed: another one stands after the same tokens, and they got what it got."""

    def forward(self, num_rows: int, prompts: PromptTokens) -> None:
        """Feeds rows 0..num_rows-1 their next token, each at its position, and reads prompt tokens into their slots.

        Keys and values go to the cache, logits to memory.logits[slot] of each row and of each prompt whose last token is here.
        """

    def copy(self, copies: Sequence[Copy]) -> None:
        """Copies keys and values, one copy after the other."""

    def draw(
        self, num_rows: int, num_continuing: int, prompt_slots: NDArray[np.int32]
    ) -> tuple[list[int], list[float]]:
        """Draws a token for each row and makes it the one fed next: token ids and their log-probabilities (0.0 where not asked for).

        The first `num_continuing` rows draw from their own logits, row num_continuing + i from those of prompt_slots[i]. A logit that is no
        number counts as -inf; a row whose token has no finite logit gets NO_TOKEN.
        """

    def advance(self, num_rows: int, most: int) -> list[tuple[list[int], list[float]]]:
        """Several times `forward` and `draw` for rows 0..num_rows-1, all of which were running: what each step drew, of `most` steps at most and one at
        least. Only the last one draws what may end a row."""

    def draw_first(self, request: GenerationRequest, samples: Sequence[int], slots: Sequence[int]) -> list[Pick]:
        """Draws the first token of each sample among the branches of a request, whose logits stand in `slots` (generation/first_draw.py).

        Starts no rows. All get NO_TOKEN if a logit is no finite number.
        """
