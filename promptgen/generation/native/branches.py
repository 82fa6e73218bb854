"""A request's branches as kernels.cpp takes them: FirstDraw and its table of branches.

What is drawn among them is told in generation/first_draw.py, which has the same in numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import Structure, addressof, c_float, c_int32, c_int64, c_void_p

import numpy as np
from numpy.typing import NDArray

from promptgen.generation.first_draw import places_of
from promptgen.generation.memory import MAX_ENDS, Memory
from promptgen.generation.noise import sequence_key
from promptgen.generation.request import GenerationRequest
from promptgen.generation.steps import NO_TOKEN, Pick

NO_MEMORY, DRAWN, UNSOUND, FORBIDDEN, EXHAUSTED = range(5)  # what the kernel returns

# Mirrored by `struct Branch` in kernels.cpp.
BRANCH = np.dtype(
    [
        *((name, np.int64) for name in ("slot", "position", "parent", "token_id", "head_parent", "head_id")),
        *((name, np.float64) for name in ("given", "rest")),
        *((name, np.int64) for name in ("cover", "cover_end", "excluded", "excluded_end", "path", "path_end")),
        *((name, np.int64) for name in ("may_end", "is_way")),
    ]
)


class _FirstDraw(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("num_branches", "num_samples", "num_prompt", "num_biases")),
        *((name, c_void_p) for name in ("branches", "ids", "logits")),
        ("logits_stride", c_int64),
        *((name, c_void_p) for name in ("bias", "bias_ids", "biases")),
        ("end_id", c_int64),
        ("end_ids", c_int64 * MAX_ENDS),
        *((name, c_float) for name in ("temperature", "top_p", "penalty")),
        ("top_k", c_int32),
        ("must_differ", c_int64),
        *((name, c_void_p) for name in ("keys", "branch_of", "token_ids", "logprobs")),
    ]


class FirstDraw:
    """One call of the kernel: `address` is what it takes, `picks` what it gave."""

    def __init__(
        self, memory: Memory, request: GenerationRequest, samples: Sequence[int], slots: Sequence[int]
    ) -> None:
        sampling, size, number = request.sampling, memory.shape.vocabulary, len(samples)
        parts: list[Sequence[int] | NDArray[np.int64]] = [request.prompt_ids]
        end = len(request.prompt_ids)

        def put(ids: Sequence[int] | NDArray[np.int64]) -> tuple[int, int]:
            nonlocal end
            parts.append(ids)
            end += len(ids)
            return end - len(ids), end

        rows = []
        for branch, place, slot in zip(request.branches, places_of(request.branches), slots, strict=True):
            is_all = len(branch.cover_ids) == size
            rows.append(
                (
                    slot,
                    len(request.prompt_ids) + len(branch.path_ids),
                    place.parent,
                    place.token_id,
                    place.head_parent,
                    place.head_id,
                    place.given,
                    place.rest,
                    *((-1, -1) if is_all else put(branch.cover_ids)),
                    *put(branch.excluded_ids),
                    *put(branch.path_ids),
                    not (request.ignore_end or request.min_new_tokens > branch.num_new),
                    branch.path_logprobs is None,
                )
            )
        self._given = (
            np.array(rows, BRANCH),
            np.concatenate([np.asarray(part, np.int64) for part in parts]),
            np.array([token_id for token_id, _ in request.bias], np.int64),
            np.array([bias for _, bias in request.bias], np.float32),
            np.array([sequence_key(sampling.seed, sample) for sample in samples], np.int64),
        )
        branches, ids, bias_ids, biases, keys = (array.ctypes.data for array in self._given)
        self._branch_of, self._token_ids = np.zeros(number, np.int64), np.zeros(number, np.int64)
        self._logprobs = np.zeros(number)
        self._ask = _FirstDraw(
            len(rows),
            number,
            len(request.prompt_ids),
            len(request.bias),
            branches,
            ids,
            memory.logits.ctypes.data,
            memory.logits.shape[1],
            memory.bias.ctypes.data,
            bias_ids,
            biases,
            memory.end_id,
            (c_int64 * MAX_ENDS)(*request.end_ids, *(-1,) * (MAX_ENDS - len(request.end_ids))),
            sampling.temperature,
            sampling.top_p if 0 < sampling.top_p < 1 else 1.0,
            sampling.repetition_penalty,
            min(sampling.top_k or size, size),
            request.different,
            keys,
            self._branch_of.ctypes.data,
            self._token_ids.ctypes.data,
            self._logprobs.ctypes.data,
        )
        self.address = addressof(self._ask)

    def picks(self, outcome: int) -> list[Pick]:
        """Raises MemoryError if there was no room for so many branches."""
        if outcome == NO_MEMORY:
            raise MemoryError(f"no memory for {len(self._given[0])} branches")
        if outcome == UNSOUND:
            return [Pick(0, NO_TOKEN, 0.0)] * len(self._token_ids)
        return list(map(Pick, self._branch_of.tolist(), self._token_ids.tolist(), self._logprobs.tolist()))
