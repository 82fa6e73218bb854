"""The same engine on a GPU: memory and weights live there, and a running batch is one CUDA graph with the draw inside.

A graph is captured for a bucket of rows and one of positions, the first time it is needed; between steps the host sends nothing but the launch and reads
the drawn tokens. Passes that read prompts, and draws of rows that just joined, run without a graph. bfloat16 products and cache, the rest
float32. Everything but the graphs runs on any device, which is how it is tested where there is no GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from promptgen.generation.gpt2 import EagerGpt2
from promptgen.generation.memory import Memory
from promptgen.generation.modelfile import Weights
from promptgen.generation.sampler import RowTensors, allowed_logits, proven, sample
from promptgen.generation.steps import Precision, PromptTokens

GRAPH_K = 64  # rows with a larger top_k are drawn outside the graph
POSITION_BUCKET = 64


class DeviceMemory(Memory):
    """A Memory whose large arrays are tensors of a device; the state of the rows stays with the host."""

    def __init__(self, *args: Any, device: torch.device, cache_dtype: torch.dtype, **options: Any) -> None:
        self.device, self._cache_dtype = device, cache_dtype
        super().__init__(*args, **options)

    def _zeros(self, size: tuple[int, ...], kind: str) -> Tensor:
        dtype = {"cache": self._cache_dtype, "float32": torch.float32, "uint8": torch.uint8}[kind]
        return torch.zeros(size, dtype=dtype, device=self.device)


@dataclass(slots=True, eq=False)
class _Bucket:
    """Static inputs and outputs of one graph: a step of `num_rows` rows, all before position `longest`."""

    num_rows: int
    longest: int
    token_ids: Tensor
    positions: Tensor
    rows: RowTensors
    graph: torch.cuda.CUDAGraph | None = None


def _suits_graph(rows: NDArray[np.void]) -> bool:
    """Whether the draw within a graph does all that these rows ask for."""
    is_special = rows["keeps_seen"] | rows["wants_logprob"] | rows["has_bias"] | rows["is_forced"]
    waits_to_end = (rows["end_ids"][:, 0] >= 0) & (rows["position"] + 1 < rows["end_from"])
    return not ((rows["top_k"] > GRAPH_K) | (is_special > 0) | waits_to_end).any()


class CudaGpt2(EagerGpt2):
    """Steps on a device, with graphs where it has them."""

    def __init__(self, memory: DeviceMemory, weights: Weights, precision: Precision = "bfloat16") -> None:
        self._device = memory.device
        super().__init__(memory, weights, precision)
        self.description = f"{memory.device.type}, {precision}"
        self._has_graphs = memory.device.type == "cuda"
        self._buckets: dict[tuple[int, int], _Bucket] = {}
        self._drawn: _Bucket | None = None  # what the last pass drew, if it did
        self._filled: tuple[_Bucket, int, int] | None = (
            None  # whose inputs are on the device, for which rows, as of which change
        )

    def _tensor(self, array: NDArray[np.float32]) -> Tensor:
        return torch.as_tensor(array).to(self._device)

    @torch.inference_mode()
    def forward(self, num_rows: int, prompts: PromptTokens) -> None:
        self._drawn = None
        rows = self._memory.rows[:num_rows]
        rows["beginning"] = 0
        if len(prompts.token_ids) or not num_rows or not _suits_graph(rows):
            super().forward(num_rows, prompts)
            return
        bucket = self._bucket(num_rows, int(rows["position"].max()) + 1)
        self._fill(bucket, num_rows)
        if bucket.graph is not None:
            bucket.graph.replay()
        else:
            self._step(bucket)
        self._drawn = bucket

    def draw(
        self, num_rows: int, num_continuing: int, prompt_slots: NDArray[np.int32]
    ) -> tuple[list[int], list[float]]:
        bucket, rows = self._drawn, self._memory.rows[:num_rows]
        if bucket is None or num_continuing < num_rows:
            self._filled = None  # the inputs are the host's again
            return super().draw(num_rows, num_continuing, prompt_slots)
        token_ids = bucket.token_ids[:num_rows].tolist()
        rows["position"] += 1
        rows["token_id"] = token_ids
        return token_ids, [0.0] * num_rows

    def _bucket(self, num_rows: int, longest: int) -> _Bucket:
        rows = min(1 << (num_rows - 1).bit_length(), len(self._memory.rows))
        window = self._memory.shape.window
        positions = min(-(-longest // POSITION_BUCKET) * POSITION_BUCKET, window)
        bucket = self._buckets.get((rows, positions))
        if bucket is None:
            template = self._memory.rows[:rows].copy()
            template["temperature"], template["top_k"] = 1, 1
            zeros = torch.zeros(rows, dtype=torch.int64, device=self._device)
            bucket = _Bucket(rows, positions, zeros.clone(), zeros.clone(), RowTensors.of(template, self._device))
            self._buckets[rows, positions] = bucket
            if self._has_graphs:
                self._capture(bucket)
        return bucket

    def _capture(self, bucket: _Bucket) -> None:
        keys, values = self._keys[:, : bucket.num_rows, :, 0].clone(), self._values[:, : bucket.num_rows, :, 0].clone()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._step(bucket)  # warm up: libraries allocate on first use
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step(bucket)
        bucket.graph = graph
        # The trial run wrote position 0 of every row.
        self._keys[:, : bucket.num_rows, :, 0], self._values[:, : bucket.num_rows, :, 0] = keys, values

    def _step(self, bucket: _Bucket) -> None:
        """Feeds the bucket's tokens, draws the next ones, and leaves them and their positions as the next inputs."""
        slots = torch.arange(bucket.num_rows, device=self._device)
        hidden = self._through_blocks(bucket.token_ids, bucket.positions, slots, bucket.num_rows, bucket.longest, [])
        logits = self._logits_of(hidden)
        self._logits[: bucket.num_rows, : self._memory.shape.vocabulary] = logits
        bucket.positions.add_(1)
        max_k = min(GRAPH_K, self._memory.shape.vocabulary)
        allowed = allowed_logits(logits, self._memory, bucket.rows, bucket.positions)
        bucket.token_ids.copy_(proven(sample(allowed, bucket.positions, bucket.rows, max_k), logits))

    def _fill(self, bucket: _Bucket, num_rows: int) -> None:
        """Writes the static inputs if they are not those that the bucket's last step left for the same rows."""
        filled = (bucket, num_rows, self._memory.num_changes)
        if self._filled is not None and self._filled == filled:
            return
        rows = np.zeros(bucket.num_rows, self._memory.rows.dtype)
        rows["temperature"], rows["top_k"] = 1, 1
        rows[:num_rows] = self._memory.rows[:num_rows]
        bucket.token_ids.copy_(torch.from_numpy(rows["token_id"]))
        bucket.positions.copy_(torch.from_numpy(rows["position"]))
        fresh = RowTensors.of(rows, self._device)
        for name in RowTensors.__slots__:
            getattr(bucket.rows, name).copy_(getattr(fresh, name))
        self._filled = filled
