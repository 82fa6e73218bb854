"""GPT-2 for serving, in torch: the implementation that needs no compiler, answers at once, and reads like the mathematics.

The same weights and the same mathematics as transformers' GPT2LMHeadModel (Radford et al. 2019, pre-norm blocks); a test holds greedy
output equal, token for token. Linear layers are packed once for oneDNN, which for a few rows is several times faster than the MKL
call behind torch.nn.functional.linear and fuses the activation; in int8 they are FBGEMM's, quantized for each column, activations as they
come.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from promptgen.generation.first_draw import draw_among
from promptgen.generation.memory import Memory
from promptgen.generation.modelfile import Weights
from promptgen.generation.request import GenerationRequest
from promptgen.generation.sampler import draw_rows
from promptgen.generation.steps import NO_TOKENS, NOTHING_TO_READ, Copy, Pick, Precision, PromptTokens

Linear = Callable[[Tensor], Tensor]  # [M, in] -> [M, out]


def make_linear(weight: Tensor, bias: Tensor | None, precision: Precision) -> Linear:
    """y = x @ weight + bias, `weight` [in, out] as GPT-2 stores it."""
    by_column = weight.t().contiguous()
    if precision == "int8":
        return _int8_linear(by_column, bias)
    if precision == "bfloat16":
        by_column, bias = by_column.bfloat16(), None if bias is None else bias.bfloat16()
        return lambda x: functional.linear(x.bfloat16(), by_column, bias).float()
    if weight.is_cuda or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return lambda x: functional.linear(x, by_column, bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(by_column)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def _int8_linear(by_column: Tensor, bias: Tensor | None) -> Linear:
    scales = by_column.abs().amax(dim=1).clamp_(min=1e-12).to(torch.float64) / 127
    zeros = torch.zeros(len(scales), dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # deprecated; torch is pinned
        quantized = torch.quantize_per_channel(by_column, scales, zeros, 0, torch.qint8)
    packed = torch.ops.quantized.linear_prepack(quantized, bias)
    return lambda x: torch.ops.quantized.linear_dynamic(x, packed, reduce_range=False)


class Block:
    """One layer's weights."""

    def __init__(self, weights: Mapping[str, Tensor], index: int, epsilon: float, precision: Precision) -> None:
        def tensor(name: str) -> Tensor:
            return weights[f"h.{index}.{name}"]

        def linear(name: str) -> Linear:
            return make_linear(tensor(f"{name}.weight"), tensor(f"{name}.bias"), precision)

        self._epsilon = epsilon
        self._norm_1 = tensor("ln_1.weight"), tensor("ln_1.bias")
        self._norm_2 = tensor("ln_2.weight"), tensor("ln_2.bias")
        self._mix, self._project = linear("attn.c_attn"), linear("attn.c_proj")
        self._up, self._down = linear("mlp.c_fc"), linear("mlp.c_proj")

    def split(self, hidden: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
        """[M, D] -> queries, keys, values, each [M, H, head_dim]."""
        mixed = self._mix(_norm(hidden, self._norm_1, self._epsilon)).view(len(hidden), 3, num_heads, -1)
        return mixed[:, 0], mixed[:, 1], mixed[:, 2]

    def finish(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """hidden [M, D] plus the projected attention result [M, D], plus the feed-forward layer of that."""
        hidden = hidden + self._project(attended)
        inner = functional.gelu(self._up(_norm(hidden, self._norm_2, self._epsilon)), approximate="tanh")
        return hidden + self._down(inner)


class EagerGpt2:
    """Steps in torch, on the device where memory and weights are. bfloat16 is for GPUs; the residual stream stays float32."""

    def __init__(self, memory: Memory, given: Weights, precision: Precision = "float32") -> None:
        """Weights as modelfile.read_weights gives them; they are used where they lie, as far as they are not packed."""
        shape = memory.shape
        weights = {name: self._tensor(array) for name, array in given.items()}
        self.precision: Precision = precision
        self.num_shared = 0
        self.description = f"torch, {precision}, {torch.get_num_threads()} threads"
        self._memory = memory
        self._keys, self._values = torch.as_tensor(memory.keys), torch.as_tensor(memory.values)
        self.cache_type = str(self._keys.dtype).removeprefix("torch.")
        self._logits = torch.as_tensor(memory.logits)
        self._tokens, self._positions = weights["wte.weight"], weights["wpe.weight"]
        self._norm = weights["ln_f.weight"], weights["ln_f.bias"]
        self._blocks = [Block(weights, index, shape.epsilon, precision) for index in range(shape.layers)]
        self._head = make_linear(self._tokens.t(), None, precision)

    def _tensor(self, array: NDArray[np.float32]) -> Tensor:
        return torch.as_tensor(array)

    @torch.inference_mode()
    def forward(self, num_rows: int, prompts: PromptTokens) -> None:
        rows, device = self._memory.rows[:num_rows], self._tokens.device
        rows["beginning"] = 0  # which these steps do not keep up
        places = [
            (rows["token_id"], prompts.token_ids),
            (rows["position"], prompts.positions),
            (np.arange(num_rows), prompts.slots),
            (np.arange(num_rows), num_rows + prompts.last),
        ]
        token_ids, positions, slots, asked = (torch.from_numpy(np.concatenate(pair)).to(device) for pair in places)
        longest = int(rows["position"].max()) + 1 if num_rows else 0
        hidden = self._through_blocks(token_ids, positions, slots, num_rows, longest, _stretches(num_rows, prompts))
        self._logits[slots[asked], : self._memory.shape.vocabulary] = self._logits_of(hidden[asked])

    def _through_blocks(
        self,
        token_ids: Tensor,
        positions: Tensor,
        slots: Tensor,
        num_rows: int,
        longest: int,
        stretches: list[tuple[slice, int, int]],
    ) -> Tensor:
        """Hidden states [M, D] of tokens [M]; the first `num_rows` are rows, all before position `longest`, the others are `stretches`."""
        hidden = self._tokens[token_ids] + self._positions[positions]
        for layer, block in enumerate(self._blocks):
            queries, keys, values = block.split(hidden, self._memory.shape.heads)
            self._keys[layer, slots, :, positions] = keys.to(self._keys.dtype)
            self._values[layer, slots, :, positions] = values.to(self._values.dtype)
            attended = torch.empty_like(queries)
            if num_rows:
                attended[:num_rows] = self._attend_rows(layer, queries[:num_rows], positions[:num_rows], longest)
            for span, slot, start in stretches:
                attended[span] = self._attend_prompt(layer, queries[span], slot, start)
            hidden = block.finish(hidden, attended.flatten(1))
        return hidden

    def _logits_of(self, hidden: Tensor) -> Tensor:
        return self._head(_norm(hidden, self._norm, self._memory.shape.epsilon))

    def forget(self) -> None:
        """Nothing is kept."""

    def copy(self, copies: Sequence[Copy]) -> None:
        self._memory.copy(copies)

    def draw(
        self, num_rows: int, num_continuing: int, prompt_slots: NDArray[np.int32]
    ) -> tuple[list[int], list[float]]:
        return draw_rows(self._memory, np.concatenate([np.arange(num_continuing), prompt_slots]))

    def advance(self, num_rows: int, most: int) -> list[tuple[list[int], list[float]]]:
        self.forward(num_rows, NOTHING_TO_READ)
        return [self.draw(num_rows, num_rows, NO_TOKENS)]

    def draw_first(self, request: GenerationRequest, samples: Sequence[int], slots: Sequence[int]) -> list[Pick]:
        return draw_among(self._memory, request, samples, slots)

    def _attend_rows(self, layer: int, queries: Tensor, positions: Tensor, longest: int) -> Tensor:
        """[R, H, head_dim]. A plain product over the slots: for one query a row it is several times cheaper than the flash kernel."""
        num_rows = len(queries)
        scale = self._memory.shape.head_dim**-0.5
        keys, values = self._keys[layer, :num_rows, :, :longest], self._values[layer, :num_rows, :, :longest]
        scores = (queries * scale).to(keys.dtype)[:, :, None] @ keys.transpose(2, 3)  # [R, H, 1, L]
        hide = (torch.arange(longest, device=positions.device) > positions[:, None])[:, None, None]
        # What lies beyond a row's position may be of an earlier tenant, but it is finite, and its weight is 0.
        weights = scores.float().masked_fill_(hide, float("-inf")).softmax(dim=-1)
        attended: Tensor = weights.to(values.dtype) @ values
        return attended[:, :, 0].float()

    def _attend_prompt(self, layer: int, queries: Tensor, slot: int, start: int) -> Tensor:
        """[T, H, head_dim] for a stretch of a prompt that starts at position `start`."""
        end = start + len(queries)
        keys, values = self._keys[layer, slot, :, :end], self._values[layer, slot, :, :end]
        place = torch.arange(end, device=queries.device)
        attended = functional.scaled_dot_product_attention(
            queries.transpose(0, 1)[None].to(keys.dtype),
            keys[None],
            values[None],
            attn_mask=place <= place[start:, None],
        )
        return attended[0].transpose(0, 1).float()


def _stretches(num_rows: int, prompts: PromptTokens) -> list[tuple[slice, int, int]]:
    """(tokens of the pass, slot, first position) of each prompt that is read."""
    slots = prompts.slots
    if not len(slots):
        return []
    starts = [0, *(np.flatnonzero(np.diff(slots)) + 1).tolist()]
    ends = [*starts[1:], len(slots)]
    return [
        (slice(num_rows + start, num_rows + end), int(slots[start]), int(prompts.positions[start]))
        for start, end in zip(starts, ends, strict=True)
    ]


def _norm(x: Tensor, weight_bias: tuple[Tensor, Tensor], epsilon: float) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], weight_bias[0], weight_bias[1], epsilon)
