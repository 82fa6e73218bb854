"""Calls the compiled kernels: Steps in C++. The call releases the GIL, so the event loop goes on meanwhile."""

from __future__ import annotations

import ctypes
import hashlib
import os
from array import array
from collections.abc import Sequence
from ctypes import POINTER, Structure, byref, c_double, c_float, c_int32, c_int64, c_uint64, c_void_p
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from promptgen.generation.beginning import SECRET
from promptgen.generation.first_draw import draw_among
from promptgen.generation.memory import Memory
from promptgen.generation.modelfile import Gpt2Shape, Weights
from promptgen.generation.native.branches import EXHAUSTED, FORBIDDEN, FirstDraw
from promptgen.generation.native.compiler import KernelsUnavailable
from promptgen.generation.request import GenerationRequest
from promptgen.generation.steps import Copy, Pick, Precision, PromptTokens

_CODES: dict[Precision, int] = {"float32": 0, "bfloat16": 1, "int8": 2}
_VECTOR = 16  # widths must be whole vectors
MOST_STEPS = 16  # made in one call
BURST_S = 0.0005  # after which no further step is begun in it


class _Shape(Structure):
    _fields_ = [
        *((name, c_int32) for name in ("vocabulary", "window", "width", "layers", "heads", "inner")),
        ("epsilon", c_float),
    ]


class _Cache(Structure):
    _fields_ = [("keys", c_void_p), ("values", c_void_p), ("slots", c_int64)]


class _Pass(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("num_rows", "num_read", "num_last")),
        *((name, c_void_p) for name in ("rows", "token_ids", "positions", "slots", "last", "beginnings")),
        ("secret", c_uint64),
        ("logits", c_void_p),
        ("logits_stride", c_int64),
        ("num_shared", c_int64),
    ]


class _Draw(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("num_rows", "num_continuing")),
        *((name, c_void_p) for name in ("rows", "prompt_slots", "logits")),
        ("logits_stride", c_int64),
        *((name, c_void_p) for name in ("bias", "seen", "row_bias", "forced")),
        *((name, c_int64) for name in ("window", "end_id")),
        *((name, c_void_p) for name in ("token_ids", "logprobs")),
    ]


class _Advance(Structure):
    _fields_ = [
        ("most", c_int64),
        ("seconds", c_double),
        *((name, c_void_p) for name in ("token_ids", "logprobs")),
        *((name, c_int64) for name in ("num_steps", "num_shared")),
    ]


class Kernels:
    """A loaded library. `precisions` are those that this machine computes fast."""

    def __init__(self, library: Path) -> None:
        """Raises KernelsUnavailable for a file that the system will not load."""
        try:
            self._library = ctypes.CDLL(_private_copy(library))
        except OSError as fault:
            raise KernelsUnavailable(f"{library} cannot be loaded: {fault}") from fault
        self.open = self._library.promptgen_open
        self.open.argtypes = [POINTER(_Shape), POINTER(c_void_p), c_int32, c_int32]
        self.open.restype = c_void_p
        self.forward = self._library.promptgen_forward
        self.forward.argtypes = [c_void_p, c_void_p, c_void_p]
        self.forward.restype = c_int32
        self.draw = self._library.promptgen_draw
        self.draw.argtypes = [c_void_p, c_void_p]
        self.draw.restype = None
        self.advance = self._library.promptgen_advance
        self.advance.argtypes = [c_void_p] * 5
        self.advance.restype = c_int32
        self.draw_first = self._library.promptgen_draw_first
        self.draw_first.argtypes = [c_void_p, c_void_p]
        self.draw_first.restype = c_int32
        self.copy = self._library.promptgen_copy
        self.copy.argtypes = [c_void_p, c_void_p, c_void_p, c_int64]
        self.copy.restype = None
        self.forget = self._library.promptgen_forget
        self.forget.argtypes = [c_void_p]
        self.forget.restype = None
        self.close = self._library.promptgen_close
        self.close.argtypes = [c_void_p]
        self.close.restype = None
        self.threads = self._library.promptgen_threads
        self.threads.argtypes = [c_void_p]
        self.threads.restype = c_int32
        self._library.promptgen_precisions.restype = c_int32
        bits = self._library.promptgen_precisions()
        self.precisions = tuple(name for name, code in _CODES.items() if bits >> code & 1)

    @classmethod
    def of(cls, library: Path) -> Kernels:
        """The same for the same bytes: what was loaded stays for the life of the process. Raises KernelsUnavailable."""
        try:
            digest = hashlib.sha256(library.read_bytes()).hexdigest()
        except OSError as fault:
            raise KernelsUnavailable(f"{library} cannot be read: {fault.strerror}") from fault
        if digest not in _loaded:
            _loaded[digest] = cls(library)
        return _loaded[digest]

    @staticmethod
    def fits(shape: Gpt2Shape) -> bool:
        """Whether the widths are whole vectors, as the kernels need."""
        return not any(size % _VECTOR for size in (shape.width, shape.inner, shape.head_dim))


_loaded: dict[str, Kernels] = {}


def _private_copy(library: Path) -> str:
    """A copy in memory, where the system has such files: a library that is overwritten while it is mapped would kill the process.

    The descriptor stays open for the life of the process: the loader knows libraries by their names.
    """
    if not hasattr(os, "memfd_create"):
        return str(library)
    descriptor = os.memfd_create(library.name)
    with open(descriptor, "wb", closefd=False) as copy:
        copy.write(library.read_bytes())
    return f"/proc/self/fd/{descriptor}"


class NativeGpt2:
    """Steps in C++ for one memory. The embeddings are used where they lie; all else is packed into the kernels' own layout.

    A step takes `num_threads` threads, or one where that is faster: a tiny pass, or cores that are busy with other work.
    """

    def __init__(
        self, kernels: Kernels, memory: Memory, weights: Weights, precision: Precision, num_threads: int
    ) -> None:
        shape = memory.shape
        assert precision in kernels.precisions
        assert kernels.fits(shape)
        self.precision: Precision = precision
        self.cache_type = "float32" if precision == "float32" else "bfloat16"
        self.description = f"compiled, {precision}, {num_threads} threads"
        self._kernels = kernels
        tensors = {name: np.ascontiguousarray(weights[name]) for name in _order(shape)}
        pointers = (c_void_p * len(tensors))(*(tensor.ctypes.data for tensor in tensors.values()))
        self._embeddings = tensors["wte.weight"], tensors["wpe.weight"]  # kept: the kernels read them in place
        packed = _Shape(
            shape.vocabulary, shape.window, shape.width, shape.layers, shape.heads, shape.inner, shape.epsilon
        )
        self._process = os.getpid()
        self._model: int = kernels.open(byref(packed), pointers, _CODES[precision], num_threads)
        if not self._model:
            raise KernelsUnavailable(
                f"there is no memory for the packed weights, or there are no {num_threads} threads"
            )
        self._memory = memory
        self._cache = _Cache(memory.keys.ctypes.data, memory.values.ctypes.data, memory.keys.shape[1])
        self._token_ids: NDArray[np.int32] = np.zeros((MOST_STEPS, len(memory.rows)), np.int32)
        self._logprobs: NDArray[np.float32] = np.zeros((MOST_STEPS, len(memory.rows)), np.float32)
        stride = memory.logits.shape[1]
        rows, logits = memory.rows.ctypes.data, memory.logits.ctypes.data
        self._pass = _Pass(rows=rows, secret=SECRET, logits=logits, logits_stride=stride)
        self._draw = _Draw(
            rows=rows,
            logits=logits,
            logits_stride=stride,
            bias=memory.bias.ctypes.data,
            seen=memory.seen.ctypes.data,
            row_bias=memory.row_bias.ctypes.data,
            forced=memory.forced.ctypes.data,
            window=shape.window,
            end_id=memory.end_id,
            token_ids=self._token_ids.ctypes.data,
            logprobs=self._logprobs.ctypes.data,
        )
        self._first = FirstDraw(memory)
        self._advance = _Advance(
            seconds=BURST_S, token_ids=self._token_ids.ctypes.data, logprobs=self._logprobs.ctypes.data
        )
        self._advance_at = byref(self._advance)
        self.num_shared = 0
        self._cache_at, self._pass_at, self._draw_at = byref(self._cache), byref(self._pass), byref(self._draw)

    def __del__(self) -> None:
        if getattr(self, "_model", None) and os.getpid() == self._process:  # a fork has none of the threads to wait for
            self._kernels.close(self._model)

    @property
    def num_threads_used(self) -> int:
        """Of the last step."""
        return int(self._kernels.threads(self._model))

    def _with_threads(self) -> int:
        """The model. Raises RuntimeError in a fork of its process."""
        if os.getpid() != self._process:
            raise RuntimeError("the kernels' threads do not survive a fork; open the model in the child")
        return self._model

    def forward(self, num_rows: int, prompts: PromptTokens) -> None:
        """Raises MemoryError when there is no room for the activations of so many tokens."""
        step, model = self._pass, self._with_threads()
        step.num_rows, step.num_read, step.num_last = num_rows, len(prompts.token_ids), len(prompts.last)
        if step.num_read:
            step.token_ids, step.positions = prompts.token_ids.ctypes.data, prompts.positions.ctypes.data
            step.slots, step.last = prompts.slots.ctypes.data, prompts.last.ctypes.data
            step.beginnings = prompts.beginnings.ctypes.data
        if not self._kernels.forward(model, self._cache_at, self._pass_at):
            raise MemoryError(f"no memory for a pass of {num_rows} rows and {step.num_read} prompt tokens")
        self.num_shared = int(step.num_shared)

    def advance(self, num_rows: int, most: int) -> list[tuple[list[int], list[float]]]:
        """Raises MemoryError when there is no room for the activations of so many rows."""
        step, draw, made = self._pass, self._draw, self._advance
        step.num_rows, step.num_read, step.num_last = num_rows, 0, 0
        draw.num_rows = draw.num_continuing = num_rows
        made.most = min(most, MOST_STEPS)
        asked = self._cache_at, self._pass_at, self._draw_at, self._advance_at
        if not self._kernels.advance(self._with_threads(), *asked):
            raise MemoryError(f"no memory for a pass of {num_rows} rows")
        self.num_shared, number = int(made.num_shared), int(made.num_steps)
        token_ids = self._token_ids.ravel()[: number * num_rows].reshape(number, num_rows).tolist()
        logprobs = self._logprobs.ravel()[: number * num_rows].reshape(number, num_rows).tolist()
        return list(zip(token_ids, logprobs, strict=True))

    def forget(self) -> None:
        self._kernels.forget(self._with_threads())

    def copy(self, copies: Sequence[Copy]) -> None:
        if copies:
            listed = array("i", chain.from_iterable(copies))
            self._kernels.copy(self._with_threads(), self._cache_at, listed.buffer_info()[0], len(copies))

    def draw(
        self, num_rows: int, num_continuing: int, prompt_slots: NDArray[np.int32]
    ) -> tuple[list[int], list[float]]:
        draw = self._draw
        draw.num_rows, draw.num_continuing = num_rows, num_continuing
        if num_continuing < num_rows:
            draw.prompt_slots = prompt_slots.ctypes.data
        self._kernels.draw(self._with_threads(), self._draw_at)
        return self._token_ids[0, :num_rows].tolist(), self._logprobs[0, :num_rows].tolist()

    def draw_first(self, request: GenerationRequest, samples: Sequence[int], slots: Sequence[int]) -> list[Pick]:
        """Raises MemoryError when there is no room for the branches."""
        if request.distinct_first or request.sampling.is_greedy:  # nothing is drawn
            return draw_among(self._memory, request, samples, slots)
        self._first.fill(request, samples, slots)
        outcome = self._kernels.draw_first(self._with_threads(), self._first.address)
        if outcome == FORBIDDEN:  # what stands there already is no word to forbid
            return self.draw_first(replace(request, bias=()), samples, slots)
        if outcome == EXHAUSTED:  # rare
            return draw_among(self._memory, request, samples, slots)
        return self._first.picks(outcome)


def _order(shape: Gpt2Shape) -> list[str]:
    """Names of the tensors as promptgen_open takes them."""
    layer = [
        f"{part}.{kind}"
        for part in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
        for kind in ("weight", "bias")
    ]
    outer = ["wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias"]
    return outer + [f"h.{index}.{name}" for index in range(shape.layers) for name in layer]
