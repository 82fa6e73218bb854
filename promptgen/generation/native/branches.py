"""A request's branches as kernels.cpp takes them: FirstDraw and its table of branches.

What is drawn among them is told in generation/first_draw.py, which has the same in numpy. Arrays of the standard library: for a few numbers they
are made several times faster than numpy's.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from ctypes import Structure, addressof, c_float, c_int32, c_int64, c_void_p

from promptgen.generation.first_draw import drawn_with, places_of
from promptgen.generation.memory import MAX_ENDS, Memory
from promptgen.generation.noise import sequence_key
from promptgen.generation.request import GenerationRequest
from promptgen.generation.steps import NO_TOKEN, Pick

NO_MEMORY, DRAWN, UNSOUND, FORBIDDEN, EXHAUSTED = range(5)  # what the kernel returns
_WORD = 8  # bytes of what the arrays hold


class _FirstDraw(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("num_branches", "num_samples", "num_prompt", "num_biases")),
        *((name, c_void_p) for name in ("branches", "given", "rest", "ids", "logits")),
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
    """What the kernel is asked, for one memory; the struct is filled in anew for each request."""

    def __init__(self, memory: Memory) -> None:
        self._vocabulary = memory.shape.vocabulary
        self._ask = _FirstDraw(
            logits=memory.logits.ctypes.data,
            logits_stride=memory.logits.shape[1],
            bias=memory.bias.ctypes.data,
            end_id=memory.end_id,
        )
        self.address = addressof(self._ask)
        self._given: list[array[int] | array[float]] = []  # what the struct points to

    def fill(self, request: GenerationRequest, samples: Sequence[int], slots: Sequence[int]) -> None:
        self._num_asked = len(samples)
        samples = drawn_with(request, samples)
        ask, sampling, size, number = self._ask, request.sampling, self._vocabulary, len(samples)
        places = places_of(request.branches)
        ids = array("q", request.prompt_ids)
        table = array("q")  # of struct Branch
        for branch, place, slot in zip(request.branches, places, slots, strict=True):
            cover = cover_end = -1
            if len(branch.cover_ids) < size:
                cover = len(ids)
                ids.frombytes(branch.cover_ids.tobytes())
                cover_end = len(ids)
            ids.extend(branch.excluded_ids)
            excluded_end = len(ids)
            ids.extend(branch.path_ids)
            may_end = not (request.ignore_end or request.min_new_tokens > branch.num_new)
            table.extend((slot, len(request.prompt_ids) + len(branch.path_ids)))
            table.extend((place.parent, place.token_id, place.head_parent, place.head_id))
            table.extend((cover, cover_end, excluded_end - len(branch.excluded_ids), excluded_end))
            table.extend((excluded_end, len(ids), may_end, branch.path_logprobs is None))
        given, rest = array("d", [place.given for place in places]), array("d", [place.rest for place in places])
        keys = array("q", [sequence_key(sampling.seed, sample) for sample in samples])
        bias_ids = array("q", [token_id for token_id, _ in request.bias])
        biases = array("f", [bias for _, bias in request.bias])
        self._branch_of, self._token_ids = array("q", bytes(_WORD * number)), array("q", bytes(_WORD * number))
        self._logprobs = array("d", bytes(_WORD * number))
        self._given = [table, given, rest, ids, keys, bias_ids, biases]
        ask.num_branches, ask.num_samples = len(places), number
        ask.num_prompt, ask.num_biases = len(request.prompt_ids), len(bias_ids)
        ask.branches, ask.given, ask.rest, ask.ids, ask.keys, ask.bias_ids, ask.biases = map(_address, self._given)
        ask.branch_of, ask.token_ids = _address(self._branch_of), _address(self._token_ids)
        ask.logprobs = _address(self._logprobs)
        ask.end_ids[:] = (*request.end_ids, *(-1,) * (MAX_ENDS - len(request.end_ids)))
        ask.temperature, ask.penalty = sampling.temperature, sampling.repetition_penalty
        ask.top_p = sampling.top_p if 0 < sampling.top_p < 1 else 1.0
        ask.top_k = min(sampling.top_k or size, size)
        ask.must_differ = request.different

    def picks(self, outcome: int) -> list[Pick]:
        """What the kernel gave, by what it returned. Raises MemoryError if there was no room for so many branches."""
        if outcome == NO_MEMORY:
            raise MemoryError(f"no memory for {self._ask.num_branches} branches")
        if outcome == UNSOUND:
            return [Pick(0, NO_TOKEN, 0.0)] * self._num_asked
        return list(map(Pick, self._branch_of, self._token_ids, self._logprobs))[-self._num_asked :]


def _address(numbers: array[int] | array[float]) -> int:
    return numbers.buffer_info()[0]
