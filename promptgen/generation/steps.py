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
    logits are wanted, and `beginnings` (uint64) say what stands before and with each of these; 0 for one that is to be computed in any case."""

    token_ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    slots: NDArray[np.int32]
    last: NDArray[np.int32]
    beginnings: NDArray[np.uint64]

    @classmethod
    def of(
        cls, stretches: Sequence[tuple[int, int, Sequence[int], bool]], beginnings: Sequence[int] = ()
    ) -> PromptTokens:
        """From (slot, first position, token ids, whether the logits of the last one are wanted), and `beginnings` of these last ones."""
        if not stretches:
            return NOTHING_TO_READ
        ids, positions, slots, last = list[int](), list[int](), list[int](), list[int]()
        for slot, start, token_ids, is_last in stretches:
            ids += token_ids
            positions += range(start, start + len(token_ids))
            slots += [slot] * len(token_ids)
            if is_last:
                last.append(len(ids) - 1)
        of_last = np.array(beginnings or [0] * len(last), np.uint64)
        return cls(_int32(ids), _int32(positions), _int32(slots), _int32(last), of_last)


def _int32(numbers: list[int]) -> NDArray[np.int32]:
    return np.array(numbers, np.int32)


NOTHING_TO_READ = PromptTokens(NO_TOKENS, NO_TOKENS, NO_TOKENS, NO_TOKENS, np.zeros(0, np.uint64))


class Steps(Protocol):
    """A model over a Memory. Not thread-safe: one engine thread owns it."""

    precision: Precision
    cache_type: str  # of the keys and values it writes and reads: float32 or bfloat16
    description: str  # for people: implementation, precision, threads

    @property
    def num_shared(self) -> int:
        """Tokens of the last passes that were not computed: another one stands after the same tokens, or stood there before, and they got what
        it got."""

    def forward(self, num_rows: int, prompts: PromptTokens) -> None:
        """Feeds rows 0..num_rows-1 their next token, each at its position, and reads prompt tokens into their slots.

        Keys and values go to the cache, logits to memory.logits[slot] of each row and of each prompt whose last token is here.
        """

    def forget(self) -> None:
        """What was kept of earlier passes is not trusted any more."""

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
