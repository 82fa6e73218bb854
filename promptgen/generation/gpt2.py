"""GPT-2 for serving: one prefill for a batch of prompts, one decode step for all running rows.

The same weights and the same mathematics as transformers' GPT2LMHeadModel (Radford et al. 2019, pre-norm blocks); a test holds greedy
output equal, token for token. Linear layers are packed once for oneDNN, which for a few rows is several times faster than the MKL
call behind torch.nn.functional.linear and fuses the activation.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from promptgen.generation.kvcache import KVCache
from promptgen.generation.modelfile import Gpt2Shape, read_shape, read_weights


class Linear:
    """y = act(x @ weight + bias), `weight` [in, out] as GPT-2 stores it, packed for oneDNN where this torch can."""

    def __init__(self, weight: Tensor, bias: Tensor | None, *, gelu: bool = False) -> None:
        self._bias = bias
        self._gelu = gelu
        self._plain = weight.t().contiguous()
        self._packed: Tensor | None = None
        if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self._plain)
            self._plain = weight.new_empty(0)

    def __call__(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        if self._packed is not None:
            act, algorithm = ("gelu", "tanh") if self._gelu else ("none", "")
            y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, act, [], algorithm)
            return y
        y = functional.linear(x, self._plain, self._bias)
        return functional.gelu(y, approximate="tanh") if self._gelu else y


class Block:
    """One layer's weights. `split` gives queries, keys, values; `join` and `feed` add to the residual stream."""

    def __init__(self, weights: dict[str, Tensor], index: int, shape: Gpt2Shape) -> None:
        def tensor(name: str) -> Tensor:
            return weights[f"h.{index}.{name}"]

        self._shape = shape
        self._norm_1 = tensor("ln_1.weight"), tensor("ln_1.bias")
        self._norm_2 = tensor("ln_2.weight"), tensor("ln_2.bias")
        self._attn = Linear(tensor("attn.c_attn.weight"), tensor("attn.c_attn.bias"))
        self._proj = Linear(tensor("attn.c_proj.weight"), tensor("attn.c_proj.bias"))
        self._up = Linear(tensor("mlp.c_fc.weight"), tensor("mlp.c_fc.bias"), gelu=True)
        self._down = Linear(tensor("mlp.c_proj.weight"), tensor("mlp.c_proj.bias"))

    def split(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, T, D] -> queries, keys, values, each [B, H, T, head_dim]."""
        batch, length, _ = hidden.shape
        mixed = self._attn(_norm(hidden, self._norm_1, self._shape.epsilon))
        heads = mixed.view(batch, length, 3, self._shape.heads, self._shape.head_dim).permute(2, 0, 3, 1, 4)
        return heads[0], heads[1], heads[2]

    def join(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """hidden [B, T, D] plus the projected attention result [B, H, T, head_dim]."""
        return hidden + self._proj(attended.transpose(1, 2).reshape(hidden.shape))

    def feed(self, hidden: Tensor) -> Tensor:
        return hidden + self._down(self._up(_norm(hidden, self._norm_2, self._shape.epsilon)))


class Gpt2:
    """A GPT-2 ready to serve. Not thread-safe: one engine thread owns it."""

    def __init__(self, shape: Gpt2Shape, weights: dict[str, Tensor]) -> None:
        self.shape = shape
        self._tokens, self._positions = weights["wte.weight"], weights["wpe.weight"]
        self._norm = weights["ln_f.weight"], weights["ln_f.bias"]
        self._blocks = [Block(weights, index, shape) for index in range(shape.layers)]
        self._head = Linear(self._tokens.t(), None)

    @classmethod
    def load(cls, folder: Path | str) -> Gpt2:
        """Raises FileFault naming the file that is missing, damaged or foreign."""
        shape = read_shape(Path(folder))
        return cls(shape, read_weights(Path(folder), shape))

    def new_cache(self, max_rows: int) -> KVCache:
        shape = self.shape
        return KVCache(
            num_layers=shape.layers,
            max_rows=max_rows,
            num_heads=shape.heads,
            window=shape.window,
            head_dim=shape.head_dim,
        )

    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
        """Reads prompts together: logits [P, V] after each one's last token, and keys, values [layers, P, H, T, head_dim].

        Shorter prompts are padded on the right; causal attention keeps what follows a token from touching it.
        """
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        longest = int(lengths.max())
        token_ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            token_ids[row, : len(prompt)] = torch.tensor(prompt)
        hidden = self._tokens[token_ids] + self._positions[:longest]
        keys, values = [], []
        for block in self._blocks:
            query, key, value = block.split(hidden)
            keys.append(key)
            values.append(value)
            hidden = block.feed(
                block.join(hidden, functional.scaled_dot_product_attention(query, key, value, is_causal=True))
            )
        last = hidden[torch.arange(len(prompts)), lengths - 1]
        return self._logits(last), torch.stack(keys), torch.stack(values)

    def decode(self, token_ids: Tensor, positions: Tensor, cache: KVCache, longest: int) -> Tensor:
        """One step of rows 0..R-1: feeds token_ids [R] at positions [R] (all under `longest`), returns logits [R, V].

        Keys and values of this step are written to the cache. Attention is a plain product over the slots: for one query a row it is
        several times cheaper than the flash kernel.
        """
        num_rows = len(token_ids)
        rows = torch.arange(num_rows)
        hidden = (self._tokens[token_ids] + self._positions[positions])[:, None]
        hide = (torch.arange(longest) > positions[:, None])[:, None, None]  # [R, 1, 1, L]
        scale = self.shape.head_dim**-0.5
        for block, all_keys, all_values in zip(self._blocks, cache.keys, cache.values, strict=True):
            query, key, value = block.split(hidden)
            all_keys[rows, :, positions] = key[:, :, 0]
            all_values[rows, :, positions] = value[:, :, 0]
            scores = (query * scale) @ all_keys[:num_rows, :, :longest].transpose(2, 3)  # [R, H, 1, L]
            weights = scores.masked_fill_(hide, float("-inf")).softmax(dim=-1)
            # What lies beyond a row's position may be anything, NaN included, and 0 * NaN is NaN: KVCache starts at zero.
            hidden = block.feed(block.join(hidden, weights @ all_values[:num_rows, :, :longest]))
        return self._logits(hidden[:, 0])

    def _logits(self, hidden: Tensor) -> Tensor:
        return self._head(_norm(hidden, self._norm, self.shape.epsilon))


def _norm(x: Tensor, weight_bias: tuple[Tensor, Tensor], epsilon: float) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], weight_bias[0], weight_bias[1], epsilon)
