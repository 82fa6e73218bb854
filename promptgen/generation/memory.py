"""What outlives a step: the cache slots, the state of every row, the logits. Arrays, and no model.

Every implementation of the model (generation/gpt2.py in torch, generation/native in C++) works on these same arrays, so one may take over
from another between two steps and nobody notices. Memory that is zero costs nothing until it is written, and then a page of it: the cache is
kept out of huge pages, in which the few positions of a short answer would cost, and take the time to clear, those of a whole window.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptgen.generation.beginning import beginning_of
from promptgen.generation.modelfile import Gpt2Shape
from promptgen.generation.noise import sequence_key
from promptgen.generation.request import Branch, GenerationRequest
from promptgen.generation.steps import Copy

NOT_A_TOKEN = float("-inf")
NEVER = 2**62  # a position that no row reaches
LOGITS_MULTIPLE = 64  # a line of logits is padded to whole panels of native/kernels.cpp

MAX_ENDS = 4  # tokens of a row's own that end it
IN_PROMPT = 128  # in `seen`: the token stands in the prompt; the lower bits count how often it was drawn
MAX_COUNT = 127

# One running candidate. Mirrored by `struct Row` in native/kernels.cpp.
ROW = np.dtype(
    [
        ("token_id", np.int64),  # fed next
        ("position", np.int64),  # where it stands
        ("key", np.int64),  # of its noise
        ("beginning", np.uint64),  # says what stands before it, see beginning.py; 0 where that is not known
        ("end_from", np.int64),  # the first position where a token that ends it may stand
        ("temperature", np.float32),  # never 0
        ("top_p", np.float32),  # 1 when off
        ("penalty", np.float32),  # 1 when off
        ("presence", np.float32),  # 0 when off, as is frequency
        ("frequency", np.float32),
        ("top_k", np.int32),  # never 0: the vocabulary when off
        ("end_ids", np.int32, (MAX_ENDS,)),  # further tokens that end it, -1 for none
        ("is_greedy", np.uint8),
        ("wants_logprob", np.uint8),
        ("has_bias", np.uint8),
        ("is_forced", np.uint8),
        ("keeps_seen", np.uint8),  # whether a penalty wants to know what there is
        ("num_top", np.uint8),  # so many of the likeliest tokens are told
        ("remembers", np.uint8),  # whether its passes are kept, and may be had of earlier ones
    ],
    align=True,
)


class Memory:
    """Slots 0..max_rows-1 belong to the rows, the slots after them to prompts.

    keys, values   [layers, slots, heads, window, head_dim] float32; steps whose cache type is bfloat16 fill the front half of each
                   [window, head_dim]
    rows           [max_rows] of ROW; `row_bytes` [max_rows, bytes] are the same, which are copied sooner
    logits         [slots, vocabulary padded] float32: after a step, those of the last token of each slot
    bias           [vocabulary] float32, -inf for what is never drawn
    seen           [max_rows, vocabulary]: IN_PROMPT + times drawn, kept up for rows with a penalty
    row_bias       [max_rows, vocabulary] float32, for rows that have one
    forced         [max_rows, window] int32: the token to stand at each position, for rows that are forced
    """

    def __init__(
        self, shape: Gpt2Shape, *, max_rows: int, num_prompt_slots: int, banned_ids: Sequence[int], end_id: int
    ) -> None:
        slots = max_rows + num_prompt_slots
        padded = -(-shape.vocabulary // LOGITS_MULTIPLE) * LOGITS_MULTIPLE
        self.shape = shape
        self.num_prompt_slots = num_prompt_slots
        self.end_id = end_id
        self.num_changes = 0  # of rows, by anything but a draw
        cache = (shape.layers, slots, shape.heads, shape.window, shape.head_dim)
        self.keys, self.values = self._zeros(cache, "cache"), self._zeros(cache, "cache")
        self.rows = np.zeros(max_rows, ROW)
        self.row_bytes = self.rows.view(np.uint8).reshape(max_rows, ROW.itemsize)
        self._columns: dict[str, NDArray[Any]] = {
            name: self.rows[name] for name in ("token_id", "position", "key", "end_from")
        }
        self.logits = self._zeros((slots, padded), "float32")
        self.bias = self._zeros((shape.vocabulary,), "float32")
        self.bias[list(banned_ids)] = NOT_A_TOKEN
        self.seen = self._zeros((max_rows, shape.vocabulary), "uint8")
        self.row_bias = self._zeros((max_rows, shape.vocabulary), "float32")
        self.forced = np.zeros((max_rows, shape.window), np.int32)

    def _zeros(self, size: tuple[int, ...], kind: str) -> Any:
        """An array that indexes as numpy's do; `kind` is cache, float32 or uint8. Other memories live elsewhere (generation/cuda.py)."""
        return (
            _zeros_in_small_pages(size)
            if kind == "cache"
            else np.zeros(size, np.uint8 if kind == "uint8" else np.float32)
        )

    def copy(self, copies: Sequence[Copy]) -> None:
        """Steps.copy, for steps that have nothing faster."""
        for source, target, length, num_targets in copies:
            for cache in (self.keys, self.values):
                cache[:, target : target + num_targets, :, :length] = cache[:, source, None, :, :length]

    def move_row(self, source: int, target: int) -> Copy:
        """Returns what is left to be copied for it."""
        length = int(self.rows[source]["position"]) + 1
        if self.rows[source]["keeps_seen"]:
            self.seen[target] = self.seen[source]
        if self.rows[source]["has_bias"]:
            self.row_bias[target] = self.row_bias[source]
        if self.rows[source]["is_forced"]:
            self.forced[target] = self.forced[source]
        self.rows[target] = self.rows[source]
        self.num_changes += 1
        return Copy(source, target, length)

    def swap_rows(self, a: int, b: int) -> None:
        """Exchanges what two rows are drawn with; their keys, values and logits stay where they are."""
        for each in (self.rows, self.seen, self.row_bias, self.forced):
            each[[a, b]] = each[[b, a]]
        self.num_changes += 1

    def start_rows(
        self,
        request: GenerationRequest,
        slot: int,
        first_row: int,
        samples: range,
        branch: Branch | None = None,
        token_ids: Sequence[int] = (),
    ) -> Copy:
        """Rows first_row... become the `samples` of a request whose prompt, with the path of a `branch` after it, stands in `slot`. They draw
        their first tokens, unless these are given. Returns what is left to be copied for them."""
        prompt_ids, min_new_tokens, sampling = request.prompt_ids, request.min_new_tokens, request.sampling
        if branch is not None:
            prompt_ids = (*prompt_ids, *branch.path_ids)
            min_new_tokens = max(0, min_new_tokens - branch.num_new)
        length = len(prompt_ids)
        rows = slice(first_row, first_row + len(samples))
        if sampling.keeps_seen:
            self.seen[rows] = 0
            self.seen[rows, list(prompt_ids)] = IN_PROMPT
        if request.bias:
            self.row_bias[rows] = 0
            for token_id, bias in request.bias:
                self.row_bias[rows, token_id] = bias
        if request.forced_ids:
            self.forced[rows, length : length + len(request.forced_ids)] = request.forced_ids
        greedy, size = sampling.is_greedy, self.shape.vocabulary
        self.rows[rows] = (
            0,
            length - 1,
            0,
            beginning_of(prompt_ids, request.salt),
            NEVER if request.ignore_end else length + min_new_tokens,
            1.0 if greedy else sampling.temperature,
            sampling.top_p if 0 < sampling.top_p < 1 else 1.0,
            sampling.repetition_penalty,
            sampling.presence_penalty,
            sampling.frequency_penalty,
            1 if greedy else min(sampling.top_k or size, size),
            (*request.end_ids, *(-1,) * (MAX_ENDS - len(request.end_ids))),
            greedy,
            request.want_logprobs,
            bool(request.bias),
            bool(request.forced_ids),
            sampling.keeps_seen,
            request.num_top,
            request.remember,
        )
        self._columns["key"][rows] = [sequence_key(sampling.seed, sample) for sample in samples]
        spelled_ids = branch.spelled_ids if branch is not None else ()
        for row, token_id in enumerate(token_ids, first_row):
            self._place(row, token_id, is_new=token_id not in spelled_ids, keeps_seen=sampling.keeps_seen)
        self.num_changes += 1
        return Copy(slot, first_row, length, len(samples))

    def _place(self, row: int, token_id: int, *, is_new: bool, keeps_seen: bool) -> None:
        """The first token of a row that was just started. One that is not new only spells what was typed."""
        self._columns["position"][row] += 1
        self._columns["token_id"][row] = token_id
        if not is_new:
            self._columns["end_from"][row] += 1
        if keeps_seen:
            self.seen[row, token_id] += 1 if is_new else IN_PROMPT & ~self.seen[row, token_id]


def on_host(array: Any) -> NDArray[np.float32]:
    """An array of a Memory, or a part of one, where numpy can see it."""
    return np.asarray(array.cpu() if hasattr(array, "cpu") else array)


def _zeros_in_small_pages(size: tuple[int, ...]) -> NDArray[np.float32]:
    num = math.prod(size)
    if not hasattr(mmap, "MADV_NOHUGEPAGE"):  # not Linux: no huge pages unasked
        return np.zeros(size, np.float32)
    place = mmap.mmap(-1, max(1, 4 * num), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel that has no huge pages
        place.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(place, np.float32, num).reshape(size)  # which keeps the place for as long as it is used
